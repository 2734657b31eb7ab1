"""tools/train_svms.py: the caffemodel it writes, what it says, and that every mistake ends in one message."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from converters import read_caffemodel
from ohem_caffe_port.data.shapes import SHAPE_CLASSES

NET, SNAPSHOT = "model/test.prototxt", "snapshots/tiny_iter_2.caffemodel"
WRITTEN = "snapshots/tiny_iter_2_svm.caffemodel"


@pytest.fixture
def svms(workspace):
    """``svms(*options)`` runs the tool on the workspace's net and data."""

    def run(*options):
        files = ("--def", NET, "--net", SNAPSHOT, "--data", "data", "--gpu", "-1")
        return workspace.run(workspace.tools.train_svms, [*files, *options])

    return run


def layers(path):
    return {layer.name: layer.blobs for layer in read_caffemodel(path).layers if layer.blobs}


def test_training(svms, workspace):
    """The scores' layer is another, all others are the same, and testing takes the file."""
    pytest.importorskip("sklearn")
    done = svms("--imdb", "shapes_train", "--retrain", "300", "--json", "svm.json")
    assert (done.code, done.new) == (0, {WRITTEN, "svm.json"})
    assert "shapes_train: 16 images, mirrored ones included; features: 16 values of blob 'fc6'" in done.out
    before, after = layers(SNAPSHOT), layers(WRITTEN)
    assert set(after) <= set(before)
    for name in set(after) - {"cls_score"}:
        for ours, theirs in zip(after[name], before[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)
    weight, bias = after["cls_score"]
    assert np.abs(weight[0]).max() == bias[0] == 0, "background has no SVM"
    assert np.abs(weight[1:]).max(1).min() > 0
    report = json.loads(Path("svm.json").read_text())
    assert set(report["classes"]) == set(SHAPE_CLASSES[1:])
    for name, entry in report["classes"].items():
        assert len(entry["rounds"]) > 1, "it was trained again"
        assert f"│ {name} " in done.out
    assert report["settings"]["retrain_after"] == 300
    assert report["seconds"] > report["net_seconds"] > 0
    tested = workspace.test("--net", WRITTEN, "--set", "TEST.SVM", "True", "--det_thresh", "-2")
    assert (tested.code, tested.err) == (0, "")


def test_the_data_set_of_the_configuration(svms):
    pytest.importorskip("sklearn")
    done = svms("--set", "TRAIN.USE_FLIPPED", "False", "--output", "there", "--C", "0.01", "--B", "1")
    assert (done.code, done.new) == (0, {"there/tiny_iter_2_svm.caffemodel"})
    assert "shapes_train: 8 images; features" in done.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--def", "model/none.prototxt"), "none.prototxt"),
        (("--net", "none.caffemodel"), "none.caffemodel"),
        (("--imdb", "shapes_tset"), "Did you mean 'shapes_test'"),
        (("--feature", "fc7"), "blob 'fc7' is not in the net"),
        (("--feature", "roi_pool"), "layer 'cls_score', which the SVMs go into, reads 16 of 'fc6'"),
        (("--C", "0"), "--C must be positive"),
        (("--C", "inf"), "--C must be positive"),
        (("--B", "nan"), "--B must be positive"),
        (("--retrain", "-1"), "--retrain must be positive"),
        (("--evict", "nan"), "--evict must be a number"),
        (("--json", "none/x.json"), "no file can be written there"),
        (("--output", NET), "results cannot be written there"),
        (("--set", "TEST.SVMS", "True"), "TEST.SVM"),
    ],
)
def test_mistakes(svms, options, words):
    pytest.importorskip("sklearn")
    done = svms(*options)
    assert (done.code, done.new) == (2, set())
    assert done.err.startswith("error: ")
    assert words in done.err


def test_another_number_of_classes(svms, workspace):
    pytest.importorskip("sklearn")
    workspace.write_net(classes=5)
    workspace.write_weights("five.caffemodel", fc6=[(16, 72), (16,)])
    done = svms("--net", "five.caffemodel")
    assert (done.code, done.new) == (2, set())
    assert "the net scores 5 classes, shapes_train has 7" in done.err


def test_without_scikit_learn(svms, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    done = svms()
    assert (done.code, done.new) == (2, set())
    assert "ohem_caffe_port[svm]" in done.err


def test_a_net_that_makes_its_own_proposals(svms, workspace, faster_rcnn):
    pytest.importorskip("sklearn")
    workspace.write("model/test.prototxt", faster_rcnn.test)
    workspace.write_weights("rpn.caffemodel", cls_score=[(7, 72), (7,)])
    done = svms("--net", "rpn.caffemodel")
    assert (done.code, done.new) == (2, set())
    assert "SVMs need inputs data and rois" in done.err
