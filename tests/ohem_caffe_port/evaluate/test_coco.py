"""COCO's evaluation: published numbers, pycocotools on random data, cases worked by hand, and files of results."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from pycocotools.cocoeval import COCOeval

from ohem_caffe_port.data.coco_annotations import read_coco
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate.coco import (
    STATS,
    evaluate_coco,
    pycocotools_stats,
    read_coco_results,
    write_coco_results,
)

SAMPLE = Path(__file__).resolve().parents[2] / "data" / "coco" / "sample.npz"


@pytest.fixture
def files(tmp_path):
    """``files(annotations, rows)`` writes both and returns ``read_coco`` and ``read_coco_results`` of them."""

    def write(annotations, rows):
        (tmp_path / "instances.json").write_text(json.dumps(annotations))
        (tmp_path / "results.json").write_text(rows if isinstance(rows, str) else json.dumps(rows))
        coco = read_coco(tmp_path / "instances.json")
        return coco, *read_coco_results(tmp_path / "results.json", coco)

    return write


def one_category(objects, rows):
    """Annotations and results of category 5 on image 9: boxes with crowd flags, boxes with scores."""
    annotations = {
        "images": [{"id": 9}],
        "categories": [{"id": 5, "name": "cat"}],
        "annotations": [
            {"id": n + 1, "image_id": 9, "category_id": 5, "bbox": box, "iscrowd": crowd}
            for n, (box, crowd) in enumerate(objects)
        ],
    }
    return annotations, [{"image_id": 9, "category_id": 5, "bbox": box, "score": score} for box, score in rows]


def test_published_figures(files):
    with np.load(SAMPLE) as data:
        sample = {key: data[key].tolist() for key in data.files}
    gt = ("gt_ids", "gt_images", "gt_categories", "gt_boxes", "gt_areas", "gt_crowd")
    dt = ("images_of_dets", "categories_of_dets", "boxes", "scores")
    names = sample["category_ids"], sample["category_names"]
    keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
    annotations = {
        "images": [{"id": ident} for ident in sample["images"]],
        "categories": [{"id": i, "name": n} for i, n in zip(*names, strict=True)],
        "annotations": [dict(zip(keys, row, strict=True)) for row in zip(*(sample[k] for k in gt), strict=True)],
    }
    keys = ("image_id", "category_id", "bbox", "score")
    rows = [dict(zip(keys, row, strict=True)) for row in zip(*(sample[k] for k in dt), strict=True)]
    coco, detections, left_out = files(annotations, rows)
    result = evaluate_coco(coco, detections)
    assert (len(coco.imgs), len(coco.anns), len(rows), left_out) == (100, 830, 734, {})
    assert tuple(result.stats) == STATS
    np.testing.assert_allclose(list(result.stats.values()), sample["stats"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(list(result.ap.values()), sample["ap"], rtol=0, atol=1e-12)
    assert list(result.ap) == sample["category_names"]


def random_case(seed, images, categories, objects, detections, decimals):
    """Boxes of all sizes, crowds, equal scores and, with few decimals, equal overlaps."""
    rng = np.random.default_rng(seed)
    image_ids, category_ids = 3 * rng.permutation(images) + 1, 2 * rng.permutation(categories) + 1

    def box():
        return np.round([*rng.uniform(0, 60, 2), *rng.choice([8, 20, 40, 110], 2) * rng.uniform(0.7, 1.4, 2)], decimals)

    def place():
        return {"image_id": int(rng.choice(image_ids)), "category_id": int(rng.choice(category_ids))}

    annotations = []
    for n in range(objects):
        x, y, w, h = box().tolist()
        area, crowd = w * h * float(rng.uniform(0.4, 1)), int(rng.random() < 0.15)
        annotations.append({"id": n + 1, **place(), "bbox": [x, y, w, h], "area": area, "iscrowd": crowd})
    rows = []
    for _ in range(detections):
        row = {**place(), "bbox": box().tolist(), "score": round(float(rng.random()), 2)}
        if rng.random() < 0.6:
            near = annotations[rng.integers(objects)]
            factor = 1 if rng.random() < 0.3 else rng.uniform(0.85, 1.15, 4)
            row |= {key: near[key] for key in ("image_id", "category_id")}
            row["bbox"] = (np.array(near["bbox"]) * factor).round(decimals).tolist()
        rows.append(row)
    content = {
        "images": [{"id": int(i)} for i in image_ids],
        "categories": [{"id": int(k), "name": f"c{k}"} for k in category_ids],
        "annotations": annotations,
    }
    return content, rows


@pytest.mark.parametrize(
    "case", [(12, 3, 60, 240, 1), (12, 3, 60, 240, -1), (2, 2, 20, 600, 1), (20, 4, 9, 20, 1), (3, 1, 1, 1, 1)]
)
def test_equals_pycocotools(files, case):
    annotations, rows = random_case(sum(case), *case)
    coco, detections, _ = files(annotations, rows)
    result = evaluate_coco(coco, detections)
    with redirect_stdout(io.StringIO()):
        theirs = COCOeval(coco, coco.loadRes([dict(row) for row in rows]), "bbox")
        theirs.evaluate()
        theirs.accumulate()
    np.testing.assert_array_equal(np.nan_to_num(result.precision, nan=-1), theirs.eval["precision"][..., 2])
    np.testing.assert_array_equal(np.nan_to_num(result.recall, nan=-1), theirs.eval["recall"])
    stats = np.nan_to_num(list(result.stats.values()), nan=-1)
    np.testing.assert_allclose(stats, list(pycocotools_stats(coco, rows).values()), atol=1e-12)


def test_by_hand(files):
    # The overlap is 60/100: right at the thresholds 0.5, 0.55 and 0.6 of ten.
    coco, detections, _ = files(*one_category([([10, 10, 10, 10], 0)], [([10, 10, 10, 6], 0.5)]))
    result = evaluate_coco(coco, detections)
    stats = result.stats
    assert [stats[name] for name in ("AP50", "AP75", "AR1")] == pytest.approx([1, 0, 0.3])
    assert stats["AP"] == stats["APsmall"] == result.ap["cat"] == pytest.approx(0.3)
    assert np.isnan(stats["APlarge"])
    assert result.ap50 == pytest.approx({"cat": 1})


def test_crowds_by_hand(files):
    objects = [([0, 0, 100, 100], 1), ([200, 0, 20, 20], 0)]
    # Two inside the crowd, neither right nor wrong; the third finds the object; the last is wrong but comes too late.
    rows = [([0, 0, 30, 30], 0.9), ([10, 10, 30, 30], 0.8), ([200, 0, 20, 20], 0.7), ([300, 0, 20, 20], 0.6)]
    coco, detections, _ = files(*one_category(objects, rows))
    assert evaluate_coco(coco, detections).stats["AP"] == pytest.approx(1)


def test_each_object_is_found_once(files):
    rows = [([0, 0, 20, 20], 0.9), ([0, 0, 20, 20], 0.8)]
    coco, detections, _ = files(*one_category([([0, 0, 20, 20], 0), ([100, 0, 20, 20], 0)], rows))
    # Half of the objects at precision 1: recalls 0, 0.01, ..., 0.5 of 101.
    assert evaluate_coco(coco, detections).stats["AP"] == pytest.approx(51 / 101)


def test_no_detections(files):
    coco, detections, _ = files(*one_category([([0, 0, 20, 20], 0)], []))
    stats = evaluate_coco(coco, detections).stats
    assert (stats["AP"], stats["AR100"]) == (0, 0)


def test_results_are_written_as_the_original_does(tmp_path):
    dets = np.array([[10.5, 20, 19.5, 39, 0.25]], np.float32)
    none = np.zeros((0, 5), np.float32)
    write_coco_results(tmp_path / "r.json", [[none, dets], [none, dets], [dets, none]], ["42", "73"], [0, 18, 90])
    box = [10.5, 20.0, 10.0, 20.0]  # sides with + 1
    assert json.loads((tmp_path / "r.json").read_text()) == [
        {"image_id": 73, "category_id": 18, "bbox": box, "score": 0.25},
        {"image_id": 42, "category_id": 90, "bbox": box, "score": 0.25},
    ]


def test_unknown_categories_are_left_out(files):
    annotations, rows = one_category([([0, 0, 20, 20], 0)], [([0, 0, 20, 20], 0.9)])
    strange = [{**rows[0], "category_id": 77}, {**rows[0], "category_id": 77}]
    coco, detections, left_out = files(annotations, strange + rows)
    assert left_out == {77: 2}
    assert evaluate_coco(coco, detections).stats["AP"] == pytest.approx(1)
    assert pycocotools_stats(coco, strange + rows)["AP"] == pytest.approx(1)


ROW = {"image_id": 9, "category_id": 5, "bbox": [0, 0, 2, 2], "score": 0.5}


@pytest.mark.parametrize(
    "rows, words",
    [
        ("[{", "not JSON"),
        ("", "not JSON"),
        ('{"annotations": []}', "a list of detections is needed"),
        ([ROW, {**ROW, "image_id": 10}], "detection 2 is on image 10, which the annotations do not have"),
        ([{**ROW, "image_id": "9"}], "image '9'"),
        ([{**ROW, "bbox": [0, 0, 2]}], "detection 1 is not of the form"),
        ([{**ROW, "bbox": [0, 0, 2, None]}], "detection 1 is not of the form"),
        ([{**ROW, "score": float("nan")}], "detection 1 is not of the form"),
        ([{**ROW, "category_id": "cat"}], "category_id is 'cat'"),
        ([{"image_id": 9, "category_id": 5, "segmentation": {}}], "detection 1 is not of the form"),
        ([3], "detection 1"),
    ],
    ids=["cut", "empty", "dict", "image", "text", "three", "null", "nan", "category", "masks", "number"],
)
def test_bad_results(files, rows, words):
    annotations, _ = one_category([([0, 0, 20, 20], 0)], [])
    with pytest.raises(PortError, match=words):
        files(annotations, rows)
