import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape)


def slow_bilinear(x, size, place):
    """Bilinear interpolation of one plane, cell by cell, in double precision; ``place(o, out, in)`` is where on an
    axis cell ``o`` lies."""
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        y, z = place(i, size[0], x.shape[0]), place(j, size[1], x.shape[1])
        y0, z0 = math.floor(y), math.floor(z)
        rows, columns = ([min(max(n, 0), length - 1) for n in (first, first + 1)]
                         for first, length in ((y0, x.shape[0]), (z0, x.shape[1])))  # fmt: skip
        weights = np.outer([1 - (y - y0), y - y0], [1 - (z - z0), z - z0])
        out[i, j] = (x[np.ix_(rows, columns)] * weights).sum()
    return out


def aligned(o, out, size):
    return o * (size - 1) / (out - 1) if out > 1 else 0


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ("height: 9 width: 4", (9, 4)),
        ("height: 5 width: 7", (5, 7)),
        ("height: 1 width: 13", (1, 13)),
        ("zoom_factor: 3", (13, 19)),
        ("shrink_factor: 2", (3, 4)),
        ("shrink_factor: 2 zoom_factor: 3", (7, 10)),
        ("shrink_factor: 2 zoom_factor: 3 height: 2 width: 3", (2, 3)),
        ("zoom_factor: 2 height: 2 width: 3", (9, 13)),
        ("full_zoom_factor: 2", (10, 14)),
    ],
)
def test_interp(run_layer, settings, size):
    x = random(2, 2, 5, 7)
    (out,) = run_layer("Interp", f"interp_param {{ {settings} }}", x)
    expected = [[slow_bilinear(plane, size, aligned) for plane in image] for image in x]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_interp_crops_first(run_layer):
    x = random(1, 2, 6, 7)
    (out,) = run_layer("Interp", "interp_param { zoom_factor: 2 pad_beg: -1 pad_end: -2 }", x)
    (expected,) = run_layer("Interp", "interp_param { zoom_factor: 2 }", x[:, :, 1:-2, 1:-2])
    assert torch.equal(out, expected)


@pytest.mark.parametrize("settings", ["interp_param { use_blob_size: true }", ""])
def test_interp_to_the_size_of_another_blob(run_layer, settings):
    x = random(1, 2, 3, 4)
    (out,) = run_layer("Interp", settings, x, np.zeros((1, 5, 6, 9)))
    (expected,) = run_layer("Interp", "interp_param { height: 6 width: 9 }", x)
    assert torch.equal(out, expected)


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ("", (2, 2)),
        ("scale: 3", (3, 3)),
        ("scale_h: 1 scale_w: 2", (1, 2)),
        ("stride: 3", (3, 3)),
        ("stride_h: 2 stride_w: 3", (2, 3)),
    ],
)
def test_upsample_repeats_cells(run_layer, settings, scale):
    x = torch.tensor(random(2, 3, 2, 4), dtype=torch.float32, requires_grad=True)
    (out,) = run_layer("Upsample", f"upsample_param {{ {settings} }}", x)
    np.testing.assert_array_equal(out.detach(), x.detach().numpy().repeat(scale[0], 2).repeat(scale[1], 3))
    weights = torch.arange(float(out.numel())).view(out.shape)
    (out * weights).sum().backward()
    blocks = weights.unflatten(3, (-1, scale[1])).unflatten(2, (-1, scale[0]))
    assert torch.equal(x.grad, blocks.sum((3, 5)))


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ("", (6, 6)),
        ("scale: 2 pad_out_h: true", (5, 6)),
        ("scale_h: 2 scale_w: 2 pad_out_w: true pad_out_h: true", (5, 5)),
        ("upsample_h: 5 upsample_w: 7", (5, 7)),
    ],
)
def test_upsample_undoes_pooling(run_layer, settings, size):
    x = random(2, 3, *size)
    pooled, mask = run_layer("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", x, tops=2)
    (out,) = run_layer("Upsample", f"upsample_param {{ {settings} }}", pooled[..., :3], mask[..., :3])
    expected = np.zeros_like(x)
    for n, c in np.ndindex(2, 3):
        for value, index in zip(pooled[n, c, :, :3].flatten(), mask[n, c, :, :3].flatten(), strict=True):
            expected[n, c].reshape(-1)[int(index)] = value
    np.testing.assert_array_equal(out, expected)


def test_of_two_values_for_one_place_the_later_stays(run_layer):
    x = torch.tensor([[[[1.0, 2], [3, 4]]]], requires_grad=True)
    (out,) = run_layer("Upsample", "", x, np.array([[[[5.0, 0], [5, 5]]]]))
    assert out.flatten().tolist() == [2, 0, 0, 0, 0, 4] + [0] * 10
    (out * 10).sum().backward()
    assert x.grad.tolist() == [[[[10, 10], [10, 10]]]]


def slow_resample(x, size, kind, antialias):
    """FlowNet's loops over the cells around a place, for one plane, in double precision."""
    fy, fx = x.shape[0] / size[0], x.shape[1] / size[1]

    def away(a):
        return math.floor(a + 0.5) if a >= 0 else math.ceil(a - 0.5)

    def weigh(a):
        a = abs(a)
        if kind == "LINEAR":
            return max(1 - a, 0)
        return a * a * (1.5 * a - 2.5) + 1 if a <= 1 else a * (a * (2.5 - 0.5 * a) - 4) + 2 if a < 2 else 0

    antialias = antialias and max(fx, fy) > 1
    ax, ay = (1 / fx, 1 / fy) if antialias else (1, 1)
    rx, ry = (2 if f < 1 else math.ceil({"LINEAR": 2, "CUBIC": 4}.get(kind, 0) / a) for f, a in ((fx, ax), (fy, ay)))
    out = np.zeros(size)
    for i, j in np.ndindex(*size):
        y, z = i * fy + fx / 2 - 0.5, j * fx + fy / 2 - 0.5
        if kind == "NEAREST":
            out[i, j] = x[min(away(y), x.shape[0] - 1), min(away(z), x.shape[1] - 1)]
            continue
        total = weights = 0
        for row in range(max(away(y) - ry, 0), min(away(y) + ry + 1, x.shape[0])):
            for column in range(max(away(z) - rx, 0), min(away(z) + rx + 1, x.shape[1])):
                weight = weigh(ax * (z - column)) * weigh(ay * (y - row))
                total, weights = total + weight * x[row, column], weights + weight
        out[i, j] = total / weights if weights else 0
    return out


@pytest.mark.parametrize("kind", ["NEAREST", "LINEAR", "CUBIC"])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("size", [(3, 2), (12, 14), (5, 7), (3, 13)])
def test_resample(run_layer, kind, antialias, size):
    x = random(1, 2, 6, 7)
    flag = str(antialias).lower()
    settings = f"resample_param {{ type: {kind} antialias: {flag} height: {size[0]} width: {size[1]} }}"
    (out,) = run_layer("Resample", settings, x)
    expected = [[slow_resample(plane, size, kind, antialias) for plane in image] for image in x]
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5)
    (same,) = run_layer("Resample", settings, x, np.zeros((1, 1, *size)))
    assert torch.equal(out, same)


@pytest.mark.parametrize(
    ("settings", "size", "place"),
    [
        ("output_height: 9 output_width: 3", (9, 3), lambda o, out, size: o * size / out),
        ("scale_height: 0.5 scale_width: 2", (2, 14), lambda o, out, size: o * size / out),
        ("output_height: 9 output_width: 3 align_corners: true", (9, 3), aligned),
        ("output_height: 1 output_width: 1 align_corners: true", (1, 1), aligned),
        (
            "output_height: 9 output_width: 3 half_pixel_centers: true",
            (9, 3),
            lambda o, out, size: (o + 0.5) * size / out - 0.5,
        ),
    ],
)
@pytest.mark.parametrize("last", [True, False])
def test_resize_bilinear(run_layer, settings, size, place, last):
    x = random(2, 3, 5, 7)
    expected = np.array([[slow_bilinear(plane, size, place) for plane in image] for image in x])
    if last:
        x, expected = np.moveaxis(x, 1, 3), np.moveaxis(expected, 1, 3)
    settings += "" if last else ' data_format: "NCHW"'
    (out,) = run_layer("ResizeBilinear", f"resize_bilinear_param {{ {settings} }}", x)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Interp", "interp_param { height: 3 width: 7 }"),
        ("Resample", "resample_param { height: 3 width: 7 type: CUBIC }"),
        ("ResizeBilinear", "resize_bilinear_param { output_height: 3 output_width: 7 half_pixel_centers: true }"),
    ],
)
def test_gradients(run_layer, kind, settings):
    """All of them are linear: the gradient is the transpose of what unit blobs become."""
    weights = torch.rand(run_layer(kind, settings, np.zeros((1, 1, 4, 5)))[0].shape)
    units = torch.eye(20).view(20, 1, 4, 5)
    if kind == "ResizeBilinear":  # NHWC
        weights, units = torch.rand(1, 3, 7, 1), units.permute(0, 2, 3, 1)
    x = torch.zeros_like(units[:1]).requires_grad_()
    (run_layer(kind, settings, x)[0] * weights).sum().backward()
    expected = [(run_layer(kind, settings, unit[None])[0] * weights).sum() for unit in units]
    np.testing.assert_allclose(x.grad.flatten(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "message"),
    [
        ("Interp", "", [(1, 1, 4, 4)], "no size is stated"),
        ("Interp", "interp_param { height: 3 }", [(1, 1, 4, 4)], "no size is stated"),
        ("Interp", "interp_param { height: 0 width: 3 }", [(1, 1, 4, 4)], "cannot resize"),
        ("Interp", "interp_param { zoom_factor: 0 }", [(1, 1, 4, 4)], "must be positive"),
        ("Interp", "interp_param { zoom_factor: 2 pad_beg: 1 }", [(1, 1, 4, 4)], "crops only"),
        ("Interp", "interp_param { zoom_factor: 2 pad_beg: -4 }", [(1, 1, 4, 4)], "nothing is left"),
        ("Interp", "interp_param { use_blob_size: true }", [(1, 1, 4, 4)], "go together"),
        ("Interp", "interp_param { zoom_factor: 2 }", [(1, 1, 4, 4)] * 2, "go together"),
        ("Interp", "interp_param { zoom_factor: 2 }", [(1, 4)], "4 axes"),
        ("Upsample", "upsample_param { scale: 0 }", [(1, 1, 4, 4)], "cannot upsample"),
        ("Upsample", "upsample_param { stride: 2 scale: 2 }", [(1, 1, 4, 4)], "another word for scale"),
        ("Upsample", "upsample_param { upsample_h: 4 upsample_w: 4 }", [(1, 1, 2, 2)], "needs a mask"),
        ("Upsample", "upsample_param { scale: 1 }", [(1, 1, 2, 2)] * 2, "cannot upsample"),
        ("Upsample", "upsample_param { upsample_h: 4 }", [(1, 1, 2, 2)] * 2, "cannot upsample"),
        ("Upsample", "upsample_param { scale: 3 pad_out_h: true }", [(1, 1, 2, 2)] * 2, "needs a scale of 2"),
        ("Upsample", "", [(1, 1, 2, 2), (1, 1, 2, 3)], "differ in shape"),
        ("Resample", "", [(1, 1, 4, 4)], "must be positive"),
        ("Resample", "resample_param { type: AREA height: 1 width: 1 }", [(1, 1, 4, 4)], "AREA is not supported"),
        ("ResizeBilinear", "resize_bilinear_param { output_height: 0 }", [(1, 4, 4, 1)], "must be positive"),
        ("ResizeBilinear", 'resize_bilinear_param { data_format: "HW" }', [(1, 4, 4, 1)], "one of NHWC, NCHW"),
        (
            "ResizeBilinear",
            "resize_bilinear_param { align_corners: true half_pixel_centers: true }",
            [(1, 4, 4, 1)],
            "excludes align_corners",
        ),
    ],
)
def test_what_cannot_be_resized(run_layer, kind, settings, shapes, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, settings, *map(np.zeros, shapes))
    assert caught.value.layer == "it"


@pytest.mark.parametrize("place", [-1, 16])
def test_a_mask_beyond_the_image(run_layer, place):
    with pytest.raises(PortError, match="beyond a top of 4 x 4"):
        run_layer("Upsample", "", np.ones((1, 1, 2, 2)), np.array([[[[0.0, 1], [2, place]]]]))
