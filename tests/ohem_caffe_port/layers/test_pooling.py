import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import pooling

FLT_MAX = np.finfo(np.float32).max


def slow_pooling(x, kernel, stride, sides, method, rounded=math.ceil):
    """Caffe's loops over the windows of one image and channel, in double precision, over any number of axes.

    Returns the pooled values and the positions of the maxima.
    """
    padded, sizes = any(map(any, sides)), []
    for size, k, s, (before, after) in zip(x.shape, kernel, stride, sides, strict=True):
        out = rounded((size + before + after - k) / s) + 1
        if padded and (out - 1) * s >= size + before:
            out -= 1
        sizes.append(out)
    out, where = np.zeros(sizes), np.full(sizes, -1)
    for at in np.ndindex(*sizes):
        start = [i * s - before for i, s, (before, _) in zip(at, stride, sides, strict=True)]
        ends = zip(start, kernel, x.shape, sides, strict=True)
        end = [min(b + k, size + after) for b, k, size, (_, after) in ends]
        area = np.prod([e - b for b, e in zip(start, end, strict=True)])  # counted before the window is cut
        cut = [(max(b, 0), min(e, size)) for b, e, size in zip(start, end, x.shape, strict=True)]
        cells = [i for i in np.ndindex(*x.shape) if all(b <= n < e for n, (b, e) in zip(i, cut, strict=True))]
        if method == "MAX":
            best = max(cells, key=lambda i: x[i], default=None)
            out[at] = -FLT_MAX if best is None else x[best]
            where[at] = -1 if best is None else np.ravel_multi_index(best, x.shape)
        else:
            out[at] = sum(x[i] for i in cells) / (area if method == "AVE" else len(cells))
    return out, where


GEOMETRIES = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1), (5, 3, 2), (4, 2, 3), (1, 1, 0)]
DOWN = ["round_mode: FLOOR", "ceil_mode: false", "torch_pooling: true", "round_mode: FLOOR ceil_mode: true"]


@pytest.mark.parametrize("method", ["MAX", "AVE", "AVE_EXC_PAD"])
@pytest.mark.parametrize(("kernel", "stride", "pad"), GEOMETRIES)
@pytest.mark.parametrize("size", [(5, 5), (6, 9), (7, 8), (11, 5)])
@pytest.mark.parametrize("rounded", [math.ceil, math.floor])
@pytest.mark.parametrize("large", [False, True])
def test_against_a_slow_loop(run_layer, monkeypatch, method, kernel, stride, pad, size, rounded, large):
    """In both ways; which one is taken is a matter of the blob's size."""
    monkeypatch.setattr(pooling, "_LARGE", 0 if large else 1 << 30)
    x = np.random.default_rng(0).standard_normal((1, 1, *size)) - 3  # a padding zero would win
    rounding = "round_mode: FLOOR" if rounded is math.floor else ""
    settings = f"pooling_param {{ pool: {method} kernel_size: {kernel} stride: {stride} pad: {pad} {rounding} }}"
    (out,) = run_layer("Pooling", settings, x)
    expected, _ = slow_pooling(x[0, 0], (kernel,) * 2, (stride,) * 2, [(pad, pad)] * 2, method, rounded)
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("rounding", "size"),
    [*((r, 2) for r in DOWN), ("", 3), ("round_mode: CEIL ceil_mode: false", 3), ("torch_pooling: false", 3)],
)
def test_ways_to_round(run_layer, rounding, size):
    (out,) = run_layer("Pooling", f"pooling_param {{ kernel_size: 2 stride: 2 {rounding} }}", np.zeros((1, 1, 5, 5)))
    assert out.shape == (1, 1, size, size)


SAME = [(3, 1, 5), (3, 2, 5), (3, 2, 6), (2, 3, 7), (1, 3, 7), (4, 3, 8)]
SIDES = [((1, 2), (0, 3)), ((0, 0), (2, 1)), ((3, 0), (0, 0))]


@pytest.mark.parametrize("method", ["MAX", "AVE", "AVE_EXC_PAD"])
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize(("kernel", "stride"), [(4, 1), (4, 3)])
def test_uneven_padding(run_layer, method, sides, kernel, stride):
    x = np.random.default_rng(1).standard_normal((1, 2, 7, 6)) - 3
    (top, bottom), (left, right) = sides
    pads = f"pad_l: {left} pad_r: {right} pad_t: {top} pad_b: {bottom}"
    settings = f"pooling_param {{ pool: {method} kernel_size: {kernel} stride: {stride} {pads} }}"
    outs = run_layer("Pooling", settings, x, tops=1 + (method == "MAX"))
    for c in range(2):
        expected, where = slow_pooling(x[0, c], (kernel,) * 2, (stride,) * 2, sides, method)
        np.testing.assert_allclose(outs[0][0, c], expected, rtol=1e-5)
        if method == "MAX":
            np.testing.assert_array_equal(outs[1][0, c], where)


@pytest.mark.parametrize("method", ["MAX", "AVE", "AVE_TF"])
@pytest.mark.parametrize(("kernel", "stride", "size"), SAME)
def test_same_padding(run_layer, method, kernel, stride, size):
    """TensorFlow's rule: ceil(size / stride) windows, of the padding they need the smaller half before."""
    x = np.random.default_rng(2).standard_normal((1, 1, size, size)) - 3
    settings = f"pooling_param {{ pool: {method} kernel_size: {kernel} stride: {stride} pad_type: 1 }}"
    (out,) = run_layer("Pooling", settings, x)
    count = -(-size // stride)
    needed = max((count - 1) * stride + kernel - size, 0)
    sides = [(needed // 2, needed - needed // 2)] * 2
    expected, _ = slow_pooling(x[0, 0], (kernel,) * 2, (stride,) * 2, sides, method, math.floor)
    assert out.shape == (1, 1, count, count)
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-5)


def test_intel_s_average_without_padding(run_layer):
    x = np.random.default_rng(3).standard_normal((1, 1, 5, 5))
    settings = "kernel_size: 3 stride: 2 pad: 1"
    (ours,) = run_layer("Pooling", f"pooling_param {{ pool: AVE {settings} avg_include_pad: false }}", x)
    (same,) = run_layer("Pooling", f"pooling_param {{ pool: AVE_EXC_PAD {settings} }}", x)
    assert torch.equal(ours, same)


@pytest.mark.parametrize(("mode", "expected"), [("MAX", 11.0), ("AVE", 5.5)])
def test_global_pooling(run_layer, mode, expected):
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    (out,) = run_layer("Pooling", f"pooling_param {{ pool: {mode} global_pooling: true }}", x)
    assert out.tolist() == [[[[expected]]]]


def test_a_kernel_larger_than_the_image(run_layer):
    """Caffe rounds up: less than a stride too large, one window is left."""
    x = np.array([[[[1.0, 2], [4, 3]]]])
    assert run_layer("Pooling", "pooling_param { kernel_size: 3 stride: 2 }", x)[0].tolist() == [[[[4]]]]


@pytest.mark.parametrize("settings", ["kernel_size: 3 stride: 2 pad: 1", "kernel_size: 4 stride: 3 pad: 3"])
def test_the_second_top_says_where(run_layer, settings):
    x = np.random.default_rng(4).standard_normal((1, 2, 5, 6))
    best, where = run_layer("Pooling", f"pooling_param {{ {settings} }}", x, tops=2)
    for c in range(2):
        np.testing.assert_allclose(x[0, c].ravel()[where[0, c].long()], best[0, c], rtol=1e-6)


def test_a_window_without_cells(run_layer):
    x = np.ones((1, 1, 4, 4))
    best, where = run_layer("Pooling", "pooling_param { kernel_size: 1 stride: 3 }", x, tops=2)
    assert best.tolist() == [[[[1, 1], [1, 1]]]]
    best, where = run_layer("Pooling", "pooling_param { kernel_size: 1 stride: 4 }", x, tops=2)
    assert best.flatten().tolist() == [1, -FLT_MAX, -FLT_MAX, -FLT_MAX]
    assert where.flatten().tolist() == [0, -1, -1, -1]


@pytest.mark.parametrize("pads", ["", "pad_l: 1 pad_r: 0"])
def test_the_first_of_equal_maxima_gets_the_gradient(run_layer, pads):
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    run_layer("Pooling", f"pooling_param {{ kernel_size: 2 stride: 2 {pads} }}", x)[0].sum().backward()
    columns = [0, 1, 3] if pads else [0, 2]
    assert x.grad[0, 0].nonzero().tolist() == [[row, column] for row in (0, 2) for column in columns]


def stochastic(settings="kernel_size: 2 stride: 2"):
    return f"pooling_param {{ pool: STOCHASTIC {settings} }}"


def test_stochastic_pooling_weighs_cells_in_testing(run_layer):
    x = np.abs(np.random.default_rng(5).standard_normal((1, 1, 5, 4)))
    x[0, 0, :2, :2] = 0
    (out,) = run_layer("Pooling", stochastic(), x, phase="TEST")
    for i, j in np.ndindex(3, 2):
        window = x[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]  # the last row of windows is cut
        expected = (window**2).sum() / window.sum() if window.sum() else 0
        np.testing.assert_allclose(out[0, 0, i, j], expected, rtol=1e-6)


def test_stochastic_pooling_picks_cells_in_training(run_layer):
    x = torch.tensor([[1.0, 0, 5], [3, 4, 0], [0, 0, 2]]).expand(1, 4000, 3, 3).clone().requires_grad_()
    torch.manual_seed(0)
    (out,) = run_layer("Pooling", stochastic(), x)
    shares = [((out[0, :, 0, 0] == value).float().mean() - value / 8).abs() for value in (0, 1, 3, 4)]
    assert max(shares) < 0.03
    assert out[0, :, 0, 1].unique().tolist() == [5]  # its window is cut to [5, 0]
    assert out[0, :, 1, 0].unique().tolist() == [0]
    out[..., 0, 0].sum().backward()  # to the cell that was picked alone
    assert torch.equal((x.grad * x.detach()).sum((2, 3)), out.detach()[..., 0, 0])


@pytest.mark.parametrize("method", ["MAX", "AVE", "AVE_EXC_PAD"])
@pytest.mark.parametrize(
    ("settings", "kernel", "stride", "sides", "rounded"),
    [
        ("kernel_size: 2 stride: 2", (2,) * 3, (2,) * 3, [(0, 0)] * 3, math.floor),
        ("kernel_size: 3 stride: 2 pad: 1 ceil_mode: true", (3,) * 3, (2,) * 3, [(1, 1)] * 3, math.ceil),
        ("kernel_d: 1 kernel_h: 2 kernel_w: 3 stride_d: 1 stride_h: 2 stride_w: 1 pad_h0: 1 pad_w1: 2", (1, 2, 3),
         (1, 2, 1), [(0, 0), (1, 0), (0, 2)], math.floor),
        ("global_pooling: true", (3, 4, 5), (1,) * 3, [(0, 0)] * 3, math.floor),
    ],
)  # fmt: skip
@pytest.mark.parametrize("large", [False, True])
def test_pooling_of_volumes(run_layer, monkeypatch, large, method, settings, kernel, stride, sides, rounded):
    monkeypatch.setattr(pooling, "_LARGE", 0 if large else 1 << 30)
    x = np.random.default_rng(6).standard_normal((1, 1, 3, 4, 5)) - 3
    (out,) = run_layer("Pooling3D", f"pooling3d_param {{ pool: {method} {settings} }}", x)
    expected, _ = slow_pooling(x[0, 0], kernel, stride, sides, method, rounded)
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-5)


def test_a_large_blob_is_pooled_alike_with_a_gradient_and_without(run_layer):
    x = torch.rand(1, 7, 99, 101) - 3
    for settings in ("kernel_size: 3 stride: 2", "kernel_size: 2 stride: 2", "kernel_size: 1 stride: 1"):
        text = f"pooling_param {{ pool: MAX {settings} }}"
        (without,), (given,) = run_layer("Pooling", text, x), run_layer("Pooling", text, x.clone().requires_grad_())
        assert given.requires_grad
        assert torch.equal(without, given)
        assert without.data_ptr() != x.data_ptr(), "a layer that works in place may overwrite it"


@pytest.mark.parametrize("size", [99, 100])  # within the image, and a last window that reaches over its end
def test_bfloat16_is_pooled_as_it_is(run_layer, size):
    x = (torch.rand(1, 7, size, size) - 3).bfloat16()
    (out,) = run_layer("Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }", x)
    (exact,) = run_layer("Pooling", "pooling_param { pool: MAX kernel_size: 3 stride: 2 }", x.float())
    assert out.dtype == torch.bfloat16
    assert torch.equal(out.float(), exact)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize(("height", "size"), [(1, (5, 7)), (3, (9, 7)), (2, (3, 2))])
def test_a_pyramid(run_layer, method, height, size):
    x = np.random.default_rng(7).standard_normal((2, 3, *size)) - 3
    (out,) = run_layer("SPP", f"spp_param {{ pool: {method} pyramid_height: {height} }}", x)
    levels = []
    for bins in (2**level for level in range(height)):
        kernel = [math.ceil(n / bins) for n in size]
        sides = [((k * bins - n + 1) // 2,) * 2 for k, n in zip(kernel, size, strict=True)]
        pooled = [[slow_pooling(plane, kernel, kernel, sides, method)[0] for plane in image] for image in x]
        levels.append(np.array(pooled).reshape(2, -1))
    assert out.shape == ((2, 3, 1, 1) if height == 1 else (2, sum(level.shape[1] for level in levels)))
    np.testing.assert_allclose(out.reshape(2, -1), np.concatenate(levels, 1), rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("", "must be positive"),
        ("kernel_h: 2", "must be positive"),
        ("kernel_size: 2 stride: 0", "must be positive"),
        ("kernel_size: 2 pad: 2", "must be smaller than the kernel"),
        ("kernel_size: 9", "kernel of 9 cells on 4 cells"),
        ("kernel_size: 2 pad_h: 1", "give pad_h and pad_w, or pad"),
        ("kernel_size: 2 stride_w: 1", "give stride_h and stride_w, or stride"),
        ("kernel_size: 2 kernel_h: 2 kernel_w: 2", "not both"),
        ("global_pooling: true kernel_size: 2", "takes no kernel size"),
        ("global_pooling: true stride: 2", "takes no pad and no stride"),
        ("pool: STOCHASTIC kernel_size: 2 pad: 1", "takes no pad"),
        ("pool: STOCHASTIC kernel_size: 2 pad_l: 1", "takes no pad"),
        ("kernel_size: 3 pad: 1 pad_l: 1", "give one of pad, pad_type"),
        ("kernel_size: 3 pad_type: 1 pad_l: 1", "give one of pad, pad_type"),
        ("kernel_size: 3 pad_type: 2", "0 or 1, not 2"),
    ],
)
def test_settings_that_make_no_sense(run_layer, settings, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer("Pooling", f"pooling_param {{ {settings} }}", np.zeros((1, 1, 4, 4)))
    assert caught.value.layer == "it"


@pytest.mark.parametrize(
    ("kind", "settings", "shape", "tops", "message"),
    [
        ("Pooling", "pooling_param { kernel_size: 1 }", (2, 3), 1, r"not shape \(2, 3\)"),
        ("Pooling", "pooling_param { kernel_size: 1 pool: AVE }", (1, 1, 2, 2), 2, "only MAX has a second top"),
        ("Pooling3D", "pooling3d_param { kernel_size: 1 }", (1, 1, 2, 2), 1, "not shape"),
        ("Pooling3D", "pooling3d_param { kernel_d: 1 }", (1, 1, 2, 2, 2), 1, "must be positive"),
        ("SPP", "spp_param { }", (1, 1, 2, 2), 1, "must be positive"),
        ("SPP", "spp_param { pyramid_height: 3 }", (1, 1, 9, 3), 1, r"4 bins on \(9, 3\) cells"),
        ("SPP", "spp_param { pyramid_height: 1 }", (1, 9), 1, "not shape"),
        ("SPP", "spp_param { pyramid_height: 2 pool: STOCHASTIC }", (1, 1, 5, 4), 1, "takes no pad"),
    ],
)
def test_what_cannot_be_pooled(run_layer, kind, settings, shape, tops, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, np.zeros(shape), tops=tops)
