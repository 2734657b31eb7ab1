import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError


def slow_lrn(x, size, alpha, beta, k):
    out = np.zeros_like(x)
    for n, c in np.ndindex(*x.shape[:2]):
        window = x[n, max(0, c - size // 2) : c + size // 2 + 1]
        out[n, c] = x[n, c] * (k + alpha / size * (window**2).sum(0)) ** -beta
    return out


@pytest.mark.parametrize(("size", "alpha", "beta", "k"), [(5, 1e-4, 0.75, 1), (3, 0.5, 0.75, 2), (7, 2.0, 1.5, 0.5)])
def test_across_channels(run_layer, size, alpha, beta, k):
    x = np.random.default_rng(0).standard_normal((2, 6, 3, 4)) * 2
    settings = f"lrn_param {{ local_size: {size} alpha: {alpha} beta: {beta} k: {k} }}"
    np.testing.assert_allclose(run_layer("LRN", settings, x)[0], slow_lrn(x, size, alpha, beta, k), rtol=2e-5)
    doubles = torch.tensor(x[:1, :, :2, :2], requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: run_layer("LRN", settings, v)[0], (doubles,))


def test_within_a_channel(run_layer):
    """The mean over a square counts the cells of the padding too."""
    x = np.random.default_rng(1).standard_normal((1, 2, 4, 5))
    padded = np.pad(x**2, ((0, 0), (0, 0), (1, 1), (1, 1)))
    mean = sum(padded[:, :, i : i + 4, j : j + 5] for i in range(3) for j in range(3)) / 9
    settings = "lrn_param { local_size: 3 alpha: 0.7 beta: 0.6 norm_region: WITHIN_CHANNEL }"
    np.testing.assert_allclose(run_layer("LRN", settings, x)[0], x * (1 + 0.7 * mean) ** -0.6, rtol=2e-5)


@pytest.mark.parametrize(("size", "shape", "message"), [(4, (1, 2, 3, 3), "must be odd"), (3, (2, 3), "not shape")])
def test_settings_that_make_no_sense(run_layer, size, shape, message):
    with pytest.raises(PortError, match=message):
        run_layer("LRN", f"lrn_param {{ local_size: {size} }}", np.zeros(shape))
