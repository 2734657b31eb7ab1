import pytest

import prototxt
from converters.errors import WeightsError
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

MASK_LAYER = "python_param { module: 'pylayer.mask_layer' layer: 'MaskLayer' }"


@pytest.mark.parametrize(
    ("settings", "shape"),
    [
        ("shape { dim: 0 dim: -1 }", (2, 3, 4, 5)),
        ("shape { dim: -1 dim: 6 }", (2, 3, 4, 5)),
        ("shape { dim: 0 dim: 2 dim: -1 dim: 3 dim: 1 dim: 5 }", (2, 3, 4, 10)),
        ("shape { dim: 4 dim: -1 } axis: 2", (2, 3, 4, 6)),
        ("shape { dim: 8 dim: 4 } axis: 1 num_axes: 2", (2, 8, 4, 6)),
        ("shape { dim: 0 dim: 1 dim: -1 } axis: -3", (2, 3, 4)),
        ("shape { dim: 1 dim: 1 } axis: 0 num_axes: 0", (2, 3)),
        ("shape { dim: 1 } axis: -1 num_axes: 0", (2, 3)),
        ("shape { dim: 2 dim: -1 dim: 2 } num_axes: 1", (4, 3)),
        ("shape { dim: 2 dim: -1 }", (2, 3, 4)),
        ("pixelshuffler: 2", (2, 12, 3, 4)),
    ],
)
def test_reshape(check_layer, settings, shape):
    check_layer("Reshape", f"reshape_param {{ {settings} }}", shape, batch=8)


def test_a_stated_batch_stays_closed(check_layer):
    check_layer("Reshape", "reshape_param { shape { dim: 2 dim: 12 } }", (2, 3, 4), static=True)


def test_sizes_that_change_places(check, inputs_of):
    """A batch that is the second axis, with another open size before it."""
    check(
        inputs_of(x=(4, 3))
        + """
        layer { name: "t" type: "Tile" bottom: "x" top: "t" tile_param { axis: 0 tiles: 2 } }
        layer { name: "r" type: "Reshape" bottom: "x" top: "r" reshape_param { shape { dim: 1 } axis: 0 num_axes: 0 } }
        layer { name: "i" type: "InnerDistance" bottom: "t" bottom: "x" top: "i" }
        layer { name: "y" type: "Reshape" bottom: "i" top: "y" reshape_param { shape { dim: 1 } axis: 1 num_axes: 0 } }
        layer { name: "f" type: "Flatten" bottom: "y" top: "z" flatten_param { axis: 0 end_axis: 1 } }
        layer { name: "p" type: "Permute" bottom: "y" top: "p" permute_param { order: 2 } }
        layer { name: "q" type: "Flatten" bottom: "p" top: "q" flatten_param { axis: 1 } }"""
    )


@pytest.mark.parametrize("axes", ["", "axis: 0", "axis: 2", "axis: 1 end_axis: 2", "axis: 2 end_axis: 1", "axis: -1"])
def test_flatten(check_layer, axes):
    check_layer("Flatten", f"flatten_param {{ {axes} }}", (2, 3, 4, 5))


@pytest.mark.parametrize("axes", ["", "axis: 1", "axis: [-1, 1]"])
def test_squeeze(check_layer, axes):
    check_layer("Squeeze", f"squeeze_param {{ {axes} }}", (2, 1, 4, 1))


@pytest.mark.parametrize(
    ("axis", "shapes"),
    [("", [(2, 3, 4), (2, 1, 4), (2, 5, 4)]), ("axis: 0", [(2, 3), (4, 3)]), ("axis: -1", [(2, 3), (2, 4)]),
     ("concat_dim: 2", [(2, 3, 4, 5), (2, 3, 2, 5)]), ("", [(2, 3)])],
)  # fmt: skip
def test_concat(check_layer, axis, shapes):
    check_layer("Concat", f"concat_param {{ {axis} }}", *shapes)


@pytest.mark.parametrize(
    "settings",
    ["indices: 2", "indices: 2 shape: 0", "indices: [3, 0, 0] shape: 3", "indices: [3, 0, 0, 1] shape: [2, 2]"],
)
def test_gather(check_layer, settings):
    check_layer("Gather", f"gather_param {{ axis: 1 {settings} }}", (2, 4, 5))


def test_gather_of_rows(check_layer):
    check_layer("Gather", "gather_param { indices: [1, 0, 1] shape: 3 }", (2, 4), batch=3)


@pytest.mark.parametrize("kind", ["Gather", "Scatter"])
def test_one_process_hands_everything_on(check_layer, kind):
    check_layer(kind, "", (2, 3), (2, 4, 1), tops=2)


@pytest.mark.parametrize("order", [[0, 2, 3, 1], [1], [3, 2, 1, 0], []], ids=str)
def test_permute(check_layer, order):
    check_layer("Permute", f"permute_param {{ order: {order} }}" if order else "", (2, 3, 4, 5))


def test_silence(check_layer):
    models = check_layer("Split", "} layer { name: 'no' type: 'Silence' bottom: 'y0'", (2, 3), tops=2)
    assert [output.name for output in models["opencv"].graph.output] == ["y1"]


def test_mask_layer(check_layer):
    check_layer("Python", MASK_LAYER, (3, 441))


def test_layers_that_train_are_refused(layer_net):
    text = layer_net("Python", MASK_LAYER + " phase: TRAIN", (3, 441), (1, 30, 30), (3, 12), tops=2)
    with pytest.raises(WeightsError, match="layer 'it': pylayer.mask_layer.MaskLayer: compares masks"):
        to_onnx(Net(prototxt.parse_net(text), "TEST"))
