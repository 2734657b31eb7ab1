import numpy as np
import pytest

from ohem_caffe_port.errors import PortError


def slow_convolution(x, weight, bias, stride, pad, dilation, group):
    """Cell by cell, in double precision."""
    n, channels, height, width = x.shape
    outputs, _, kh, kw = weight.shape
    padded = np.zeros((n, channels, height + 2 * pad[0], width + 2 * pad[1]))
    padded[:, :, pad[0] : pad[0] + height, pad[1] : pad[1] + width] = x
    out_h = (padded.shape[2] - (dilation[0] * (kh - 1) + 1)) // stride[0] + 1
    out_w = (padded.shape[3] - (dilation[1] * (kw - 1) + 1)) // stride[1] + 1
    out = np.zeros((n, outputs, out_h, out_w))
    for o in range(outputs):
        first = o // (outputs // group) * (channels // group)
        for i in range(out_h):
            for j in range(out_w):
                y, z = i * stride[0], j * stride[1]
                rows = slice(y, y + dilation[0] * (kh - 1) + 1, dilation[0])
                columns = slice(z, z + dilation[1] * (kw - 1) + 1, dilation[1])
                patch = padded[:, first : first + channels // group, rows, columns]
                out[:, o, i, j] = (patch * weight[o]).sum((1, 2, 3)) + bias[o]
    return out


@pytest.mark.parametrize(
    ("settings", "kernel", "stride", "pad", "dilation", "group"),
    [
        ("kernel_size: 3", (3, 3), (1, 1), (0, 0), (1, 1), 1),
        ("kernel_size: 3 kernel_size: 2 stride: 2 stride: 1 pad: 0 pad: 1", (3, 2), (2, 1), (0, 1), (1, 1), 1),
        ("kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 3 pad_h: 1 pad_w: 2", (1, 3), (2, 3), (1, 2), (1, 1), 1),
        ("kernel_size: 3 dilation: 2 pad: 2", (3, 3), (1, 1), (2, 2), (2, 2), 1),
        ("kernel_size: 2 group: 2", (2, 2), (1, 1), (0, 0), (1, 1), 2),
        ("kernel_size: 1 axis: -3", (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ],
)
def test_against_a_slow_loop(run_layer, settings, kernel, stride, pad, dilation, group):
    rng = np.random.default_rng(0)
    x, weight, bias = rng.standard_normal((2, 4, 7, 8)), rng.standard_normal((6, 4 // group, *kernel)), np.arange(6.0)
    settings = f"convolution_param {{ num_output: 6 {settings} }}"
    (out,) = run_layer("Convolution", settings, x, params=(weight, bias))
    expected = slow_convolution(x, weight, bias, stride, pad, dilation, group)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_several_bottoms_share_the_weights(run_layer):
    x, y = np.ones((1, 1, 2, 2)), np.full((1, 1, 3, 2), 2.0)
    settings = "convolution_param { num_output: 1 kernel_size: 1 bias_term: false }"
    outs = run_layer("Convolution", settings, x, y, tops=2, params=([[[[3]]]],))
    assert [(o.unique().tolist(), tuple(o.shape)) for o in outs] == [([3], (1, 1, 2, 2)), ([6], (1, 1, 3, 2))]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("num_output: 4 kernel_size: 3 kernel_h: 3 kernel_w: 3", "not both"),
        ("num_output: 4", "must be positive"),
        ("kernel_size: 3", "must be positive"),
        ("num_output: 4 kernel_size: 3 stride: 0", "must be positive"),
        ("num_output: 4 kernel_size: 3 group: 3", "3 groups do not divide"),
        ("num_output: 4 kernel_size: 3 kernel_size: 3 kernel_size: 3", "3 values for 2 spatial axes"),
        ("num_output: 4 kernel_size: 3 axis: 2", "axis 2"),
    ],
)
def test_settings_that_make_no_sense(run_layer, settings, message):
    with pytest.raises(PortError, match=message):
        run_layer("Convolution", f"convolution_param {{ {settings} }}", np.zeros((1, 4, 8, 8)))


def test_stride_zero_is_refused_in_each_spelling(run_layer):
    for settings in ("stride: 0", "stride_h: 0 stride_w: 1"):
        with pytest.raises(PortError, match="must be positive"):
            run_layer("Convolution", f"convolution_param {{ num_output: 1 kernel_size: 1 {settings} }}",
                      np.zeros((1, 1, 4, 4)))  # fmt: skip
