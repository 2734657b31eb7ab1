"""The layers between the stages of a cascade, against loops written from the forks' formulas, in float64."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

MEANS, STDS = (0.05, -0.1, 0.1, 0), (0.1, 0.1, 0.2, 0.2)
NORM = "".join(f"bbox_mean: {m} bbox_std: {s} " for m, s in zip(MEANS, STDS, strict=True))
RNG = np.random.RandomState(0)
ROIS = np.column_stack((RNG.randint(0, 2, 12), RNG.randint(0, 50, (12, 2)), RNG.randint(60, 120, (12, 2))))


def decoded(roi, deltas, means=MEANS, stds=STDS):
    """cascade-rcnn's ``DecodeBBoxesWithPrior``: inclusive corners."""
    x1, y1, x2, y2 = roi
    w, h = x2 - x1 + 1, y2 - y1 + 1
    dx, dy, dw, dh = (d * s + m for d, s, m in zip(deltas, stds, means, strict=True))
    tw, th = w * math.exp(dw), h * math.exp(dh)
    tx, ty = dx * w + (x1 + x2) / 2 - (tw - 1) / 2, dy * h + (y1 + y2) / 2 - (th - 1) / 2
    return tx, ty, tx + tw - 1, ty + th - 1


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_decode_bbox(run_layer, phase):
    deltas = RNG.randn(12, 8)
    deltas[3, 6], deltas[5, 7] = -40, -40  # so thin that x1 > x2
    truth = np.zeros((12, 6, 1, 1))
    truth[[1, 2], 5] = [[[0.95]], [[0.94]]]
    boxes = [(roi[0], *decoded(roi[1:], d[4:])) for roi, d in zip(ROIS, deltas, strict=True)]
    bottoms = [deltas, ROIS[:, :, None, None], truth]
    if phase == "TEST":
        wanted, bottoms = boxes, bottoms[:2]
    else:
        wanted = [box for i, box in enumerate(boxes) if i not in (1, 3, 5)]
    (top,) = run_layer("DecodeBBox", f"bbox_reg_param {{ {NORM} }}", *bottoms, phase=phase, nominal=True)
    assert top.shape == (len(wanted), 5, 1, 1)
    np.testing.assert_allclose(top.flatten(1), wanted, rtol=1e-5, atol=1e-4)


def test_decode_bbox_without_a_box_left(run_layer):
    with pytest.raises(PortError, match="none of 2 boxes is left"):
        run_layer("DecodeBBox", "", np.zeros((2, 8)), ROIS[:2], np.ones((2, 6)))


def iou(a, b):
    """Open ends."""
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return w * h / (sum(areas) - w * h) if w > 0 and h > 0 else 0.0


@pytest.mark.parametrize("aware", [True, False])
def test_bbox_accuracy(run_layer, aware):
    deltas = RNG.randn(12, 16 if aware else 8)
    labels = np.array([0, 1, 2, 3, 1, 0, 2, 2, 3, 1, 0, 1])
    truth = np.column_stack((labels, ROIS[:, 1:] + RNG.randint(-9, 9, (12, 4)), np.linspace(0.5, 1, 12)))
    after, before = [], []
    for roi, delta, row in zip(ROIS, deltas, truth, strict=True):
        if row[0] == 0 or row[5] > 0.975:
            continue
        k = int(row[0]) if aware else 1
        x1, y1, x2, y2 = decoded(roi[1:], delta[4 * k : 4 * k + 4])
        wanted = row[1], row[2], row[3] + 1, row[4] + 1
        after.append(iou((x1, y1, x2 + 1, y2 + 1), wanted))
        before.append(iou((roi[1], roi[2], roi[3] + 1, roi[4] + 1), wanted))
    settings = f"bbox_reg_param {{ {NORM} cls_aware: {str(aware).lower()} }}"
    tops = run_layer("BboxAccuracy", settings, deltas, ROIS, truth, tops=2)
    assert tops[0].shape == (1, 1, 1, 1)
    np.testing.assert_allclose([t.item() for t in tops], [np.mean(after), np.mean(before)], rtol=1e-5)
    truth[:, 0] = 0
    assert [t.item() for t in run_layer("BboxAccuracy", settings, deltas, ROIS, truth, tops=2)] == [-1, -1]


@pytest.mark.parametrize(
    ("settings", "rows"),
    [
        ("", [0, 1, 2, 3, 4]),
        ("low_scale: 50", [2, 3, 4]),
        ("low_scale: 50 high_scale: 100", [2, 3]),  # from 50 on, below 100
        ("high_scale: 100", [0, 1, 2, 3]),
        ("low_scale: 300", [4]),  # none: the nearest to 300
        ("low_scale: 52 high_scale: 98", [3]),  # none: nearest to sqrt(52 * 98) = 71.4, in octaves
        ("high_scale: 5", [0]),
    ],
)
def test_scale_route(run_layer, settings, rows):
    sides = np.array([10, 20, 50, 99, 100])
    rois = np.column_stack((np.zeros(5), np.zeros((5, 2)), sides - 1, sides - 1))
    other = RNG.randn(5, 2, 3)
    tops = run_layer("ScaleRoute", f"scale_route_param {{ {settings} }}", rois, other, tops=2, nominal=True)
    np.testing.assert_array_equal(tops[0], rois[rows])
    np.testing.assert_array_equal(tops[1], other[rows].astype(np.float32))


def test_scale_route_without_an_area(run_layer):
    with pytest.raises(PortError, match="none of 2 RoIs has an area"):
        run_layer("ScaleRoute", "scale_route_param { low_scale: 9 }", np.tile([0, 5, 5, 3, 3], (2, 1)))


@pytest.mark.parametrize(("each", "rows"), [(2, [1, 2, 3, 4, 5]), (1, [2, 3, 5]), (9, [0, 1, 2, 3, 4, 5])])
def test_hard_mining(run_layer, each, rows):
    """Images of three, two and one row; with two each the last lacks one, and row 1 is the best that others left."""
    rois = np.column_stack((np.array([0, 0, 0, 1, 1, 2]), np.arange(24).reshape(6, 4)))
    scores = np.array([1.0, 2, 7, 4, 4, 0]).reshape(6, 1, 1, 1)
    if each == 1:
        scores[4] = 3
    settings = f"hard_mining_param {{ num_roi_per_image: {each} num_image: 3 }}"
    tops = run_layer("HardMining", settings, scores, rois, np.arange(6.0), tops=2, nominal=each == 2)
    if each == 2:
        rows = [0, *rows]
    np.testing.assert_array_equal(tops[0], rois[rows])
    assert tops[1].tolist() == rows


def test_hard_mining_prefers_the_later_of_equals_and_fills_up(run_layer):
    rois = np.column_stack((np.array([0, 0, 0, 0, 1]), np.zeros((5, 4))))
    settings = "hard_mining_param { num_roi_per_image: 2 num_image: 2 }"
    tops = run_layer("HardMining", settings, np.array([5.0, 5, 5, 1, 0]), rois, np.arange(5.0), tops=2)
    assert tops[1].tolist() == [0, 1, 2, 4]  # 2 and 1 first, then 0 in the place that image 1 left


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "phase", "message"),
    [
        ("DecodeBBox", "", [(2, 4), (2, 5)], "TRAIN", "rows of"),
        ("DecodeBBox", "", [(2, 8), (3, 5)], "TRAIN", "differ in the number of rows"),
        ("DecodeBBox", "", [(2, 8), (2, 5), (2, 6)], "TEST", "in phase TRAIN only"),
        ("BboxAccuracy", "bbox_reg_param { cls_aware: false }", [(2, 12), (2, 5), (2, 6)], "TRAIN", "rows of"),
        ("ScaleRoute", "scale_route_param { low_scale: 9 high_scale: 8 }", [(2, 5)], "TRAIN", "from 9.0 to 8.0"),
        ("ScaleRoute", "", [(2, 5), (2, 1)], "TRAIN", "2 bottoms and 1 tops"),
        ("HardMining", "hard_mining_param { num_image: 0 }", [(2, 1), (2, 5)], "TRAIN", "must be positive"),
        ("HardMining", "", [(2, 1), (2, 5), (2, 5)], "TRAIN", "1 tops, one for each"),
    ],
)
def test_bad_settings(run_layer, kind, settings, shapes, phase, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, settings, *map(np.zeros, shapes), phase=phase)
    assert caught.value.layer == "it"


def test_hard_mining_of_another_image(run_layer):
    with pytest.raises(PortError, match="image 4, in a batch of 4"):
        run_layer("HardMining", "", np.zeros(1), np.array([[4, 0, 0, 1, 1]]))


def test_label_without_outputs(run_layer):
    with pytest.raises(PortError, match="label 5 with 8"):
        run_layer("BboxAccuracy", "", np.zeros((1, 8)), ROIS[:1], np.array([[5, 0, 0, 9, 9, 0.6]]))


def test_no_gradient(run_layer):
    deltas = torch.zeros(12, 8, requires_grad=True)
    assert not run_layer("DecodeBBox", "", deltas, ROIS)[0].requires_grad
