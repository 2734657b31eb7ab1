import numpy as np
import pytest

import prototxt
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net


@pytest.mark.parametrize(
    ("settings", "shape", "tops"),
    [
        ("", (2, 6, 4), 3),
        ("slice_point: [1, 4]", (2, 6, 4), 3),
        ("axis: -1 slice_point: 3", (2, 6, 4), 2),
        ("slice_dim: 2", (2, 6, 4, 1), 2),
        ("", (2, 3), 1),
    ],
)
def test_slice(check_layer, settings, shape, tops):
    check_layer("Slice", f"slice_param {{ {settings} }}", shape, tops=tops)


def test_slices_of_the_batch(check_layer):
    check_layer("Slice", "slice_param { axis: 0 }", (4, 3), tops=2, batch=6)
    check_layer("Slice", "slice_param { axis: 0 slice_point: [1, 3] }", (4, 3), tops=3, batch=6)


@pytest.mark.parametrize(
    "settings",
    ["", "offset: 1", "axis: 1 offset: [1, 0, 2]", "axis: 3 offset: 3", "axis: -2 offset: [0, 1]", "axis: 0"],
)
def test_crop(check_layer, settings):
    check_layer("Crop", f"crop_param {{ {settings} }}", (2, 4, 6, 7), (2, 3, 5, 4))


def test_crop_to_an_open_size(check, inputs_of):
    """The cropped axis follows the reference's, which is twice the batch."""
    check(
        inputs_of(x=(4, 3), y=(2, 3))
        + """
        layer { name: "t" type: "Tile" bottom: "x" top: "t" tile_param { axis: 0 tiles: 3 } }
        layer { name: "c" type: "Crop" bottom: "t" bottom: "y" top: "c" crop_param { axis: 0 offset: [2, 0] } }
        layer { name: "d" type: "Crop" bottom: "t" bottom: "y" top: "d" crop_param { axis: 0 } }"""
    )


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_tile(check_layer, axis):
    check_layer("Tile", f"tile_param {{ axis: {axis} tiles: 3 }}", (2, 3, 4))


def test_batch_reindex(check_layer):
    check_layer("BatchReindex", "", (3, 2, 4), (5,), inputs={"x1": [2, 0, 0, 1, 2]})


@pytest.mark.parametrize("selector", [(4,), (4, 1, 1)])
def test_filter(check_layer, selector):
    flags = np.reshape([1, 0, 0, -2], selector)
    check_layer("Filter", "", (4, 3, 2), (4, 5), selector, tops=2, inputs={"x2": flags})


def test_what_opencv_must_be_told_of_layers_behind_a_filter(inputs_of):
    """Its plan is that of the first run, for as many rows as there were."""
    text = (
        inputs_of(x=(4, 3), flags=(4,))
        + """
        layer { name: "few" type: "Filter" bottom: "x" bottom: "flags" top: "few" }
        layer { name: "sum" type: "Eltwise" bottom: "few" bottom: "few" top: "sum" }"""
    )
    net = Net(prototxt.parse_net(text), "TEST")
    notes = {target: [] for target in ("opencv", "onnxruntime")}
    for target, lines in notes.items():
        to_onnx(net, target=target, notes=lines)
    assert notes["onnxruntime"] == []
    assert "layer 'few'" in notes["opencv"][0] and "setInput" in notes["opencv"][0]


def test_filter_that_leaves_nothing(check_layer):
    check_layer("Filter", "", (4, 3), (4,), inputs={"x1": np.zeros(4)}, targets=["onnxruntime"])


@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (2, 6), (2, 6, 3)])
def test_shuffle_channel(check_layer, shape):
    check_layer("ShuffleChannel", "shuffle_channel_param { group: 3 }", shape)


@pytest.mark.parametrize(
    ("settings", "shape"),
    [("", (2, 3, 4, 5)), ("flip_height: true", (2, 3, 4, 5)), ("flip_width: false flip_height: true", (2, 3, 4)),
     ("flip_width: false", (2, 3, 4, 5)), ("", (2, 3))],
)  # fmt: skip
def test_flip(check_layer, settings, shape):
    check_layer("Flip", f"flip_param {{ {settings} }}", shape)
