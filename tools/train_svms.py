"""Train an SVM for each class on a detector's features, with offline hard negative mining: R-CNN's way, and what OHEM
replaced.

python tools/train_svms.py --def test.prototxt --net snapshot.caffemodel --imdb voc_2007_trainval
python tools/test_from_prototxt.py --def test.prototxt --net snapshot_svm.caffemodel --set TEST.SVM True --det_thresh -2

Needs scikit-learn: pip install 'ohem_caffe_port[svm]'.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import _cli
from rich.table import Table
from tqdm import tqdm

from converters import write_caffemodel
from converters.extras import library
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.svm import SCORES, SvmSettings, SvmTrainer
from ohem_caffe_port.weights import NOT_IN_FILE, copy_from, to_caffemodel
from prototxt.files import replacing

DEFAULT_IMDB = "voc_2007_trainval"  # train_svms.py's own
SETTINGS = {  # option: field of SvmSettings, what it is, least value
    "C": ("C", "weight of the hinge losses", 0),
    "B": ("bias", "the constant feature that the bias is the weight of", 0),
    "pos_weight": ("pos_weight", "weight of a positive against a negative", 0),
    "retrain": ("retrain_after", "new negatives after which a class is trained again", 0),
    "neg_iou": ("neg_iou", "negatives overlap objects of the class by less", 0),
    "evict": ("evict_below", "after training, negatives with lower scores leave the cache", None),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--def", dest="prototxt", required=True, metavar="FILE", help="test prototxt")
    parser.add_argument("--net", dest="caffemodel", required=True, metavar="FILE", help="weights of the detector")
    parser.add_argument("--feature", metavar="BLOB", help=f"blob of features [what the layer of {SCORES} reads]")
    parser.add_argument("--json", metavar="FILE", help="write the numbers of every training of every class there")
    defaults = SvmSettings()
    for option, (name, what, _) in SETTINGS.items():
        default = getattr(defaults, name)
        parser.add_argument(f"--{option}", type=type(default), default=default, help=f"{what} [{default}]")
    _cli.add_common_options(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    settings = settings_of(args)
    library("sklearn.svm", "svm")  # now, and not after an hour of features
    if args.json and (Path(args.json).is_dir() or not Path(args.json).absolute().parent.is_dir()):
        raise PortError("no file can be written there", file=args.json, field="--json", hint="name a file in a folder")
    cfg = _cli.load_config(args, args.prototxt)
    net = Net(args.prototxt, "TEST", cfg=cfg, device=_cli.pick_device(args), lenient=args.lenient)
    _cli.show(net.warnings)
    report = copy_from(net, args.caffemodel)
    print(report.summary())
    output = _cli.output_folder(args.output or Path(args.caffemodel).parent)
    imdb = _cli.open_imdb(args, cfg, args.imdb or cfg.TRAIN.IMDB or DEFAULT_IMDB, cfg.TRAIN.PROPOSAL_METHOD)
    trainer = SvmTrainer(net, imdb, cfg, settings, feature=args.feature, track=progress)
    unset = [layer for layer, _, verdict in report.rows if verdict == NOT_IN_FILE and layer != trainer.layer.name]
    if unset:
        _cli.show([f"these layers keep their initial values: {', '.join(unset)}"])
    if cfg.TRAIN.USE_FLIPPED:
        imdb.append_flipped_images()
    print(f"{imdb.name}: {imdb.num_images} images{', mirrored ones included' * cfg.TRAIN.USE_FLIPPED}; "
          f"features: {trainer.dim} values of blob '{trainer.feature}'")  # fmt: skip
    started = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - started
    path = output / f"{Path(args.caffemodel).stem}_svm.caffemodel"
    write_caffemodel(path, to_caffemodel(net))
    if args.json:
        with replacing(args.json, "w", encoding="utf-8") as file:
            json.dump(trainer.report() | {"seconds": seconds}, file, indent=1)
    print_table(trainer, seconds)
    print(f"{path}: test it with --set TEST.SVM True --det_thresh -2")
    return 0


def settings_of(args) -> SvmSettings:
    """The options as settings.

    Raises:
        PortError: a value out of range.
    """
    for option, (_, _, least) in SETTINGS.items():
        value = getattr(args, option)
        if value != value or least is not None and not least < value < float("inf"):
            raise PortError(f"--{option} must be {'a number' if least is None else 'positive'}, not {value}")
    return SvmSettings(**{name: getattr(args, option) for option, (name, _, _) in SETTINGS.items()})


def progress(images, what: str):
    """The images one by one, with a bar."""
    return tqdm(images, desc=what, unit="image", dynamic_ncols=True, disable=None)


def print_table(trainer: SvmTrainer, seconds: float) -> None:
    mined, trained = sum(svm.mined for svm in trainer.svms), sum(len(svm.rounds) for svm in trainer.svms)
    solving = sum(done.seconds for svm in trainer.svms for done in svm.rounds)
    table = Table(title="SVMs after their last training")
    table.add_column("class")
    for name in ("positives", "negatives mined", "in the cache", "kept", "trained", "objective", "of positives",
                 "of negatives", "of weights", "support", "seconds"):  # fmt: skip
        table.add_column(name, justify="right")
    for svm in trainer.svms:
        row = [svm.name, str(len(svm.positives)), str(svm.mined)]
        if svm.rounds:
            last = svm.rounds[-1]
            terms = (last.objective, last.pos_loss, last.neg_loss, last.reg_loss)
            row += [str(last.negatives), str(last.kept), str(len(svm.rounds)), *(f"{term:.4f}" for term in terms)]
            row += [f"{last.pos_support} + {last.neg_support}", f"{sum(done.seconds for done in svm.rounds):.1f}"]
        table.add_row(*row)
    _cli.console().print(table)
    print(f"{mined} negatives mined, {trained} trainings; {seconds:.0f} s: {trainer.seconds:.0f} s in the net "
          f"and its images, {solving:.0f} s for the SVMs; features scaled by {trainer.scale:.4g}")  # fmt: skip
    unsolved = [svm.name for svm in trainer.svms if not all(done.converged for done in svm.rounds)]
    if unsolved:
        _cli.show([f"liblinear stopped before it converged for {', '.join(unsolved)}; a smaller --C is easier"])
    without = [svm.name for svm in trainer.svms if not len(svm.positives)]
    if without:
        _cli.show([f"no objects of these classes, whose SVMs say -1 to everything: {', '.join(without)}"])


if __name__ == "__main__":
    _cli.run(main)
