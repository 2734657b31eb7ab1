"""tools/eval_coco.py, tools/map_classes.py, and testing on a data set in COCO's form."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from converters import read_caffemodel
from ohem_caffe_port.config import Config
from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.data.proposals import save_npz
from ohem_caffe_port.data.roidb import add_bbox_regression_targets, filter_roidb, get_training_roidb
from ohem_caffe_port.data.shapes import SHAPE_CLASSES

ANNOTATIONS = {
    "images": [{"id": 9}],
    "categories": [{"id": 5, "name": "cat"}, {"id": 8, "name": "dog"}],
    "annotations": [{"id": 1, "image_id": 9, "category_id": 5, "bbox": [10, 10, 10, 10]}],
}
DETECTION = {"image_id": 9, "category_id": 5, "bbox": [10, 10, 10, 6], "score": 0.5}


@pytest.fixture
def score(workspace):
    """``score(annotations, detections, *options)`` runs eval_coco.py."""

    def run(annotations, detections, *options):
        for name, content in (("gt.json", annotations), ("dt.json", detections)):
            if content is not None:
                workspace.write(name, content if isinstance(content, str) else json.dumps(content))
        files = ("--annotations", "gt.json", "--detections", "dt.json")
        return workspace.run(workspace.tools.eval_coco, [*files, *options])

    return run


def test_scores(score):
    done = score(ANNOTATIONS, [DETECTION, {**DETECTION, "category_id": 77}], "--json", "out.json")
    assert (done.code, done.err, done.new) == (0, "", {"out.json"})
    assert "note: 1 detections of categories without annotations are left out: 77" in done.out
    assert "1 images, 1 annotations, 1 detections" in done.out
    values = json.loads(Path("out.json").read_text())
    assert values["stats"]["AP"] == pytest.approx(0.3)
    assert values["stats"]["AP50"] == pytest.approx(1)
    assert values["stats"]["APlarge"] is None
    assert values["ap"] == {"cat": pytest.approx(0.3), "dog": None}
    for words in (("cat", "0.3000", "1.0000"), ("dog", "no objects"), ("AP75", "0.0000"), ("ARsmall", "0.3000")):
        assert any(all(word in line for word in words) for line in done.out.splitlines())


@pytest.mark.parametrize(
    "annotations, detections, words",
    [
        (None, [DETECTION], ["gt.json", "not found"]),
        ("{", [DETECTION], ["gt.json", "not JSON"]),
        ({**ANNOTATIONS, "annotations": []}, [DETECTION], ["gt.json", "has no annotations"]),
        (ANNOTATIONS, None, ["dt.json", "not found"]),
        (ANNOTATIONS, [{**DETECTION, "image_id": 3}], ["dt.json", "detection 1 is on image 3"]),
        (ANNOTATIONS, [{**DETECTION, "score": None}], ["dt.json", "is not of the form"]),
    ],
    ids=["missing", "broken", "empty", "none", "image", "score"],
)
def test_one_message(score, annotations, detections, words):
    score(annotations, detections).ended_in_one_message(words)


@pytest.fixture
def coco(workspace):
    """The embedded test images as ``coco_2017_val`` and ``coco_2017_test``, each category with a strange id."""
    shapes = get_imdb("shapes_test", data_dir="data")
    folder = workspace.folder / "data" / "coco"
    for name in ("val2017", "test2017"):
        (folder / name).mkdir(parents=True)
    (folder / "annotations").mkdir()
    content = {"images": [], "annotations": [], "categories": []}
    for k, name in enumerate(SHAPE_CLASSES[1:], start=1):
        content["categories"].append({"id": 7 * k, "name": name})
    for i, entry in enumerate(shapes.roidb):
        for name in ("val2017", "test2017"):
            shutil.copy(shapes.image_path_at(i), folder / name / f"{i:012d}.jpg")
        width, height = shapes.image_size_at(i)
        content["images"].append({"id": i, "width": width, "height": height})
        for box, cls in zip(entry["boxes"].tolist(), entry["gt_classes"].tolist(), strict=True):
            if cls:
                bbox = [box[0], box[1], box[2] - box[0] + 1, box[3] - box[1] + 1]
                ident = len(content["annotations"]) + 1
                content["annotations"].append({"id": ident, "image_id": i, "category_id": 7 * cls, "bbox": bbox})
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    del content["annotations"]
    (folder / "annotations" / "image_info_test2017.json").write_text(json.dumps(content))
    boxes = [entry["boxes"][entry["gt_classes"] == 0] for entry in shapes.roidb]
    for name in ("coco_2017_val", "coco_2017_test"):
        save_npz(
            workspace.folder / "data" / "selective_search_data" / f"{name}.npz", map(str, range(len(boxes))), boxes
        )
    return workspace


def test_a_net_is_tested_on_coco(coco):
    done = coco.test("--imdb", "coco_2017_val", "--det_thresh", "0.0001", "--json", "out.json")
    assert (done.code, done.err.count("error")) == (0, 0)
    results = "new/results/detections_val2017_results.json"
    assert done.new == {"out.json", "new/detections.npz", results}
    values = json.loads(Path("out.json").read_text())
    assert values["imdb"] == "coco_2017_val"
    assert list(values["ap"]) == list(SHAPE_CLASSES[1:])
    rows = json.loads(Path(results).read_text())
    assert {row["category_id"] for row in rows} <= {7 * k for k in range(1, 7)}
    assert rows and all(row["image_id"] in range(4) for row in rows)
    again = coco.run(coco.tools.eval_coco, ["--annotations", "data/coco/annotations/instances_val2017.json",
                                            "--detections", results, "--json", "again.json"])  # fmt: skip
    assert again.code == 0
    assert json.loads(Path("again.json").read_text())["stats"] == values["stats"]


def test_hidden_and_joined_sets(coco):
    coco.monkeypatch.setenv("OHEM_VOCDEVKIT", "of/voc/alone")
    done = coco.test("--imdb", "coco_2017_test", "--json", "out.json")
    assert (done.code, "no public ground truth" in done.out) == (0, True)
    assert done.new == {"new/detections.npz", "new/results/detections_test2017_results.json"}
    coco.test("--imdb", "coco_2017_val+coco_2017_val", "--output", "b").ended_in_one_message(["several data sets"])
    coco.test("--imdb", "coco_2014_val", "--output", "b").ended_in_one_message(["no proposals for 'coco_2014_val'"])
    coco.test("--imdb", "coco_2017_val", "--data", "b").ended_in_one_message(["no COCO found", "b/coco/annotations"])


@pytest.fixture
def map_classes(workspace):
    """``map_classes(*options)`` runs the tool on ``coco.caffemodel``, a net of 81 classes."""
    shapes = {"fc6": [(5, 6), (5,)], "cls_score": [(81, 5), (81,)], "bbox_pred": [(324, 5), (324,)]}
    workspace.write_weights("coco.caffemodel", **shapes)
    return lambda *options: workspace.run(
        workspace.tools.map_classes, ["--net", "coco.caffemodel", "--out", "new.caffemodel", *options]
    )


def test_coco_becomes_voc(map_classes):
    done = map_classes()
    assert (done.code, done.err, done.new) == (0, "", {"new.caffemodel"})
    assert "cls_score: 81 -> 21 outputs" in done.out and "note: box layers predict plain deltas" in done.out
    written = {layer.name: [blob.shape for blob in layer.blobs] for layer in read_caffemodel("new.caffemodel").layers}
    assert written == {"fc6": [(5, 6), (5,)], "cls_score": [(21, 5), (21,)], "bbox_pred": [(84, 5), (84,)]}
    done = map_classes("--set", "TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED", "True")
    assert done.code == 0 and "box layers are normalised, as the configuration says" in done.out


def test_normalised_for_a_data_set(workspace):
    names = SHAPE_CLASSES[:0:-1]  # the other way round, with the background at the end
    workspace.write("from.txt", "\n".join(names))
    workspace.write("to.txt", "\n".join(SHAPE_CLASSES[1:]))
    options = ("--source", "from.txt", "--target", "to.txt", "--imdb", "shapes_train", "--data", "data")
    net = "snapshots/tiny_iter_2.caffemodel"
    done = workspace.run(workspace.tools.map_classes, ["--net", net, "--out", "new.caffemodel", *options])
    assert done.code == 0 and "normalised, for shapes_train" in done.out
    cfg = Config()
    roidb = filter_roidb(get_training_roidb(get_imdb("shapes_train", data_dir="data"), cfg), cfg)
    means, stds = add_bbox_regression_targets(roidb, cfg)
    before, after = ({layer.name: layer.blobs for layer in read_caffemodel(p).layers} for p in (net, "new.caffemodel"))
    assert {"bbox_pred", "bbox_pred_readonly", "cls_score", "cls_score_readonly"} <= set(after)
    for name in ("bbox_pred", "bbox_pred_readonly"):
        for k, cls in enumerate(SHAPE_CLASSES):
            rows, source = slice(4 * k, 4 * k + 4), 4 * ("__background__", *names).index(cls)
            if k:
                expected = (before[name][1][source : source + 4] - means[rows]) / stds[rows]
                np.testing.assert_allclose(after[name][1][rows], expected, rtol=1e-5, atol=1e-6)
            else:
                assert not after[name][0][rows].any()


@pytest.mark.parametrize(
    "options, words",
    [
        (["--source", "voc"], ["coco.caffemodel", "81 outputs, which 21 classes do not divide"]),
        (["--target", "shapes"], ["'shapes' is neither a file nor one of: coco, voc"]),
        (["--target", "twice.txt"], ["twice.txt", "each once"]),
        (["--target", "pig.txt"], ["no rows for these classes: pig"]),
        (["--imdb", "shapes_train", "--data", "data"], ["shapes_train has other classes than --target voc"]),
        (["--imdb", "voc_2007_train", "--data", "data"], ["no VOC 2007 devkit found"]),
        (["--net", "missing.caffemodel"], ["missing.caffemodel"]),
        (["--out", "no/where.caffemodel"], ["--out", "no/where.caffemodel"]),
    ],
    ids=["source", "target", "twice", "pig", "classes", "imdb", "net", "out"],
)
def test_mapping_ends_in_one_message(workspace, map_classes, options, words):
    workspace.write("twice.txt", "cat\ncat\n")
    workspace.write("pig.txt", "cat\npig\n")
    map_classes(*options).ended_in_one_message(words)
