"""What OHEM's second branch saves: forward and backward of all RoIs in one branch (the naive way), its time divided by
that of a read-only branch over all RoIs and one over the hard ones, in one run.

python benchmarks/two_branch.py                                  # both nets; VGG16 takes minutes on a CPU
python benchmarks/two_branch.py --net vgg_cnn_m_1024 --repeats 5
python benchmarks/two_branch.py --device cuda --repeats 20

The nets are the zoo's `ohem` and `ohem_naive`, with the same weights, on the same minibatch. Dropout is left out of
both: two branches draw masks of their own, so that gradients could not be compared. The first pass of each way warms it
up; its gradients are compared. Peak memory is of a process of its own that makes the net and one pass (on a GPU:
what torch allocated there).
"""

from __future__ import annotations

import argparse
import json
import subprocess

import torch
from _nets import Repeated, build, data_layer
from _timing import check_device, in_own_process, medians, peak_memory
from rich.console import Console
from rich.table import Table

from ohem_caffe_port.memory import keep_freed_memory
from prototxt import CaffePortError

WAYS = {"ohem": "two branches", "ohem_naive": "one branch"}
AIMS = {"vgg_cnn_m_1024": 2.0, "vgg16": 1.5}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=list(AIMS), metavar="FAMILY",
                        help=f"families of the zoo [{' '.join(AIMS)}]")  # fmt: skip
    parser.add_argument("--images", type=int, default=2, help="of a minibatch [2]")
    parser.add_argument("--rois", type=int, default=4000, help="of all images [4000]")
    parser.add_argument("--batch-size", type=int, default=128, help="hard RoIs of all images [128]")
    parser.add_argument("--height", type=int, default=600, help="of the images in pixels [600]")
    parser.add_argument("--width", type=int, default=1000, help="[1000]")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts [3]")
    parser.add_argument("--device", default="cpu", help="[cpu]")
    parser.add_argument("--no-memory", action="store_true", help="leave out the processes that measure memory")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)  # of a process whose memory is measured
    args = parser.parse_args()
    for name in ("images", "rois", "batch_size", "height", "width", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.rois % args.images:
        parser.error(f"--rois {args.rois} cannot be shared by {args.images} images")
    check_device(parser, args.device)
    args.parser = parser
    return args


def main() -> None:
    args = parse_args()
    keep_freed_memory()  # as the training tool does
    try:
        if args.way:
            Pass(args.net[0], args.way, args)()
            print(json.dumps({"memory": peak_memory(args.device)}))
            return
        where = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "CPU"
        print(f"{args.images} images of {args.height} x {args.width}, {args.rois} RoIs, {args.batch_size} hard ones; "
              f"{where}, {torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
        for family in args.net:
            compare(family, args)
    except (CaffePortError, torch.OutOfMemoryError, subprocess.CalledProcessError) as error:
        args.parser.error(str(error))


def compare(family: str, args: argparse.Namespace) -> None:
    """Prints the table of one family of nets."""
    two, one = (Pass(family, way, args) for way in WAYS)
    one.sees_the_same_as(two)
    losses = [run() for run in (two, one)]  # warms both up
    hard = [run.hard_rois() for run in (two, one)]
    gap, worst = two.gradient_gap(one)
    seconds = medians(two, one, repeats=args.repeats)
    del two, one
    table = Table(title=family)
    for column in ("", "forward, backward", "peak memory", "loss"):
        table.add_column(column, justify="right" if column else "left")
    memory = [0 if args.no_memory else peak(family, way, args) for way in WAYS]
    for way, spent, most, loss in zip(WAYS, seconds, memory, losses, strict=True):
        table.add_row(WAYS[way], f"{spent:.3f} s", f"{most / 1e9:.2f} GB" if most else "-", f"{loss:.6f}")
    Console(width=100).print(table)
    aim = f" (aim {AIMS[family]:.1f})" if family in AIMS else ""
    more = f", memory {memory[1] / memory[0]:.2f}" if all(memory) else ""
    print(f"{family}: one branch / two: time {seconds[1] / seconds[0]:.2f}{aim}{more}; "
          f"the same {len(hard[0])} hard RoIs: {'yes' if hard[0] == hard[1] else 'no'}; "
          f"largest relative difference of a gradient {gap:.1e}, of {worst}")  # fmt: skip


def peak(family: str, way: str, args: argparse.Namespace) -> int:
    """Bytes, in a process of its own."""
    sizes = [f"--{name}={getattr(args, name.replace('-', '_'))}"
             for name in ("images", "rois", "batch-size", "height", "width", "device")]  # fmt: skip
    return in_own_process(__file__, "--net", family, "--way", way, *sizes)["memory"]


class Pass:
    """One way's net; a call is one forward and backward from zero gradients, and returns the loss."""

    def __init__(self, family: str, way: str, args: argparse.Namespace):
        self.net = build(
            f"{family}/{way}", images=args.images, rois=args.rois // args.images, batch_size=args.batch_size,
            height=args.height, width=args.width, device=args.device, dropout=0,
        ).net  # fmt: skip
        self.data = data_layer(self.net)
        self.data.loader = Repeated(self.data.loader.next_minibatch())

    @torch.no_grad()
    def sees_the_same_as(self, other: Pass) -> None:
        """Takes over its weights and its minibatch."""
        self.data.loader = other.data.loader
        for name, blobs in self.net.params.items():
            for mine, its in zip(blobs, other.net.params[name], strict=True):
                mine.copy_(its)

    def __call__(self) -> float:
        for learnable in self.net.learnable_params:
            learnable.blob.grad = None
        self.net()
        self.net.backward()
        loss = float(self.net.loss.detach())
        if self.net.device.type == "cuda":
            torch.cuda.synchronize()
        return loss

    def hard_rois(self) -> set[int]:
        return set(next(layer for layer in self.net.layers if hasattr(layer, "select")).hard_inds.tolist())

    def gradient_gap(self, other: Pass) -> tuple[float, str]:
        """The largest relative difference of a gradient in the last passes, and the layer that has it.

        Relative is the largest difference within a parameter over its gradient's largest magnitude."""
        gaps = [
            (float((mine.grad - its.grad).abs().max() / its.grad.abs().max()), name)
            for name, blobs in other.net.params.items()
            for mine, its in zip(self.net.params[name], blobs, strict=True)
            if its.grad is not None or mine.grad is not None
        ]
        return max(gaps)


if __name__ == "__main__":
    main()
