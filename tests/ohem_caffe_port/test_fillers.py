import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.fillers import filled
from prototxt import parse_net


def fill(text, shape=(60, 50, 3, 4)):
    layer = parse_net(f'layer {{ name: "x" inner_product_param {{ weight_filler {{ {text} }} }} }}').layer[0]
    torch.manual_seed(0)
    return filled(shape, layer.inner_product_param.weight_filler)


@pytest.mark.parametrize(("text", "value"), [("", 0), ("type: 'constant' value: 0.25", 0.25)])
def test_constant(text, value):
    assert fill(text).unique().tolist() == [value]


FAN_IN, FAN_OUT = 50 * 12, 60 * 12


@pytest.mark.parametrize(
    ("text", "mean", "std", "limit"),
    [
        ("type: 'uniform' min: 1 max: 3", 2, 2 / math.sqrt(12), (1, 3)),
        ("type: 'uniform'", 0.5, 1 / math.sqrt(12), (0, 1)),
        ("type: 'gaussian' mean: 2 std: 0.5", 2, 0.5, None),
        ("type: 'gaussian'", 0, 1, None),
        ("type: 'xavier'", 0, math.sqrt(1 / FAN_IN), (-math.sqrt(3 / FAN_IN), math.sqrt(3 / FAN_IN))),
        ("type: 'xavier' variance_norm: FAN_OUT", 0, math.sqrt(1 / FAN_OUT), None),
        ("type: 'xavier' variance_norm: AVERAGE", 0, math.sqrt(2 / (FAN_IN + FAN_OUT)), None),
        ("type: 'msra'", 0, math.sqrt(2 / FAN_IN), None),
        ("type: 'msra' variance_norm: FAN_OUT", 0, math.sqrt(2 / FAN_OUT), None),
        ("type: 'msra' variance_norm: AVERAGE", 0, math.sqrt(4 / (FAN_IN + FAN_OUT)), None),
    ],
)
def test_moments(text, mean, std, limit):
    blob = fill(text).double()
    assert blob.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(blob.numel()))
    assert blob.std().item() == pytest.approx(std, rel=0.02)
    if limit:
        assert limit[0] <= blob.min().item() < blob.max().item() <= limit[1]
        assert (blob.max() - blob.min()).item() == pytest.approx(limit[1] - limit[0], rel=0.01)


def test_sparse_gaussian():
    """An expected 5 non-zero weights of 100 outputs, for each input."""
    blob = fill("type: 'gaussian' sparse: 5", (100, 400))
    assert (blob != 0).float().mean().item() == pytest.approx(0.05, rel=0.1)
    assert blob[blob != 0].std().item() == pytest.approx(1, rel=0.1)


def test_positive_unitball():
    blob = fill("type: 'positive_unitball'")
    assert blob.min() >= 0
    np.testing.assert_allclose(blob.sum((1, 2, 3)), np.ones(60), rtol=1e-5)


@pytest.mark.parametrize("size", [4, 5])
def test_bilinear_upsamples(size):
    """A Deconvolution with it reproduces a linear ramp; its kernel is 2 f - f % 2 wide for a factor f."""
    factor = math.ceil(size / 2)
    kernel = fill("type: 'bilinear'", (1, 1, size, size))
    ramp = torch.arange(6.0).repeat(6, 1)[None, None]
    pad = math.ceil((factor - 1) / 2)
    up = torch.nn.functional.conv_transpose2d(ramp, kernel, stride=factor, padding=pad)
    steps = up[0, 0, 6, factor:-factor].diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 1 / factor))


def test_bilinear_is_symmetric():
    kernel = fill("type: 'bilinear'", (1, 1, 3, 3))
    ramp = np.array([0.5, 1, 0.5])
    np.testing.assert_allclose(kernel[0, 0], ramp[:, None] * ramp, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ("type: 'xavier' sparse: 2", (2, 2), "sparse: 2 for a xavier filler"),
        ("type: 'gaussian' sparse: -2", (2, 2), "sparse: -2 for a gaussian filler"),
        ("type: 'xaver'", (2, 2), "unknown filler type 'xaver'"),
        ("type: 'bilinear'", (2, 2), "square 4-d kernels"),
        ("type: 'bilinear'", (1, 1, 2, 3), "square 4-d kernels"),
    ],
)
def test_errors(text, shape, message):
    with pytest.raises(PortError, match=message):
        fill(text, shape)
