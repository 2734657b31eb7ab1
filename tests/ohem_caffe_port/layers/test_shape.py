import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

A, B = np.arange(24.0).reshape(2, 3, 4), np.arange(24.0)[::-1].reshape(2, 3, 4).copy()


@pytest.mark.parametrize(("settings", "axis"), [("", 1), ("axis: 0", 0), ("axis: -1", 2), ("concat_dim: 2", 2)])
def test_concat(run_layer, settings, axis):
    (out,) = run_layer("Concat", f"concat_param {{ {settings} }}", A, B)
    np.testing.assert_array_equal(out, np.concatenate([A, B], axis))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("", A + B + A),
        ("operation: SUM coeff: 2 coeff: -1 coeff: 0.5", 2 * A - B + 0.5 * A),
        ("operation: PROD", A * B * A),
        ("operation: MAX", np.maximum(A, B)),
    ],
)
def test_eltwise(run_layer, settings, expected):
    (out,) = run_layer("Eltwise", f"eltwise_param {{ {settings} }}", A, B, A)
    np.testing.assert_array_equal(out, expected)


def test_a_tie_of_eltwise_max_is_not_halved(run_layer):
    bottoms = [torch.ones(2, requires_grad=True) for _ in range(3)]
    run_layer("Eltwise", "eltwise_param { operation: MAX }", *bottoms)[0].sum().backward()
    assert [0 if b.grad is None else b.grad.sum().item() for b in bottoms] == [0, 2, 0]


@pytest.mark.parametrize(
    ("settings", "bottoms", "message"),
    [
        ("coeff: 1", [(2,), (2,)], "1 coefficients for 2 bottoms"),
        ("operation: MAX coeff: 1 coeff: 2", [(2,), (2,)], "only SUM takes coefficients"),
        ("", [(2,), (3,)], "differ in shape"),
    ],
)
def test_eltwise_that_makes_no_sense(run_layer, settings, bottoms, message):
    with pytest.raises(PortError, match=message):
        run_layer("Eltwise", f"eltwise_param {{ {settings} }}", *(np.zeros(shape) for shape in bottoms))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [("", (2, 12)), ("axis: 0", (24,)), ("axis: 0 end_axis: 1", (6, 4)), ("axis: -2", (2, 12)), ("axis: 2", (2, 3, 4))],
)
def test_flatten(run_layer, settings, shape):
    (out,) = run_layer("Flatten", f"flatten_param {{ {settings} }}", A)
    np.testing.assert_array_equal(out, A.reshape(shape))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ("shape { dim: 0 dim: -1 }", (2, 12)),
        ("shape { dim: 6 dim: 4 }", (6, 4)),
        ("shape { dim: -1 } axis: 1", (2, 12)),
        ("shape { dim: 3 dim: 1 } axis: 1 num_axes: 1", (2, 3, 1, 4)),
        ("shape { dim: 1 } axis: 0 num_axes: 0", (1, 2, 3, 4)),
        ("shape { dim: 1 } axis: -1 num_axes: 0", (2, 3, 4, 1)),
        ("shape { dim: 2 dim: 2 } axis: -2", (2, 3, 2, 2)),
    ],
)
def test_reshape(run_layer, settings, shape):
    (out,) = run_layer("Reshape", f"reshape_param {{ {settings} }}", A)
    np.testing.assert_array_equal(out, A.reshape(shape))


@pytest.mark.parametrize(
    "settings",
    ["shape { dim: 5 }", "shape { dim: -1 dim: -1 }", "shape { dim: 7 dim: -1 }", "axis: 9", "axis: 1 num_axes: 5",
     "shape { dim: 6 dim: 4 dim: 1 dim: 0 }"],
)  # fmt: skip
def test_reshape_that_makes_no_sense(run_layer, settings):
    with pytest.raises(PortError):
        run_layer("Reshape", f"reshape_param {{ {settings} }}", A)


def test_split_adds_up_gradients(run_layer):
    x = torch.ones(3, requires_grad=True)
    first, second = run_layer("Split", "", x, tops=2)
    (first + 2 * second).sum().backward()
    assert x.grad.tolist() == [3, 3, 3]


def test_silence(run_layer):
    assert run_layer("Silence", "", A, B, tops=0) == []
