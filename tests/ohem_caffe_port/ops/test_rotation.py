import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops.rotation import rotate_blocks


def slow(features, degrees):
    """Bilinear samples at positions turned back about the centre, zero outside; float64 loops."""
    rows, channels, height, width = features.shape
    turned = np.zeros_like(features)
    for n, c, y, x in np.ndindex(features.shape):
        angle = math.radians(degrees[n, c * degrees.shape[1] // channels])
        dy, dx = y - (height - 1) / 2, x - (width - 1) / 2
        sx = (width - 1) / 2 + math.cos(angle) * dx - math.sin(angle) * dy
        sy = (height - 1) / 2 + math.sin(angle) * dx + math.cos(angle) * dy
        for ky in (math.floor(sy), math.floor(sy) + 1):
            for kx in (math.floor(sx), math.floor(sx) + 1):
                if 0 <= ky < height and 0 <= kx < width:
                    turned[n, c, y, x] += features[n, c, ky, kx] * (1 - abs(sy - ky)) * (1 - abs(sx - kx))
    return turned


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 4, 5, 7), (1, 4, 1, 1)])
@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_against_loops(shape, blocks):
    rng = np.random.default_rng(0)
    features, degrees = rng.standard_normal(shape), rng.uniform(-180, 180, (shape[0], blocks))
    turned = rotate_blocks(torch.from_numpy(features), torch.from_numpy(degrees))
    np.testing.assert_allclose(turned, slow(features, degrees), atol=1e-12)


def test_right_angles():
    features = torch.randn(2, 4, 7, 7, dtype=torch.float64)
    for quarters in range(-2, 3):
        turned = rotate_blocks(features, torch.full((2, 2), 90.0 * quarters, dtype=torch.float64))
        torch.testing.assert_close(turned, torch.rot90(features, quarters, (2, 3)))


def test_no_angle_is_the_identity():
    features = torch.randn(3, 8, 6, 6)
    torch.testing.assert_close(rotate_blocks(features, torch.zeros(3, 4)), features, atol=2e-6, rtol=0)


def test_gradients():
    features = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    degrees = (torch.randn(2, 2, dtype=torch.float64) * 20).requires_grad_()
    assert torch.autograd.gradcheck(rotate_blocks, (features, degrees))
