import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers.convolution import patches
from ohem_caffe_port.net import Net
from prototxt import parse_net


def windows_of(starts, kernel, dilation):
    """The slices of a window's cells on each axis."""
    return tuple(slice(s, s + d * (k - 1) + 1, d) for s, k, d in zip(starts, kernel, dilation, strict=True))


def slow_convolution(x, weight, bias, stride, sides, dilation, group):
    """Cell by cell, in double precision, over any number of axes; ``sides`` is the padding before and after each."""
    (n, channels), outputs, kernel = x.shape[:2], weight.shape[0], weight.shape[2:]
    padded = np.pad(x, [(0, 0), (0, 0), *sides])
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = [(a - e) // s + 1 for a, e, s in zip(padded.shape[2:], extent, stride, strict=True)]
    out = np.zeros((n, outputs, *sizes))
    for o in range(outputs):
        first = o // (outputs // group) * (channels // group)
        for at in np.ndindex(*sizes):
            cells = windows_of([i * s for i, s in zip(at, stride, strict=True)], kernel, dilation)
            patch = padded[(slice(None), slice(first, first + channels // group), *cells)]
            out[(slice(None), o, *at)] = (patch * weight[o]).sum(tuple(range(1, patch.ndim))) + bias[o]
    return out


def slow_deconvolution(x, weight, bias, stride, sides, dilation, group):
    """What each cell of ``x`` adds to its window, in double precision; the sides are cut, or extended, at the end."""
    (n, channels), outputs, kernel = x.shape[:2], weight.shape[1] * group, weight.shape[2:]
    sizes = [s * (a - 1) + d * (k - 1) + 1 for a, s, k, d in zip(x.shape[2:], stride, kernel, dilation, strict=True)]
    out = np.zeros((n, outputs, *sizes))
    for c in range(channels):
        first = c // (channels // group) * (outputs // group)
        for at in np.ndindex(*x.shape[2:]):
            cells = windows_of([i * s for i, s in zip(at, stride, strict=True)], kernel, dilation)
            value = x[(slice(None), c, *at)].reshape(n, *[1] * (1 + len(kernel)))
            out[(slice(None), slice(first, first + outputs // group), *cells)] += value * weight[c]
    out = np.pad(out, [(0, 0), (0, 0), *[(max(-b, 0), max(-a, 0)) for b, a in sides]])
    inner = tuple(slice(max(b, 0), s - max(a, 0)) for (b, a), s in zip(sides, out.shape[2:], strict=True))
    return out[(slice(None), slice(None), *inner)] + bias.reshape(-1, *[1] * len(kernel))


GEOMETRIES = [  # settings, size of the bottom, kernel, stride, padding, dilation, group
    ("kernel_size: 3", (7, 8), (3, 3), (1, 1), (0, 0), (1, 1), 1),
    ("kernel_size: 3 kernel_size: 2 stride: 2 stride: 1 pad: 0 pad: 1", (7, 8), (3, 2), (2, 1), (0, 1), (1, 1), 1),
    ("kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 3 pad_w: 1", (7, 8), (1, 3), (2, 3), (0, 1), (1, 1), 1),
    ("kernel_size: 3 dilation: 2 pad: 2", (7, 8), (3, 3), (1, 1), (2, 2), (2, 2), 1),
    ("kernel_size: 3 hole: 2", (7, 8), (3, 3), (1, 1), (0, 0), (2, 2), 1),
    ("kernel_size: 2 hole_h: 3 hole_w: 1", (7, 8), (2, 2), (1, 1), (0, 0), (3, 1), 1),
    ("kernel_size: 2 dilation_h: 1 dilation_w: 3", (7, 8), (2, 2), (1, 1), (0, 0), (1, 3), 1),
    ("kernel_size: 2 group: 2", (7, 8), (2, 2), (1, 1), (0, 0), (1, 1), 2),
    ("kernel_size: 1 axis: -3", (7, 8), (1, 1), (1, 1), (0, 0), (1, 1), 1),
    ("kernel_size: 3 stride: 2 pad: 1", (9,), (3,), (2,), (1,), (1,), 1),
    ("kernel_size: 2 dilation: 3 group: 2", (9,), (2,), (1,), (0,), (3,), 2),
    ("kernel_size: 2 pad: 1 stride: 2 force_nd_im2col: true", (3, 4, 5), (2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), 1),
    ("kernel_size: 1 kernel_size: 2 kernel_size: 3", (3, 4, 5), (1, 2, 3), (1, 1, 1), (0, 0, 0), (1, 1, 1), 1),
]


@pytest.mark.parametrize(("settings", "size", "kernel", "stride", "pad", "dilation", "group"), GEOMETRIES)
@pytest.mark.parametrize("transposed", [False, True])
def test_against_a_slow_loop(run_layer, transposed, settings, size, kernel, stride, pad, dilation, group):
    rng = np.random.default_rng(0)
    shape = (4, 6 // group, *kernel) if transposed else (6, 4 // group, *kernel)
    x, weight, bias = rng.standard_normal((2, 4, *size)), rng.standard_normal(shape), np.arange(6.0)
    kind, slow = ("Deconvolution", slow_deconvolution) if transposed else ("Convolution", slow_convolution)
    (out,) = run_layer(kind, f"convolution_param {{ num_output: 6 {settings} }}", x, params=(weight, bias))
    expected = slow(x, weight, bias, stride, [(p, p) for p in pad], dilation, group)
    np.testing.assert_allclose(out.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("sides", [(1, 2, 0, 3), (0, 0, 2, 1), (-1, 2, 1, -2)])
def test_uneven_padding(run_layer, kind, sides):
    rng = np.random.default_rng(1)
    x, weight, bias = rng.standard_normal((1, 2, 5, 6)), rng.standard_normal((2, 2, 3, 3)), np.array([1.0, -2.0])
    left, right, top, bottom = sides
    settings = f"kernel_size: 3 stride: 2 pad_l: {left} pad_r: {right} pad_t: {top} pad_b: {bottom}"
    (out,) = run_layer(kind, f"convolution_param {{ num_output: 2 {settings} }}", x, params=(weight, bias))
    if kind == "Convolution":  # negative: the image is cropped
        inner = x[:, :, max(-top, 0) : 5 - max(-bottom, 0), max(-left, 0) : 6 - max(-right, 0)]
        around = [(max(top, 0), max(bottom, 0)), (max(left, 0), max(right, 0))]
        expected = slow_convolution(inner, weight, bias, (2, 2), around, (1, 1), 1)
    else:
        expected = slow_deconvolution(x, weight, bias, (2, 2), [(top, bottom), (left, right)], (1, 1), 1)
    np.testing.assert_allclose(out.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "size"), [(3, 1, 5), (3, 2, 5), (3, 2, 6), (2, 3, 7), (1, 3, 7), (4, 3, 8)]
)
def test_same_padding(run_layer, kernel, stride, size):
    """TensorFlow's rule: ceil(size / stride) windows, of the padding they need the smaller half before."""
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((1, 1, size, size)), rng.standard_normal((1, 1, kernel, kernel))
    settings = f"num_output: 1 kernel_size: {kernel} stride: {stride} pad_type: 1 bias_term: false"
    (out,) = run_layer("Convolution", f"convolution_param {{ {settings} }}", x, params=(weight,))
    count = -(-size // stride)
    needed = max((count - 1) * stride + kernel - size, 0)
    sides = [(needed // 2, needed - needed // 2)] * 2
    expected = slow_convolution(x, weight, np.zeros(1), (stride,) * 2, sides, (1, 1), 1)
    assert out.shape == (1, 1, count, count)
    np.testing.assert_allclose(out.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("axis", "shape"), [(2, (2, 3, 4, 5, 6)), (0, (4, 5, 6)), (-3, (3, 2, 4, 5, 6))])
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution", "Im2col"])
def test_axes_before_the_channels_are_images(run_layer, kind, axis, shape):
    x = np.random.default_rng(3).standard_normal(shape)
    weight = np.random.default_rng(4).standard_normal((4, 4, 2, 2))
    settings = "kernel_size: 2" if kind == "Im2col" else "num_output: 4 kernel_size: 2 bias_term: false"
    params = () if kind == "Im2col" else (weight,)
    (out,) = run_layer(kind, f"convolution_param {{ {settings} axis: {axis} }}", x, params=params)
    (plain,) = run_layer(kind, f"convolution_param {{ {settings} }}", x.reshape(-1, *shape[axis:]), params=params)
    assert out.shape == (*shape[: axis % len(shape)], *plain.shape[1:])
    assert torch.equal(out.flatten(), plain.flatten())


def test_several_bottoms_share_the_weights(run_layer):
    x, y = np.ones((1, 1, 3, 2)), np.full((1, 1, 3, 2), 2.0)
    settings = "convolution_param { num_output: 1 kernel_size: 1 bias_term: false }"
    outs = run_layer("Convolution", settings, x, y, tops=2, params=([[[[3]]]],))
    assert [(o.unique().tolist(), tuple(o.shape)) for o in outs] == [([3], (1, 1, 3, 2)), ([6], (1, 1, 3, 2))]


@pytest.mark.parametrize(
    ("kind", "group", "depthwise"),
    [
        ("DepthwiseConvolution", "", True),
        ("DepthwiseConvolution", "group: 2", False),
        ("ConvolutionDepthwise", "", True),
        ("ConvolutionDepthwise", "group: 2", True),
    ],
)
def test_depthwise(run_layer, kind, group, depthwise):
    rng = np.random.default_rng(5)
    groups = 4 if depthwise else 2
    x, weight, bias = rng.standard_normal((2, 4, 5, 5)), rng.standard_normal((8, 4 // groups, 3, 3)), np.arange(8.0)
    settings = f"convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 {group} }}"
    (out,) = run_layer(kind, settings, x, params=(weight, bias))
    expected = slow_convolution(x, weight, bias, (1, 1), [(1, 1)] * 2, (1, 1), groups)
    np.testing.assert_allclose(out.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("slope", [0, 0.25])
def test_the_fused_relu_is_a_relu_layer(slope):
    """Also when a layer behind it works in place."""
    relu = f'layer {{ name: "relu" type: "ReLU" bottom: "y" top: "y" relu_param {{ negative_slope: {slope} }} }}'
    body = """layer {{ name: "x" type: "Input" top: "x" top: "t" input_param {{ shape {{ dim: [1, 2, 4, 4] }}
                                                                          shape {{ dim: [1, 2, 2, 2] }} }} }}
        layer {{ name: "c" type: "Convolution" bottom: "x" top: "y"
                 convolution_param {{ num_output: 2 kernel_size: 3 weight_filler {{ type: "xavier" }} {0} }} }}
        {1} layer {{ name: "r" type: "ReLU" bottom: "y" top: "y" relu_param {{ negative_slope: 0.5 }} }}
        layer {{ name: "l" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "l" }}"""
    fused = Net(parse_net(body.format(f"relu: true negative_slope: {slope}", "")))
    plain = Net(parse_net(body.format("", relu)))
    plain.params["c"][0].data.copy_(fused.params["c"][0].data)
    for net in (fused, plain):
        net(x=torch.linspace(-1, 1, 32).view(1, 2, 4, 4), t=torch.ones(1, 2, 2, 2))
        net.backward()
    assert torch.equal(fused.blobs["y"], plain.blobs["y"])
    assert torch.allclose(fused.params["c"][0].grad, plain.params["c"][0].grad)


def slow_columns(x, kernel, stride, pad, dilation):
    """im2col's definition, cell by cell: channel c * cells + k is cell k of each window of channel c."""
    padded = np.pad(x, [(0, 0), (0, 0), *[(p, p) for p in pad]])
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    sizes = [(a - e) // s + 1 for a, e, s in zip(padded.shape[2:], extent, stride, strict=True)]
    cells = int(np.prod(kernel))
    out = np.zeros((x.shape[0], x.shape[1] * cells, *sizes))
    for c in range(x.shape[1]):
        for k, offset in enumerate(np.ndindex(*kernel)):
            for at in np.ndindex(*sizes):
                cell = [i * s + o * d for i, s, o, d in zip(at, stride, offset, dilation, strict=True)]
                out[(slice(None), c * cells + k, *at)] = padded[(slice(None), c, *cell)]
    return out


@pytest.mark.parametrize(
    ("settings", "size", "kernel", "stride", "pad", "dilation"),
    [
        ("kernel_h: 2 kernel_w: 3 stride: 2 pad: 1", (5, 6), (2, 3), (2, 2), (1, 1), (1, 1)),
        ("kernel_size: 2 dilation: 2 dilation: 3", (5, 6), (2, 2), (1, 1), (0, 0), (2, 3)),
        ("kernel_size: 3 pad: 1", (5,), (3,), (1,), (1,), (1,)),
        ("kernel_size: 2 stride: 2", (2, 3, 2, 4), (2,) * 4, (2,) * 4, (0,) * 4, (1,) * 4),
    ],
)
def test_im2col(run_layer, settings, size, kernel, stride, pad, dilation):
    x = np.random.default_rng(6).standard_normal((2, 3, *size))
    (out,) = run_layer("Im2col", f"convolution_param {{ {settings} }}", x)
    np.testing.assert_array_equal(out, slow_columns(x.astype(np.float32), kernel, stride, pad, dilation))


def test_local(run_layer):
    rng = np.random.default_rng(7)
    x, weight, bias = rng.standard_normal((2, 3, 5, 6)), rng.standard_normal((4, 1, 12, 9)), rng.standard_normal((4, 9))
    settings = "local_param { num_output: 4 kernel_size: 2 stride: 2 pad: 1 }"
    x = x[:, :, :4, :4]
    params = (weight, bias.reshape(1, 1, 4, 9))
    (out,) = run_layer("Local", settings, x, params=params)
    columns = slow_columns(x, (2, 2), (2, 2), (1, 1), (1, 1)).reshape(2, 12, 9)
    expected = (columns[:, None] * weight[None, :, 0]).sum(2) + bias
    np.testing.assert_allclose(out.detach(), expected.reshape(2, 4, 3, 3), rtol=1e-4, atol=1e-5)


def test_gradients_of_windows():
    """Im2col and Local are built of torch's unfold; their gradients by finite differences."""
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: patches(x, (2, 2), (1, 2), (2, 1)), (x,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("num_output: 4 kernel_size: 3 kernel_h: 3 kernel_w: 3", "kernel_size or kernel_h and kernel_w, not both"),
        ("num_output: 4 kernel_size: 3 pad: 1 pad_h: 1", "pad or pad_h and pad_w, not both"),
        ("num_output: 4", "must be positive"),
        ("num_output: 4 kernel_h: 3", "must be positive"),
        ("kernel_size: 3", "must be positive"),
        ("num_output: 4 kernel_size: 3 stride: 0", "must be positive"),
        ("num_output: 4 kernel_size: 3 stride_h: 0 stride_w: 1", "must be positive"),
        ("num_output: 4 kernel_size: 3 group: 3", "3 groups do not divide"),
        ("num_output: 4 kernel_size: 3 group: 0", "must be positive"),
        ("num_output: 4 kernel_size: 3 kernel_size: 3 kernel_size: 3", "3 values for 2 spatial axes"),
        ("num_output: 4 kernel_size: 3 axis: 4", "axis 4"),
        ("num_output: 4 kernel_size: 3 axis: 3", "has 0 behind axis 3"),
        ("num_output: 4 kernel_h: 3 kernel_w: 3 axis: 2", "for 2 spatial axes, not 1"),
        ("num_output: 4 kernel_size: 3 hole: 2 dilation: 2", "another word for dilation"),
        ("num_output: 4 kernel_size: 3 pad_l: 1 pad: 1", "give one of pad, pad_type"),
        ("num_output: 4 kernel_size: 3 pad_type: 1 pad_h: 1", "give one of pad, pad_type"),
        ("num_output: 4 kernel_size: 3 pad_type: 1 pad_b: 1", "give one of pad, pad_type"),
        ("num_output: 4 kernel_size: 3 pad_type: 2", "0 or 1, not 2"),
        ("num_output: 4 kernel_size: 3 pad_l: 1 axis: 2", "2 spatial axes of images, not 1"),
    ],
)
def test_settings_that_make_no_sense(run_layer, settings, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer("Convolution", f"convolution_param {{ {settings} }}", np.zeros((1, 4, 8, 8)))
    assert caught.value.layer == "it"


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "message"),
    [
        ("Convolution", "num_output: 1 kernel_size: 1", [(1, 1, 2, 2), (1, 1, 3, 2)], "bottoms differ in shape"),
        ("Convolution", "num_output: 1 kernel_size: 1", [(2, 3)], "slides over 1 to 3 spatial axes"),
        ("Im2col", "kernel_size: 1", [(2, 3)], "no spatial axes"),
        ("Im2col", "", [(1, 3, 4, 4)], "must be positive"),
    ],
)
def test_bottoms_that_do_not_fit(run_layer, kind, settings, shapes, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, f"convolution_param {{ {settings} }}", *map(np.zeros, shapes), tops=len(shapes))


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ("num_output: 1", (1, 1, 4, 4), "must be positive"),
        ("num_output: 1 kernel_size: 5", (1, 1, 4, 4), "a kernel of 5 cells"),
        ("num_output: 1 kernel_size: 1", (1, 4), "not shape"),
    ],
)
def test_local_that_cannot_be(run_layer, settings, shape, message):
    with pytest.raises(PortError, match=message):
        run_layer("Local", f"local_param {{ {settings} }}", np.zeros(shape))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("Convolution", "convolution_param { num_output: 1 kernel_size: 1 }", "set up for 4 axes"),
        ("Local", "local_param { num_output: 1 kernel_size: 1 }", "set up for images of"),
    ],
)
def test_a_shape_that_changes_later(kind, settings, message):
    text = f"""layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: [1, 2, 4, 4] }} }} }}
        layer {{ name: "it" type: "{kind}" bottom: "x" top: "y" {settings} }}"""
    with pytest.raises(PortError, match=message):
        Net(parse_net(text))(x=torch.zeros(2, 4, 5))
