import itertools
import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import roi_align
from ohem_caffe_port.ops.roi_align import roi_align_grid, roi_align_max, roi_align_window

POOLED = [(2, 3), (7, 7), (1, 1)]


def padded(roi, pad_ratio, scale):
    """x1, y1, x2, y2 in cells."""
    pad_w, pad_h = (roi[3] - roi[1] + 1) * pad_ratio, (roi[4] - roi[2] + 1) * pad_ratio
    return (roi[1] - pad_w) * scale, (roi[2] - pad_h) * scale, (roi[3] + pad_w) * scale, (roi[4] + pad_h) * scale


def weighted(features, image, channel, cells, slopes=None, factor=1.0):
    """The value at a point, whose slopes are added."""
    slopes = {} if slopes is None else slopes
    total = 0
    for (y, x), weight in cells.items():
        where = (image, channel, y, x)
        total += weight * factor * features[where]
        slopes[where] = slopes.get(where, 0) + weight * factor
    return total, slopes


@pytest.mark.parametrize("pooled", POOLED)
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_mean_of_samples(compare, around, maps, rois, pooled, sampling_ratio):
    def slow(features, roi, where, pooled_h, pooled_w, scale, ratio):
        c, i, j = where
        x1, y1, x2, y2 = (v * scale for v in roi[1:])
        bin_h, bin_w = max(y2 - y1, 1) / pooled_h, max(x2 - x1, 1) / pooled_w
        points_y, points_x = ratio or math.ceil(bin_h), ratio or math.ceil(bin_w)
        total, slopes = 0, {}
        for m in range(points_y):
            for n in range(points_x):
                y, x = y1 + i * bin_h + (m + 0.5) * bin_h / points_y, x1 + j * bin_w + (n + 0.5) * bin_w / points_x
                cells = around(y, x, *features.shape[2:], 1)
                total += weighted(features, int(roi[0]), c, cells, slopes, 1 / points_y / points_x)[0]
        return total, slopes

    compare(roi_align, slow, maps(3), rois, *pooled, 1 / 8, sampling_ratio)


@pytest.mark.parametrize("pooled", POOLED)
@pytest.mark.parametrize("pad_ratio", [0, 0.25])
def test_corners_of_the_bins(compare, around, maps, rois, pooled, pad_ratio):
    def slow(features, roi, where, pooled_h, pooled_w, scale, ratio):
        c, i, j = where
        x1, y1, x2, y2 = (v - 0.5 for v in padded(roi, ratio, scale))
        if x2 <= x1 or y2 <= y1:
            return 0, {}
        y, x = y1 + i * ((y2 - y1) / pooled_h), x1 + j * ((x2 - x1) / pooled_w)
        return weighted(features, int(roi[0]), c, around(y, x, *features.shape[2:], 0.5))

    out = compare(roi_align_grid, slow, maps(3), rois, *pooled, 1 / 8, pad_ratio)
    assert out.shape[2:] == (pooled[0] + 1, pooled[1] + 1)


def cubic(x):
    """Cubic convolution with a = -1 (Keys 1981, equation 9)."""
    x = abs(x)
    return x**3 - 2 * x**2 + 1 if x < 1 else -(x**3) + 5 * x**2 - 8 * x + 4 if x < 2 else 0


def cubic_cells(y, x, height, width):
    cells = {}
    for cy in range(math.floor(y) - 1, math.floor(y) + 3):
        for cx in range(math.floor(x) - 1, math.floor(x) + 3):
            cell = min(max(cy, 0), height - 1), min(max(cx, 0), width - 1)
            cells[cell] = cells.get(cell, 0) + cubic(y - cy) * cubic(x - cx)
    return cells


def distance_cells(y, x, height, width):
    top, left = math.floor(y), math.floor(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    if bottom == top or right == left:  # the distances of both cells are 0
        return {}
    return {
        (cy, cx): abs(bottom + top - cy - y) * abs(left + right - cx - x)
        for cy in (top, bottom)
        for cx in (left, right)
    }


@pytest.mark.parametrize("pooled", POOLED)
@pytest.mark.parametrize("pad_ratio", [0, 0.25])
@pytest.mark.parametrize("multiple", [True, False])
@pytest.mark.parametrize("by_cubic", [True, False])
def test_largest_of_four_samples(compare, maps, rois, pooled, pad_ratio, multiple, by_cubic):
    def slow(features, roi, where, pooled_h, pooled_w, scale, ratio, **_):
        c, i, j = where
        height, width = features.shape[2:]
        x1, y1, x2, y2 = padded(roi, ratio, scale)
        x1, y1 = max(x1, 0), max(y1, 0)
        x2, y2 = min(x2, round(width / scale) - 1), min(y2, round(height / scale) - 1)
        bin_h, bin_w = max(y2 - y1 + 1, 1) / pooled_h, max(x2 - x1 + 1, 1) / pooled_w
        best = None
        for m, n in itertools.product((0.25, 0.75) if multiple else (0.5,), repeat=2):
            y, x = min(max((i + m) * bin_h + y1, 0), height - 1), min(max((j + n) * bin_w + x1, 0), width - 1)
            cells = (cubic_cells if by_cubic else distance_cells)(y, x, height, width)
            here = weighted(features, int(roi[0]), c, cells)
            best = here if best is None or here[0] > best[0] + 1e-13 else best
        return best

    compare(roi_align_max, slow, maps(3), rois, *pooled, 1 / 8, pad_ratio, cubic=by_cubic, multiple=multiple)


@pytest.mark.parametrize("pooled", POOLED)
@pytest.mark.parametrize("scale", [1 / 8, 1 / 16])
def test_first_cells_of_a_window(compare, maps, rois, pooled, scale):
    """Cells that lie one past the map are found in memory, as the fork finds them."""

    def slow(features, roi, where, pooled_h, pooled_w, scale):
        c, i, j = where
        _, channels, height, width = features.shape
        memory = np.concatenate([features.ravel(), np.zeros(width + 1)])
        x1, y1, x2, y2 = (v * scale for v in roi[1:])
        bin_h, bin_w = max(y2 - y1 + 1, 1) / pooled_h, max(x2 - x1 + 1, 1) / pooled_w
        top, bottom = (min(max(k * bin_h + y1, 0), height) for k in (i, i + 1))
        left, right = (min(max(k * bin_w + x1, 0), width) for k in (j, j + 1))
        cells = list(
            itertools.product(
                range(math.ceil(top), math.floor(bottom) + 1), range(math.ceil(left), math.floor(right) + 1)
            )
        )[:4]
        best = (0, {}) if bottom <= top or right <= left else None
        for sample_x, sample_y in itertools.product((-0.5, 0.5), repeat=2):
            total, slopes = 0, {}
            for y, x in cells:
                place_y = min(max(2 * (y - y1) / (y2 - y1) - 1, -1), 1) if y2 != y1 else 0
                place_x = min(max(2 * (x - x1) / (x2 - x1) - 1, -1), 1) if x2 != x1 else 0
                weight = max(0, 1 - abs(sample_x - place_x)) * max(0, 1 - abs(sample_y - place_y))
                plane = int(roi[0]) * channels + c
                total += weight * memory[plane * height * width + y * width + x]
                inside = divmod(y * width + x, width)
                if inside[0] < height and (
                    math.ceil(y1) <= inside[0] <= math.floor(y2) and math.ceil(x1) <= inside[1] <= math.floor(x2)
                ):
                    slopes[(int(roi[0]), c, *inside)] = weight
            if best is None or total > best[0]:
                best = total, slopes
        return best

    compare(roi_align_window, slow, maps(3), rois, *pooled, scale)


def test_gradients_of_means_are_derivatives(maps, rois):
    x, r = torch.tensor(maps(2), requires_grad=True), torch.tensor(rois[::4])
    assert torch.autograd.gradcheck(lambda x: roi_align(x, r, 2, 2, 1 / 8), (x,))
    assert torch.autograd.gradcheck(lambda x: roi_align_grid(x, r, 2, 2, 1 / 8), (x,))


@pytest.mark.parametrize("pool", [roi_align, roi_align_grid, roi_align_max, roi_align_window])
def test_rois_get_no_gradient(maps, rois, pool):
    x, r = torch.tensor(maps(2), requires_grad=True), torch.tensor(rois, requires_grad=True)
    pool(x, r, 2, 2, 1 / 8).sum().backward()
    assert x.grad.any()
    assert r.grad is None


def test_by_hand():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    roi = torch.tensor([[0, 1.0, 1, 3, 3]])
    assert roi_align(features, roi, 1, 1, 1.0, 1).item() == 10  # the value at (2, 2)
    corners = roi_align_grid(features, roi, 1, 1, 1.0)  # at 0.5 and 2.5
    assert corners.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]


def test_many_rois_go_in_chunks(monkeypatch, maps, rois):
    x, r = torch.tensor(maps(2)), torch.tensor(rois)
    whole = roi_align(x, r, 2, 2, 1 / 8, 2)
    monkeypatch.setattr("ohem_caffe_port.ops.bilinear._CHUNK_TAPS", 200)
    assert torch.equal(roi_align(x, r, 2, 2, 1 / 8, 2), whole)
