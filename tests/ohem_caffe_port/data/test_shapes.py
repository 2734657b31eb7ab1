import cv2
import numpy as np
import pytest

from ohem_caffe_port.data import factory
from ohem_caffe_port.data.pascal_voc import read_annotation
from ohem_caffe_port.data.shapes import SHAPE_CLASSES, ensure_shapes, make_shapes
from ohem_caffe_port.errors import PortError


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn") / "shapes"
    return ensure_shapes(folder, num_train=12, num_test=4)


def test_the_same_bytes_again(drawn, tmp_path):
    make_shapes(tmp_path / "again", num_train=12, num_test=4)
    assert contents(tmp_path / "again") == contents(drawn)


def test_images_do_not_depend_on_the_number(drawn, tmp_path):
    make_shapes(tmp_path / "fewer", num_train=2, num_test=1)
    for path in (tmp_path / "fewer").rglob("*.jpg"):
        assert path.read_bytes() == (drawn / path.relative_to(tmp_path / "fewer")).read_bytes()


def test_imdb(drawn, monkeypatch):
    monkeypatch.setattr("ohem_caffe_port.data.shapes.ensure_shapes", lambda folder: drawn)
    imdb = factory.get_imdb("shapes_train", data_dir=drawn.parent)
    assert imdb.name == "shapes_train"
    assert imdb.classes == SHAPE_CLASSES
    assert imdb.num_images == 12
    assert imdb.use_07_metric
    assert factory.get_imdb("shapes_test", data_dir=drawn.parent).num_images == 4
    for i, entry in enumerate(imdb.roidb):
        objects = read_annotation(imdb.annotation_path_at(i))
        assert 1 <= len(objects) <= 4
        assert (entry["gt_classes"] > 0).sum() == sum(not o["difficult"] for o in objects) > 0
        assert 250 < (entry["gt_classes"] == 0).sum() <= 300
        assert cv2.imread(str(imdb.image_path_at(i))).shape == (200, 250, 3)
    assert imdb.evaluate_recall()["recalls"][0] >= 0.95


def test_drawn_once_and_again_when_parameters_change(tmp_path):
    folder = tmp_path / "data" / "shapes"
    ensure_shapes(folder, num_train=2, num_test=1)
    (folder / "mark").touch()
    ensure_shapes(folder, num_train=2, num_test=1)
    assert (folder / "mark").exists()
    ensure_shapes(folder, num_train=2, num_test=1, seed=1)
    assert not (folder / "mark").exists()
    assert len(list(folder.rglob("*.jpg"))) == 3
    assert [p.name for p in folder.parent.iterdir()] == ["shapes"]  # no temporary folder stays behind


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr("ohem_caffe_port.data.shapes.save_npz", fail)
    with pytest.raises(PortError, match="disk full"):
        ensure_shapes(tmp_path / "shapes", num_train=1, num_test=1)
    assert list(tmp_path.iterdir()) == []


def test_a_strange_folder_is_left_alone(tmp_path):
    (tmp_path / "shapes").mkdir()
    (tmp_path / "shapes" / "thesis.tex").touch()
    with pytest.raises(PortError, match="not empty"):
        ensure_shapes(tmp_path / "shapes", num_train=1, num_test=1)
    assert (tmp_path / "shapes" / "thesis.tex").exists()


def test_classes_are_distinct_from_distractors():
    assert len(set(SHAPE_CLASSES)) == 7
    assert np.all([name == name.lower() for name in SHAPE_CLASSES])  # names in annotations are lower case
