"""Box arithmetic of MS-CNN and cascade-rcnn against loops written from its formulas, in float64."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops.mscnn import (
    decode_fields,
    descending,
    encode_fields,
    greedy_nms,
    grid_overlaps,
    overlap,
    overlaps,
)

FIELDS, MEANS, STDS = [(40, 60), (80, 50)], [0.1, -0.2, 0.05, 0.3], [0.1, 0.2, 0.3, 0.4]


def slow_overlap(a, b, mode, edges):
    """One pair, from ``BoxIOU`` and both ``JaccardOverlap``."""
    pixel = 0 if edges == "open" else 1
    sizes = [(box[2] - box[0] + pixel, box[3] - box[1] + pixel) for box in (a, b)]
    if any(min(size) <= 0 or (edges == "corners" and min(size) < 1) for size in sizes):
        return 0.0
    left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    apart = {
        "open": left >= right or top >= bottom,
        "pixels": left > right or top > bottom,
        "corners": left > right or top >= bottom,
    }[edges]
    inter = 0.0 if apart else (right - left + pixel) * (bottom - top + pixel)
    areas = [w * h for w, h in sizes]
    return inter / {"IOU": sum(areas) - inter, "IOMU": min(areas), "IOFU": areas[0]}[mode]


def boxes(seed, count):
    """Whole numbers in a small space: many boxes touch, share one row or column, or have no area."""
    values = np.random.RandomState(seed).randint(0, 9, size=(count, 4)).astype(np.float64)
    values[:, 2:] = values[:, :2] + values[:, 2:] - 2
    return values


@pytest.mark.parametrize("mode", ["IOU", "IOMU", "IOFU"])
@pytest.mark.parametrize("edges", ["open", "pixels", "corners"])
def test_overlaps(mode, edges):
    a, b = boxes(0, 25), boxes(1, 20)
    wanted = [[slow_overlap(x, y, mode, edges) for y in b] for x in a]
    np.testing.assert_allclose(overlaps(a, b, mode, edges), wanted, rtol=1e-14)
    found = overlaps(torch.from_numpy(a), torch.from_numpy(b), mode, edges)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-14)
    np.testing.assert_array_equal(overlap(a[:20], b, mode, edges), np.diag(overlaps(a, b, mode, edges)[:20]))
    assert overlaps(a, b[:0], mode, edges).shape == (25, 0)


@pytest.mark.parametrize("mode", ["IOU", "IOMU", "IOFU"])
@pytest.mark.parametrize("edges", ["open", "pixels", "corners"])
def test_overlaps_of_a_grid(mode, edges):
    columns, rows, others = boxes(0, 6)[:, ::2], boxes(1, 5)[:, 1::2], boxes(2, 20)
    wanted = [[[slow_overlap((c[0], r[0], c[1], r[1]), o, mode, edges) for c in columns] for r in rows] for o in others]
    np.testing.assert_allclose(grid_overlaps(columns, rows, others, mode, edges), wanted, rtol=1e-14)
    assert grid_overlaps(columns, rows, others[:0], mode, edges).shape == (0, 5, 6)


def slow_decode(deltas, strides, xyr, whr):
    found = np.empty_like(deltas)
    for n, _, h, w in np.ndindex(deltas.shape):
        fw, fh = FIELDS[n % 2]
        x, y, dw, dh = deltas[n, :, h, w] * STDS + MEANS
        x, y = (min(max(v, -1 / xyr), 1 / xyr) for v in (x, y))
        dw, dh = (min(max(v, -math.log(whr)), math.log(whr)) for v in (dw, dh))
        width, height = fw * math.exp(dw), fh * math.exp(dh)
        centre = x * fw + (w + 0.5) * strides, y * fh + (h + 0.5) * strides
        found[n, :, h, w] = centre[0] - width / 2, centre[1] - height / 2, width, height
    return found


def test_decode_fields():
    deltas = np.random.RandomState(0).randn(4, 4, 3, 5) * 4
    found = decode_fields(torch.from_numpy(deltas), FIELDS, 8, MEANS, STDS, 2.0, 3.0)
    np.testing.assert_allclose(found.numpy(), slow_decode(deltas, 8, 2.0, 3.0), rtol=1e-12)


def test_encode_is_the_inverse_within_the_bounds():
    deltas = torch.from_numpy(np.random.RandomState(0).randn(4, 4, 3, 5))
    x, y, w, h = decode_fields(deltas, FIELDS, 8, MEANS, STDS, 0.01, 100.0).unbind(1)
    found = encode_fields(torch.stack((x + w / 2, y + h / 2, w, h), 1), FIELDS, 8, MEANS, STDS)
    torch.testing.assert_close(found, deltas)


def test_sides_count_as_two_pixels_at_least():
    thin = torch.tensor([4.0, 4, 0, 1]).view(1, 4, 1, 1)
    found = encode_fields(thin, [(8, 4)], 8, [0.0] * 4, [1.0] * 4)
    np.testing.assert_allclose(found.flatten(), [0, 0, math.log(2 / 8), math.log(2 / 4)], rtol=1e-6)


def test_of_equal_scores_the_later_goes_first():
    assert descending(torch.tensor([1.0, 3, 1, 3, 2])).tolist() == [3, 1, 4, 2, 0]


@pytest.mark.parametrize(("mode", "edges"), [("IOU", "open"), ("IOMU", "corners"), ("IOFU", "corners")])
def test_greedy_nms(mode, edges):
    ranked, kept = boxes(3, 60), []
    for i in range(60):
        if all(slow_overlap(ranked[k], ranked[i], mode, edges) <= 0.5 for k in kept):
            kept.append(i)
    valid = torch.ones((1, 60), dtype=torch.bool)
    found = greedy_nms(torch.from_numpy(ranked)[None], valid, 0.5, mode, edges)[0]
    assert 5 < len(kept) < 60 and found.nonzero()[:, 0].tolist() == kept
