import numpy as np
import pytest

from ohem_caffe_port.evaluate import write_comp4
from ohem_caffe_port.results import evaluate_results


def ground_truth(imdb):
    """``all_boxes`` that hold every object, and nothing else, with a score of 1."""
    all_boxes = [[] for _ in imdb.classes]
    for entry in imdb.gt_roidb():
        for cls, rows in enumerate(all_boxes):
            boxes = entry["boxes"][entry["gt_classes"] == cls] if cls else np.zeros((0, 4))
            rows.append(np.hstack([boxes, np.ones((len(boxes), 1))]).astype(np.float32))
    return all_boxes


def evaluate(all_boxes, imdb, folder):
    write_comp4(folder, all_boxes, imdb.image_index, imdb.classes, image_set=imdb.image_set)
    return evaluate_results(folder, imdb)


def test_ground_truth_has_an_ap_of_1(shapes_imdb, tmp_path):
    imdb = shapes_imdb("train")
    result = evaluate(ground_truth(imdb), imdb, tmp_path)
    there = {imdb.classes[c] for entry in imdb.gt_roidb() for c in entry["gt_classes"]}
    assert len(there) >= 5
    aps = result.ap if isinstance(result.ap, dict) else dict(zip(imdb.classes[1:], result.ap, strict=True))
    assert {name: aps[name] for name in there} == {name: pytest.approx(1) for name in there}


def test_boxes_of_the_wrong_class_have_none(shapes_imdb, tmp_path):
    imdb = shapes_imdb("train")
    background, *classes = ground_truth(imdb)
    result = evaluate([background, *classes[1:], classes[0]], imdb, tmp_path)
    aps = result.ap.values() if isinstance(result.ap, dict) else result.ap
    assert np.nanmax(list(aps)) < 0.5


def test_without_published_ground_truth(shapes_imdb, tmp_path, monkeypatch):
    imdb = shapes_imdb("test")
    monkeypatch.setattr(type(imdb), "has_ground_truth", False)
    assert evaluate_results(tmp_path, imdb) is None
