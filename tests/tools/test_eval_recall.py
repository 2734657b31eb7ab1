"""tools/eval_recall.py on the embedded data set, and on proposals made up."""

import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

SHAPES = ("--imdb", "shapes_test", "--data", "data")
PROPOSALS = "data/shapes/selective_search_data/voc_2007_test.npz"
IMAGES = [f"{500001 + k}" for k in range(4)]


@pytest.fixture
def recall(workspace):
    def run(*options):
        return workspace.run(workspace.tools.eval_recall, [*SHAPES, *options])

    workspace.recall = run
    return workspace


def boxes_of(workspace, image) -> np.ndarray:
    """The objects of an image, zero-based."""
    text = (workspace.folder / f"data/shapes/VOCdevkit2007/VOC2007/Annotations/{image}.xml").read_text()
    sides = [re.findall(rf"<{side}>(\d+)", text) for side in ("xmin", "ymin", "xmax", "ymax")]
    return np.array(sides, int).T - 1


def test_the_objects_themselves_are_found(recall):
    """Behind 100 boxes of the corner come the objects: the first 100 find nothing, all together everything."""
    corners = np.array([[0, 0, 3 + k % 10, 4 + k // 10] for k in range(100)])
    objects = {image: boxes_of(recall, image) for image in IMAGES}
    np.savez("p.npz", **{image: np.vstack([corners, found]) for image, found in objects.items()})
    done = recall.recall("--rpn-file", "p.npz", "--json", "r.json", "--areas", "large", "512-inf")
    assert (done.code, done.err, done.new) == (0, "", {"r.json"})
    rows = {(row["area"], row["limit"]): row for row in json.loads(Path("r.json").read_text())["rows"]}
    assert rows["all", 100]["recall"]["0.50"] == 0
    assert set(rows["all", None]["recall"].values()) == {1}
    assert rows["all", None]["objects"] == sum(map(len, objects.values()))
    assert rows["512-inf", None]["average"] is None
    ones = r" *│ *1.000" * 6
    assert re.search(rf"all *│ all *│ *{rows['all', None]['objects']}{ones}", done.out)
    assert re.search(r"512-inf *│ all *│ *0 *│ *- ", done.out)


def test_as_the_imdb_says(recall):
    """The numbers of ``imdb.evaluate_recall``, with and without a limit."""
    from ohem_caffe_port.data.factory import get_imdb

    imdb = get_imdb("shapes_test", data_dir="data")
    done = recall.recall("--limits", "5", "20", "100000", "--json", "r.json")
    assert done.code == 0
    content = json.loads(Path("r.json").read_text())
    assert content["proposals"] == "selective_search"
    rows = {(row["area"], row["limit"]): row for row in content["rows"]}
    assert [limit for area, limit in rows if area == "all"] == [5, 20, None]
    for limit in (5, 20, None):
        result = imdb.evaluate_recall(limit=limit)
        assert list(rows["all", limit]["recall"].values()) == result["recalls"].tolist()
        assert rows["all", limit]["average"] == pytest.approx(result["ar"])


def test_plot(recall):
    pytest.importorskip("matplotlib")
    done = recall.recall("--plot", "r.png", "--limits")
    assert (done.code, done.new) == (0, {"r.png"})
    assert cv2.imread("r.png").shape[1] == 1200


def write(path, content=b""):
    return lambda w: w.write(path, content)


def untouched(w):
    pass


def outside(w):
    np.savez("p.npz", **{image: np.array([[0, 0, 900, 900]]) for image in IMAGES})


BAD = {
    "no proposals": (lambda w: Path(PROPOSALS).unlink(), "", ["no proposals for 'voc_2007_test'"]),
    "no such method": (untouched, "--method edge_boxes", ["no proposals for 'voc_2007_test'", "edge_boxes_data"]),
    "no such file": (untouched, "--rpn-file nix.npz", ["no proposals for 'voc_2007_test'; looked for nix.npz"]),
    "broken file": (write("p.npz", b"PK"), "--rpn-file p.npz", ["p.npz: not a readable .npz file"]),
    "of other images": (lambda w: np.savez("p.npz", x=np.zeros((1, 4))), "--rpn-file p.npz", ["no boxes for 4 of 4"]),
    "outside the image": (outside, "--rpn-file p.npz", ["proposal 0 of '500001' is [0, 0, 900, 900]"]),
    "ground truth": (untouched, "--method gt", ["ground truth alone has no proposals"]),
    "limit 0": (untouched, "--limits 0", ["--limits are at least 1"]),
    "area": (untouched, "--areas tiny", ["invalid choice: 'tiny'"]),
    "unknown imdb": (untouched, "--imdb shapes_tset", ["unknown imdb 'shapes_tset'"]),
    "plot": (untouched, "--plot r.txt", ["--plot ends in one of .png"]),
    "plot nowhere": (untouched, "--plot nowhere/r.png", ["nowhere/r.png: --plot: no file can be written there"]),
    "json a folder": (untouched, "--json data", ["data: --json: no file can be written there"]),
}


@pytest.mark.parametrize(("prepare", "options", "words"), [pytest.param(*case, id=name) for name, case in BAD.items()])
def test_a_mistake_ends_in_one_message(recall, prepare, options, words):
    prepare(recall)
    recall.recall(*options.split()).ended_in_one_message(words)


def test_without_ground_truth(recall):
    voc = Path("later/VOCdevkit/VOC2012")
    voc.parent.mkdir(parents=True)
    Path("data/shapes/VOCdevkit2007/VOC2007").rename(voc)
    done = recall.recall("--imdb", "voc_2012_test", "--data", "later", "--rpn-file", PROPOSALS)
    done.ended_in_one_message(["'voc_2012_test' has no objects that count"])
