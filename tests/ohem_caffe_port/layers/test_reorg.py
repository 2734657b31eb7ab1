import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

X = np.random.default_rng(0).standard_normal((2, 8, 4, 6)).astype(np.float32)


def slow_darknet(x, stride, reverse):
    """darknet's reorg on flat memory: the loop runs over the bottom's own cells in both directions."""
    n, channels, height, width = x.shape
    flat, out, few = x.reshape(-1), np.zeros(x.size, x.dtype), channels // stride**2
    for b, c, h, w in np.ndindex(*x.shape):
        here = w + width * (h + height * (c + channels * b))
        row, column = h * stride + c // few // stride, w * stride + c // few % stride
        there = column + width * stride * (row + height * stride * (c % few + few * b))
        out[there if reverse else here] = flat[here if reverse else there]
    if reverse:
        return out.reshape(n, few, height * stride, width * stride)
    return out.reshape(n, channels * stride**2, height // stride, width // stride)


@pytest.mark.parametrize("reverse", [False, True])
def test_reorg(run_layer, reverse):
    (out,) = run_layer("Reorg", f"reorg_param {{ stride: 2 reverse: {str(reverse).lower()} }}", X)
    np.testing.assert_array_equal(out, slow_darknet(X, 2, reverse))


def test_the_gradient_of_reorg_goes_where_the_cells_came_from(run_layer):
    x = torch.tensor(X, requires_grad=True)
    (out,) = run_layer("Reorg", "reorg_param { stride: 2 }", x)
    (out * out.detach()).sum().backward()
    assert torch.equal(x.grad, x.detach())


@pytest.mark.parametrize("last", [False, True])
def test_space_to_depth_and_back(run_layer, last):
    x = np.moveaxis(X, 1, 3) if last else X
    settings = "block_size: 2" + ("" if last else ' data_format: "NCHW"')
    (out,) = run_layer("SpaceToDepth", f"space_to_depth_param {{ {settings} }}", x)
    deep = np.moveaxis(out.numpy(), 3, 1) if last else out.numpy()
    for n, c, h, w in np.ndindex(*X.shape):
        assert deep[n, (h % 2 * 2 + w % 2) * 8 + c, h // 2, w // 2] == X[n, c, h, w]
    (back,) = run_layer("DepthToSpace", f"depth_to_space_param {{ {settings} }}", out)
    np.testing.assert_array_equal(back, x)


@pytest.mark.parametrize(("order", "channel"), [("DCR", lambda c, i: i * 2 + c), ("CRD", lambda c, i: c * 4 + i)])
def test_orders_of_channels(run_layer, order, channel):
    (out,) = run_layer("DepthToSpace", f'depth_to_space_param {{ block_size: 2 data_format: "{order}" }}', X)
    for n, c, h, w in np.ndindex(*out.shape):
        assert out[n, c, h, w] == X[n, channel(c, h % 2 * 2 + w % 2), h // 2, w // 2]


def test_pad(run_layer):
    sides = [(1, 0), (0, 2), (3, 1), (0, 0)]
    paddings = " ".join(f"paddings: {b} paddings: {a}" for b, a in sides)
    (out,) = run_layer("Pad", f"pad_param {{ {paddings} constant_values: -2 }}", X)
    np.testing.assert_array_equal(out, np.pad(X, sides, constant_values=-2))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Reorg", "", "must be stated and positive"),
        ("Reorg", "reorg_param { stride: 4 }", "does not divide"),
        ("Reorg", "reorg_param { stride: 3 reverse: true }", "does not divide"),
        ("SpaceToDepth", 'space_to_depth_param { block_size: 5 data_format: "NCHW" }', "blocks of 5 do not fill"),
        ("SpaceToDepth", 'space_to_depth_param { block_size: 2 data_format: "CRD" }', "one of NHWC, NCHW"),
        ("SpaceToDepth", "space_to_depth_param { block_size: 0 }", "must be positive"),
        ("DepthToSpace", 'depth_to_space_param { block_size: 3 data_format: "CRD" }', "8 channels do not fill"),
        ("Pad", "pad_param { paddings: 1 }", "1 values for 4 axes"),
    ],
)
def test_what_does_not_fit(run_layer, kind, settings, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, settings, X)
    assert caught.value.layer == "it"
