r"""Plots the mean loss over all RoIs of one or several trainings, as in the OHEM paper's Figure 2.

    python tools/plot_roi_loss.py output/vgg16_fast_rcnn/voc_2007_trainval output/vgg16_ohem/voc_2007_trainval

plots what train_from_prototxt.py --roi_loss has recorded there (a folder, or one *_roi_loss.json). With --solver the
losses are first computed from a folder's snapshots, and recorded like those:

    python tools/plot_roi_loss.py output/vgg16_ohem/voc_2007_trainval --solver prototxt/zoo/vgg16/ohem/solver.prototxt \
        --imdb voc_2007_trainval --roi_loss 200
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import _cli
from rich.table import Table
from tqdm import tqdm

from converters.extras import library
from ohem_caffe_port.data.roidb import get_training_roidb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.roi_loss import Curve, RoiLoss, load_unnormalized, snapshots
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.train import Trainer, settle_mining
from prototxt import CaffePortError
from prototxt.files import replacing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="output folder of a training, or a *_roi_loss.json")
    parser.add_argument("--solver", metavar="FILE", help="compute from snapshots of this solver in the only RUN")
    parser.add_argument("--roi_loss", type=int, default=0, metavar="N", help="on so many training images [all]")
    _cli.add_common_options(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.roi_loss < 0:
        raise PortError(f"--roi_loss must not be negative, not {args.roi_loss}")
    if args.solver:
        if len(args.runs) > 1 or not Path(args.runs[0]).is_dir():
            raise PortError("--solver takes one output folder", file=args.runs[-1], hint="one call for each training")
        curves = [measured(args, Path(args.runs[0]))]
    else:
        curves = [curve for run in args.runs for curve in recorded(Path(run))]
    output = _cli.output_folder(args.output or curves[0].path.parent)
    show(curves)
    try:
        draw(curves, output / "roi_loss.png")
        print(f"curves: {output / 'roi_loss.png'}")
    except CaffePortError as error:
        _cli.show([f"no curves are drawn: {error}"])
    return 0


def recorded(run: Path) -> list[Curve]:
    """The curves of a file, or of all such files of a folder."""
    paths = sorted(run.glob(f"*{Curve.ENDING}")) if run.is_dir() else [run]
    if not paths:
        raise PortError(
            f"no *{Curve.ENDING} is there", file=run,
            hint="train with --roi_loss, or compute it from snapshots with --solver",
        )  # fmt: skip
    return [Curve.read(path) for path in paths]


def measured(args, folder: Path) -> Curve:
    """The curve of the snapshots in a folder, computed and recorded there."""
    cfg = _cli.load_config(args, args.solver)
    device = _cli.pick_device(args)
    solver = Solver(args.solver, cfg=cfg, device=device, lenient=args.lenient)
    _cli.show([*solver.warnings, *solver.net.warnings, *settle_mining(solver.net, cfg)])
    name = args.imdb or cfg.TRAIN.IMDB or "voc_2007_trainval"
    roidb = get_training_roidb(imdb := _cli.open_imdb(args, cfg, name, cfg.TRAIN.PROPOSAL_METHOD), cfg)
    trainer = Trainer(solver, roidb, cfg, folder)
    models = snapshots(folder, trainer.prefix.name)
    if not models:
        raise PortError(f"no snapshot {trainer.prefix.name}_iter_*.caffemodel is there", file=folder)
    roi_loss = RoiLoss(solver.net, roidb, args.roi_loss)
    about = {"net": solver.net.name, "imdb": imdb.name, "images": roi_loss.images, "rois": roi_loss.rois}
    curve = Curve(trainer.prefix.with_name(trainer.prefix.name + Curve.ENDING), about)
    curve.follow(curve.path, max(models))
    for iteration, model in tqdm(models.items(), unit="snapshot", dynamic_ncols=True, disable=not sys.stderr.isatty()):
        load_unnormalized(solver.net, model, trainer.means, trainer.stds)
        curve.add(iteration, roi_loss())
    return curve


def labels(curves: list[Curve]) -> list[str]:
    """A name for each: of its file, with the folder where several are alike."""
    names = [curve.path.name.removesuffix(Curve.ENDING) for curve in curves]
    return [name if names.count(name) == 1 else str(curve.path.parent / name)
            for name, curve in zip(names, curves, strict=True)]  # fmt: skip


def show(curves: list[Curve]) -> None:
    """One column for each curve, one line for each iteration."""
    if any(curve.about | {"net": ""} != curves[0].about | {"net": ""} for curve in curves):
        _cli.show(["these losses are of different images; they do not compare"])
    about = curves[0].about
    print(f"mean loss over all {about['rois']} RoIs of {about['images']} images of {about['imdb']}")
    table = Table()
    table.add_column("iteration", justify="right")
    for name in labels(curves):
        table.add_column(name, justify="right")
    for iteration in sorted({i for curve in curves for i in curve.points}):
        cells = (f"{curve.points[iteration]:.4f}" if iteration in curve.points else "" for curve in curves)
        table.add_row(str(iteration), *cells)
    _cli.console().print(table)


def draw(curves: list[Curve], path: Path) -> None:
    """Raises: CaffePortError: matplotlib is not installed."""
    library("matplotlib", "plots").use("Agg")
    plt = library("matplotlib.pyplot", "plots")
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, curve in zip(labels(curves), curves, strict=True):
        points = sorted(curve.points.items())
        axes.plot([i for i, _ in points], [loss for _, loss in points], marker=".", linewidth=1.4, label=name)
    axes.set(xlabel="iteration", ylabel="mean loss over all RoIs")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    _cli.run(main)
