"""tools/reval.py on what tools/test_from_prototxt.py saved."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from ohem_caffe_port.evaluate import load_detections, read_comp4, save_detections

SHAPES = ("--imdb", "shapes_test", "--data", "data")
NPZ = "tested/detections.npz"


@pytest.fixture
def tested(workspace):
    """A workspace with the folder ``tested`` of a test run; ``tested.reval(*options)`` evaluates it again."""
    done = workspace.test("--output", "tested", "--json", "first.json")
    assert done.code == 0, done.err
    workspace.reval = lambda *options: workspace.run(workspace.tools.reval, ["tested", *SHAPES, *options])
    return workspace


def test_the_same_again(tested):
    done = tested.reval("--json", "again.json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(Path("again.json").read_text()) == json.loads(Path("first.json").read_text())
    for path in Path("tested/results").iterdir():
        assert (Path("tested/reval") / path.name).read_bytes() == path.read_bytes()
    assert "average precision on shapes_test (IoU > 0.5, 11 points)" in done.out
    assert tested.reval("--iou", "0.9", "--json", "strict.json").code == 0
    assert json.loads(Path("strict.json").read_text())["iou"] == 0.9


def test_competition_mode(tested):
    done = tested.reval("--comp", "--output", "files")
    assert done.code == 0
    assert len(done.new) == 6
    assert all(name.startswith("files/comp4_det_test_") for name in done.new)
    assert "average precision" not in done.out


def test_nms(tested):
    """Every detection comes twice, the second time a little worse; suppression takes those away again."""
    all_boxes, index, classes = load_detections(NPZ)
    worse = np.array([0, 0, 0, 0, -1e-4], np.float32)
    twice = [[np.concatenate([dets, dets + worse]) for dets in per_image] for per_image in all_boxes]
    save_detections(NPZ, twice, index, classes)
    count = sum(len(dets) for per_image in all_boxes for dets in per_image)
    done = tested.reval("--nms", "--json", "again.json")
    assert done.code == 0
    assert f"{count} of {2 * count} detections are left after suppression at IoU 0.3" in done.out
    assert json.loads(Path("again.json").read_text()) == json.loads(Path("first.json").read_text())
    fewer = tested.reval("--nms", "--nms_thresh", "0")
    assert fewer.code == 0
    assert sum(len(ids) for ids, _, _ in read_comp4("tested/reval").values()) < count


def detections(w, images=None, classes=None):
    all_boxes, index, names = load_detections(NPZ)
    save_detections(NPZ, all_boxes, images or index, classes or names)


def untouched(w):
    pass


BAD = {
    "no folder": (untouched, "--output x", "nix", ["nix: there is no such folder"]),
    "not tested": (untouched, "", "data", ["data/detections.npz: there is no such file", "Run the test first"]),
    "cut off": (lambda w: w.cut(NPZ), "", "tested", [f"{NPZ}: is not a file of detections"]),
    "a pickle": (lambda w: w.write(NPZ, pickle.dumps([[]])), "", "tested", ["cannot be opened safely"]),
    "another image set": (untouched, "--imdb shapes_train", "tested", ["on 4 images, shapes_train has 8; 4 differ"]),
    "another order": (
        lambda w: detections(w, images=["500002", "500001", "500003", "500004"]), "", "tested",
        ["on 4 images, shapes_test has 4; 2 differ", "name the data set that was tested"],
    ),
    "other classes": (
        lambda w: detections(w, classes=["__background__", *"abcdef"]), "", "tested",
        ["detections of 6 classes (a, b, c, ...); shapes_test has 6 (circle,"],
    ),
    "no annotation": (
        lambda w: Path("data/shapes/VOCdevkit2007/VOC2007/Annotations/500003.xml").unlink(), "--output /dev/null/x",
        "tested", ["results cannot be written there"],
    ),
    "unknown imdb": (untouched, "--imdb nix", "tested", ["unknown imdb 'nix'"]),
    "threshold alone": (untouched, "--nms_thresh 0.5", "tested", ["--nms_thresh needs --nms"]),
    "threshold of 1": (untouched, "--nms --nms_thresh 1", "tested", ["an overlap is from 0 to below 1"]),
    "json nowhere": (untouched, "--json nowhere/x.json", "tested", ["--json: no file can be written there"]),
}  # fmt: skip


@pytest.mark.parametrize(
    ("prepare", "options", "folder", "words"), [pytest.param(*case, id=name) for name, case in BAD.items()]
)
def test_a_mistake_ends_in_one_message(tested, prepare, options, folder, words):
    prepare(tested)
    done = tested.run(tested.tools.reval, [folder, *SHAPES, *options.split()])
    done.ended_in_one_message(words)


def test_without_public_ground_truth(tested):
    voc = Path("later/VOCdevkit/VOC2012")
    voc.parent.mkdir(parents=True)
    Path("data/shapes/VOCdevkit2007/VOC2007").rename(voc)
    from ohem_caffe_port.data.pascal_voc import VOC_CLASSES

    boxes = [[np.zeros((0, 5), np.float32)] * 4 for _ in VOC_CLASSES]
    save_detections(NPZ, boxes, [f"{500001 + k}" for k in range(4)], VOC_CLASSES)
    done = tested.reval("--imdb", "voc_2012_test", "--data", "later")
    assert done.code == 0
    assert "note: voc_2012_test has no public ground truth" in done.out
