"""VOC's result files: the original's lines to the letter, finding them by their names, and refusal of anything else."""

import gzip

import numpy as np
import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import ResultFiles, read_comp4, write_comp4

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


# ---- ResultFiles


@pytest.fixture
def folder(tmp_path):
    """``folder("comp4_det_test_cat.txt", ...)``: a folder with these files of one detection each."""

    def make(*names):
        for name in names:
            line = b"000001 0.5 1 2 3 4\n"
            (tmp_path / name).write_bytes(gzip.compress(line) if name.endswith(".gz") else line)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("names", "run", "image_set", "others"),
    [
        (["comp4_det_test_cat.txt", "comp4_det_test_dog.txt.gz"], "comp4_det_test", "test", []),
        (["comp3_det_val_cat.txt", "comp3_det_val_dog.txt"], "comp3_det_val", "val", []),
        (["comp4-44503_det_test_cat.txt", "comp4-44503_det_test_dog.txt"], "comp4-44503_det_test", "test", []),
        (["comp4_0f_1_det_my_set_cat.txt", "comp4_0f_1_det_my_set_dog.txt"], "comp4_0f_1_det_my_set", "my_set", []),
        (
            ["comp3_det_test_cat.txt", "comp3_det_test_dog.txt", "comp4_det_val_cat.txt"],
            *("comp3_det_test", "test", ["comp4_det_val"]),
        ),
        (
            ["comp3_det_test_cat.txt", "comp4_det_test_cat.txt", "comp4_det_test_dog.txt"],
            *("comp4_det_test", "test", ["comp3_det_test"]),
        ),
    ],
)
def test_runs_are_known_by_their_names(folder, names, run, image_set, others):
    files = ResultFiles(folder(*names, "cat_pr.txt", "notes.md"), ["cat", "dog"], image_set="test")
    assert (files.run, files.image_set, files.others, files.strangers) == (run, image_set, others, [])
    assert sorted(files) == ["cat", "dog"]
    ids, scores, boxes = files["dog"]
    assert (ids, scores.tolist(), boxes.tolist()) == (["000001"], [0.5], [[1, 2, 3, 4]])


def test_the_longest_class_name_counts(folder):
    files = ResultFiles(
        folder("comp4_det_test_hot_dog.txt", "comp4_det_test_dog.txt"), ["dog", "hot_dog"], image_set="x"
    )
    assert (files.run, len(files), files.path("hot_dog").name) == ("comp4_det_test", 2, "comp4_det_test_hot_dog.txt")


def test_a_run_may_be_named(folder):
    names = [f"{run}_{name}.txt" for run in ("comp4_det_test", "comp4-1_det_test") for name in ("cat", "dog")]
    classes = ["cat", "dog"]
    with pytest.raises(PortError, match="several runs: comp4-1_det_test, comp4_det_test"):
        ResultFiles(folder(*names), classes, image_set="test")
    assert ResultFiles(folder(), classes, image_set="test", run="comp4_det_test").run == "comp4_det_test"
    with pytest.raises(PortError, match="no files named comp9_det_x_<class>.txt") as error:
        ResultFiles(folder(), classes, image_set="test", run="comp9_det_x")
    assert "comp4-1_det_test, comp4_det_test" in error.value.hint


def test_files_of_other_classes_are_left_alone(folder):
    names = ["comp4_det_test_cat.txt", "comp4_det_test_unicorn.txt"]
    files = ResultFiles(folder(*names), ["cat", "dog"], image_set="test", wanted=["cat"])
    assert files.strangers == ["comp4_det_test_unicorn.txt"]
    assert list(files) == ["cat"]


def test_what_is_not_a_folder_of_results(folder, tmp_path):
    options = {"classes": ["cat", "dog", "cow"], "image_set": "test"}
    with pytest.raises(PortError, match="no such folder"):
        ResultFiles(tmp_path / "none", **options)
    with pytest.raises(PortError, match="no files named"):
        ResultFiles(folder("cat.txt"), **options)
    with pytest.raises(PortError, match="no files named") as error:
        ResultFiles(folder("comp4_det_test_unicorn.txt"), **options)
    assert "comp4_det_test_unicorn.txt, which is of no class here" in error.value.hint
    with pytest.raises(PortError, match="no file comp4_det_test_dog.txt, nor those of 1 more of 3 classes"):
        ResultFiles(folder("comp4_det_test_cat.txt"), **options)
    with pytest.raises(PortError, match="no file comp4_det_test_cow.txt\n"):
        ResultFiles(folder("comp4_det_test_dog.txt"), **options)
    with pytest.raises(PortError, match="class 'cat' is there twice"):
        ResultFiles(folder("comp4_det_test_cat.txt.gz"), **options)
