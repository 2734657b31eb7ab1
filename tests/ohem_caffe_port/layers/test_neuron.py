import math

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer

X = np.array([-5.0, -2, -0.5, 0, 0.5, 2, 5])
SIGMOID = 1 / (1 + np.exp(-X))
SOFTPLUS = np.log1p(np.exp(X))


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("Sigmoid", "", SIGMOID),
        ("TanH", "", np.tanh(X)),
        ("AbsVal", "", np.abs(X)),
        ("BNLL", "", SOFTPLUS),
        ("Softplus", "", SOFTPLUS),
        ("Softsign", "", X / (1 + np.abs(X))),
        ("Swish", "", X * SIGMOID),
        ("Swish", "swish_param { beta: 2 }", X / (1 + np.exp(-2 * X))),
        ("Mish", "", X * np.tanh(SOFTPLUS)),
        ("HardSwish", "", X * np.clip(X + 3, 0, 6) / 6),
        ("HardSigmoid", "", np.clip(0.2 * X + 0.5, 0, 1)),
        ("HardSigmoid", "hard_sigmoid_param { alpha: 0.5 beta: 0.25 }", np.clip(0.5 * X + 0.25, 0, 1)),
        ("Threshold", "", X > 0),
        ("Threshold", "threshold_param { threshold: -0.5 }", X > -0.5),
        ("Clip", "clip_param { min: -0.5 max: 2 }", np.clip(X, -0.5, 2)),
        ("Exp", "", np.exp(X)),
        ("Exp", "exp_param { base: 2 scale: 3 shift: 1 }", 2 ** (3 * X + 1)),
        ("Exp", "exp_param { base: 1 }", np.ones(7)),
        ("Log", "log_param { base: 10 scale: 2 shift: 11 }", np.log10(2 * X + 11)),
        ("Power", "", X),
        ("Power", "power_param { scale: -1 }", -X),
        ("Power", "power_param { power: 3 scale: 2 shift: 1 }", (2 * X + 1) ** 3),
        ("Power", "power_param { power: 0.5 shift: 5 }", np.sqrt(X + 5)),
        ("Power", "power_param { power: 0 scale: 2 shift: 1 }", np.ones(7)),
        ("Power", "power_param { power: 2 scale: 0 shift: 3 }", np.full(7, 9)),
        ("Power", "power_param { power: -1 scale: 0 shift: 0 }", np.full(7, np.inf)),
    ],
)
def test_values(run_layer, kind, settings, expected):
    np.testing.assert_allclose(run_layer(kind, settings, X)[0], expected, rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("BNLL", ""),
        ("Softsign", ""),
        ("Swish", "swish_param { beta: 2 }"),
        ("HardSwish", ""),
        ("HardSigmoid", ""),
        ("Exp", "exp_param { base: 2 scale: 3 shift: 1 }"),
        ("Log", "log_param { base: 10 scale: 2 shift: 11 }"),
        ("Power", "power_param { power: 3 scale: 2 shift: 1 }"),
    ],
)
def test_gradients_are_derivatives(run_layer, kind, settings):
    x = torch.tensor(X + 0.1, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: run_layer(kind, settings, v)[0], (x,))


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [("AbsVal", "", np.sign(X)), ("Clip", "clip_param { min: -0.5 max: 2 }", [0, 0, 1, 1, 1, 1, 0])],
)
def test_gradients_at_the_bends(run_layer, kind, settings, expected):
    x = torch.tensor(X, requires_grad=True)
    run_layer(kind, settings, x)[0].sum().backward()
    np.testing.assert_array_equal(x.grad, expected)


def test_mish_takes_its_derivative_at_the_top(run_layer):
    x = torch.tensor(X, requires_grad=True)
    (top,) = run_layer("Mish", "", x)
    top.sum().backward()

    def mish(v):
        return v * math.tanh(math.log1p(math.exp(v)))

    expected = [(mish(v + 1e-6) - mish(v - 1e-6)) / 2e-6 for v in top.tolist()]
    np.testing.assert_allclose(x.grad, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Clip", "", "needs min and a max"),
        ("Clip", "clip_param { min: 2 max: 1 }", "needs min and a max"),
        ("Exp", "exp_param { base: 0 }", "exp_param.base: must be positive, or -1 for e"),
        ("Log", "log_param { base: -2 }", "log_param.base: must be positive, or -1 for e"),
        ("Log", "log_param { base: 1 }", "no logarithm to base 1"),
    ],
)
def test_settings_that_make_no_sense(run_layer, kind, settings, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, X)


def test_absval_refuses_to_work_in_place():
    layer = prototxt.parse_net('layer { name: "it" type: "AbsVal" bottom: "x" top: "x" }').layer[0]
    with pytest.raises(PortError, match="layer 'it': top: cannot work in place"):
        create_layer(layer, Context()).setup([torch.empty(2, device="meta")])
