import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net

X = np.array([[-20.0, -4, -0.5, 0, 0.5, 4, 6, 20]])
LEAKY = np.where(X > 0, X, 0.25 * X)
GROWTH = np.expm1(np.minimum(X, 0))


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("ReLU", "", np.maximum(X, 0)),
        ("ReLU", "relu_param { fuse: true }", np.maximum(X, 0)),
        ("ReLU", "relu_param { negative_slope: 0.25 }", LEAKY),
        ("ReLU", "relu_param { negative_slope: -0.25 }", np.where(X > 0, X, -0.25 * X)),
        ("ReLU", "relu_param { relu6: true maximum: 7 }", np.clip(X, 0, 6)),
        ("ReLU", "relu_param { relu6: true maximum: 5 minimum: 0.25 }", np.clip(X, 0.25, 5)),
        ("ReLU", "relu_param { minimum: -1 }", np.maximum(X, 0)),
        ("ReLU", "relu_param { negative_slope: 0.25 maximum: 5 minimum: -1 }", np.clip(LEAKY, -1, 5)),
        ("XLU", "xlu_param { negative_slope: 0.25 relu6: true }", np.minimum(LEAKY, 6)),
        ("ReLU6", "", np.clip(X, 0, 6)),
        ("ReLU6", "relu6_param { negative_slope: 0.25 threshold: 3 }", np.minimum(LEAKY, 3)),
        ("ELU", "", np.maximum(X, 0) + GROWTH),
        ("ELU", "elu_param { alpha: 0.5 lambda: 2 }", 2 * (np.maximum(X, 0) + 0.5 * GROWTH)),
        ("SeLU", "", 1.0507009873554805 * (np.maximum(X, 0) + 1.6732632423543772 * GROWTH)),
        ("SeLu", "selu_param { lambda: 2 alpha: 0.5 }", 2 * (np.maximum(X, 0) + 0.5 * GROWTH)),
    ],
)
def test_values(run_layer, kind, settings, expected):
    np.testing.assert_allclose(run_layer(kind, settings, X)[0].detach(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("ReLU", "", [0, 0, 0, 0, 1, 1, 1, 1]),
        ("ReLU", "relu_param { negative_slope: 0.25 }", [0.25] * 4 + [1] * 4),
        ("ReLU", "relu_param { relu6: true }", [0, 0, 0, 0, 1, 1, 0, 0]),
        # synopsys-caffe asks the bottom whether it lies above the minimum: at -4 the top, -1, does not show it
        ("ReLU", "relu_param { negative_slope: 0.25 minimum: -4 }", [0, 0, 0.25, 0.25, 1, 1, 1, 1]),
        ("ReLU6", "relu6_param { negative_slope: 0.25 }", [0.25] * 4 + [1, 1, 0, 0]),
        ("SeLU", "selu_param { lambda: 2 alpha: 0.5 }", np.where(X[0] > 0, 2, np.exp(X[0]))),
        ("ELU", "elu_param { alpha: 0.5 }", np.where(X[0] > 0, 1, 0.5 * np.exp(X[0]))),
        # NVIDIA's: lambda * (alpha + top)
        ("ELU", "elu_param { alpha: 0.5 lambda: 2 }", np.where(X[0] > 0, 2, 2 * (0.5 + np.expm1(X[0])))),
    ],
)
def test_gradients(run_layer, kind, settings, expected):
    x = torch.tensor(X, dtype=torch.float32, requires_grad=True)
    run_layer(kind, settings, x)[0].sum().backward()
    np.testing.assert_allclose(x.grad[0], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("settings", "slopes"), [("", [0.5, -1]), ("prelu_param { channel_shared: true }", 0.5)])
def test_prelu_learns_its_slopes(run_layer, settings, slopes):
    x = np.random.default_rng(0).standard_normal((3, 2, 4))
    each = np.broadcast_to(np.reshape(slopes, (1, -1, 1)), (1, 2, 1))
    np.testing.assert_allclose(
        run_layer("PReLU", settings, x, params=[slopes])[0].detach(), np.where(x > 0, x, each * x), rtol=1e-6
    )
    with pytest.raises(PortError, match="two axes and more"):
        run_layer("PReLU", settings, x[0, 0])
    net = Net(
        prototxt.parse_net(f"""
            layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: 3 dim: 2 dim: 4 }} }} }}
            layer {{ name: "p" type: "PReLU" bottom: "x" top: "y" {settings} }}
        """)
    )
    assert net.params["p"][0].shape == np.shape(slopes)
    assert (net.params["p"][0] == 0.25).all()


def test_insanity(run_layer):
    x = torch.full((1, 20_000), -60.0, requires_grad=True)
    settings = "insanity_param { lb: 5 ub: 10 }"
    (out,) = run_layer("Insanity", settings, x)
    divisor = -60 / out.detach()
    assert divisor.min() >= 5
    assert divisor.max() <= 10
    assert divisor.mean().item() == pytest.approx(7.5, abs=0.05)
    out.sum().backward()
    torch.testing.assert_close(x.grad, 1 / divisor)
    expected = 60 * np.log(2) / -5
    assert run_layer("Insanity", settings, x, phase="TEST")[0][0, 0].item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ReLU", "relu_param { relu6: true minimum: 7 }", "relu_param.minimum: lies above the greatest value, 6"),
        ("ReLU6", "relu6_param { threshold: 0 }", "relu6_param.threshold: must be positive"),
        ("Insanity", "insanity_param { lb: 5 ub: 5 }", "no range to draw from"),
        ("Insanity", "insanity_param { lb: -5 ub: 5 }", "no range to draw from"),
    ],
)
def test_settings_that_make_no_sense(run_layer, kind, settings, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, X)
