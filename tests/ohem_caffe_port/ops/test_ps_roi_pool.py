import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import ps_roi_align, ps_roi_pool


def channel(where, group):
    d, i, j = where
    return (d * group + i) * group + j


@pytest.fixture
def slow_pool(c_round):
    """R-FCN's PSROIPooling, cell by cell."""

    def pool(features, roi, where, output_dim, group, scale):
        height, width = features.shape[2:]
        image, c = int(roi[0]), channel(where, group)
        x1, y1 = c_round(roi[1]) * scale, c_round(roi[2]) * scale
        x2, y2 = (c_round(roi[3]) + 1) * scale, (c_round(roi[4]) + 1) * scale
        bin_h, bin_w = max(y2 - y1, 0.1) / group, max(x2 - x1, 0.1) / group
        _, i, j = where
        ys = range(max(math.floor(i * bin_h + y1), 0), min(math.ceil((i + 1) * bin_h + y1), height))
        xs = range(max(math.floor(j * bin_w + x1), 0), min(math.ceil((j + 1) * bin_w + x1), width))
        cells = [(image, c, y, x) for y in ys for x in xs]
        if not cells:
            return 0, {}
        return np.mean([features[cell] for cell in cells]), dict.fromkeys(cells, 1 / len(cells))

    return pool


@pytest.mark.parametrize(("output_dim", "group"), [(3, 2), (2, 3), (1, 1), (5, 1)])
@pytest.mark.parametrize("scale", [1 / 8, 1 / 16, 0.3])
def test_pooling(compare, slow_pool, maps, rois, output_dim, group, scale):
    compare(ps_roi_pool, slow_pool, maps(output_dim * group**2), rois, output_dim, group, scale)


def test_pooling_by_hand():
    """Two by two bins of one cell each; every bin has channels of its own."""
    features = torch.arange(16.0).view(1, 4, 2, 2)
    out = ps_roi_pool(features, torch.tensor([[0, 0.0, 0, 1, 1]]), 1, 2, 1.0)
    assert out.tolist() == [[[[0, 5], [10, 15]]]]


def test_halves_round_away_from_zero():
    features = torch.arange(8.0).view(1, 1, 1, 8)
    rois = torch.tensor([[0, 2.5, 0, 2.5, 0], [0, 1.5, 0, 3.5, 0], [0, -0.5, 0, 0.4, 0]])
    # cells 3; 2 to 4; from -1, outside the map, to 0
    assert ps_roi_pool(features, rois, 1, 1, 1.0).flatten().tolist() == [3, 3, 0]


def test_pooling_gradient_is_the_derivative(maps, rois):
    x, r = torch.tensor(maps(8), requires_grad=True), torch.tensor(rois[::4])
    assert torch.autograd.gradcheck(lambda x: ps_roi_pool(x, r, 2, 2, 1 / 8), (x,))


def slow_align(features, roi, where, output_dim, group, scale, sample_num, around):
    """Light-Head R-CNN's PSROIAlign, point by point; gradients only to the cells of the bin."""
    height, width = features.shape[2:]
    image, c = int(roi[0]), channel(where, group)
    x1, y1, x2, y2 = roi[1] * scale, roi[2] * scale, (roi[3] + 1) * scale, (roi[4] + 1) * scale
    bin_h, bin_w = max(y2 - y1, 0.1) / group, max(x2 - x1, 0.1) / group
    _, i, j = where
    top, bottom = (min(max(k * bin_h + y1, 0), height - 1) for k in (i, i + 1))
    left, right = (min(max(k * bin_w + x1, 0), width - 1) for k in (j, j + 1))
    rows = range(max(math.floor(i * bin_h + y1), 0), min(math.ceil((i + 1) * bin_h + y1), height))
    columns = range(max(math.floor(j * bin_w + x1), 0), min(math.ceil((j + 1) * bin_w + x1), width))
    total, slopes = 0, {}
    for m in range(1, sample_num + 1):
        for n in range(1, sample_num + 1):
            y, x = top + m * bin_h / (sample_num + 1), left + n * bin_w / (sample_num + 1)
            if y >= bottom or x >= right:
                continue
            for (cy, cx), weight in around(y, x, height, width, 0.5).items():
                cell = (image, c, cy, cx)
                total += weight / sample_num**2 * features[cell]
                if cy in rows and cx in columns:
                    slopes[cell] = slopes.get(cell, 0) + weight / sample_num**2
    return total, slopes


@pytest.mark.parametrize(("output_dim", "group"), [(3, 2), (2, 3), (1, 1)])
@pytest.mark.parametrize("sample_num", [2, 1, 3])
def test_align(compare, around, maps, rois, output_dim, group, sample_num):
    def slow(*args):
        return slow_align(*args, around)

    compare(ps_roi_align, slow, maps(output_dim * group**2), rois, output_dim, group, 1 / 8, sample_num)
