import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net

A = np.arange(48.0).reshape(2, 6, 4)


@pytest.mark.parametrize(
    ("settings", "axis", "points"),
    [
        ("", 1, [2, 4]),
        ("axis: 1 slice_point: 1 slice_point: 5", 1, [1, 5]),
        ("axis: -2 slice_point: 3 slice_point: 6", 1, [3, 6]),  # an empty last part
        ("slice_dim: 2 slice_point: 1 slice_point: 2", 2, [1, 2]),
    ],
)
def test_slice(run_layer, settings, axis, points):
    x = torch.tensor(A, requires_grad=True)
    outs = run_layer("Slice", f"slice_param {{ {settings} }}", x, tops=3)
    for out, expected in zip(outs, np.split(A, points, axis), strict=True):
        np.testing.assert_array_equal(out.detach(), expected)
    sum((i + 1) * out.sum() for i, out in enumerate(outs)).backward()
    expected = np.concatenate([np.full(part.shape, i + 1) for i, part in enumerate(np.split(A, points, axis))], axis)
    np.testing.assert_array_equal(x.grad, expected)


def test_a_layer_in_place_after_slice_leaves_the_bottom_alone():
    text = """layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 } } }
              layer { name: "s" type: "Slice" bottom: "x" top: "a" top: "b" slice_param { axis: 0 } }
              layer { name: "r" type: "ReLU" bottom: "a" top: "a" }"""
    net = Net(prototxt.parse_net(text))
    net(x=-np.ones((2, 4)))
    assert net.blobs["x"].eq(-1).all()
    assert net.blobs["a"].eq(0).all()


@pytest.mark.parametrize(
    ("settings", "reference", "expected"),
    [
        ("", (1, 1, 2), A[..., :2]),
        ("axis: 1 offset: 1", (9, 3, 2), A[:, 1:4, 1:3]),
        ("axis: -2 offset: 2 offset: 0", (9, 4, 4), A[:, 2:6]),
        ("axis: 0 offset: 1 offset: 5 offset: 2", (1, 1, 1), A[1:, 5:, 2:3]),
    ],
)
def test_crop(run_layer, settings, reference, expected):
    (out,) = run_layer("Crop", f"crop_param {{ {settings} }}", A, np.zeros(reference))
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize(("settings", "repeats"), [("tiles: 3", (1, 3, 1)), ("axis: -1 tiles: 2", (1, 1, 2))])
def test_tile(run_layer, settings, repeats):
    (out,) = run_layer("Tile", f"tile_param {{ {settings} }}", A)
    np.testing.assert_array_equal(out, np.tile(A, repeats))


def test_batch_reindex(run_layer):
    x = torch.tensor(A, requires_grad=True)
    (out,) = run_layer("BatchReindex", "", x, [1, 1, 0, 1])
    np.testing.assert_array_equal(out.detach(), A[[1, 1, 0, 1]])
    out.sum().backward()
    assert x.grad[:, 0, 0].tolist() == [1, 3]


FILTER = prototxt.parse_net("""
    force_backward: true
    layer { name: "in" type: "Input" top: "a" top: "b" top: "sel"
            input_param { shape { dim: 4 dim: 3 } shape { dim: 4 } shape { dim: 4 dim: 1 } } }
    layer { name: "f" type: "Filter" bottom: "a" bottom: "b" bottom: "sel" top: "ta" top: "tb" }""")


@pytest.mark.parametrize("selector", [[1, 0, 0, -2], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_filter(selector):
    net = Net(FILTER)
    a, b, rows = np.arange(12.0).reshape(4, 3), np.arange(4.0), np.flatnonzero(selector)
    assert [net.shapes[v] for v in net.steps[1].tops] == [(4, 3), (4,)]
    net(a=a, b=b, sel=np.reshape(selector, (4, 1)))
    np.testing.assert_array_equal(net.blobs["ta"].detach(), a[rows])
    np.testing.assert_array_equal(net.blobs["tb"].detach(), b[rows])
    net.blobs["ta"].sum().backward()
    np.testing.assert_array_equal(net.blobs["a"].grad, np.repeat(np.not_equal(selector, 0)[:, None], 3, 1))


@pytest.mark.parametrize(("order", "meant"), [([2, 0, 1], [2, 0, 1]), ([1], [1, 0, 2]), ([0, 1, 2], [0, 1, 2]),
                                              ([], [0, 1, 2]), ([2, 1], [2, 1, 0])])  # fmt: skip
def test_permute(run_layer, order, meant):
    (out,) = run_layer("Permute", f"permute_param {{ {' '.join(f'order: {axis}' for axis in order)} }}", A)
    np.testing.assert_array_equal(out, A.transpose(meant))


@pytest.mark.parametrize(
    ("group", "order"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 3, 1, 4, 2, 5]), (3, [0, 2, 4, 1, 3, 5])]
)
def test_shuffle_channel(run_layer, group, order):
    (out,) = run_layer("ShuffleChannel", f"shuffle_channel_param {{ group: {group} }}", A)
    np.testing.assert_array_equal(out, A[:, order])


@pytest.mark.parametrize(
    ("settings", "shape", "axes"),
    [
        ("", (2, 3, 4, 2), [3]),
        ("flip_height: true", (2, 3, 4, 2), [2, 3]),
        ("flip_height: true flip_width: false", (2, 3, 4, 2), [2]),
        ("flip_height: true", (2, 6, 4), [2]),
    ],
)
def test_flip(run_layer, settings, shape, axes):
    x = A.reshape(shape)
    (out,) = run_layer("Flip", f"flip_param {{ {settings} }}", x)
    np.testing.assert_array_equal(out, np.flip(x, axes))


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "tops", "message"),
    [
        ("Slice", "slice_param { axis: 1 slice_dim: 1 }", [(2, 6)], 2, "not both"),
        ("Slice", "slice_param { slice_dim: 2 }", [(2, 6)], 2, "axis 2 of a blob with 2 axes"),
        ("Slice", "slice_param { slice_point: 1 }", [(2, 6)], 3, "1 points make 2 parts"),
        ("Slice", "slice_param { slice_point: 0 }", [(2, 6)], 2, "must grow"),
        ("Slice", "slice_param { slice_point: 4 slice_point: 3 }", [(2, 6)], 3, "must grow"),
        ("Slice", "slice_param { slice_point: 7 }", [(2, 6)], 2, "on an axis of 6"),
        ("Slice", "", [(2, 6)], 4, "cannot be cut into 4 equal parts"),
        ("Crop", "crop_param { offset: 1 offset: 1 }", [(2, 3, 4)] * 2, 1, "2 offsets for 1 axes"),
        ("Crop", "crop_param { offset: 1 }", [(2, 3, 4)] * 2, 1, "4 cells from 1 on, of axis 2 with 4"),
        ("Crop", "", [(2, 3, 4), (2, 3)], 1, "fewer axes"),
        ("Crop", "", [(2, 3), (2, 3)], 1, "axis 2 of a blob with 2 axes"),
        ("Tile", "", [(2, 3)], 1, "must be positive, not 0"),
        ("BatchReindex", "", [(2, 3), (2, 1)], 1, "must have one axis"),
        ("Filter", "", [(2, 3), (2,)], 2, "2 tops for 1 bottoms and the selector"),
        ("Filter", "", [(2, 3), (2, 2)], 1, "must be of size 1"),
        ("Filter", "", [(2, 3), (3,)], 1, "differ in rows"),
        ("Permute", "permute_param { order: 0 order: 0 }", [(2, 3)], 1, "no order of 2 axes"),
        ("Permute", "permute_param { order: 2 }", [(2, 3)], 1, "no order of 2 axes"),
        ("ShuffleChannel", "shuffle_channel_param { group: 4 }", [(2, 6)], 1, "4 groups of 6 channels"),
        ("ShuffleChannel", "shuffle_channel_param { group: 0 }", [(2, 6)], 1, "0 groups of 6 channels"),
        ("Flip", "", [(1, 1, 1, 1, 1)], 1, r"flips \[N, C, H, W\] blobs"),
    ],
)
def test_what_makes_no_sense(run_layer, kind, settings, bottoms, tops, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, *(np.zeros(shape) for shape in bottoms), tops=tops)


@pytest.mark.parametrize("rows", [[0, 2], [-1, 0], [-0.5, 1]])
def test_rows_that_the_batch_lacks(run_layer, rows):
    with pytest.raises(PortError, match="of a batch of 2"):
        run_layer("BatchReindex", "", A, rows)
