"""Score results in COCO's form, of this program or of any other.

    python tools/eval_coco.py --annotations instances_val2014.json --detections detections_val2014_results.json

Prints the average precision of each category and COCO's twelve numbers. Detections of categories that the annotations
do not have are left out, as pycocotools does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import _cli
import _evaluation
from _coco_report import coco_json, print_coco

from ohem_caffe_port.data.coco_annotations import read_coco
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate.coco import evaluate_coco, read_coco_results
from prototxt.files import replacing


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--annotations", required=True, metavar="FILE.json", help="instances_val2014.json, for one")
    parser.add_argument("--detections", required=True, metavar="FILE.json", help="list of boxes with scores")
    parser.add_argument("--json", metavar="FILE", help="write the numbers there too")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    _evaluation.can_be_written(args.json, "--json")
    coco = read_coco(args.annotations)
    if not coco.anns:
        raise PortError("has no annotations: nothing can be evaluated", file=args.annotations)
    detections, left_out = read_coco_results(args.detections, coco)
    if left_out:
        ids = ", ".join(map(str, sorted(left_out)))
        _cli.show([f"{sum(left_out.values())} detections of categories without annotations are left out: {ids}"])
    print(f"{len(coco.imgs)} images, {len(coco.anns)} annotations, {len(detections.scores)} detections")
    result = evaluate_coco(coco, detections)
    print_coco(result, f"average precision of {Path(args.detections).name}")
    if args.json:
        about = {"annotations": args.annotations, "detections": args.detections}
        with replacing(args.json, "w", encoding="utf-8") as file:
            json.dump(about | coco_json(result), file, indent=1)
    return 0


if __name__ == "__main__":
    _cli.run(main)
