"""COCO's twelve numbers, and its files of results.

The rules are those of pycocotools' ``COCOeval`` for boxes (https://cocodataset.org/#detection-eval), whose numbers
:func:`evaluate_coco` gives in a fraction of its time: only pairs of a detection and an object that overlap by half or
more can match, few, and they are matched at all thresholds and area ranges at once.

Boxes of COCO's files are (x, y, width, height), the corner zero-based and sides without a +1.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from prototxt.files import replacing

from ..data.coco_annotations import is_box, is_number, read_json
from ..errors import PortError
from .voc import pairs_within

THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # ends included
MAX_DETS = (1, 10, 100)  # detections of a category in an image that count, best first
STATS = ("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge")
STATS += ("AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge")


class CocoDetections(NamedTuple):
    """Detections of any number of images: ids of images and categories [N], boxes [N, 4] (x y w h), scores [N]."""

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


@dataclass
class CocoResult:
    """Precision [T, R, K, A] at :data:`THRESHOLDS`, :data:`RECALLS`, for every category (``names``, by id) and the
    :data:`AREAS`, of 100 detections; the highest recall [T, K, A, M] of :data:`MAX_DETS` detections.

    nan where there is no object (pycocotools has -1 there).
    """

    names: list[str]
    precision: np.ndarray
    recall: np.ndarray

    @property
    def stats(self) -> dict[str, float]:
        """The twelve numbers by name (:data:`STATS`); nan where no object has such an area."""
        p, r = self.precision, self.recall
        values = [p[..., 0], p[0, ..., 0], p[5, ..., 0], *(p[..., area] for area in (1, 2, 3))]
        values += [r[:, :, 0, 0], r[:, :, 0, 1], r[:, :, 0, 2], *(r[:, :, area, 2] for area in (1, 2, 3))]
        return dict(zip(STATS, map(_mean, values), strict=True))

    @property
    def ap(self) -> dict[str, float]:
        """AP of each category, mean over the thresholds; nan where it has no objects."""
        return {name: _mean(self.precision[:, :, k, 0]) for k, name in enumerate(self.names)}

    @property
    def ap50(self) -> dict[str, float]:
        """AP of each category at IoU 0.5."""
        return {name: _mean(self.precision[0, :, k, 0]) for k, name in enumerate(self.names)}


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


# ---- files


def write_coco_results(path, all_boxes, image_index, category_ids) -> None:
    """Writes ``all_boxes[class][image]`` ([N, 5] zero-based inclusive x1 y1 x2 y2, score) as COCO's list of results:
    ``[{"image_id", "category_id", "bbox": [x1, y1, x2 - x1 + 1, y2 - y1 + 1], "score"}]``, as py-faster-rcnn does.

    ``image_index``: ids of the images, as numbers or text; ``category_ids``: COCO's id of each class; the first, the
    background, is left out.

    Raises:
        CaffePortError: the file cannot be written.
    """
    rows = []
    for category, per_image in list(zip(category_ids, all_boxes, strict=True))[1:]:
        for image, dets in zip(image_index, per_image, strict=True):
            dets = np.asarray(dets, np.float64).reshape(-1, 5)
            boxes = np.hstack((dets[:, :2], dets[:, 2:4] - dets[:, :2] + 1)).tolist()
            rows += [
                {"image_id": int(image), "category_id": category, "bbox": box, "score": score}
                for box, score in zip(boxes, dets[:, 4].tolist(), strict=True)
            ]
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(rows))


def read_coco_results(path, coco: COCO) -> tuple[CocoDetections, dict[int, int]]:
    """Anybody's results on the images of ``coco``: the detections, and how many were left out for each category that
    the annotations do not have (COCOeval passes over them, too).

    Raises:
        PortError: missing, not JSON, not a list of boxes with scores, or an image that the annotations do not have.
    """
    path = Path(path)
    rows = read_json(path, "Name a file of results in COCO's form.")
    if not isinstance(rows, list):
        raise PortError("no results of COCO's form: a list of detections is needed", file=path)
    for number, row in enumerate(rows, start=1):
        _check_row(row, number, coco, path)
    known = [row for row in rows if row["category_id"] in coco.cats]
    left_out = Counter(row["category_id"] for row in rows if row["category_id"] not in coco.cats)
    detections = CocoDetections(
        np.array([row["image_id"] for row in known]),
        np.array([row["category_id"] for row in known]),
        np.array([row["bbox"] for row in known], np.float64).reshape(-1, 4),
        np.array([row["score"] for row in known], np.float64),
    )
    return detections, dict(left_out)


def _check_row(row, number: int, coco: COCO, path: Path) -> None:
    if not isinstance(row, dict) or not is_box(row.get("bbox")) or not is_number(row.get("score")):
        form = '{"image_id": 42, "category_id": 18, "bbox": [258.15, 41.29, 348.26, 243.78], "score": 0.236}'
        raise PortError(f"detection {number} is not of the form {form}", file=path)
    image, category = row.get("image_id"), row.get("category_id")
    if not isinstance(image, int) or image not in coco.imgs:
        raise PortError(
            f"detection {number} is on image {image!r}, which the annotations do not have",
            file=path,
            hint="Were the detections made on another image set?",
        )
    if not isinstance(category, int):
        raise PortError(f"detection {number}: category_id is {category!r}, not a whole number", file=path)


# ---- evaluation


def evaluate_coco(coco: COCO, detections: CocoDetections) -> CocoResult:
    """Evaluates boxes as ``COCOeval`` does.

    Of each image and category the 100 best detections count. In descending order of score each takes the object that it
    overlaps most among those not taken; a crowd, or an object outside the area range, only where there is no other,
    and is neither right nor wrong then. Nor is a detection without an object whose own area is outside the range. The
    overlap with a crowd is the share of the detection that lies in it, and any number may lie in one.

    ``coco``: of :func:`ohem_caffe_port.data.coco_annotations.read_coco`. Ids of annotations do not matter here, while
    COCOeval takes finds of an object with id 0 for misses.
    """
    image_of = {ident: i for i, ident in enumerate(sorted(coco.imgs))}
    category_of = {ident: k for k, ident in enumerate(sorted(coco.cats))}
    objects = coco.dataset["annotations"]
    gt_group = _groups([o["image_id"] for o in objects], [o["category_id"] for o in objects], image_of, category_of)
    order = np.argsort(gt_group, kind="stable")
    gt_group = gt_group[order]
    gt_boxes = np.array([o["bbox"] for o in objects], np.float64).reshape(-1, 4)[order]
    crowd = np.array([o["iscrowd"] for o in objects], bool)[order]
    ignored = crowd | _outside(np.array([o["area"] for o in objects], np.float64)[order])  # [A, G]

    group = _groups(detections.images.tolist(), detections.categories.tolist(), image_of, category_of)
    order = np.lexsort((-detections.scores, group))  # stable: equal scores as they come
    rank = np.arange(len(order)) - np.searchsorted(group[order], group[order])
    order, rank = order[rank < MAX_DETS[-1]], rank[rank < MAX_DETS[-1]]
    group, boxes, scores = group[order], detections.boxes[order], detections.scores[order]
    matched, passed = _match(group, rank, boxes, gt_group, gt_boxes, crowd, ignored)
    passed |= ~matched & _outside(boxes[:, 2] * boxes[:, 3])

    category, gt_category = group // len(image_of), gt_group // len(image_of)
    shape = (len(THRESHOLDS), len(category_of), len(AREAS))
    precision = np.full((*shape[:1], len(RECALLS), *shape[1:]), np.nan)
    recall = np.full((*shape, len(MAX_DETS)), np.nan)
    for k in range(len(category_of)):
        own = np.flatnonzero(category == k)
        own = own[np.argsort(-scores[own], kind="stable")]
        right = matched[..., own] & ~passed[..., own]
        wrong = ~matched[..., own] & ~passed[..., own]
        positives = np.count_nonzero(~ignored[:, gt_category == k], axis=1)
        for a in np.flatnonzero(positives):
            precision[:, :, k, a] = _precision(right[:, a], wrong[:, a], positives[a])
            for m, limit in enumerate(MAX_DETS):
                recall[:, k, a, m] = right[:, a, rank[own] < limit].sum(axis=1) / positives[a]
    return CocoResult([coco.cats[ident]["name"] for ident in category_of], precision, recall)


def _groups(images: list, categories: list, image_of: dict, category_of: dict) -> np.ndarray:
    """One number for each image and category, those of a category together."""
    image = np.array([image_of[ident] for ident in images], np.int64)
    return image + len(image_of) * np.array([category_of[ident] for ident in categories], np.int64)


def _outside(areas: np.ndarray) -> np.ndarray:
    """Bool [A, N]: which areas lie outside each of :data:`AREAS`."""
    return np.stack([(areas < low) | (areas > high) for low, high in AREAS.values()])


def _match(group, rank, boxes, gt_group, gt_boxes, crowd, ignored) -> tuple[np.ndarray, np.ndarray]:
    """Bool [T, A, N] each: detections that take an object, and those of them whose object is ignored.

    Detections and objects are sorted by group. All groups' best detections are matched at once, then all second ones.
    """
    det, gt, iou = _overlapping_pairs(group, boxes, gt_group, gt_boxes, crowd)
    matched = np.zeros((len(THRESHOLDS), len(AREAS), len(boxes)), bool)
    passed = matched.copy()
    taken = np.zeros((*matched.shape[:2], len(gt_boxes)), bool)
    enough = iou >= THRESHOLDS[:, None]
    pairs = np.argsort(rank[det], kind="stable")
    for now in np.split(pairs, np.flatnonzero(np.diff(rank[det[pairs]])) + 1) if len(pairs) else ():
        g, overlap = gt[now], iou[now]
        first = np.diff(det[now], prepend=-1) != 0  # of the pairs of a detection
        starts, of_det = np.flatnonzero(first), np.cumsum(first) - 1
        free = enough[:, None, now] & (~taken[..., g] | crowd[g])
        real = free & ~ignored[:, g]
        any_real = np.logical_or.reduceat(real, starts, axis=-1)
        wanted = np.where(any_real[..., of_det], real, free)
        best = np.maximum.reduceat(np.where(wanted, overlap, -1), starts, axis=-1)
        wanted &= overlap == best[..., of_det]
        choice = np.maximum.reduceat(np.where(wanted, g, -1), starts, axis=-1)  # of equals the last
        t, a, d = np.nonzero(choice >= 0)
        chosen, winner = choice[t, a, d], det[now[starts[d]]]
        taken[t, a, chosen] = matched[t, a, winner] = True
        passed[t, a, winner] = ignored[a, chosen]
    return matched, passed


def _overlapping_pairs(group, boxes, gt_group, gt_boxes, crowd) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of one group that overlap enough for the lowest threshold: detection, object, IoU; in that order."""
    det, gt = pairs_within(group, gt_group)
    a, b = boxes[det], gt_boxes[gt]
    sides = np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    shared = np.prod(np.maximum(sides, 0), axis=1)
    own = a[:, 2] * a[:, 3]
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = shared / np.where(crowd[gt], own, own + b[:, 2] * b[:, 3] - shared)
    near = iou >= THRESHOLDS[0]
    return det[near], gt[near], iou[near]


def _precision(right: np.ndarray, wrong: np.ndarray, positives: int) -> np.ndarray:
    """[T, R]: the best precision at each recall or beyond, 0 where none is reached. ``right``, ``wrong``: [T, N]."""
    found, missed = np.cumsum(right, axis=1, dtype=float), np.cumsum(wrong, axis=1, dtype=float)
    precision = found / (found + missed + np.spacing(1))
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.hstack((best, np.zeros((len(best), 1))))
    return np.stack([row[np.searchsorted(f / positives, RECALLS)] for row, f in zip(best, found, strict=True)])


def pycocotools_stats(coco: COCO, rows: list[dict]) -> dict[str, float]:
    """The twelve numbers of ``rows`` (COCO's list of results) by pycocotools itself, without its printing."""
    with redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes([dict(row) for row in rows]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return dict(zip(STATS, evaluation.stats.tolist(), strict=True))
