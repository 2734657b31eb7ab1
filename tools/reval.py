"""Re-evaluate the detections that a test run saved.

    python tools/reval.py output/fast_rcnn_ohem/voc_2007_test/vgg16_fast_rcnn_iter_40000 --imdb voc_2007_test

Reads detections.npz in that folder and writes the result files into its subfolder reval, so that those of the test
stay as they are.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import _cli
import _evaluation

from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import apply_nms, load_detections


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output_dir", metavar="FOLDER", help="where the test wrote detections.npz")
    _evaluation.add_imdb_options(parser)
    parser.add_argument("--comp", action="store_true", help="competition mode: write result files, do not evaluate")
    parser.add_argument("--nms", action="store_true", help="suppress overlapping detections of a class first")
    parser.add_argument(
        "--nms_thresh", type=_evaluation.overlap, metavar="X", help="with --nms: the overlap from which on [0.3]"
    )
    parser.add_argument(
        "--iou", type=_evaluation.overlap, default=0.5, help="overlap that a correct detection must exceed [0.5]"
    )
    parser.add_argument("--output", metavar="DIR", help="where result files go [FOLDER/reval]")
    parser.add_argument("--json", metavar="FILE", help="write the average precisions there, too")
    args = parser.parse_args()
    if args.nms_thresh is not None and not args.nms:
        parser.error("--nms_thresh needs --nms")
    return args


def main() -> int:
    args = parse_args()
    _evaluation.can_be_written(args.json, "--json")
    folder = Path(args.output_dir)
    if not folder.is_dir():
        raise PortError("there is no such folder", file=folder, hint="give the output folder of a test run")
    source = folder / "detections.npz"
    all_boxes, image_index, classes = load_detections(source)
    imdb = _evaluation.open_imdb(args)
    check_origin(source, image_index, classes, imdb)
    count = total(all_boxes)
    if args.nms:
        thresh = Config().TEST.NMS if args.nms_thresh is None else args.nms_thresh
        all_boxes = apply_nms(all_boxes, thresh)
        print(f"{source}: {total(all_boxes)} of {count} detections are left after suppression at IoU {thresh:g}")
    else:
        print(f"{source}: {count} detections")
    _evaluation.score(all_boxes, imdb, _cli.output_folder(args.output or folder / "reval"), args)
    return 0


def check_origin(source: Path, image_index, classes, imdb) -> None:
    """Raises a PortError when the detections are of another image set or of other classes."""
    if list(classes) != list(imdb.classes):
        raise PortError(
            f"holds detections of {len(classes) - 1} classes ({', '.join(classes[1:4])}, ...); {imdb.name} has "
            f"{imdb.num_classes - 1} ({', '.join(imdb.classes[1:4])}, ...)",
            file=source,
            field="--imdb",
        )
    if list(map(str, image_index)) != list(map(str, imdb.image_index)):
        different = sum(a != b for a, b in zip(image_index, imdb.image_index, strict=False))
        raise PortError(
            f"holds detections on {len(image_index)} images, {imdb.name} has {imdb.num_images}; {different} differ",
            file=source,
            field="--imdb",
            hint="name the data set that was tested",
        )


def total(all_boxes) -> int:
    return sum(len(dets) for per_image in all_boxes for dets in per_image)


if __name__ == "__main__":
    _cli.run(main)
