"""What a test run found: round trips through files, suppression, and refusal of anything else."""

import contextlib
import io
import pickle

import numpy as np
import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import (
    apply_nms,
    load_detections,
    read_comp4,
    save_detections,
    voc_detections,
    write_comp4,
)

CLASSES = ("__background__", "cat", "tv_monitor")
IMAGES = ["000001", "2008_000002"]
CAT_1 = np.array([[0, 1, 49.25, 99.96, 0.98765], [9.04, 5, 20, 30, 1e-5]], np.float32)
CAT_2 = np.array([[3, 4, 5, 6, 0.5]], np.float32)
ALL_BOXES = [[[], []], [CAT_1, CAT_2], [[], np.zeros((0, 5), np.float32)]]  # as the original: [] or [N, 5]


def test_voc_detections_are_the_file_without_rounding(tmp_path):
    write_comp4(tmp_path, ALL_BOXES, IMAGES, CLASSES, image_set="test")
    exact, rounded = voc_detections(ALL_BOXES, IMAGES, CLASSES), read_comp4(tmp_path)
    assert list(exact) == list(rounded)
    for name in exact:
        assert exact[name][0] == rounded[name][0]
        np.testing.assert_allclose(exact[name][1], rounded[name][1], atol=5e-4)
        np.testing.assert_allclose(exact[name][2], rounded[name][2], atol=0.0501)
    assert exact["cat"][2][0, 3] == float(np.float32(99.96)) + 1


def test_nms_by_hand():
    """Boxes of 10 x 10 pixels that share 9, 5 and 0 columns with the best: IoU 0.82, 0.33, 0."""
    dets = np.array([[5, 0, 14, 9, 0.6], [0, 0, 9, 9, 0.9], [1, 0, 10, 9, 0.8], [20, 0, 29, 9, 0.1]], np.float32)
    all_boxes = [[[], []], [dets, []]]
    for thresh, left in ((0.9, [1, 2, 0, 3]), (0.7, [1, 0, 3]), (0.3, [1, 3])):
        kept = apply_nms(all_boxes, thresh)
        np.testing.assert_array_equal(kept[1][0], dets[left])
        assert [kept[0][0].shape, kept[0][1].shape, kept[1][1].shape] == [(0, 5)] * 3


def test_save_and_load(tmp_path):
    save_detections(tmp_path / "detections.npz", ALL_BOXES, IMAGES, CLASSES)
    all_boxes, image_index, classes = load_detections(tmp_path / "detections.npz")
    assert (image_index, classes) == (IMAGES, list(CLASSES))
    for ours, given in zip(all_boxes, ALL_BOXES, strict=True):
        for our, their in zip(ours, given, strict=True):
            assert our.dtype == np.float32
            np.testing.assert_array_equal(our, np.reshape(their, (-1, 5)))
    assert [path.name for path in tmp_path.iterdir()] == ["detections.npz"]


def test_save_and_load_with_numbered_images_and_with_nothing(tmp_path):
    save_detections(tmp_path / "a", [[CAT_1, CAT_2]], [7, 139], ["cat"])
    assert load_detections(tmp_path / "a")[1] == [7, 139]
    save_detections(tmp_path / "b", [], [], [])
    assert load_detections(tmp_path / "b") == ([], [], [])


def test_all_boxes_of_another_shape_are_refused(tmp_path):
    for write in (
        lambda boxes: save_detections(tmp_path / "x", boxes, IMAGES, CLASSES),
        lambda boxes: write_comp4(tmp_path, boxes, IMAGES, CLASSES, image_set="test"),
    ):
        with pytest.raises(PortError, match="another image set"):
            write(ALL_BOXES[:2])
        with pytest.raises(PortError, match="another image set"):
            write([per_image[:1] for per_image in ALL_BOXES])
        with pytest.raises(PortError, match="'cat' on image 000001 have shape"):
            write([ALL_BOXES[0], [CAT_1[:, :4], CAT_2], ALL_BOXES[2]])
    assert not any(tmp_path.iterdir())


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_load_refuses_other_files(tmp_path):
    path = tmp_path / "detections.npz"
    with pytest.raises(PortError, match="no such file"):
        load_detections(path)
    save_detections(path, ALL_BOXES, IMAGES, CLASSES)
    whole = path.read_bytes()
    good = dict(np.load(io.BytesIO(whole)))
    np.save(tmp_path / "array.npy", CAT_1)
    contents = {
        "empty": b"",
        "pickle": pickle.dumps(ALL_BOXES),
        "cut": whole[: len(whole) // 2],
        "plain array": (tmp_path / "array.npy").read_bytes(),
        "keys": npz(dets=CAT_1),
        "objects": npz(**{**good, "classes": np.array(CLASSES, object)}),
        "offsets fall": npz(**{**good, "offsets": good["offsets"][::-1].copy()}),
        "offsets too few": npz(**{**good, "offsets": good["offsets"][:-1]}),
        "no offsets": npz(**{**good, "offsets": np.zeros(0, np.int64)}),
        "scalar classes": npz(**{**good, "classes": np.array("cat")}),
        "dets": npz(**{**good, "dets": good["dets"][:, :4]}),
    }
    for name, content in contents.items():
        path.write_bytes(content)
        with pytest.raises(PortError) as error:
            load_detections(path)
        assert error.value.file == path, name


def test_flipped_bytes_never_break_out(tmp_path):
    path = tmp_path / "detections.npz"
    save_detections(path, ALL_BOXES, IMAGES, CLASSES)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(500):
        data = bytearray(whole)
        data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(PortError):
            load_detections(path)
