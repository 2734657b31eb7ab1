"""tools/test_from_prototxt.py: what it writes and says, and that every mistake ends in one message."""

import errno
import json
import re
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters.convert import convert
from ohem_caffe_port.data.shapes import SHAPE_CLASSES
from ohem_caffe_port.evaluate import load_detections, read_comp4

VOC = Path("data/shapes/VOCdevkit2007/VOC2007")
IMAGE, XML = VOC / "JPEGImages/500003.jpg", VOC / "Annotations/500003.xml"
PROPOSALS = Path("data/shapes/selective_search_data/voc_2007_test.npz")
NET, SNAPSHOT = "model/test.prototxt", "snapshots/tiny_iter_2.caffemodel"
INDEX = [f"{500001 + k}" for k in range(4)]
COMP4 = {f"new/results/comp4_det_test_{name}.txt" for name in SHAPE_CLASSES[1:]}


# ---- the good path


def test_testing(workspace):
    done = workspace.test("--json", "ap.json")
    assert done.code == 0
    assert done.err == ""
    assert done.new == {"new/detections.npz", "ap.json"} | COMP4
    assert re.search(rf"{SNAPSHOT}: \d layers loaded", done.out)
    assert "average precision on shapes_test (IoU > 0.5, 11 points)" in done.out
    ap = json.loads(Path("ap.json").read_text())
    assert (ap["imdb"], ap["iou"], set(ap["ap"])) == ("shapes_test", 0.5, {*SHAPE_CLASSES[1:], "mean"})
    for name, value in ap["ap"].items():
        shown = "no objects" if value is None else f"{value:.4f}"
        assert re.search(rf"{'mAP' if name == 'mean' else name} *│ *{shown} ", done.out)
    detections = read_comp4("new/results")
    all_boxes, index, classes = load_detections("new/detections.npz")
    assert (list(index), tuple(classes)) == (INDEX, SHAPE_CLASSES)
    for name, boxes in zip(classes[1:], all_boxes[1:], strict=True):
        assert len(detections[name][0]) == sum(map(len, boxes))
    assert sum(len(dets) for boxes in all_boxes for dets in boxes)


def test_weights_of_other_formats(workspace):
    convert(SNAPSHOT, "w.safetensors", "safetensors")
    assert workspace.test().code == workspace.test("--net", "w.safetensors", "--output", "b").code == 0
    ours, theirs = (load_detections(f"{folder}/detections.npz")[0] for folder in ("new", "b"))
    for one, other in zip(ours[1:], theirs[1:], strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)


def test_pictures(workspace):
    done = workspace.test("--vis", "2", "--vis_thresh", "0.1")
    pictures = {name for name in done.new if name.endswith(".jpg")}
    assert pictures == {f"new/images/{name}.jpg" for name in INDEX[:2]}
    assert cv2.imread(str(Path("new/images/500001.jpg"))).shape == (200, 250, 3)
    assert len([name for name in workspace.test("--vis", "--output", "all").new if name.endswith(".jpg")]) == 4


def test_thresholds(workspace):
    def found(*options):
        assert workspace.test(*options).code == 0
        return [sum(len(boxes[i]) for boxes in load_detections("new/detections.npz")[0]) for i in range(4)]

    everything = found("--num_dets", "0")
    assert min(everything) > 3
    assert max(found("--num_dets", "3")) == 3
    best = found("--det_thresh", "0.2")
    assert sum(best) < sum(everything)


def test_competition_mode(workspace):
    done = workspace.test("--comp")
    assert done.code == 0
    assert done.new == {"new/detections.npz"} | COMP4
    assert "average precision" not in done.out


def test_ground_truth_that_is_not_public(workspace):
    voc = Path("later/VOCdevkit/VOC2012")
    voc.parent.mkdir(parents=True)
    VOC.rename(voc)
    workspace.write_net(21)
    workspace.write_weights("w.caffemodel", conv1=[(8, 3, 8, 8), (8,)])
    options = ("--imdb", "voc_2012_test", "--data", "later", "--proposals", PROPOSALS, "--net", "w.caffemodel")
    done = workspace.test(*options)
    assert done.code == 0
    assert "note: these layers keep their initial values: fc6, cls_score, bbox_pred" in done.out
    assert "note: voc_2012_test has no public ground truth" in done.out
    assert "new/results/comp4_det_test_tvmonitor.txt" in done.new


def test_waiting_for_the_weights(workspace, monkeypatch):
    Path(SNAPSHOT).rename("later.caffemodel")
    monkeypatch.setattr(time, "sleep", lambda seconds: Path("later.caffemodel").rename(SNAPSHOT))
    done = workspace.test("--wait")
    assert done.code == 0
    assert f"waiting for {SNAPSHOT}" in done.out


def test_where_results_go_by_default(workspace):
    options = ("--def", NET, "--net", SNAPSHOT, "--gpu", "-1", "--data", "data")
    done = workspace.run(workspace.tools.test_from_prototxt, options)
    assert "output/tiny/shapes_test/tiny_iter_2/detections.npz" in done.new


def test_the_configuration(workspace):
    """cfg.yml beside the prototxt is read, and ``--set`` wins over it."""
    assert "configuration: model/cfg.yml" in workspace.test("--comp").out
    before = load_detections("new/detections.npz")[0]
    assert workspace.test("--comp", "--set", "TEST.SCALES", "[64]", "TEST.NMS", "0.9").code == 0
    after = load_detections("new/detections.npz")[0]
    assert any(not np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))


MULTI = ("TEST.SCALES", "[48, 96, 110]", "TEST.MAX_SIZE", "128")
BOXES = ("TEST.BBOX_ITERS", "2", "TEST.BBOX_VOTE", "True")


ALL_SCALES = (*MULTI, "TEST.SCALE_USE", "all")


@pytest.mark.parametrize(
    "keys",
    [MULTI, ALL_SCALES, BOXES, (*MULTI, *BOXES), (*ALL_SCALES, *BOXES, "TEST.BBOX_ITER_THRESH", "0.1")],
)
def test_several_scales_and_rounds(workspace, keys):
    done = workspace.test("--comp", "--num_dets", "0", "--det_thresh", "0.01", "--set", *keys)
    assert (done.code, done.err) == (0, "")
    found = load_detections("new/detections.npz")[0]
    assert workspace.test("--comp", "--num_dets", "0", "--det_thresh", "0.01").code == 0
    before = load_detections("new/detections.npz")[0]
    boxes, old = (np.concatenate(sum(all_boxes[1:], [])) for all_boxes in (found, before))
    assert len(boxes) != len(old) or not np.allclose(boxes, old, atol=0.01)
    assert np.isfinite(boxes).all()


def test_paths_with_spaces_and_umlauts(workspace):
    for name in ("data", "model", "snapshots"):
        Path(name).rename(f"ä {name} 数")
    done = workspace.test(
        *("--def", "ä model 数/test.prototxt", "--net", "ä snapshots 数/tiny_iter_2.caffemodel"),
        *("--data", "ä data 数", "--output", "n ß", "--json", "j ö.json", "--vis", "1"),
    )
    assert done.code == 0
    assert {"n ß/detections.npz", "n ß/images/500001.jpg", "j ö.json"} < done.new


# ---- bad input


def net(old, new):
    return lambda w: (w.replace(NET, old, new), w.write_weights("w.caffemodel", conv1=[(8, 3, 8, 8), (8,)]))


def resized(w):
    image = cv2.imread(str(IMAGE))
    cv2.imwrite(str(IMAGE), cv2.resize(image, None, fx=2, fy=2))


def without_proposals(w):
    np.savez("p.npz", **{name: np.array([[1, 1, 90, 90]])[: name != "500003"] for name in INDEX})


def other_classes(w):
    w.write_net(21)
    w.write_weights("w.caffemodel", conv1=[(8, 3, 8, 8), (8,)])


def untouched(w):
    pass


CONV1 = "--net w.caffemodel"
BAD = {
    "no devkit": (untouched, "--imdb voc_2007_test", ["no VOC 2007 devkit found"]),
    "unknown imdb": (untouched, "--imdb voc_2008_test", ["unknown imdb 'voc_2008_test'", "Did you mean"]),
    "image missing": (lambda w: IMAGE.unlink(), "", ["500003.jpg: image not found"]),
    "image empty": (lambda w: w.write(IMAGE), "", ["500003.jpg: not a readable image"]),
    "image cut off": (lambda w: w.cut(IMAGE), "", ["500003.jpg: not a readable image: the JPEG file is cut off"]),
    "image of another size": (resized, "", ["500003.xml: size: the image is 500 x 400, its annotation says 250 x 200"]),
    "annotation missing": (lambda w: XML.unlink(), "", ["500003.xml: annotation not found"]),
    "annotation broken": (lambda w: w.cut(XML), "", ["500003.xml:", "broken XML"]),
    "class unknown": (lambda w: w.replace(XML, "<name>", "<name>x"), "", ["500003.xml: name: object 1: class 'x"]),
    "proposals missing": (lambda w: PROPOSALS.unlink(), "", ["no proposals for 'voc_2007_test'"]),
    "proposals of another set": (
        untouched, "--proposals data/shapes/selective_search_data/voc_2007_train.npz", ["no boxes for 4 of 4 images"],
    ),
    "an image without": (without_proposals, "--proposals p.npz", ["image 500003 has no proposals"]),
    "weights missing": (untouched, CONV1, ["w.caffemodel: there is no such file"]),
    "weights cut off": (lambda w: w.cut(SNAPSHOT), "", ["tiny_iter_2.caffemodel", "cut off or damaged"]),
    "weights a prototxt": (untouched, f"--net {NET}", ["test.prototxt: is a text file (a prototxt?)"]),
    "weights for the net": (untouched, f"--def {SNAPSHOT}", ["binary .caffemodel file, not a prototxt"]),
    "weights of another net": (
        lambda w: w.write_weights("w.caffemodel", fc_a=[(2, 3)]), CONV1, ["no layer of the file is in the net"],
    ),
    "weights of other classes": (
        lambda w: w.write_net(21), "", ["layer 'cls_score'", "(7, 16) in the file and (21, 16)"],
    ),
    "21 classes": (other_classes, CONV1, ["test.prototxt: the net scores 21 classes, shapes_test has 7"]),
    "no cls_prob": (net('top: "cls_prob"', 'top: "prob"'), "", ["blobs bbox_pred, cls_prob", "give the test.prototxt"]),
    "bbox_pred": (net("num_output: 28", "num_output: 84"), CONV1, ["bbox_pred needs 28 columns; it has 84"]),
    "a train net": (untouched, "--def model/train.prototxt", ["train.prototxt: detection needs inputs data and rois"]),
    "a solver": (untouched, "--def model/solver.prototxt", ["this is a solver, where a net is expected"]),
    "no net": (untouched, "--def nix.prototxt", ["nix.prototxt: there is no such file"]),
    "no such bottom": (net('bottom: "conv1"', 'bottom: "convx"'), "", ["test.prototxt:5: layer 'relu_conv1': bottom"]),
    "unknown field": (net("stride: 8", "strid: 8"), "", ["no field 'strid'", "'stride'?"]),
    "no scale": (untouched, "--set TEST.SCALES [0]", ["TEST.SCALES must be at least 1"]),
    "another use of scales": (untouched, "--set TEST.SCALE_USE best", ["TEST.SCALE_USE must be nearest or all"]),
    "rounds of no regression": (
        untouched, "--set TEST.BBOX_ITERS 2 TEST.BBOX_REG False", ["TEST.BBOX_ITERS: without box regression"],
    ),
    "missing cfg": (untouched, "--cfg nix.yml", ["nix.yml: cannot read the configuration"]),
    "no such GPU": (untouched, "--gpu 99", ["--gpu 99: this machine has"]),
    "output a file": (lambda w: w.write("new"), "", ["new: results cannot be written there"]),
    "json nowhere": (untouched, "--json nowhere/x.json", ["nowhere/x.json: --json: no file can be written there"]),
    "json a folder": (untouched, "--json model", ["model: --json: no file can be written there"]),
    "fewer than none": (untouched, "--num_dets -5", ["--num_dets must not be negative", "0 keeps all"]),
    "no overlap": (untouched, "--iou 2", ["--iou: 2: an overlap is from 0 to below 1"]),
    "no weights named": (untouched, "--net", ["--net: expected one argument"]),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "options", "words"), [pytest.param(*case, id=name) for name, case in BAD.items()])
def test_a_mistake_ends_in_one_message(workspace, prepare, options, words):
    prepare(workspace)
    done = workspace.test(*options.split())
    done.ended_in_one_message(words)


def test_a_full_disk(workspace, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    for options, file in (((), "new/detections.npz"), (("--vis",), "new/images/500001.jpg")):
        done = workspace.test(*options)
        assert done.code == 2
        assert done.err == f"error: {file}: cannot be written: No space left on device\n"
        assert done.new == set()
