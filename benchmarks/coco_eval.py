"""COCO's twelve numbers from a file of results: pycocotools' time divided by that of ``evaluate.coco``, in one run.

python benchmarks/coco_eval.py
python benchmarks/coco_eval.py --images 5000 --repeats 1     # the size of val2017; minutes for pycocotools
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from _timing import medians

from ohem_caffe_port.data.coco import COCO_CLASSES
from ohem_caffe_port.data.coco_annotations import read_coco
from ohem_caffe_port.evaluate.coco import evaluate_coco, pycocotools_stats, read_coco_results


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500, help="[500]")
    parser.add_argument("--objects", type=int, default=7, help="in an image, as in COCO [7]")
    parser.add_argument("--detections", type=int, default=100, help="in an image [100]")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the median counts [3]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    rng = np.random.default_rng(args.seed)
    annotations = make_annotations(args.images, args.objects, rng)
    with tempfile.TemporaryDirectory() as folder:
        gt, results = Path(folder) / "instances.json", Path(folder) / "results.json"
        gt.write_text(json.dumps(annotations))
        results.write_text(json.dumps(make_results(annotations, args.detections, rng)))
        coco = read_coco(gt)

        def ours():
            return evaluate_coco(coco, read_coco_results(results, coco)[0]).stats

        def theirs():
            return pycocotools_stats(coco, json.loads(results.read_bytes()))

        difference = max(abs(value - theirs()[name]) for name, value in ours().items())
        fast, slow = medians(ours, theirs, repeats=args.repeats)
    print(f"{args.images} images, {args.objects} objects and {args.detections} detections in each, "
          f"{len(COCO_CLASSES) - 1} categories: evaluate.coco {fast:.2f} s, pycocotools {slow:.2f} s, "
          f"ratio {slow / fast:.1f}; largest difference {difference:.1e}")  # fmt: skip


def make_annotations(images: int, objects: int, rng) -> dict:
    """Objects of every size in images of 640 x 480; one in fifty is a crowd."""
    boxes = make_boxes(images * objects, rng)
    return {
        "images": [{"id": i + 1, "width": 640, "height": 480} for i in range(images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(COCO_CLASSES) if k],
        "annotations": [
            {"id": n + 1, "image_id": n // objects + 1, "category_id": int(rng.integers(1, len(COCO_CLASSES))),
             "bbox": box, "area": 0.6 * box[2] * box[3], "iscrowd": int(rng.random() < 0.02)}
            for n, box in enumerate(boxes)
        ],
    }  # fmt: skip


def make_results(annotations: dict, detections: int, rng) -> list[dict]:
    """Detections of each image: a third near its objects and of their category, the others anywhere."""
    images = len(annotations["images"])
    boxes, scores = make_boxes(images * detections, rng), rng.random(images * detections).round(3).tolist()
    objects = {}
    for annotation in annotations["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    rows = []
    for n, (box, score) in enumerate(zip(boxes, scores, strict=True)):
        image, category = n // detections + 1, int(rng.integers(1, len(COCO_CLASSES)))
        if n % 3 == 0:
            near = objects[image][int(rng.integers(len(objects[image])))]
            box, category = (np.array(near["bbox"]) * rng.uniform(0.9, 1.1, 4)).round(2).tolist(), near["category_id"]
        rows.append({"image_id": image, "category_id": category, "bbox": box, "score": score})
    return rows


def make_boxes(count: int, rng) -> list[list[float]]:
    """x, y, width, height in 640 x 480 pixels."""
    sides = np.exp(rng.uniform(np.log(10), np.log(400), (count, 2)))
    corners = rng.random((count, 2)) * np.maximum(np.array([640, 480]) - sides, 0)
    return np.hstack((corners, sides)).round(2).tolist()


if __name__ == "__main__":
    main()
