import numpy as np
import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate.ssd_files import output_boxes, read_label_map, read_name_sizes
from prototxt import CaffePortError, caffe_pb2

BOXES = np.array([[0.1, 0.2, 0.5, 0.6], [-0.2, 0.4, 1.3, 0.9]])


def resize(mode, **fields):
    mode = getattr(caffe_pb2.ResizeParameter, mode)
    return caffe_pb2.ResizeParameter(resize_mode=mode, height=300, width=300, **fields)


@pytest.mark.parametrize("param", [None, resize("WARP"), resize("FIT_SMALL_SIZE")])
def test_scaled_and_clipped(param):
    boxes, areas = output_boxes(BOXES, 50, 100, param)
    np.testing.assert_allclose(boxes, [[10, 10, 50, 30], [0, 20, 100, 45]], rtol=1e-6)
    np.testing.assert_allclose(areas, [41 * 21, 101 * 26], rtol=1e-6)


def test_padding_is_taken_off():
    """An image twice as wide as high fills the middle half of a square input; a box beside it stays as it is."""
    boxes, _ = output_boxes(
        np.array([[0.1, 0.25, 0.5, 0.5], [0.1, 0.1, 0.5, 0.2]]), 50, 100, resize("FIT_LARGE_SIZE_AND_PAD")
    )
    np.testing.assert_allclose(boxes, [[10, 0, 50, 25], [10, 5, 50, 10]], rtol=1e-5)
    boxes, _ = output_boxes(np.array([[0.25, 0.1, 0.5, 0.5]]), 100, 50, resize("FIT_LARGE_SIZE_AND_PAD"))
    np.testing.assert_allclose(boxes, [[0, 10, 25, 50]], rtol=1e-5)


def test_a_crop_of_known_size():
    boxes, areas = output_boxes(BOXES, 50, 100, resize("FIT_SMALL_SIZE", height_scale=60, width_scale=120))
    np.testing.assert_allclose(boxes, [[12, 12, 60, 36], [0, 24, 100, 50]], rtol=1e-6)
    np.testing.assert_allclose(areas, [48 * 24, 100 * 26], rtol=1e-6)


def test_areas_of_boxes_without_one():
    _, areas = output_boxes(np.array([[0.5, 0.5, 0.4, 0.6], [0.5, 0.5, 0.5, 0.5]]), 10, 10)
    assert areas.tolist() == [0, 1]


def test_a_resize_without_a_size():
    with pytest.raises(PortError, match="must be positive"):
        output_boxes(BOXES, 50, 100, caffe_pb2.ResizeParameter())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('item { label: 1 name: "a" } item { label: 1 name: "b" }', "a label is there twice"),
        ('layer { name: "a" type: "ReLU" bottom: "a" top: "a" }', "no label map"),
        ("item {", "map.prototxt"),
    ],
)
def test_bad_label_maps(tmp_path, text, message):
    (tmp_path / "map.prototxt").write_text(text)
    with pytest.raises(CaffePortError, match=message):
        read_label_map(tmp_path / "map.prototxt")


def test_label_map(tmp_path):
    (tmp_path / "map.prototxt").write_text(
        'item { name: "bg" label: 0 }\nitem { name: "cat" label: 3 display_name: "C" }'
    )
    assert read_label_map(tmp_path / "map.prototxt") == {0: "bg", 3: "cat"}


def test_names_and_sizes(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("000005 375 500\n\n000007 333 500\n")
    assert read_name_sizes(path) == [("000005", 375, 500), ("000007", 333, 500)]
    path.write_text("000005 375 500\n000007 333\n")
    with pytest.raises(PortError, match="expected 'name height width'") as caught:
        read_name_sizes(path)
    assert caught.value.line == 2
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PortError, match="not a text file"):
        read_name_sizes(path)
