"""Average precision from DetectionEvaluate's rows, against loops over the definition."""

import numpy as np
import pytest

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate.detection_rows import average_precision, average_precisions


def slow(scores, true, positives, version):
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    curve = []  # (recall, precision)
    for n in range(1, len(order) + 1):
        hits = sum(bool(true[i]) for i in order[:n])
        curve.append((hits / positives, hits / n))
    if version.endswith("point"):
        points = int(version[:-5])
        least = [j / (points - 1) for j in range(points)]
        return sum(max([p for r, p in curve if float(np.float32(r)) >= level], default=0) for level in least) / points
    total, before = 0.0, 0.0
    for n, (recall, precision) in enumerate(curve):
        best = max(p for _, p in curve[n:]) if version == "MaxIntegral" else precision
        total, before = total + best * (recall - before), recall
    return total


@pytest.mark.parametrize("version", ["11point", "101point", "MaxIntegral", "Integral"])
def test_versions(version):
    rng = np.random.default_rng(3)
    for n, positives in ((1, 1), (7, 7), (30, 40)):
        scores, true = rng.permutation(n) / n, rng.random(n) < 0.6
        found = average_precision(scores.astype(np.float32), true, positives, version)
        assert found == pytest.approx(slow(scores, true, positives, version), rel=1e-5)
    assert average_precision(np.zeros(0), np.zeros(0, bool), 3, version) == 0
    assert average_precision(np.ones(2), np.zeros(2, bool), 0, version) == 0


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        # true, false, true, true of 4: recall 1/4 1/4 1/2 3/4, precision 1 1/2 2/3 3/4
        ("11point", (3 * 1 + 5 * 3 / 4) / 11),
        ("101point", (26 * 1 + 50 * 3 / 4) / 101),
        ("Integral", (1 + 2 / 3 + 3 / 4) / 4),
        ("MaxIntegral", (1 + 3 / 4 + 3 / 4) / 4),
    ],
)
def test_by_hand(version, expected):
    scores, true = np.array([0.9, 0.8, 0.7, 0.6], np.float32), np.array([True, False, True, True])
    assert average_precision(scores, true, 4, version) == pytest.approx(expected, abs=1e-7)
    assert average_precision(scores[::-1], true[::-1], 4, version) == pytest.approx(expected, abs=1e-7)


def test_equal_scores_stay_in_order():
    assert average_precision(np.ones(3), np.array([True, False, True]), 2, "Integral") == pytest.approx(5 / 6)


def test_recalls_in_single_precision():
    """7 of 10 are 0.69999999, which does not reach 0.7."""
    assert average_precision(np.arange(7, 0, -1), np.ones(7, bool), 10, "11point") == pytest.approx(7 / 11)


def test_rows_of_several_batches():
    rows = np.array([
        [-1, 1, 2, -1, -1], [-1, 2, 0, -1, -1], [-1, 3, 1, -1, -1],
        [0, 1, 0.9, 1, 0], [0, 1, 0.8, 0, 0], [0, 2, 0.4, 0, 1],  # the second found a difficult object
        [-1, 1, 1, -1, -1], [-1, 2, 0, -1, -1], [-1, 3, 0, -1, -1],
        [0, 1, 0.7, 0, 1], [1, 1, 0.6, 1, 0], [1, 9, 0.6, 1, 0],  # nobody announced label 9
    ], np.float32)  # fmt: skip
    found = average_precisions(rows, "Integral")
    assert list(found) == [1, 2, 3]
    assert found[1] == pytest.approx((1 + 2 / 3) / 3)
    assert found[2] == 0
    assert found[3] is None
    assert average_precisions(rows[:0], "Integral") == {}


def test_rows_that_contradict_each_other():
    head = [-1, 1, 1, -1, -1]
    with pytest.raises(PortError, match="both true and false"):
        average_precisions(np.array([head, [0, 1, 0.5, 1, 1]], np.float32), "Integral")
    with pytest.raises(PortError, match="2 true detections of 1 ground truths"):
        average_precisions(np.array([head, [0, 1, 0.5, 1, 0], [0, 1, 0.4, 1, 0]], np.float32), "Integral")
