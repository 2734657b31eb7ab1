"""A whole training iteration of VGG_CNN_M_1024 on a CPU against its convolutions and matrix products alone, called bare
in torch, forward and backward, in one run. The ratio is what everything else costs: data, RoI pooling, mining,
normalisation, dropout, the update.

python benchmarks/iteration.py                               # OHEM and Fast R-CNN, one thread and two
python benchmarks/iteration.py --recipes vgg16/ohem --threads 2 --repeats 3

The bare ones are called twice: by torch's own `conv2d` and `linear`, and with `ops.linear` in the place of `linear`,
which is the faster routine on some processors. What Caffe took for the same iteration, with one thread and good BLAS
kernels, was measured on another day: its ratio says less than the others.
"""

from __future__ import annotations

import argparse
import json

import torch
from _nets import build, find
from _timing import in_own_process, medians, peak_memory
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from ohem_caffe_port.memory import keep_freed_memory
from ohem_caffe_port.ops.linear import linear
from prototxt import CaffePortError

CAFFE_SECONDS = {"vgg_cnn_m_1024/ohem": 7.5, "vgg_cnn_m_1024/fast_rcnn": 3.6}  # 600 x 800, 2,000 and 64 RoIs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(CAFFE_SECONDS), metavar="FAMILY/RECIPE",
                        help=f"of the zoo [{' '.join(CAFFE_SECONDS)}]")  # fmt: skip
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of torch [1 2]")
    parser.add_argument("--rois", type=int, default=2000, help="of the image [2000]")
    parser.add_argument("--height", type=int, default=600, help="of the image in pixels [600]")
    parser.add_argument("--width", type=int, default=800, help="[800]")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts [5]")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # of a process whose memory is measured
    args = parser.parse_args()
    for name in ("rois", "height", "width", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if min(args.threads) < 1:
        parser.error("--threads must be at least 1")
    try:
        for recipe in args.recipes:
            find(recipe)
    except CaffePortError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse_args()
    keep_freed_memory()
    if args.memory_of:
        torch.set_num_threads(args.threads[0])
        solver = prepare(args, args.memory_of)
        solver.step(2)
        print(json.dumps({"bytes": peak_memory("cpu")}))
        return
    table = Table("threads", "net", "iteration", "bare", "ratio", "bare, ops.linear", "ratio", "memory", "Caffe's time")
    gaps = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for recipe in args.recipes:
            solver = prepare(args, recipe)
            products = Products(solver.net)
            gaps.append(products.gap())
            ways = solver.step, lambda p=products: p.run(F.linear), lambda p=products: p.run(linear)
            for way in ways:  # warms up
                way()
            whole, bare, best = medians(*ways, repeats=args.repeats)
            size = ["--rois", args.rois, "--height", args.height, "--width", args.width]
            memory = in_own_process(__file__, "--memory-of", recipe, "--threads", threads, *size)["bytes"]
            caffe = CAFFE_SECONDS.get(recipe) if (args.rois, args.height, args.width) == (2000, 600, 800) else None
            table.add_row(
                str(threads), recipe, f"{whole:.2f} s", f"{bare:.2f} s", f"{whole / bare:.2f}", f"{best:.2f} s",
                f"{whole / best:.2f}", f"{memory / 1e9:.2f} GB", f"{caffe / whole:.2f} times" if caffe else "?",
            )  # fmt: skip
    Console(width=120).print(f"{args.height} x {args.width}, {args.rois} RoIs, iter_size 1, torch {torch.__version__}")
    Console(width=120).print(table)
    print(f"ops.linear against torch's linear: largest relative difference {max(gaps):.1e}")


def prepare(args, recipe: str):
    """The recipe's solver, after one iteration."""
    size = {"rois": args.rois, "height": args.height, "width": args.width}
    solver = build(recipe, settings=["TRAIN.USE_FLIPPED", "False"], **size)
    solver.step()
    return solver


class Products:
    """The convolutions and inner products of one iteration of a net, on random inputs of the same shapes: each with
    the gradients that the net asks for."""

    def __init__(self, net):
        self.calls = []
        hooks = [layer.register_forward_pre_hook(self._note) for layer in net.layers
                 if layer.type in ("Convolution", "InnerProduct")]  # fmt: skip
        net()
        for hook in hooks:
            hook.remove()

    def _note(self, layer, arguments):
        x = arguments[0][0]
        product = torch.randn(x.shape if layer.type == "Convolution" else (len(x), x[0].numel()))
        weights = list(layer.blobs)
        learns = torch.is_grad_enabled()
        wanted = [product.requires_grad_()] if learns and x.requires_grad else []
        wanted += [w for w in weights if learns and w.requires_grad]
        self.calls.append((layer, product, weights, wanted))

    def run(self, inner_product) -> list[torch.Tensor]:
        """All of them, forward and, where there is something to learn, backward; returns the last outputs' values."""
        outputs = []
        for layer, x, weights, wanted in self.calls:
            with torch.set_grad_enabled(bool(wanted)):
                y = self._call(layer, x, weights, inner_product)
            if wanted:
                torch.autograd.grad(y, wanted, torch.ones_like(y))
            outputs.append(y.detach()[:1])
        return outputs

    @staticmethod
    def _call(layer, x, weights, inner_product):
        if layer.type == "InnerProduct":
            return inner_product(x, *weights)
        group = layer.param.convolution_param.group
        return F.conv2d(x, *weights, stride=layer.stride, padding=layer.pad, dilation=layer.dilation, groups=group)

    def gap(self) -> float:
        """Largest difference between the two ways' first rows, relative to their largest value."""
        pairs = zip(self.run(F.linear), self.run(linear), strict=True)
        return max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)


if __name__ == "__main__":
    main()
