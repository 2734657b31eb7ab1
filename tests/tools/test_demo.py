"""tools/demo.py: what it draws and prints, where its boxes come from, and that every mistake ends in one message."""

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io

from prototxt.zoo import generate as zoo

PHOTOS = Path("data/shapes/VOCdevkit2007/VOC2007/JPEGImages")
PROPOSALS = "data/shapes/selective_search_data/voc_2007_test.npz"
MODEL = ("--def", "model/test.prototxt", "--net", "snapshots/tiny_iter_2.caffemodel", "--cpu", "--conf", "0.15")


@pytest.fixture
def demo(workspace):
    """``demo(*options)`` on a folder ``photos`` with two of the embedded images."""
    Path("photos").mkdir()
    for name in ("500001", "500002"):
        shutil.copy(PHOTOS / f"{name}.jpg", "photos")
    return lambda *options: workspace.run(workspace.tools.demo, [*MODEL, *options])


def boxes_beside(name, boxes, variable="boxes"):
    scipy.io.savemat(f"photos/{name}_boxes.mat", {variable: np.array(boxes, np.uint16)})


def test_a_folder(demo):
    done = demo("photos")
    assert (done.code, done.err) == (0, "")
    pictures = {f"output/demo/tiny_iter_2/{name}.jpg" for name in ("500001", "500002")}
    assert done.new == pictures
    for name, picture in zip(("500001", "500002"), sorted(pictures), strict=True):
        found = int(re.search(rf"photos/{name}\.jpg: (\d+) detections among \d+ proposals in \d", done.out)[1])
        assert found > 0
        before, after = cv2.imread(f"photos/{name}.jpg"), cv2.imread(picture)
        assert before.shape == after.shape
        assert np.abs(before.astype(int) - after).max() > 100, "something is drawn"
    assert re.search(r"│ (circle|square|triangle|star|cross|ring) +│ 0\.\d{3} │ +\d", done.out)


def test_a_folder_in_the_folder_is_no_image(demo):
    Path("photos/album.jpg").mkdir()
    done = demo("photos")
    assert (done.code, done.err) == (0, "")
    assert {Path(name).name for name in done.new} == {"500001.jpg", "500002.jpg"}


def test_boxes_of_the_originals_demo(demo):
    boxes_beside("500001", [[10, 20, 109, 119]])
    assert "500001.jpg: 6 detections among 1 proposals" in demo("photos/500001.jpg", "--conf", "0").out
    Path("boxes").mkdir()
    Path("photos/500001_boxes.mat").rename("boxes/500001_boxes.mat")
    assert "among 1 proposals" in demo("photos/500001.jpg", "--proposals", "boxes").out
    assert "among 1 proposals" not in demo("photos/500001.jpg").out


def test_boxes_of_an_npz_file(demo):
    with np.load(PROPOSALS) as data:
        number = int(data["offsets"][list(data["images"]).index("500002") + 1] - data["offsets"][1])
    assert (
        f"500002.jpg: {0} detections among {number} proposals"
        in demo("photos/500002.jpg", "--proposals", PROPOSALS, "--thresh", "0.999").out
    )


def test_thresholds_names_and_keys(demo):
    names = "--classes", "one,two,three,four,five,six"
    done = demo("photos/500001.jpg", "--conf", "0.1", "--nms", "0.9", *names, "--output", "drawn")
    assert done.new == {"drawn/500001.jpg"}
    assert "circle" not in done.out
    scores = [float(score) for score in re.findall(r"│ (?:one|two|three|four|five|six) +│ (\d\.\d+)", done.out)]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.1
    fewer = demo("photos/500001.jpg", "--conf", "0.1", "--nms", "0.1")
    assert len(scores) > len(re.findall(r"│ \d\.\d+ │", fewer.out)) > 0
    Path("names.txt").write_text("ä\nb\nc\nd\n\ne\nf\n", encoding="utf-8")
    rounds = ("--set", "TEST.BBOX_ITERS", "2", "TEST.BBOX_VOTE", "True", "TEST.SCALES", "[64,96]")
    assert demo("photos/500001.jpg", "--classes", "names.txt", *rounds).code == 0
    assert "500001.jpg: 0 detections among" in demo("photos/500001.jpg", "--conf", "1").out


def test_a_single_shot_net(demo, workspace):
    folder = zoo.ZOO / "shapes" / "ssd"
    workspace.write_weights("w.caffemodel", conv1=[(24, 3, 5, 5), (24,)])
    net = ("--def", folder / "test.prototxt", "--net", "w.caffemodel", "--conf", "0.01")
    done = demo("photos", *net)
    assert (done.code, done.err) == (0, "")
    assert re.search(r"500002\.jpg: \d+ detections in \d", done.out)
    demo("photos", *net, "--proposals", "auto", "--output", "b").ended_in_one_message(["--proposals: of no use"])
    demo("photos", *net, "--nms", "0.5", "--output", "b").ended_in_one_message(["--nms: of no use"])


def test_a_net_that_makes_its_own_proposals(demo, workspace, faster_rcnn):
    workspace.write("rpn/test.prototxt", faster_rcnn.test)
    workspace.write_weights("w.caffemodel", conv1=[(8, 3, 8, 8), (8,)])
    done = demo("photos", "--def", "rpn/test.prototxt", "--net", "w.caffemodel")
    assert (done.code, done.err) == (0, "")
    assert re.search(r"500002\.jpg: \d+ detections in \d", done.out)


def twice(folder):
    Path(folder).mkdir()
    shutil.copy("photos/500001.jpg", folder)


BAD = {
    "no such image": (lambda: None, "nix.jpg", ["nix.jpg: there is no such image"]),
    "an empty folder": (lambda: Path("e").mkdir(), "e", ["e: no images in this folder", "they end in .bmp"]),
    "no image": (lambda: Path("photos/a.jpg").write_text("x"), "photos/a.jpg", ["a.jpg: not an image, or damaged"]),
    "two of one name": (lambda: twice("more"), "photos more", ["its picture would replace that of photos/500001.jpg"]),
    "onto themselves": (lambda: None, "photos --output photos", ["500001.jpg: a picture would replace it"]),
    "another method": (lambda: None, "photos --proposals edge", ["proposal method 'edge' is not one of"]),
    "an empty list": (lambda: boxes_beside("500001", np.zeros((0, 4))), "photos", ["no proposals for this image"]),
    "boxes of another image": (
        lambda: boxes_beside("500001", [[0, 0, 250, 9]]), "photos", ["boxes.mat: boxes reach outside of", "250 x 200"],
    ),
    "no boxes": (lambda: boxes_beside("500001", [[0, 0, 9, 9]], "b"), "photos", ["boxes.mat: no matrix 'boxes'"]),
    "boxes inverted": (lambda: boxes_beside("500001", [[9, 0, 8, 9]]), "photos", ["boxes.mat: image '500001_boxes'"]),
    "boxes not there": (lambda: None, "photos --proposals model", ["model/500001_boxes.mat: cannot be read"]),
    "npz of others": (lambda: np.savez("p.npz", a=[[1, 1, 9, 9]]), "photos --proposals p.npz", ["no boxes for 1 of 1"]),
    "too few names": (lambda: None, "photos --classes a,b", ["--classes: 2 names for 6 classes"]),
    "too many names": (
        lambda: None, "photos --classes " + ",".join(f"name{k}" for k in range(80)), ["--classes: 80 names for 6"],
    ),
    "names of bytes": (lambda: Path("b").write_bytes(b"\xff\xfe"), "photos --classes b", ["not a text file"]),
    "no net": (lambda: None, "photos --def nix.prototxt", ["nix.prototxt: there is no such file"]),
    "no weights": (lambda: None, "photos --net nix.caffemodel", ["nix.caffemodel: there is no such file"]),
    "a key": (lambda: None, "photos --set TEST.SCALE_USE x", ["TEST.SCALE_USE must be nearest or all"]),
    "output a file": (lambda: Path("f").write_text(""), "photos --output f", ["f: results cannot be written there"]),
}  # fmt: skip


@pytest.mark.parametrize(("prepare", "options", "words"), [pytest.param(*case, id=name) for name, case in BAD.items()])
def test_a_mistake_ends_in_one_message(demo, workspace, prepare, options, words):
    prepare()
    demo(*options.split()).ended_in_one_message(words)
