import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops.roi_pool_3d import roi_pool_3d


def slow_pool(features, rois, pooled, scale, grad, c_round):
    """Intel's ROIPooling of blobs with depth, in single precision: values and the gradient of the features."""
    f32 = np.float32
    sizes = features.shape[2:]
    out, dfeatures = np.zeros((len(rois), features.shape[1], *pooled), f32), np.zeros_like(features)
    for where in np.ndindex(*out.shape):
        n, c, *bins = where
        roi = rois[n]
        cells = []
        # the axes depth, height, width stand in columns 1, 3, 2 and 4, 6, 5
        for index, number, size, first, last in zip(bins, pooled, sizes, (1, 3, 2), (4, 6, 5), strict=True):
            start, end = c_round(roi[first] * f32(scale)), c_round(roi[last] * f32(scale))
            bin_size = f32(max(end - start + 1, 1)) / f32(number)
            low, high = math.floor(f32(index) * bin_size) + start, math.ceil(f32(index + 1) * bin_size) + start
            cells.append(slice(min(max(low, 0), size), min(max(high, 0), size)))
        block = features[int(roi[0]), c][tuple(cells)]
        if not block.size:
            continue
        best = np.unravel_index(block.argmax(), block.shape)
        out[where] = block[best]
        dfeatures[(int(roi[0]), c, *(s.start + b for s, b in zip(cells, best, strict=True)))] += grad[where]
    return out, dfeatures


@pytest.mark.parametrize("pooled", [(2, 3, 2), (1, 1, 1), (4, 7, 7)])
@pytest.mark.parametrize("ties", [False, True])
def test_three_axes(c_round, pooled, ties):
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 3, 9, 6, 7)).astype(np.float32)
    if ties:
        features = rng.integers(0, 2, features.shape).astype(np.float32)
    first, last = np.sort(rng.uniform(-10, 75, (2, 12, 3)), axis=0)
    rois = np.hstack([rng.integers(0, 2, (12, 1)), first, last]).astype(np.float32)
    rois[0, 1:] = (0, 0, 0, 71, 55, 47)
    rois[1, 1:4] = rois[1, 4:] + 20  # malformed
    grad = rng.integers(-8, 9, (12, 3, *pooled)).astype(np.float32)
    expected, expected_grad = slow_pool(features, rois, pooled, 1 / 8, grad, c_round)
    x = torch.tensor(features, requires_grad=True)
    out = roi_pool_3d(x, torch.tensor(rois), *pooled, 1 / 8)
    out.backward(torch.tensor(grad))
    np.testing.assert_array_equal(out.detach().numpy(), expected)
    np.testing.assert_array_equal(x.grad.numpy(), expected_grad)
    assert roi_pool_3d(x.to("meta"), torch.tensor(rois).to("meta"), *pooled, 1 / 8).shape == out.shape
    assert roi_pool_3d(x, torch.tensor(rois[:0]), *pooled, 1 / 8).shape == (0, *out.shape[1:])
