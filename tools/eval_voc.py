"""Score anybody's detections by VOC's rules: 11 points (VOC 2007) and area under the curve (from VOC 2010 on).

    python tools/eval_voc.py --devkit VOCdevkit --imdb voc_2007_test --detections results/VOC2007/Main

The folder holds VOC's result files comp4_det_test_<class>.txt (or comp3), plain or .gz, with lines
``image score x1 y1 x2 y2``, pixels counted from 1. The image set in their names need not be that of --imdb.
"""

from __future__ import annotations

import argparse
import json

import _cli
import _evaluation
from tqdm import tqdm

from ohem_caffe_port.data.pascal_voc import PascalVoc
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import ResultFiles, evaluate_voc
from prototxt.errors import nearest
from prototxt.files import replacing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detections", required=True, metavar="FOLDER", help="where the result files lie")
    _evaluation.add_imdb_options(parser)
    parser.add_argument("--run", metavar="NAME", help="of several runs in the folder this one, e.g. comp4_det_test")
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="score these alone [all of the data set]")
    parser.add_argument(
        "--iou", type=_evaluation.overlap, default=0.5, help="overlap that a correct detection must exceed [0.5]"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    _evaluation.can_be_written(args.json, "--json")
    imdb = _evaluation.open_imdb(args)
    if not isinstance(imdb, PascalVoc):
        raise PortError(
            f"'{imdb.name}' is not one image set of VOC's form",
            field="--imdb",
            hint="name one, such as voc_2007_test; tools/eval_coco.py is for COCO",
        )
    if not imdb.has_ground_truth:
        raise PortError(f"'{imdb.name}' has no public ground truth", hint="VOC's evaluation server scores it")
    classes = wanted_classes(args.classes, imdb)
    files = ResultFiles(args.detections, imdb.classes[1:], image_set=imdb.image_set, wanted=classes, run=args.run)
    print(f"{imdb.name}: {imdb.num_images} images; {args.detections}: {files.run}_<class>.txt")
    _cli.show(notes(files, imdb))
    annotations = imdb.annotations()
    with tqdm(classes, unit="class", dynamic_ncols=True, leave=False, disable=None) as bar:
        result = evaluate_voc(files, annotations, bar, ovthresh=args.iou, use_07_metric=True)
    area = result.by(use_07_metric=False)
    _cli.console().print(_evaluation.ap_table([result, area], imdb.name, args.iou))
    print(f"VOC {imdb.year}'s own rule: {_evaluation.RULES[imdb.use_07_metric]}")
    if args.json:
        write_json(args.json, result, area, imdb.name, files.run, args.iou)
    return 0


def wanted_classes(names: list[str] | None, imdb) -> list[str]:
    """The classes to score: those of ``names``, or all.

    Raises:
        PortError: the data set has no class of that name.
    """
    known = imdb.classes[1:]
    for name in names or []:
        if name not in known:
            near = nearest(name, known)
            hint = f"Did you mean '{near}'?" if near else f"Its classes: {', '.join(known)}."
            raise PortError(f"'{imdb.name}' has no class '{name}'", field="--classes", hint=hint)
    return [name for name in known if names is None or name in names]


def notes(files: ResultFiles, imdb) -> list[str]:
    """What is worth knowing of the result files that were found."""
    found = []
    if files.image_set != imdb.image_set:
        found.append(f"the files are named after the image set '{files.image_set}', {imdb.name} is '{imdb.image_set}'")
    if files.others:
        found.append(f"passed over: {', '.join(files.others)} (see --run)")
    if files.strangers:
        found.append(f"of no class of {imdb.name}: {', '.join(files.strangers)}")
    return found


def write_json(path, result, area, imdb_name: str, run: str, iou: float) -> None:
    values = {
        "imdb": imdb_name,
        "detections": run,
        "iou": iou,
        "ap11": _evaluation.json_values(result),
        "ap_area": _evaluation.json_values(area),
        "num_positives": result.positives,
        "num_detections": {name: len(curve) for name, curve in result.recall.items()},
    }
    with replacing(path, "w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)


if __name__ == "__main__":
    _cli.run(main)
