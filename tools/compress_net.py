r"""Compress fully connected layers of a net by truncated SVD, as Fast R-CNN does with fc6 and fc7.

    python tools/compress_net.py --def test.prototxt --net vgg16.caffemodel --ranks fc6=1024 fc7=256
    python tools/compress_net.py --def models/VGG16/test.prototxt --def-svd models/VGG16/compressed/test.prototxt \
        --net vgg16.caffemodel

Both write vgg16_svd_fc6_1024_fc7_256.caffemodel. The first writes a test.prototxt for it, too, under the same name; the
second takes the layers fc6_L, fc6_U, fc7_L, fc7_U and their ranks from the prototxt of the compressed net. With --test
both nets are tested on a data set, and what compression gains and costs is printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import _cli
import torch
from rich.table import Table
from tqdm import tqdm

from converters import write_caffemodel
from ohem_caffe_port.compress import Compressed, check_ranks, compress, low_rank_net, ranks_of
from ohem_caffe_port.data.imdb import UnionImdb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import VocResult
from ohem_caffe_port.net import Net
from ohem_caffe_port.results import evaluate_results, write_results
from ohem_caffe_port.testing import test_net
from ohem_caffe_port.weights import LOADED, copy_from, to_caffemodel
from prototxt import read_net, write_text

DEFAULT_IMDB = "voc_2007_test"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--def", dest="prototxt", required=True, metavar="FILE", help="test prototxt")
    parser.add_argument("--def-svd", dest="prototxt_svd", metavar="FILE", help="prototxt of the compressed net")
    parser.add_argument("--net", dest="caffemodel", required=True, metavar="FILE", help="weights")
    parser.add_argument(
        "--ranks", nargs="+", default=[], metavar="LAYER=RANK", help="without --def-svd: singular values to keep"
    )
    parser.add_argument("--test", action="store_true", help="test both nets on the data set: AP, seconds per image")
    _cli.add_common_options(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if bool(args.ranks) == bool(args.prototxt_svd):
        raise PortError("give either --ranks LAYER=RANK ... or --def-svd FILE", hint="VGG16: --ranks fc6=1024 fc7=256")
    cfg = _cli.load_config(args, args.prototxt)
    device = _cli.pick_device(args) if args.test else "cpu"
    options = {"cfg": cfg, "device": device, "lenient": args.lenient}
    whole = Net(args.prototxt, "TEST", **options)
    _cli.show(whole.warnings)
    generated = None
    if args.ranks:
        ranks = parse_ranks(args.ranks)
        check_ranks(whole, ranks)
        generated = low_rank_net(read_net(args.prototxt, lenient=args.lenient), ranks)
        low = Net(generated, "TEST", path=args.prototxt, **options)
    else:
        low = Net(args.prototxt_svd, "TEST", **options)
        ranks = ranks_of(whole, low)
    load(whole, low, args.caffemodel, ranks)
    imdb = open_test_set(args, cfg, whole) if args.test else None
    output = _cli.output_folder(args.output or Path(args.caffemodel).parent)
    done = []
    for name in ranks:
        started = time.perf_counter()
        layer = compress(whole, low, name)
        done.append((layer, time.perf_counter() - started))
        print(f"{name}: rank {layer.rank}, {done[-1][1]:.1f} s")
    stem = "".join(f"_{name.replace('/', '-')}_{rank}" for name, rank in ranks.items())
    model = output / f"{Path(args.caffemodel).stem}_svd{stem}.caffemodel"
    write_caffemodel(model, to_caffemodel(low))
    if generated is not None:
        write_text(generated, model.with_suffix(".prototxt"))
    print_layers(done)
    print(f"{model}; its net: {model.with_suffix('.prototxt') if args.ranks else args.prototxt_svd}")
    if imdb is not None:
        compare(whole, low, imdb, cfg)
    return 0


def parse_ranks(texts: list[str]) -> dict[str, int]:
    """``{"fc6": 1024}`` of ``["fc6=1024"]``.

    Raises:
        PortError: another form, or a layer twice.
    """
    ranks = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not number.isascii() or not number.isdigit() or name in ranks:
            why = "names a layer twice" if name in ranks else "expected LAYER=RANK, as fc6=1024"
            raise PortError(f"--ranks {text}: {why}")
        ranks[name] = int(number)
    return ranks


def load(whole: Net, low: Net, path: str, ranks: dict[str, int]) -> None:
    """Loads both nets.

    Raises:
        PortError: the file lacks a layer that is to be compressed.
    """
    report = copy_from(whole, path)
    print(report.summary())
    verdicts = {layer: verdict for layer, _, verdict in report.rows}
    for name in ranks:
        if verdicts[name] != LOADED:
            raise PortError(f"layer '{name}' is {verdicts[name]}: there is nothing to compress", file=path)
    halves = {name + suffix for name in ranks for suffix in ("_L", "_U")}
    if set(low.params) - halves:
        rows = copy_from(low, path).rows
        unset = [layer for layer, _, verdict in rows if verdict == "not in the file" and layer not in halves]
        if unset:
            _cli.show([f"these layers keep their initial values: {', '.join(unset)}"])


def print_layers(done: list[tuple[Compressed, float]]) -> None:
    table = Table(title="compressed layers")
    table.add_column("layer")
    for name in ("outputs x inputs", "rank", "weights after / before", "error of the weight", "seconds"):
        table.add_column(name, justify="right")
    for layer, seconds in done:
        size = f"{layer.outputs} x {layer.inputs}"
        table.add_row(layer.layer, size, str(layer.rank), f"{layer.ratio:.3f}", f"{layer.error:.4f}", f"{seconds:.1f}")
    _cli.console().print(table)
    larger = [layer.layer for layer, _ in done if layer.ratio >= 1]
    if larger:
        _cli.show([f"these layers do not get smaller at this rank: {', '.join(larger)}"])


# ---- --test


def open_test_set(args, cfg, net: Net):
    """The data set that ``--test`` is about.

    Raises:
        PortError: it is several, or has no public ground truth.
    """
    method = "gt" if "im_info" in net.inputs else cfg.TEST.PROPOSAL_METHOD
    imdb = _cli.open_imdb(args, cfg, args.imdb or cfg.TEST.IMDB or DEFAULT_IMDB, method)
    if isinstance(imdb, UnionImdb):
        raise PortError(f"'{imdb.name}' is several data sets", field="--imdb", hint="test on one after the other")
    if not getattr(imdb, "has_ground_truth", False):
        raise PortError(f"{imdb.name} has no public ground truth to test against", field="--imdb")
    return imdb


def compare(whole: Net, low: Net, imdb, cfg) -> None:
    """Tests both nets and prints what they find, how long they take, and how large they are."""
    table = Table(title=f"on {imdb.name}")
    table.add_column("net")
    for name in ("AP", "seconds for an image, in the net", "whole", "weights"):
        table.add_column(name, justify="right")
    measured = [measure(net, imdb, cfg, what) for net, what in ((whole, "as it was"), (low, "compressed"))]
    for what, net, (ap, inside, overall) in zip(("as it was", "compressed"), (whole, low), measured, strict=True):
        size = sum(p.blob.numel() for p in net.learnable_params)
        table.add_row(what, f"{ap:.4f}", f"{inside:.4f}", f"{overall:.4f}", f"{size:,}")
    (ap, inside, overall), (low_ap, low_inside, low_overall) = measured
    ratios = f"{inside / low_inside:.2f} times", f"{overall / low_overall:.2f} times"
    table.add_section()
    table.add_row("difference", f"{low_ap - ap:+.4f}", *ratios, "")
    _cli.console().print(table)


def measure(net: Net, imdb, cfg, what: str) -> tuple[float, float, float]:
    """Mean AP; seconds for an image, in the net and overall."""
    clock = Clock(net)
    with tqdm(total=imdb.num_images, desc=what, unit="image", dynamic_ncols=True, disable=None) as bar:
        started = clock.now()
        all_boxes = test_net(net, imdb, cfg, on_image=lambda *_: bar.update())
        overall = clock.now() - started
    with tempfile.TemporaryDirectory() as folder:
        write_results(folder, all_boxes, imdb)
        result = evaluate_results(folder, imdb)
    ap = result.mean if isinstance(result, VocResult) else next(iter(result.stats.values()))
    return ap, clock.inside / imdb.num_images, overall / imdb.num_images


class Clock:
    """Seconds: of this process on a CPU, where others may keep it waiting; of the clock on the wall on a GPU.
    ``inside``: those that ``net`` runs for."""

    def __init__(self, net: Net):
        self.device, self.inside, self._started = net.device, 0.0, 0.0
        net.register_forward_pre_hook(self._start)
        net.register_forward_hook(self._stop)

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _start(self, *_) -> None:
        self._started = self.now()

    def _stop(self, *_) -> None:
        self.inside += self.now() - self._started


if __name__ == "__main__":
    _cli.run(main)
