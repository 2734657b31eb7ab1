import numpy as np
import pytest


def pooling(text, kind="Pooling", message="pooling_param", tops='top: "y"'):
    return f'layer {{ name: "l" type: "{kind}" bottom: "x" {tops} {message} {{ {text} }} }}'


POOLINGS = {
    "even": "kernel_size: 2 stride: 2",
    "rounds up": "kernel_size: 3 stride: 2",
    "pad": "kernel_size: 3 stride: 1 pad: 1",
    "pad, rounds up": "kernel_size: 3 stride: 2 pad: 1",
    "pad, drops the last window": "kernel_size: 2 stride: 2 pad: 1",
    "pad on one axis": "kernel_size: 3 stride: 2 pad_h: 0 pad_w: 2",
    "rows and columns": "kernel_h: 3 kernel_w: 2 stride_h: 1 stride_w: 3",
    "cells in no window": "kernel_size: 2 stride: 4",
    "kernel as large as the image": "kernel_h: 8 kernel_w: 9",
    "global": "global_pooling: true",
    "floor": "kernel_size: 3 stride: 2 round_mode: FLOOR",
    "floor 2": "kernel_size: 2 stride: 2 pad: 1 ceil_mode: false",
    "floor 3": "kernel_size: 3 stride: 2 torch_pooling: true",
    "same": "kernel_size: 3 stride: 2 pad_type: 1",
    "uneven": "kernel_size: 3 stride: 2 pad_l: 2 pad_b: 1",
    "wide": "kernel_size: 3 stride: 2 pad_l: 4",
}


@pytest.mark.parametrize("method", ["MAX", "AVE", "AVE_EXC_PAD", "AVE avg_include_pad: false", "STOCHASTIC"])
@pytest.mark.parametrize("case", POOLINGS)
def test_images(check, inputs_of, case, method):
    text = f"pool: {method} {POOLINGS[case]}"
    if method == "STOCHASTIC":
        if "pad" in text.replace("avg_include_pad", ""):
            pytest.skip("takes no pad")
        positive = {"x": np.abs(np.random.RandomState(0).standard_normal((2, 3, 8, 9))) * (np.arange(9) > 4)}
        check(inputs_of(x=(2, 3, 8, 9)) + pooling(text), positive)
    else:
        check(inputs_of(x=(2, 3, 8, 9)) + pooling(text))


@pytest.mark.parametrize("case", ["rounds up", "pad, rounds up", "uneven", "wide", "rows and columns"])
def test_positions_of_maxima(check, inputs_of, case):
    """-1 for a window without a cell: the last two have some."""
    empty = case in ("wide", "rows and columns")
    check(
        inputs_of(x=(2, 3, 8, 9)) + pooling(f"pool: MAX {POOLINGS[case]}", tops='top: "y" top: "where"'),
        opencv_deviates="its MaxPool with two outputs says 0 for a window of -FLT_MAX" if empty else None,
    )


@pytest.mark.parametrize("method", ["MAX", "AVE", "AVE_EXC_PAD"])
@pytest.mark.parametrize(
    "geometry",
    [
        "kernel_size: 2 stride: 2",
        "kernel_size: 3 stride: 2 pad: 1 ceil_mode: true",
        "kernel_d: 2 kernel_h: 3 kernel_w: 2 stride: 2 pad_d0: 1 pad_h1: 1",
        "global_pooling: true",
    ],
)
def test_three_axes(check, inputs_of, method, geometry):
    text = pooling(f"pool: {method} {geometry}", "Pooling3D", "pooling3d_param")
    check(inputs_of(x=(2, 3, 5, 6, 7)) + text)


@pytest.mark.parametrize("method", ["MAX", "AVE"])
@pytest.mark.parametrize("height", [1, 3])
def test_pyramid(check, inputs_of, method, height):
    text = pooling(f"pyramid_height: {height} pool: {method}", "SPP", "spp_param")
    check(inputs_of(x=(2, 3, 10, 9)) + text)
