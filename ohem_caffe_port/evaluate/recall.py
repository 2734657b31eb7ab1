"""Recall of object proposals (fast-rcnn's and py-faster-rcnn's ``imdb.evaluate_recall``).

Average recall: J. Hosang et al., "What makes for effective detection proposals?", PAMI 2016.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..boxes import bbox_overlaps

# name -> least and greatest area of an object in pixels
AREA_RANGES = {
    "all": (0**2, 1e5**2),
    "small": (0**2, 32**2),
    "medium": (32**2, 96**2),
    "large": (96**2, 1e5**2),
    "96-128": (96**2, 128**2),
    "128-256": (128**2, 256**2),
    "256-512": (256**2, 512**2),
    "512-inf": (512**2, 1e5**2),
}
THRESHOLDS = np.arange(0.5, 0.95 + 1e-5, 0.05)


@dataclass
class Recall:
    """How well proposals cover the objects of one range of areas.

    ``objects``: how many there are; ``gt_overlaps``: sorted IoUs of those that got a proposal, at most one for each
    (float64); ``thresholds`` and ``recalls`` [T]: the part of the objects covered by at least that IoU, nan without
    objects.
    """

    objects: int
    gt_overlaps: np.ndarray
    thresholds: np.ndarray
    recalls: np.ndarray

    @property
    def average(self) -> float:
        """The mean of ``recalls``."""
        return float(self.recalls.mean())


def proposal_recall(
    roidb, candidate_boxes=None, *, thresholds=None, areas=("all",), limits=(None,)
) -> dict[tuple[str, int | None], Recall]:
    """{(area, limit): :class:`Recall`} of the proposals of a data set, for every one of ``areas`` and ``limits``.

    On each image proposals and objects are paired greedily, the greatest IoU first, each of both once.

    Args:
        roidb: see ``data.imdb``. Its objects are the boxes with a class and an overlap of 1; crowds, whose overlap is
            -1, are none.
        candidate_boxes: one [N, 4] array (x1, y1, x2, y2; inclusive pixels) per image; by default the boxes of the
            roidb that have no class.
        thresholds: IoUs [T], by default 0.5, 0.55, ..., 0.95.
        areas: keys of :data:`AREA_RANGES`; both ends belong to a range.
        limits: so many proposals of each image, the first ones; None for all.
    """
    thresholds = THRESHOLDS if thresholds is None else np.asarray(thresholds, np.float64)
    wishes = [(area, limit) for area in areas for limit in limits]
    found = {wish: [] for wish in wishes}
    objects = dict.fromkeys(wishes, 0)
    for i, entry in enumerate(roidb):
        is_object = np.flatnonzero(entry["gt_classes"] > 0)
        is_object = is_object[entry["gt_overlaps"][is_object].toarray().max(axis=1) == 1]
        boxes = entry["boxes"][entry["gt_classes"] == 0] if candidate_boxes is None else candidate_boxes[i]
        boxes, gt_boxes = (np.asarray(b, np.float64).reshape(-1, 4) for b in (boxes, entry["boxes"][is_object]))
        gt_areas = entry["seg_areas"][is_object]
        overlaps = bbox_overlaps(boxes, gt_boxes)
        for area, limit in wishes:
            low, high = AREA_RANGES[area]
            wanted = (gt_areas >= low) & (gt_areas <= high)
            objects[area, limit] += int(wanted.sum())
            found[area, limit] += _pair(overlaps[:limit, wanted])
    result = {}
    for wish in wishes:
        gt_overlaps = np.sort(np.array(found[wish], np.float64))
        covered = (gt_overlaps >= thresholds[:, None]).sum(axis=1)
        recalls = covered / objects[wish] if objects[wish] else np.full(len(thresholds), np.nan)
        result[wish] = Recall(objects[wish], gt_overlaps, thresholds, recalls)
    return result


def _pair(overlaps: np.ndarray) -> list[float]:
    """IoUs of the pairs, from those of all proposals with all objects [N, G], which are overwritten."""
    found = []
    for _ in range(min(overlaps.shape)):
        box, gt = np.unravel_index(overlaps.argmax(), overlaps.shape)
        found.append(overlaps[box, gt])
        overlaps[box, :] = overlaps[:, gt] = -1  # both are taken
    return found
