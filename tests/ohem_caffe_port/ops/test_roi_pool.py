import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import RoIPool, roi_pool

F32 = np.float32


def half_away(value) -> int:
    """C's ``round``."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), float(value)))


def inside(cell, _bin, start, end, *_):
    """Whether caffe-fast-rcnn's backward finds a maximum."""
    return start <= cell <= end


def mscnn_finds(cell, index, start, end, size, bins, scale):
    """Whether MS-CNN's backward does, which looks for the bin in the RoI clipped to the image."""
    start, end = max(start, 0), min(end, half_away(size / scale) - 1)
    bin_size = F32(max(end - start + 1, 1)) / F32(bins)
    first, last = math.floor(F32(cell - start) / bin_size), math.ceil(F32(cell - start + 1) / bin_size)
    return start <= cell <= end and first <= index < last


RULES = {"inside": inside, "mscnn": mscnn_finds, "all": lambda *_: True}


def slow_roi_pool(features, rois, pooled_h, pooled_w, scale, grad=None, pad_ratio=0, gradient="inside"):
    """ROIPooling, RoI by RoI and cell by cell, in Caffe's single precision.

    Returns the output, and the gradient of ``features`` when one of the output is given.
    """
    finds = RULES[gradient]
    _, channels, height, width = features.shape
    out = np.zeros((len(rois), channels, pooled_h, pooled_w), dtype=features.dtype)
    dfeatures = np.zeros_like(features)
    for r, roi in enumerate(rois):
        image = int(roi[0])
        pad = [
            (F32(last) - F32(first) + F32(1)) * F32(pad_ratio) for first, last in zip(roi[1:3], roi[3:], strict=True)
        ]
        padded = [F32(c) + sign * p for c, sign, p in zip(roi[1:], (-1, -1, 1, 1), pad * 2, strict=True)]
        x1, y1, x2, y2 = (half_away(c * F32(scale)) for c in padded)
        bin_h = F32(max(y2 - y1 + 1, 1)) / F32(pooled_h)
        bin_w = F32(max(x2 - x1 + 1, 1)) / F32(pooled_w)
        for ph in range(pooled_h):
            for pw in range(pooled_w):
                top = min(max(math.floor(F32(ph) * bin_h) + y1, 0), height)
                bottom = min(max(math.ceil(F32(ph + 1) * bin_h) + y1, 0), height)
                left = min(max(math.floor(F32(pw) * bin_w) + x1, 0), width)
                right = min(max(math.ceil(F32(pw + 1) * bin_w) + x1, 0), width)
                for c in range(channels):
                    best, where = None, None
                    for y in range(top, bottom):
                        for x in range(left, right):
                            if best is None or features[image, c, y, x] > best:
                                best, where = features[image, c, y, x], (y, x)
                    if best is None:
                        continue
                    out[r, c, ph, pw] = best
                    y, x = where
                    found = finds(y, ph, y1, y2, height, pooled_h, scale) and finds(
                        x, pw, x1, x2, width, pooled_w, scale
                    )
                    if grad is not None and found:
                        dfeatures[image, c, y, x] += grad[r, c, ph, pw]
    return out, dfeatures


def check(features, rois, pooled=(7, 7), scale=1.0, **options):
    features, rois = np.asarray(features, dtype=F32), np.asarray(rois, dtype=F32).reshape(-1, 5)
    rng = np.random.default_rng(0)
    grad = rng.integers(-8, 9, (len(rois), features.shape[1], *pooled)).astype(F32)  # sums are exact
    expected, expected_grad = slow_roi_pool(features, rois, *pooled, scale, grad, **options)
    x = torch.tensor(features, requires_grad=True)
    out = roi_pool(x, torch.tensor(rois), *pooled, scale, **options)
    np.testing.assert_array_equal(out.detach().numpy(), expected)
    out.backward(torch.tensor(grad))
    np.testing.assert_array_equal(x.grad.numpy(), expected_grad)
    with torch.no_grad():  # another code path: no argmax
        np.testing.assert_array_equal(roi_pool(x, torch.tensor(rois), *pooled, scale, **options).numpy(), expected)
    return out


def random_rois(rng, number, images, width, height):
    first, second = rng.uniform(0, (width, height), (2, number, 2))
    corners = np.hstack([np.minimum(first, second), np.maximum(first, second)])
    return np.hstack([rng.integers(0, images, (number, 1)), corners]).astype(F32)


@pytest.mark.parametrize("pooled", [(7, 7), (6, 6), (1, 1), (2, 5)])
@pytest.mark.parametrize("scale", [1 / 16, 1 / 8, 0.3])
def test_random_rois_of_several_images(pooled, scale):
    rng = np.random.default_rng(1)
    features = rng.standard_normal((3, 2, 14, 19))
    check(features, random_rois(rng, 20, 3, 19 / scale, 14 / scale), pooled, scale)


@pytest.mark.parametrize("extent", [57, 114, 121, 7, 13, 1, 6])
def test_extents_where_single_precision_reaches_one_cell_further(extent):
    """57 / 7 * 7 in float32 exceeds 57: the last bin ends one cell behind the RoI, and that cell gets no gradient."""
    features = np.random.default_rng(2).standard_normal((1, 1, extent + 4, extent + 4))
    features[..., extent:, :] += 10  # the cells behind the RoI win wherever a bin sees them
    features[..., extent:] += 10
    out = check(features, [[0, 0, 0, extent - 1, extent - 1]])
    assert bool((out > 5).any()) == (extent in (57, 114, 121))


@pytest.mark.parametrize("corner", [0.5, 1.5, 2.5, 3.49999, -0.5, -1.5, -2.5])
def test_halves_round_away_from_zero(corner):
    features = np.arange(64.0).reshape(1, 1, 8, 8)
    check(features, [[0, corner, corner, corner + 3, corner + 3]], (2, 2))


@pytest.mark.parametrize(
    "roi",
    [
        pytest.param((5, 5, 3, 3), id="malformed"),
        pytest.param((5, 2, 3, 6), id="malformed on one axis"),
        pytest.param((7, 7, -7, -7), id="far apart"),
        pytest.param((-20, -20, -10, -10), id="above left of the image"),
        pytest.param((30, 30, 40, 40), id="below right of the image"),
        pytest.param((-5, -5, 3, 3), id="partly outside"),
        pytest.param((6, 6, 30, 9), id="partly behind"),
        pytest.param((2, 2, 2, 2), id="one cell"),
        pytest.param((0, 0, 7, 7), id="everything"),
    ],
)
def test_odd_rois(roi):
    features = np.random.default_rng(3).standard_normal((1, 2, 8, 8)) - 5  # empty bins give 0, more than any cell
    check(features, [[0, *roi]], (3, 3))


def test_the_first_of_equal_maxima_gets_the_gradient():
    features = np.random.default_rng(4).integers(0, 2, (2, 3, 9, 11))
    check(features, random_rois(np.random.default_rng(5), 25, 2, 11, 9), (2, 3))


@pytest.mark.parametrize("pooled", [(7, 7), (2, 5)])
@pytest.mark.parametrize("scale", [1 / 16, 1.5])
@pytest.mark.parametrize("gradient", RULES)
@pytest.mark.parametrize("pad_ratio", [0, 0.25])
def test_forks(pooled, scale, gradient, pad_ratio):
    rng = np.random.default_rng(6)
    rois = random_rois(rng, 30, 2, 19 / scale, 14 / scale)
    rois[:3, 1:] = rois[:3, [3, 4, 1, 2]]  # malformed
    rois[3:12, 1:] += rng.uniform(-8, 8, (9, 4)) / scale  # across the map's edge
    check(rng.standard_normal((2, 2, 14, 19)), rois, pooled, scale, pad_ratio=pad_ratio, gradient=gradient)


def test_hand_worked():
    features = torch.arange(16.0).view(1, 1, 4, 4)
    rois = torch.tensor([[0, 0.0, 0, 3, 3], [0, 1, 1, 2, 2]])
    expected = torch.tensor([[[[5.0, 7], [13, 15]]], [[[5, 6], [9, 10]]]])
    assert torch.equal(roi_pool(features, rois, 2, 2, 1.0), expected)


@pytest.mark.parametrize("arrange", [lambda x: x.to(memory_format=torch.channels_last), lambda x: x.mT.contiguous().mT])
def test_features_that_are_not_contiguous(arrange):
    rng = np.random.default_rng(6)
    features = torch.tensor(rng.standard_normal((2, 4, 9, 9)), dtype=torch.float32)
    rois = torch.tensor(random_rois(rng, 8, 2, 70, 70))
    strided = arrange(features)
    assert not strided.is_contiguous()
    assert torch.equal(roi_pool(strided, rois, 3, 3, 1 / 8), roi_pool(features, rois, 3, 3, 1 / 8))


def test_gradient_is_the_derivative():
    rng = np.random.default_rng(7)
    features = torch.tensor(rng.permutation(2 * 2 * 6 * 7).reshape(2, 2, 6, 7) * 0.1, requires_grad=True)
    rois = torch.tensor(random_rois(rng, 5, 2, 6, 5)).double()
    assert torch.autograd.gradcheck(lambda x: roi_pool(x, rois, 2, 3, 1.0), (features,), eps=1e-3)


def test_no_rois():
    features = torch.zeros(1, 2, 4, 4, requires_grad=True)
    out = roi_pool(features, torch.zeros(0, 5), 3, 3, 1.0)
    assert out.shape == (0, 2, 3, 3)
    out.sum().backward()
    assert not features.grad.any()


@pytest.mark.parametrize("image", [-1, 2])
def test_an_image_that_is_not_there(image):
    with pytest.raises(ValueError, match="batch of 2 images"):
        roi_pool(torch.zeros(2, 1, 4, 4), torch.tensor([[image, 0.0, 0, 1, 1]]), 2, 2, 1.0)


def test_many_rois_go_in_chunks():
    """More rows than are gathered at a time."""
    features = torch.randn(1, 256, 6, 6, generator=torch.Generator().manual_seed(0))
    rois = torch.tensor(random_rois(np.random.default_rng(8), 150, 1, 6, 6))
    parts = torch.cat([roi_pool(features, part, 7, 7, 1.0) for part in rois.split(10)])
    assert torch.equal(roi_pool(features, rois, 7, 7, 1.0), parts)


def test_module_is_the_function():
    features, rois = torch.randn(1, 2, 5, 5), torch.tensor([[0, 0.0, 0, 30, 30]])
    assert torch.equal(RoIPool(2, 2, 1 / 8)(features, rois), roi_pool(features, rois, 2, 2, 1 / 8))
