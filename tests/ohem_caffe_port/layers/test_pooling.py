import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError


def slow_pooling(x, kernel, stride, pad, mean, rounded=math.ceil):
    """Caffe's loops over windows of one image and channel, in double precision."""
    height, width = x.shape
    sizes = []
    for size in (height, width):
        out = rounded((size + 2 * pad - kernel) / stride) + 1
        if pad and (out - 1) * stride >= size + pad:
            out -= 1
        sizes.append(out)
    out = np.zeros(sizes)
    for i, j in np.ndindex(*sizes):
        top, left = i * stride - pad, j * stride - pad
        bottom, right = min(top + kernel, height + pad), min(left + kernel, width + pad)
        area = (bottom - top) * (right - left)  # counted before the window is cut to the image
        window = x[max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)]
        out[i, j] = window.sum() / area if mean else window.max()
    return out


GEOMETRIES = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1), (5, 3, 2), (4, 2, 3), (1, 1, 0)]


@pytest.mark.parametrize("mode", ["MAX", "AVE"])
@pytest.mark.parametrize(("kernel", "stride", "pad"), GEOMETRIES)
@pytest.mark.parametrize("size", [(5, 5), (6, 9), (7, 8), (11, 5)])
@pytest.mark.parametrize("rounding", ["", "round_mode: FLOOR", "ceil_mode: false"])
def test_against_a_slow_loop(run_layer, mode, kernel, stride, pad, size, rounding):
    x = np.random.default_rng(0).standard_normal((1, 1, *size)) - 3  # a padding zero would win
    settings = f"pooling_param {{ pool: {mode} kernel_size: {kernel} stride: {stride} pad: {pad} {rounding} }}"
    (out,) = run_layer("Pooling", settings, x)
    expected = slow_pooling(x[0, 0], kernel, stride, pad, mode == "AVE", math.floor if rounding else math.ceil)
    np.testing.assert_allclose(out[0, 0].numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(("mode", "expected"), [("MAX", 11.0), ("AVE", 5.5)])
def test_global_pooling(run_layer, mode, expected):
    x = np.arange(12.0).reshape(1, 1, 3, 4)
    (out,) = run_layer("Pooling", f"pooling_param {{ pool: {mode} global_pooling: true }}", x)
    assert out.tolist() == [[[[expected]]]]


def test_the_second_top_says_where(run_layer):
    x = np.random.default_rng(1).standard_normal((1, 2, 5, 6))
    best, where = run_layer("Pooling", "pooling_param { kernel_size: 3 stride: 2 pad: 1 }", x, tops=2)
    for c in range(2):
        np.testing.assert_allclose(x[0, c].ravel()[where[0, c].long().numpy()], best[0, c].numpy(), rtol=1e-6)


def test_the_first_of_equal_maxima_gets_the_gradient(run_layer):
    x = torch.ones(1, 1, 4, 4, requires_grad=True)
    run_layer("Pooling", "pooling_param { kernel_size: 2 stride: 2 }", x)[0].sum().backward()
    assert x.grad[0, 0].nonzero().tolist() == [[0, 0], [0, 2], [2, 0], [2, 2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("pool: STOCHASTIC kernel_size: 2", "not supported"),
        ("", "must be positive"),
        ("kernel_size: 2 stride: 0", "must be positive"),
        ("kernel_size: 2 pad: 2", "must be smaller than the kernel"),
        ("kernel_size: 9", "kernel of 9 cells on 4 cells"),
        ("global_pooling: true kernel_size: 2", "takes no kernel size"),
        ("global_pooling: true stride: 2", "takes no pad and no stride"),
    ],
)
def test_settings_that_make_no_sense(run_layer, settings, message):
    with pytest.raises(PortError, match=message):
        run_layer("Pooling", f"pooling_param {{ {settings} }}", np.zeros((1, 1, 4, 4)))


def test_only_images(run_layer):
    with pytest.raises(PortError, match=r"not shape \(2, 3\)"):
        run_layer("Pooling", "pooling_param { kernel_size: 1 }", np.zeros((2, 3)))
