import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net

A, B = np.arange(24.0).reshape(2, 3, 4), np.arange(24.0)[::-1].reshape(2, 3, 4).copy()


@pytest.mark.parametrize(("settings", "axis"), [("", 1), ("axis: 0", 0), ("axis: -1", 2), ("concat_dim: 2", 2)])
def test_concat(run_layer, settings, axis):
    (out,) = run_layer("Concat", f"concat_param {{ {settings} }}", A, B)
    np.testing.assert_array_equal(out, np.concatenate([A, B], axis))


@pytest.mark.parametrize(
    ("settings", "shape"),
    [("", (2, 12)), ("axis: 0", (24,)), ("axis: 0 end_axis: 1", (6, 4)), ("axis: -2", (2, 12)), ("axis: 2", (2, 3, 4)),
     ("axis: 1 end_axis: 0", (2, 1, 3, 4))],
)  # fmt: skip
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


def test_pixelshuffler(run_layer):
    x = np.random.default_rng(0).standard_normal((2, 8, 3, 4)).astype(np.float32)
    (out,) = run_layer("Reshape", "reshape_param { pixelshuffler: 2 }", x)
    assert out.shape == (2, 2, 6, 8)
    for n, c, h, w in np.ndindex(*x.shape):
        assert out[n, c // 4, h * 2 + c // 2 % 2, w * 2 + c % 2] == x[n, c, h, w]


@pytest.mark.parametrize(
    "settings",
    ["shape { dim: 5 }", "shape { dim: -1 dim: -1 }", "shape { dim: 7 dim: -1 }", "axis: 9", "axis: 1 num_axes: 5",
     "shape { dim: 6 dim: 4 dim: 1 dim: 0 }", "pixelshuffler: 2"],
)  # fmt: skip
def test_reshape_that_makes_no_sense(run_layer, settings):
    with pytest.raises(PortError):
        run_layer("Reshape", f"reshape_param {{ {settings} }}", A)


@pytest.mark.parametrize(
    ("settings", "shape"), [("", (2, 3)), ("axis: 1", (2, 3, 1)), ("axis: 1 axis: -1", (2, 3)), ("axis: -1", (2, 1, 3))]
)
def test_squeeze(run_layer, settings, shape):
    (out,) = run_layer("Squeeze", f"squeeze_param {{ {settings} }}", np.zeros((2, 1, 3, 1)))
    assert out.shape == shape


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("indices: 2 shape: 0 axis: 1", A[:, 2]),
        ("indices: 1", A[1]),
        ("indices: 3 indices: 0 indices: 3 indices: 1 shape: 2 shape: 2 axis: -1", A[..., [[3, 0], [3, 1]]]),
        ("indices: 1 shape: 1", A[1:]),
    ],
)
def test_gather(run_layer, settings, expected):
    (out,) = run_layer("Gather", f"gather_param {{ {settings} }}", A)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("kind", ["Gather", "Scatter"])
def test_mpi_layers_of_a_single_process(run_layer, kind):
    first, second = run_layer(kind, "", A, B, tops=2)
    np.testing.assert_array_equal(first, A)
    np.testing.assert_array_equal(second, B)


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "tops", "message"),
    [
        ("Concat", "concat_param { axis: 1 concat_dim: 1 }", [(2, 3)], 1, "not both"),
        ("Concat", "", [(2, 3), (3, 3)], 1, "differ off axis 1"),
        ("Concat", "", [(2, 3), (2, 3, 1)], 1, "differ off axis 1"),
        ("Concat", "concat_param { concat_dim: 4294967295 }", [(2, 3)], 1, "axis 4294967295"),
        ("Flatten", "flatten_param { axis: 2 end_axis: 0 }", [(2, 3, 4)], 1, "0 lies before axis 2"),
        ("Squeeze", "squeeze_param { axis: 1 }", [(2, 3)], 1, "not of size 1"),
        ("Squeeze", "squeeze_param { axis: 2 }", [(2, 3)], 1, "axis 2 of a blob with 2 axes"),
        ("Gather", "gather_param { indices: 3 }", [(3, 2)], 1, "3 of an axis of 3"),
        ("Gather", "gather_param { indices: 1 shape: 2 }", [(3, 2)], 1, "1 indices for the shape"),
        ("Gather", "gather_param { indices: 1 }", [(3, 2), (3, 2)], 2, "from one bottom, not 2"),
        ("Gather", "", [(3, 2)], 2, "2 tops for 1 bottoms"),
    ],
)
def test_what_makes_no_sense(run_layer, kind, settings, bottoms, tops, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, *(np.zeros(shape) for shape in bottoms), tops=tops)


@pytest.mark.parametrize("kind", ["Flatten", "Reshape", "Squeeze", "Split"])
def test_in_place_is_refused(kind):
    text = f"""layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
               layer {{ name: "it" type: "{kind}" bottom: "x" top: "x" }}"""
    with pytest.raises(PortError, match="cannot work in place"):
        Net(prototxt.parse_net(text))


def test_split_adds_up_gradients(run_layer):
    x = torch.ones(3, requires_grad=True)
    first, second = run_layer("Split", "", x, tops=2)
    (first + 2 * second).sum().backward()
    assert x.grad.tolist() == [3, 3, 3]


def test_silence(run_layer):
    assert run_layer("Silence", "", A, B, tops=0) == []
