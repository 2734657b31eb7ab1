"""VOC's average precision: tiny cases worked by hand, a slow reference, and published detections with known scores."""

import json
from pathlib import Path

import numpy as np
import pytest

from ohem_caffe_port.data.pascal_voc import PascalVoc
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import ResultFiles, average_precision, evaluate_voc, match_detections, read_comp4

EVAL = Path(__file__).resolve().parents[3] / "../shared/eval"
DATA = Path(__file__).resolve().parents[2] / "data" / "evaluate"
needs_eval = pytest.mark.skipif(not EVAL.is_dir(), reason="needs ../shared/eval beside the checkout")


def obj(name, bbox, difficult=False):
    return {"name": name, "bbox": bbox, "difficult": difficult}


# By hand: 1, 2 and 3 of 4 objects found, with two misses between: recall and precision after each detection.
RECALL = np.array([0.25, 0.25, 0.5, 0.5, 0.75])
PRECISION = np.array([1, 1 / 2, 2 / 3, 2 / 4, 3 / 5])


def test_average_precision_by_hand():
    # Recalls 0, .1, .2 are reached at precision 1; .3, .4, .5 at 2/3; .6, .7 at 3/5; .8, .9, 1 never.
    assert average_precision(RECALL, PRECISION, True) == pytest.approx((3 * 1 + 3 * 2 / 3 + 2 * 3 / 5) / 11)
    assert average_precision(RECALL, PRECISION, False) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3 + 0.25 * 3 / 5)


@pytest.mark.parametrize("use_07_metric", [True, False])
def test_average_precision_of_the_extremes(use_07_metric):
    assert average_precision(np.array([]), np.array([]), use_07_metric) == 0
    assert average_precision(np.array([1.0]), np.array([1.0]), use_07_metric) == pytest.approx(1)
    assert average_precision(np.array([0.0, 0.0]), np.array([0.0, 0.0]), use_07_metric) == 0


def test_recall_is_compared_as_the_original_does():
    """Its recall 0.3 is 3 * 0.1 = 0.30000000000000004: found 3 of 10 falls short of it (the same at 6 and 7 of 10)."""
    recall = np.array([0.1, 0.2, 0.3])
    assert average_precision(recall, np.ones(3), True) == pytest.approx(3 / 11)


def test_matching_by_hand():
    gt_boxes = [[1, 1, 10, 10], [21, 1, 30, 10], [1, 1, 10, 10]]
    detections = [
        # score, box, image -> right, wrong
        (0.9, [1, 1, 10, 10], 0, True, False),  # finds object 0
        (0.8, [1, 1, 10, 9], 0, False, True),  # finds it again
        (0.7, [21, 1, 30, 10], 0, False, False),  # finds the difficult one
        (0.6, [21, 1, 30, 10], 0, False, False),  # and again: still neither
        (0.5, [1, 1, 10, 5], 1, False, True),  # overlap exactly 1/2: not above the threshold
        (0.4, [1, 1, 10, 6], 1, True, False),  # overlap 6/10
        (0.3, [1, 1, 10, 10], 2, False, True),  # an image without objects
    ]
    scores, boxes, images, right, wrong = zip(*detections, strict=True)
    shuffled = [4, 2, 6, 0, 5, 1, 3]
    order, is_right, is_wrong = match_detections(
        np.take(scores, shuffled),
        np.take(boxes, shuffled, axis=0),
        np.take(images, shuffled),
        gt_boxes,
        [0, 0, 1],
        [False, True, False],
        0.5,
    )
    assert [shuffled[i] for i in order] == list(range(7))
    assert is_right.tolist() == list(right)
    assert is_wrong.tolist() == list(wrong)


def test_widths_count_both_ends():
    """Boxes of 3 and 4 pixels sharing 2: overlap 2 / 5. Counted without the last pixel it would be 1 / 4."""
    _, right, _ = match_detections([1.0], [[1, 1, 3, 1]], [0], [[2, 1, 5, 1]], [0], [False], 0.39)
    assert right.tolist() == [True]
    _, right, _ = match_detections([1.0], [[1, 1, 3, 1]], [0], [[2, 1, 5, 1]], [0], [False], 0.4)
    assert right.tolist() == [False]


def test_equal_scores_stay_in_order_and_equal_overlaps_take_the_first():
    gt = [[1, 1, 10, 10], [1, 1, 10, 10]]
    order, right, wrong = match_detections([0.5] * 3, [[1, 1, 10, 10]] * 3, [0] * 3, gt, [0, 0], [False, False])
    assert order.tolist() == [0, 1, 2]
    assert right.tolist() == [True, False, False]  # each overlaps the first object most: the second is never found
    assert wrong.tolist() == [False, True, True]


def test_evaluate_by_hand():
    annotations = {
        "a": [obj("cat", (1, 1, 10, 10)), obj("dog", (1, 1, 10, 10), True)],
        "b": [obj("cat", (1, 1, 10, 10))],
        "c": [],
    }
    detections = {
        "cat": (["c", "b"], [0.9, 0.8], [[1, 1, 10, 10]] * 2),
        "dog": (np.array(["a"]), np.array([0.9]), np.array([[1, 1, 10, 10]])),
    }
    classes = ["__background__", "cat", "dog", "cow"]
    result = evaluate_voc(detections, annotations, classes, use_07_metric=False)
    assert list(result.ap) == ["cat", "dog", "cow"]
    assert result.recall["cat"].tolist() == [0, 0.5]
    assert result.precision["cat"].tolist() == [0, 0.5]
    assert result.ap["cat"] == 0.25
    assert np.isnan(result.ap["dog"])  # only a difficult one
    assert np.isnan(result.ap["cow"])
    assert result.mean == 0.25
    assert result.positives == {"cat": 2, "dog": 0, "cow": 0}
    other = result.by(use_07_metric=True)
    assert other.ap["cat"] == pytest.approx(6 * 0.5 / 11)  # recalls 0 to 0.5 at precision 1/2
    assert np.isnan(other.ap["dog"])
    assert result.ap["cat"] == 0.25  # not changed
    assert np.isnan(evaluate_voc({}, {}, ["cat"], use_07_metric=True).mean)


def test_class_without_detections_has_ap_0():
    annotations = {"a": [obj("cat", (1, 1, 10, 10))]}
    for use_07_metric in (True, False):
        assert evaluate_voc({}, annotations, ["cat"], use_07_metric=use_07_metric).ap == {"cat": 0}


def test_refuses_what_does_not_fit():
    annotations = {"a": []}
    with pytest.raises(
        PortError, match="1 of 1 detections of class 'cat' are on images without annotation, the first on 'b'"
    ):
        evaluate_voc({"cat": (["b"], [1], [[1, 1, 2, 2]])}, annotations, ["cat"], use_07_metric=True)
    with pytest.raises(PortError, match="do not fit together"):
        evaluate_voc({"cat": (["a"], [1], [[1, 1, 2]])}, annotations, ["cat"], use_07_metric=True)
    with pytest.raises(PortError, match="do not fit together"):
        evaluate_voc({"cat": (["a", "a"], [1], [[1, 1, 2, 2]])}, annotations, ["cat"], use_07_metric=True)


def slow_match(order, boxes, images, gt_boxes, gt_images, gt_difficult, ovthresh):
    """One detection after the other, one object after the other."""
    found, right, wrong = set(), [], []
    for d in order:
        best, best_overlap = None, -1.0
        for g in range(len(gt_boxes)):
            if gt_images[g] != images[d]:
                continue
            (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = boxes[d], gt_boxes[g]
            w, h = min(ax2, bx2) - max(ax1, bx1) + 1, min(ay2, by2) - max(ay1, by1) + 1
            inter = max(w, 0) * max(h, 0)
            area = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1) - inter
            if inter / area > best_overlap:
                best, best_overlap = g, inter / area
        hit = best_overlap > ovthresh
        right.append(hit and not gt_difficult[best] and best not in found)
        wrong.append(not hit or (not gt_difficult[best] and best in found))
        if hit:
            found.add(best)
    return right, wrong


@pytest.mark.parametrize("seed", range(20))
def test_matching_equals_the_slow_reference(seed):
    rng = np.random.default_rng(seed)

    def random_boxes(n):
        corner = rng.integers(1, 20, (n, 2))
        return np.hstack([corner, corner + rng.integers(0, 15, (n, 2))]).astype(float)

    n, m = int(rng.integers(0, 200)), int(rng.integers(0, 30))
    scores, images, gt_images = rng.integers(0, 20, n) / 20, rng.integers(0, 8, n), rng.integers(0, 8, m)
    args = (
        random_boxes(n),
        images,
        random_boxes(m),
        gt_images,
        rng.random(m) < 0.3,
        float(rng.choice([0.1, 0.3, 0.5])),
    )
    order, right, wrong = match_detections(scores, *args)
    assert order.tolist() == sorted(range(n), key=lambda d: -scores[d])
    slow_right, slow_wrong = slow_match(order, *args)
    assert right.tolist() == slow_right
    assert wrong.tolist() == slow_wrong


@pytest.fixture(scope="module")
def voc2007_test():
    root = EVAL / "voc2007_test"
    annotations = PascalVoc("voc_2007_test", root, "2007", "test").annotations()
    assert len(annotations) == 4952
    return annotations, read_comp4(root / "detections"), json.loads((root / "expected.json").read_text())


@needs_eval
def test_voc2007_eleven_points_to_the_last_bit(voc2007_test):
    annotations, detections, expected = voc2007_test
    result = evaluate_voc(detections, annotations, list(detections), use_07_metric=True)
    assert {**result.ap, "mean": result.mean} == expected["ap11"]


@needs_eval
def test_voc2007_area(voc2007_test):
    annotations, detections, expected = voc2007_test
    result = evaluate_voc(detections, annotations, list(detections), use_07_metric=False)
    assert {**result.ap, "mean": result.mean} == pytest.approx(expected["ap_area"], abs=2e-6, rel=0)


@pytest.mark.parametrize("ovthresh", ["0.1", "0.3", "0.5", "0.75"])
def test_pascal_toy(ovthresh):
    """Its expected values take x + w and y + h as the last pixel, which counts (tests/data/evaluate/SOURCE.md)."""
    toy = json.loads((DATA / "pascal_toy.json").read_text())

    def corners(x, y, w, h):
        return [x, y, x + w, y + h]

    annotations = {image: [obj("object", corners(*box)) for box in boxes] for image, boxes in toy["gts"].items()}
    rows = [(image, score, corners(*box)) for image, found in toy["dets"].items() for score, *box in found]
    detections = {"object": tuple(zip(*rows, strict=True))}
    result = evaluate_voc(detections, annotations, ["object"], ovthresh=float(ovthresh), use_07_metric=True)
    assert result.ap["object"] == pytest.approx(toy["ap11"][ovthresh], abs=1e-10)
    assert result.by(use_07_metric=False).ap["object"] == pytest.approx(toy["ap_every_point"][ovthresh], abs=1e-10)


def test_two_published_classes():
    """YOLOv2's detections of two classes of VOC 2007 test: the stored doubles of its authors' voc_eval.py."""
    folder = DATA / "voc2007_test"
    annotations = {}
    for line in (folder / "objects.txt").read_text().splitlines():
        image, name, difficult, *box = line.split()
        annotations.setdefault(image, []).append(obj(name, list(map(int, box)), difficult == "1"))
    files = ResultFiles(folder, ["bus", "cow"], image_set="test")
    for image in {image for name in files for image in files[name][0]}:
        annotations.setdefault(image, [])
    expected = json.loads((folder / "expected.json").read_text())
    result = evaluate_voc(files, annotations, ["bus", "cow"], use_07_metric=True)
    assert result.ap == expected["ap11"]
    assert result.by(use_07_metric=False).ap == pytest.approx(expected["ap_area"], abs=2e-6, rel=0)
    assert result.positives == expected["num_positives"]
    assert {name: len(curve) for name, curve in result.recall.items()} == expected["num_detections"]
