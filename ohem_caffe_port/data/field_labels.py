"""Ground-truth maps of MS-CNN's and cascade-rcnn's proposal heads: which cell's field stands for which object."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..ops.mscnn import grid_overlaps
from .gt_windows import View
from .windows import round_half_away


@dataclass
class FieldRules:
    """How fields and objects are matched.

    Attributes:
        strides: pixels to a cell, for each map.
        fields: (width, height) of the field of each map.
        pixels: cascade-rcnn's arithmetic, where x2 is the last pixel, or MS-CNN's, where boxes end at x2.
        fg_threshold: a field whose IoU with its best object is above this stands for it.
        region_threshold: a field which regions to leave out cover to this share does not count.
        pickup_threshold: least IoU of the best field for an object that no field stands for.
        margin_ratio: fields further outside the image than this share of half their size do not count; None: all do.
        least_inside: fields with a smaller share inside the image do not count.
    """

    strides: list[int]
    fields: list[tuple[int, int]]
    pixels: bool
    fg_threshold: float
    region_threshold: float = 0.4
    pickup_threshold: float = 0.2
    margin_ratio: float | None = None
    least_inside: float | None = None

    @property
    def edges(self) -> str:
        return "corners" if self.pixels else "open"


def map_shape(height: int, width: int, stride: int) -> tuple[int, int]:
    """Rows and columns of a map for a blob of that size."""
    return round_half_away(np.float32(height) / stride), round_half_away(np.float32(width) / stride)


def field_labels(rules: FieldRules, shape, view: View, labels, ignored) -> list[np.ndarray]:
    """The maps ``[6, H, W]`` float32 of one image: label, centre x, centre y, width and height of the object a field
    stands for, and the field's IoU with its best object (1 where the field does not count).

    An object to ignore gives its fields label 0 with their IoU, so that losses leave them out. An object that no field
    stands for gets the cell at its centre, on the map of its best field, if that has no label yet. MS-CNN leaves the
    IoU of such a cell as it is, and a field in a region to leave out never stands for anything.

    Args:
        shape: (height, width) of the blob.
        view: the image, placed in the blob.
        labels, ignored: ``[n]`` of the objects, ``view.boxes``.
    """
    maps = [np.zeros((6, *map_shape(*shape, stride)), np.float32) for stride in rules.strides]
    objects, pixel = view.boxes, int(rules.pixels)
    centres, sizes = (objects[:, :2] + objects[:, 2:]) / 2, objects[:, 2:] - objects[:, :2] + pixel
    matches = np.zeros(len(objects), np.int64)
    best_iou, best_map = np.zeros(len(objects), np.float32), np.zeros(len(objects), np.int64)
    for i, (truth, stride, field) in enumerate(zip(maps, rules.strides, rules.fields, strict=True)):
        grid = [_ends(n, stride, side) for n, side in zip(truth.shape[:0:-1], field, strict=True)]
        counts = _on_image(truth.shape[1:], stride, view.area) & _inside(rules, grid, view.area, field)
        covered = grid_overlaps(*grid, view.regions, "IOFU", rules.edges).sum(0) >= rules.region_threshold
        if not rules.pixels:
            counts &= ~covered
        iou = grid_overlaps(*grid, objects, "IOU", rules.edges) * counts
        best = iou.max((1, 2), initial=0)
        best_iou, best_map = np.maximum(best_iou, best), np.where(best > best_iou, i, best_map)
        most = iou.max(0, initial=0)
        stands = (most > rules.fg_threshold) & (most > 0)
        truth[5] = np.where(counts & (stands | ~covered), most, 1)
        if stands.any():
            match = iou[:, stands].argmax(0)
            truth[0, stands] = np.where(ignored[match], 0, labels[match])
            truth[1:3, stands], truth[3:5, stands] = centres[match].T, sizes[match].T
            matches += np.bincount(match, minlength=len(objects))
    for k in ((matches == 0) & ~ignored & (best_iou >= rules.pickup_threshold)).nonzero()[0]:
        truth, stride = maps[best_map[k]], rules.strides[best_map[k]]
        x, y = (min(max(int(c // stride), 0), n - 1) for c, n in zip(centres[k], truth.shape[:0:-1], strict=True))
        if not truth[0, y, x] > 0:
            truth[:5, y, x] = labels[k], *centres[k], *sizes[k]
            if rules.pixels:
                truth[5, y, x] = best_iou[k]
    return maps


def _ends(cells: int, stride: int, side: int) -> np.ndarray:
    """Where the fields of a row or column of cells begin and end: ``[cells, 2]`` float32."""
    centres = (np.arange(cells) + 0.5) * stride
    return np.stack((centres - side / 2, centres + side / 2), 1).astype(np.float32)


def _on_image(shape, stride, area) -> np.ndarray:
    """Which cells lie where the blob shows the image: ``[H, W]``."""
    x, y, w, h = (round_half_away(np.float32(v) / stride) for v in area)
    rows, columns = np.arange(shape[0]), np.arange(shape[1])
    return ((rows >= y) & (rows < y + h))[:, None] & ((columns >= x) & (columns < x + w))


def _inside(rules: FieldRules, grid, area, field) -> np.ndarray:
    """Which fields lie far enough inside the image: ``[H, W]``, or something that broadcasts."""
    x, y, w, h = area
    if rules.margin_ratio is not None:
        margins = np.float32(rules.margin_ratio) * np.array(field, np.float32) / 2
        columns, rows = (
            (ends[:, 0] >= start - margin) & (ends[:, 1] < start + size + margin)
            for ends, start, size, margin in zip(grid, (x, y), (w, h), margins, strict=True)
        )
        return rows[:, None] & columns
    if rules.least_inside is not None:
        image = np.array([[x, y, x + w, y + h]], np.float32)
        return grid_overlaps(*grid, image, "IOFU", rules.edges)[0] >= rules.least_inside
    return np.ones((1, 1), bool)
