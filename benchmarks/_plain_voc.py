"""What py-faster-rcnn's voc_eval.py does, in plain steps: for benchmarks/evaluate.py to compare with."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np


def objects(path: Path) -> list[tuple[str, bool, list[int]]]:
    """Name, difficult, box of every object of an annotation file."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [
        (
            node.find("name").text,
            bool(int(node.find("difficult").text)),
            [int(node.find("bndbox").find(side).text) for side in sides],
        )
        for node in ET.parse(path).findall("object")
    ]


def reading(path: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    with path.open() as file:
        rows = [line.strip().split(" ") for line in file]
    scores = np.array([float(row[1]) for row in rows])
    return [row[0] for row in rows], scores, np.array([[float(value) for value in row[2:]] for row in rows])


def matching(objects: dict, name: str, images, scores, boxes, thresh=0.5) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision after each detection: one at a time, the best first, against the objects of its image."""
    truth, positives = {}, 0
    for image, found in objects.items():
        mine = [obj for obj in found if obj[0] == name]
        truth[image] = np.array([obj[2] for obj in mine], float), [obj[1] for obj in mine], [False] * len(mine)
        positives += sum(not obj[1] for obj in mine)
    right, wrong = np.zeros(len(scores)), np.zeros(len(scores))
    for place, k in enumerate(np.argsort(-scores)):
        gt, difficult, taken = truth[images[k]]
        most = -np.inf
        if len(gt):
            x1, y1, x2, y2 = boxes[k]
            width = np.maximum(np.minimum(gt[:, 2], x2) - np.maximum(gt[:, 0], x1) + 1, 0)
            height = np.maximum(np.minimum(gt[:, 3], y2) - np.maximum(gt[:, 1], y1) + 1, 0)
            areas = (gt[:, 2] - gt[:, 0] + 1) * (gt[:, 3] - gt[:, 1] + 1)
            overlaps = width * height / ((x2 - x1 + 1) * (y2 - y1 + 1) + areas - width * height)
            best = int(overlaps.argmax())
            most = overlaps[best]
        if not most > thresh:
            wrong[place] = 1
        elif not difficult[best]:
            (wrong if taken[best] else right)[place] = 1
            taken[best] = True
    found, missed = np.cumsum(right), np.cumsum(wrong)
    return found / positives, found / np.maximum(found + missed, np.finfo(float).eps)


def average_precision(recall: np.ndarray, precision: np.ndarray, eleven_points: bool) -> float:
    if eleven_points:
        best = [np.max(precision[recall >= t], initial=0) for t in np.arange(0, 1.1, 0.1)]
        return sum(value / 11 for value in best)
    recall, precision = np.concatenate(([0], recall, [1])), np.concatenate(([0], precision, [0]))
    for k in range(len(precision) - 1, 0, -1):
        precision[k - 1] = max(precision[k - 1], precision[k])
    steps = np.flatnonzero(recall[1:] != recall[:-1])
    return float(np.sum((recall[steps + 1] - recall[steps]) * precision[steps + 1]))
