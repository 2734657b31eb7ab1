import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import mask_resize, roi_warp

SCALE = 1 / 8


@pytest.fixture
def rounded(c_round):
    return lambda roi: [c_round(v * SCALE) for v in roi[1:]]


@pytest.fixture
def slow_warp(rounded, around):
    """caffe-mnc's ROIWarping, point by point; a cell's gradient only where the backward kernel looks for it."""

    def found(cell, start, end, point, bins):
        bin_size = max(end - start + 1, 1) / bins
        first, last = math.floor((cell - start - 1) / bin_size - 1), math.ceil((cell - start + 1) / bin_size)
        return start <= cell <= end and first <= point < last

    def warp(features, roi, where, pooled_h, pooled_w, scale):
        c, i, j = where
        x1, y1, x2, y2 = rounded(roi)
        y, x = y1 + i * (max(y2 - y1, 0) / pooled_h), x1 + j * (max(x2 - x1, 0) / pooled_w)
        cells = around(y, x, *features.shape[2:], 0.5)
        total = sum(weight * features[(int(roi[0]), c, *cell)] for cell, weight in cells.items())
        return total, {
            (int(roi[0]), c, cy, cx): weight
            for (cy, cx), weight in cells.items()
            if found(cy, y1, y2, i, pooled_h) and found(cx, x1, x2, j, pooled_w)
        }

    return warp


@pytest.mark.parametrize("pooled", [(2, 3), (7, 7), (1, 1), (14, 14)])
def test_warping(compare, slow_warp, maps, rois, pooled):
    compare(roi_warp, slow_warp, maps(3), rois, *pooled, SCALE)


@pytest.mark.parametrize("pooled", [(2, 3), (7, 7)])
def test_gradient_of_the_rois(rounded, maps, rois, pooled):
    """Differences of neighbouring cells, times the scale and the point's place between the corners."""
    features = maps(3)
    height, width = features.shape[2:]
    r = torch.tensor(rois, requires_grad=True)
    out = roi_warp(torch.tensor(features), r, *pooled, SCALE)
    grad = np.random.default_rng(3).standard_normal(out.shape)
    out.backward(torch.tensor(grad))
    expected = np.zeros(rois.shape)
    for n, c, i, j in np.ndindex(*out.shape):
        x1, y1, x2, y2 = rounded(rois[n])
        y, x = y1 + i * (max(y2 - y1, 0) / pooled[0]), x1 + j * (max(x2 - x1, 0) / pooled[1])
        if not (-0.5 <= y <= height - 0.5 and -0.5 <= x <= width - 0.5):
            continue
        y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
        top, left = int(y), int(x)
        if top + 1 > height - 1 or left + 1 > width - 1:
            continue
        here = features[int(rois[n, 0]), c, top : top + 2, left : left + 2]
        by_x = np.diff(here, axis=1)[:, 0] @ [1 - y + top, y - top]
        by_y = np.diff(here, axis=0)[0] @ [1 - x + left, x - left]
        part_x, part_y = (x - x1) / max(x2 - x1 + 1, 1), (y - y1) / max(y2 - y1 + 1, 1)
        slopes = np.array([0, (1 - part_x) * by_x, (1 - part_y) * by_y, part_x * by_x, part_y * by_y])
        expected[n] += slopes * SCALE * grad[n, c, i, j]
    np.testing.assert_allclose(r.grad.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("size", [(3, 4), (6, 7), (9, 14), (21, 21), (1, 30)])
def test_mask_resize(maps, size):
    """caffe-mnc's MaskResize: the backward kernel looks at two output cells along each axis."""
    masks = maps(2)
    height, width = masks.shape[2:]
    x = torch.tensor(masks, requires_grad=True)
    out = mask_resize(x, *size)
    assert mask_resize(x.to("meta"), *size).shape == out.shape
    grad = np.random.default_rng(4).standard_normal(out.shape)
    out.backward(torch.tensor(grad))

    def weights(size_in, size_out):
        """Of every output cell: ``{input cell: weight}``."""
        rows = []
        for i in range(size_out):
            at = i * (size_in / size_out)
            inside = min(at, size_in - 1)
            low = math.floor(inside)
            row = {low: 1 - (inside - low), min(low + 1, size_in - 1): inside - low} if low < size_in - 1 else {low: 1}
            rows.append(row if at <= size_in - 0.5 else {})
        return rows

    def looked_at(cell, i, size_in, size_out):
        return i - math.floor(cell / (size_in / size_out)) in (0, 1)

    expected, expected_grad = np.zeros(out.shape), np.zeros(masks.shape)
    for i, row in enumerate(weights(height, size[0])):
        for j, column in enumerate(weights(width, size[1])):
            for y, weight_y in row.items():
                for x_, weight_x in column.items():
                    expected[:, :, i, j] += weight_y * weight_x * masks[:, :, y, x_]
                    if looked_at(y, i, height, size[0]) and looked_at(x_, j, width, size[1]):
                        expected_grad[:, :, y, x_] += weight_y * weight_x * grad[:, :, i, j]
    np.testing.assert_allclose(out.detach().numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(x.grad.numpy(), expected_grad, atol=1e-12)


def test_shrinking_has_the_true_gradient(maps):
    x = torch.tensor(maps(1), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mask_resize(x, 4, 5), (x,))
