"""Ground-truth maps against loops written from MS-CNN's and cascade-rcnn's formulas, in float64."""

import math

import numpy as np
import pytest

from ohem_caffe_port.data.field_labels import FieldRules, field_labels
from ohem_caffe_port.data.gt_windows import View

STRIDES, FIELDS = [8, 8, 16], [(24, 32), (32, 16), (48, 48)]
SHAPE, AREA = (97, 120), (16, 8, 80, 80)  # of the blob, and where it shows the image


def share(a, b, pixel, of_first=False):
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + pixel for i in (0, 1))
    if w <= 0 or h <= 0 or (pixel and (w < 1 or h <= 1)):
        return 0.0
    areas = [(x[2] - x[0] + pixel) * (x[3] - x[1] + pixel) for x in (a, b)]
    return w * h / (areas[0] if of_first else sum(areas) - w * h)


def half_up(x):
    return math.floor(x + 0.5)


def slow_labels(rules, boxes, labels, ignored, regions):
    pixel = int(rules.pixels)
    maps, matches, best = [], [0] * len(boxes), [(0.0, 0)] * len(boxes)
    for i, (stride, (fw, fh)) in enumerate(zip(STRIDES, FIELDS, strict=True)):
        height, width = (half_up(n / stride) for n in SHAPE)
        x, y, w, h = (half_up(v / stride) for v in AREA)
        truth = np.zeros((6, height, width))
        maps.append(truth)
        for row, col in np.ndindex(height, width):
            cx, cy = (col + 0.5) * stride, (row + 0.5) * stride
            field = cx - fw / 2, cy - fh / 2, cx + fw / 2, cy + fh / 2
            counts = x <= col < x + w and y <= row < y + h
            image = AREA[0], AREA[1], AREA[0] + AREA[2], AREA[1] + AREA[3]
            if rules.margin_ratio is not None:
                mx, my = rules.margin_ratio * fw / 2, rules.margin_ratio * fh / 2
                counts &= field[0] >= image[0] - mx and field[2] < image[2] + mx
                counts &= field[1] >= image[1] - my and field[3] < image[3] + my
            elif rules.least_inside is not None:
                counts &= share(field, image, pixel, of_first=True) >= rules.least_inside
            covered = sum(share(field, r, pixel, of_first=True) for r in regions) >= rules.region_threshold
            if not counts or (covered and not pixel):
                truth[5, row, col] = 1
                continue
            ious = [share(b, field, pixel) for b in boxes]
            for k, iou in enumerate(ious):
                best[k] = max(best[k], (iou, i), key=lambda pair: pair[0])
            most = max(ious, default=0)
            truth[5, row, col] = most
            if most > rules.fg_threshold:
                k = ious.index(most)
                matches[k] += 1
                b = boxes[k]
                truth[0, row, col] = 0 if ignored[k] else labels[k]
                truth[1:5, row, col] = (b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0] + pixel, b[3] - b[1] + pixel
            elif covered:
                truth[5, row, col] = 1
    for k, b in enumerate(boxes):
        iou, i = best[k]
        if ignored[k] or matches[k] or iou < rules.pickup_threshold:
            continue
        col, row = (
            min(max(math.floor((b[a] + b[a + 2]) / 2 / STRIDES[i]), 0), maps[i].shape[2 - a] - 1) for a in (0, 1)
        )
        if maps[i][0, row, col] > 0:
            continue
        maps[i][:5, row, col] = (
            labels[k],
            (b[0] + b[2]) / 2,
            (b[1] + b[3]) / 2,
            b[2] - b[0] + pixel,
            b[3] - b[1] + pixel,
        )
        if pixel:
            maps[i][5, row, col] = iou
    return maps


def view_of(boxes, regions):
    view = View(np.zeros((80, 80, 3), np.uint8), np.array(boxes, np.float32).reshape(-1, 4), regions)
    view.area = AREA
    return view


@pytest.mark.parametrize(
    "settings",
    [
        {"pixels": False},
        {"pixels": True},
        {"pixels": True, "margin_ratio": 0.25},
        {"pixels": True, "least_inside": 0.8},
        {"pixels": True, "region_threshold": 0.25, "pickup_threshold": 0.35},
    ],
)
@pytest.mark.parametrize("seed", range(4))
def test_against_loops(settings, seed):
    rng = np.random.RandomState(seed)
    low = rng.randint(10, 80, (7, 2))
    boxes = np.column_stack((low, low + rng.randint(8, 45, (7, 2))))
    regions = np.array([[20, 10, 45, 60], [40, 30, 60, 50]], np.float32)
    rules = FieldRules(STRIDES, FIELDS, fg_threshold=0.5, **settings)
    labels, ignored = rng.randint(1, 5, 7), np.arange(7) == 2
    found = field_labels(rules, SHAPE, view_of(boxes, regions), labels, ignored)
    wanted = slow_labels(rules, boxes.tolist(), labels, ignored, regions.tolist())
    assert sum((m[0] > 0).sum() for m in wanted) > 5
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == np.float32
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pixels", [False, True])
def test_without_objects(pixels):
    rules = FieldRules(STRIDES, FIELDS, pixels, 0.5)
    regions = np.array([[20, 10, 60, 60]], np.float32)
    found = field_labels(rules, SHAPE, view_of([], regions), np.zeros(0, int), np.zeros(0, bool))
    for mine, theirs in zip(found, slow_labels(rules, [], [], [], regions.tolist()), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("pixels", [False, True])
def test_an_object_that_no_field_stands_for(pixels):
    """It gets the cell at its centre; only cascade-rcnn says with what IoU."""
    rules, view = FieldRules([8], [(32, 32)], pixels, 0.9), view_of([[40, 40, 61, 61]], np.zeros((0, 4), np.float32))
    (found,) = field_labels(rules, SHAPE, view, np.array([3]), np.zeros(1, bool))
    assert found[0].sum() == found[0, 6, 6] == 3
    np.testing.assert_allclose(found[1:5, 6, 6], [50.5, 50.5, 21 + pixels, 21 + pixels])
    np.testing.assert_allclose(found[5, 6, 6], 22**2 / 33**2 if pixels else 21**2 / 32**2)
