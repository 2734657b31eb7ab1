"""Masks of objects, each a rectangle of pixels that belongs to a box.

A box is ``(x1, y1, x2, y2)`` in whole pixels, both ends inclusive; its mask has shape ``[y2 - y1 + 1, x2 - x1 + 1]``.
"""

from __future__ import annotations

import cv2
import numpy as np


def resize_mask(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """``mask`` ``[h, w]`` as float32 ``[height, width]``, bilinear."""
    return cv2.resize(mask.astype(np.float32), (int(width), int(height)))


def _common(box, other):
    """What two boxes share, as slices into the mask of each; None if nothing."""
    x1, y1 = max(box[0], other[0]), max(box[1], other[1])
    x2, y2 = min(box[2], other[2]), min(box[3], other[3])
    if x1 > x2 or y1 > y2:
        return None
    return [(slice(y1 - b[1], y2 - b[1] + 1), slice(x1 - b[0], x2 - b[0] + 1)) for b in (box, other)]


def mask_overlap(box, other, mask: np.ndarray, other_mask: np.ndarray) -> float:
    """Intersection over union of two masks in different boxes (MNC's ``mask_overlap``)."""
    common = _common(box, other)
    if common is None:
        return 0.0
    inter = np.logical_and(mask[common[0]], other_mask[common[1]]).sum()
    union = mask.sum() + other_mask.sum() - inter
    return 0.0 if union < 1 else float(inter) / float(union)


def mask_target(box, gt_box, gt_mask: np.ndarray, size: int, thresh: float) -> np.ndarray:
    """The part of an object that lies in ``box``, as ``[size, size]`` bool (MNC's ``intersect_mask``): its mask within
    the box, resized, where it is at least ``thresh``."""
    inside = np.zeros((box[3] - box[1] + 1, box[2] - box[0] + 1), np.float32)
    common = _common(box, gt_box)
    if common is None:
        return np.zeros((size, size), bool)
    inside[common[0]] = gt_mask[common[1]]
    return resize_mask(inside, size, size) >= thresh
