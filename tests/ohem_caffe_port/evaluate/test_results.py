"""Files of detections: the original's lines to the letter, round trips, and refusal of anything else."""

import contextlib
import gzip
import io
import pickle

import numpy as np
import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import load_detections, read_comp4, save_detections, voc_detections, write_comp4

CLASSES = ("__background__", "cat", "tv_monitor")
IMAGES = ["000001", "2008_000002"]
CAT_1 = np.array([[0, 1, 49.25, 99.96, 0.98765], [9.04, 5, 20, 30, 1e-5]], np.float32)
CAT_2 = np.array([[3, 4, 5, 6, 0.5]], np.float32)
ALL_BOXES = [[[], []], [CAT_1, CAT_2], [[], np.zeros((0, 5), np.float32)]]  # as the original: [] or [N, 5]


def test_lines_as_the_original_writes_them(tmp_path):
    paths = write_comp4(tmp_path / "new/Main", ALL_BOXES, IMAGES, CLASSES, image_set="test")
    assert [path.name for path in paths] == ["comp4_det_test_cat.txt", "comp4_det_test_tv_monitor.txt"]
    assert paths[0].read_text() == (
        "000001 0.988 1.0 2.0 50.2 101.0\n"  # 50.25 lies between; printf rounds half to even
        "000001 0.000 10.0 6.0 21.0 31.0\n"
        "2008_000002 0.500 4.0 5.0 6.0 7.0\n"
    )
    assert paths[1].read_text() == ""


def test_adding_one_does_not_round_to_float32(tmp_path):
    """The original's numpy added 1 in double precision: 7.3499999 + 1 is below 8.35, but 8.35000038 in float32."""
    x = np.float32(7.35)
    assert (float(x) + 1 < 8.35, float(x + np.float32(1)) > 8.35) == (True, True)
    write_comp4(tmp_path, [[[[x, x, x, x, 0.5]]]], ["a"], ["cat"], image_set="val", comp_id="comp3")
    assert (tmp_path / "comp3_det_val_cat.txt").read_text() == "a 0.500" + " 8.3" * 4 + "\n"


def test_read_is_one_based_and_takes_gz(tmp_path):
    cat, tv = write_comp4(tmp_path, ALL_BOXES, IMAGES, CLASSES, image_set="test")
    with gzip.open(f"{cat}.gz", "wb") as file:
        file.write(cat.read_bytes())
    plain = read_comp4([cat, tv])
    cat.unlink()
    for detections in (plain, read_comp4(tmp_path)):
        assert list(detections) == ["cat", "tv_monitor"]
        ids, scores, boxes = detections["cat"]
        assert ids == ["000001", "000001", "2008_000002"]
        assert scores.tolist() == [0.988, 0, 0.5]
        assert boxes.tolist() == [[1, 2, 50.2, 101], [10, 6, 21, 31], [4, 5, 6, 7]]
        ids, scores, boxes = detections["tv_monitor"]
        assert (ids, scores.shape, boxes.shape) == ([], (0,), (0, 4))


def test_voc_detections_are_the_file_without_rounding(tmp_path):
    write_comp4(tmp_path, ALL_BOXES, IMAGES, CLASSES, image_set="test")
    exact, rounded = voc_detections(ALL_BOXES, IMAGES, CLASSES), read_comp4(tmp_path)
    assert list(exact) == list(rounded)
    for name in exact:
        assert exact[name][0] == rounded[name][0]
        np.testing.assert_allclose(exact[name][1], rounded[name][1], atol=5e-4)
        np.testing.assert_allclose(exact[name][2], rounded[name][2], atol=0.0501)
    assert exact["cat"][2][0, 3] == float(np.float32(99.96)) + 1


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a 0.5 1 2 3 4\na 0.5 1 2 3\n", 2),
        ("a 0.5 1 2 3 4 5\n", 1),
        ("a 0.5 1 2 three 4\n", 1),
        ("a nan 1 2 3 4\n", 1),
        ("a 0.5 1 2 3 4\nlonely\n", 2),
        ("a 0.5 1 2 3 1_0\n", 1),
        ("a 0.5 1 2 3 4\n\na 0.5 1 2 3 4\n", 2),
    ],
)
def test_malformed_lines_are_named(tmp_path, text, line):
    path = tmp_path / "comp4_det_test_cat.txt"
    path.write_text(text)
    with pytest.raises(PortError, match="is not a detection") as error:
        read_comp4(tmp_path)
    assert (error.value.file, error.value.line) == (path, line)


def test_comp4_refuses_other_files(tmp_path):
    with pytest.raises(PortError, match="no such folder"):
        read_comp4(tmp_path / "none")
    with pytest.raises(PortError, match="no files named comp4_det_test_"):
        read_comp4(tmp_path)
    (path,) = write_comp4(tmp_path, [[CAT_1]], ["a"], ["cat"], image_set="val")
    with pytest.raises(PortError, match="There is comp4_det_val_cat.txt"):
        read_comp4(tmp_path)
    with pytest.raises(PortError, match="does not begin with"):
        read_comp4([path])
    with pytest.raises(PortError, match="twice"):
        read_comp4([path, path], image_set="val")
    broken = tmp_path / "comp4_det_test_cat.txt.gz"
    for content in (b"no gzip", gzip.compress(b"a 0.5 1 2 3 4\n" * 100)[:-12], b"\x1f\x8b\x08" + b"\xff" * 30):
        broken.write_bytes(content)
        with pytest.raises(PortError, match="cannot be read"):
            read_comp4([broken])
    with pytest.raises(PortError, match="cannot be read"):
        read_comp4([tmp_path / "comp4_det_test_dog.txt"])


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
