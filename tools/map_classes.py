r"""Turn a detector of COCO's 81 classes into one of VOC's 21 to fine-tune from: each class keeps its own rows.

    python tools/map_classes.py --net coco_vgg16_fast_rcnn_iter_240000.caffemodel --out voc_from_coco.caffemodel \
        --imdb voc_2007_trainval+voc_2012_trainval
    python tools/train_from_prototxt.py solver.prototxt --weights voc_from_coco.caffemodel \
        --imdb voc_2007_trainval+voc_2012_trainval

Snapshots predict plain box deltas, and training normalises them for each class. --imdb names the data set to be trained
on: bbox_pred is then normalised by its statistics, as that training will do (give it the same --cfg and --set). With
TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED the configuration says them, and no --imdb is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _cli
import _evaluation
import numpy as np

from converters import WeightsError, read_caffemodel, write_caffemodel
from ohem_caffe_port.class_map import class_indices, map_classes, normalize_boxes
from ohem_caffe_port.data.coco import COCO_CLASSES
from ohem_caffe_port.data.pascal_voc import VOC_CLASSES
from ohem_caffe_port.data.roidb import add_bbox_regression_targets, filter_roidb, get_training_roidb
from ohem_caffe_port.errors import PortError

KNOWN = {"coco": COCO_CLASSES, "voc": VOC_CLASSES}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", dest="caffemodel", required=True, metavar="FILE", help="weights of the detector")
    parser.add_argument("--out", required=True, metavar="FILE", help=".caffemodel to write")
    classes = "coco, voc, or a text file with a name on each line, without the background"
    parser.add_argument("--source", default="coco", metavar="NAME|FILE", help=f"its classes: {classes} [coco]")
    parser.add_argument("--target", default="voc", metavar="NAME|FILE", help="the new classes [voc]")
    _cli.add_data_options(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    _evaluation.can_be_written(args.out, "--out")
    cfg = _cli.load_config(args)
    source, target = read_classes(args.source), read_classes(args.target)
    model = read_caffemodel(args.caffemodel)
    try:
        mapped, counts = map_classes(model, class_indices(source, target), len(source))
        statistics = box_statistics(args, cfg, target)
        if statistics:
            mapped = normalize_boxes(mapped, *statistics)
    except WeightsError as error:
        error.file = error.file or args.caffemodel
        raise
    write_caffemodel(args.out, mapped)
    for layer, (before, after) in counts.items():
        print(f"{layer}: {before} -> {after} outputs" if before != after else f"{layer}: {before} outputs, kept")
    if statistics:
        print(f"box layers are normalised, {'for ' + args.imdb if args.imdb else 'as the configuration says'}")
    elif cfg.TRAIN.BBOX_NORMALIZE_TARGETS:
        _cli.show(["box layers predict plain deltas: to start a training with normalised targets well, give --imdb"])
    print(f"{args.out}: {len(source) - 1} -> {len(target) - 1} classes")
    return 0


def read_classes(name: str) -> tuple[str, ...]:
    """The classes of a known data set or of a file, background first."""
    if name in KNOWN:
        return KNOWN[name]
    try:
        lines = Path(name).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise PortError(f"'{name}' is neither a file nor one of: {', '.join(KNOWN)}") from None
    except UnicodeDecodeError:
        raise PortError("not a text file", file=name) from None
    classes = [line.strip() for line in lines if line.strip()]
    if len(set(classes)) < len(classes) or not classes or "__background__" in classes:
        raise PortError("needs a name on each line, each once, without the background", file=name)
    return ("__background__", *classes)


def box_statistics(args, cfg, target: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Means and stds of the box targets [4 * classes] (or [8]) as the training that comes next will have them."""
    train = cfg.TRAIN
    if not train.BBOX_NORMALIZE_TARGETS:
        return None
    if train.BBOX_NORMALIZE_TARGETS_PRECOMPUTED:
        boxes = 2 if train.AGNOSTIC else len(target)
        return np.tile(train.BBOX_NORMALIZE_MEANS, boxes), np.tile(train.BBOX_NORMALIZE_STDS, boxes)
    if not args.imdb:
        return None
    imdb = _cli.open_imdb(args, cfg, args.imdb, train.PROPOSAL_METHOD)
    if imdb.classes != tuple(target):
        raise PortError(f"{imdb.name} has other classes than --target {args.target}", field="--imdb")
    return add_bbox_regression_targets(filter_roidb(get_training_roidb(imdb, cfg), cfg), cfg)


if __name__ == "__main__":
    _cli.run(main)
