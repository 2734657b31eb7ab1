import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

X = np.array([-2.0, -0.5, 0, 0.5, 2])


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("ReLU", "", np.maximum(X, 0)),
        ("ReLU", "relu_param { negative_slope: 0.1 }", np.where(X > 0, X, 0.1 * X)),
        ("Sigmoid", "", 1 / (1 + np.exp(-X))),
        ("TanH", "", np.tanh(X)),
    ],
)
def test_values(run_layer, kind, settings, expected):
    np.testing.assert_allclose(run_layer(kind, settings, X)[0], expected, rtol=1e-6)


def test_relu_gives_zero_no_gradient(run_layer):
    x = torch.zeros(1, requires_grad=True)
    run_layer("ReLU", "", x)[0].sum().backward()
    assert x.grad.item() == 0


@pytest.mark.parametrize(
    ("settings", "train", "test"),
    [("", {0, 4}, {1}), ("scale_train: true", {0, 4}, {1}), ("scale_train: false", {0, 1}, {0.25})],
)
def test_dropout(run_layer, settings, train, test):
    settings, x = f"dropout_param {{ dropout_ratio: 0.75 {settings} }}", torch.ones(20_000, requires_grad=True)
    (out,) = run_layer("Dropout", settings, x)
    assert set(out.unique().tolist()) == train
    assert (out != 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    out.sum().backward()
    assert torch.equal(x.grad, out.detach()), "the gradient has the same mask and scale"
    assert set(run_layer("Dropout", settings, x, phase="TEST")[0].unique().tolist()) == test


@pytest.mark.parametrize("ratio", [0, 1, -0.5])
def test_a_ratio_that_makes_no_sense(run_layer, ratio):
    with pytest.raises(PortError, match="between 0 and 1"):
        run_layer("Dropout", f"dropout_param {{ dropout_ratio: {ratio} }}", X)
