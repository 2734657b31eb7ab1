import math

import numpy as np
import pytest
import torch


def half_away(value) -> int:
    """C's ``round``."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), float(value)))


@pytest.fixture(scope="session")
def maps():
    """Feature maps ``[2, C, 6, 7]`` in double precision, so that a slow reference rounds as the code does."""
    return lambda channels, seed=0: np.random.default_rng(seed).standard_normal((2, channels, 6, 7))


@pytest.fixture(scope="session")
def rois():
    """RoIs on maps of 6 x 7 cells at a scale of 1/8: ordinary ones, odd ones, and some across every edge."""
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, (50, 42), (14, 2, 2)).round(1)
    ordinary = np.hstack([corners.min(1), corners.max(1)])
    odd = [
        (0, 0, 55, 47),  # the whole map
        (-20, -15, 30, 20),
        (30, 25, 90, 80),
        (-60, -60, -30, -30),  # outside
        (70, 60, 90, 80),
        (24, 24, 24, 24),  # one pixel
        (30, 30, 10, 12),  # malformed
        (10, 30, 40, 12),  # malformed on one axis
        (8, 16, 31, 39),  # on the cells' borders
        (55.9, 47.9, 56, 48),
    ]
    boxes = np.vstack([ordinary, odd])
    return np.hstack([rng.integers(0, 2, (len(boxes), 1)), boxes])


@pytest.fixture(scope="session")
def compare():
    """``compare(ours, slow, features, rois, *settings)``: values and the gradient of the features.

    ``slow`` gives, for RoI, channel and bin, the value and its gradient as ``{(image, channel, y, x): weight}``.
    """

    def run(ours, slow, features, rois, *settings, **options):
        x, r = torch.tensor(features, requires_grad=True), torch.tensor(rois)
        out = ours(x, r, *settings, **options)
        assert ours(x.to("meta"), r.to("meta"), *settings, **options).shape == out.shape
        grad = np.random.default_rng(2).standard_normal(out.shape)
        expected, expected_grad = np.zeros(out.shape), np.zeros(features.shape)
        for where in np.ndindex(*out.shape):
            expected[where], slopes = slow(features, rois[where[0]], where[1:], *settings, **options)
            for cell, weight in slopes.items():
                expected_grad[cell] += weight * grad[where]
        np.testing.assert_allclose(out.detach().numpy(), expected, rtol=0, atol=1e-12)
        out.backward(torch.tensor(grad))
        np.testing.assert_allclose(x.grad.numpy(), expected_grad, rtol=0, atol=1e-12)
        assert ours(x.detach().float(), r.float(), *settings, **options).dtype == torch.float32
        assert ours(x, r[:0], *settings, **options).shape == (0, *out.shape[1:])
        with pytest.raises(ValueError, match="names image 2 of a batch of 2"):
            ours(x, r + torch.eye(1, r.shape[1], dtype=r.dtype) * (2 - r[:1, :1]), *settings, **options)
        return out.detach().numpy()

    return run


def bilinear(y, x, height, width, reach):
    """``{(y, x): weight}`` of the cells around a point."""
    if not (-reach <= y <= height - 1 + reach and -reach <= x <= width - 1 + reach):
        return {}
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    cells = {}
    for cy in range(height):
        for cx in range(width):
            weight = max(0, 1 - abs(y - cy)) * max(0, 1 - abs(x - cx))
            if weight:
                cells[cy, cx] = weight
    return cells


@pytest.fixture(scope="session")
def around():
    return bilinear


@pytest.fixture(scope="session")
def c_round():
    return half_away
