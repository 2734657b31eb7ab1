"""DetectionAccuracy and DetectionGroupAccuracy against loops written from the forks' formulas, in float64."""

import math

import numpy as np
import pytest

from ohem_caffe_port.errors import PortError

MEANS, STDS = (0.125, 0.25, 0, 0.25), (0.125, 0.25, 0.25, 0.5)
NORM = "bbox_reg_param { " + "".join(f"bbox_mean: {m} bbox_std: {s} " for m, s in zip(MEANS, STDS, strict=True)) + "}"


def box_iou(deltas, truth, field, stride, h, w):
    bounds = (1 / 2, 1 / 2, math.log(3), math.log(3))
    x, y, dw, dh = (min(max(d * s + m, -b), b) for d, s, m, b in zip(deltas, STDS, MEANS, bounds, strict=True))
    bw, bh = field[0] * math.exp(dw), field[1] * math.exp(dh)
    x, y = x * field[0] + (w + 0.5) * stride - bw / 2, y * field[1] + (h + 0.5) * stride - bh / 2
    gx, gy, gw, gh = truth[0] - truth[2] / 2, truth[1] - truth[3] / 2, truth[2], truth[3]
    over = [max(min(a + b, c + d) - max(a, c), 0) for a, b, c, d in ((x, bw, gx, gw), (y, bh, gy, gh))]
    return over[0] * over[1] / (bw * bh + gw * gh - over[0] * over[1])


def slow_accuracy(scores, deltas, truth, fields, top_k, prefers_lower, ignore=None):
    right, ious = [], []
    for n, h, w in np.ndindex(len(truth), *truth.shape[2:]):
        label, own = int(truth[n, 0, h, w]), scores[n, :, h, w]
        if label == ignore or (not label and truth[n, 5, h, w] >= 0.5):
            continue
        order = sorted(range(len(own)), key=lambda k: (-own[k], k if prefers_lower else -k))  # noqa: B023
        right.append((label, label in order[:top_k]))
        if label:
            ious.append(box_iou(deltas[n, :, h, w], truth[n, 1:5, h, w], fields[n % len(fields)], 16, h, w))
    return np.mean([hit for _, hit in right]), np.mean([hit for label, hit in right if label]), np.mean(ious)


def arrays(rng, maps):
    scores = rng.randint(0, 3, (maps, 3, 4, 5)).astype(np.float64)  # many ties
    truth = np.concatenate((rng.randint(0, 3, (maps, 1, 4, 5)), rng.rand(maps, 5, 4, 5)), 1)
    truth[:, 1:3], truth[:, 3:5] = truth[:, 1:3] * 70, truth[:, 3:5] * 50 + 5
    return scores, rng.randn(maps, 4, 4, 5), truth


BOUNDS = "field_xyr: 2 field_whr: 3"


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("ignore", [None, 1])
def test_detection_accuracy(run_layer, top_k, ignore):
    scores, deltas, truth = arrays(np.random.RandomState(0), 2)
    field = f"cls_num: 3 field_w: 40 field_h: 30 downsample_rate: 16 top_k: {top_k} {BOUNDS}"
    settings = f"detection_accuracy_param {{ {field} }} {NORM}"
    settings += f" loss_param {{ ignore_label: {ignore} }}" if ignore else ""
    tops = run_layer("DetectionAccuracy", settings, np.concatenate((scores, deltas), 1), truth, tops=2)
    wanted = slow_accuracy(scores, deltas, truth, [(40, 30)], top_k, False, ignore)
    assert tops[0].shape == (1, 1, 1, 2) and tops[1].shape == (1, 1, 1, 1)
    np.testing.assert_allclose([*tops[0].flatten(), tops[1].item()], wanted, rtol=1e-5)


def test_group_accuracy(run_layer):
    scores, deltas, truth = arrays(np.random.RandomState(1), 4)
    fields = "field_w: 40 field_h: 30 field_w: 20 field_h: 60"
    settings = f"detection_group_accuracy_param {{ cls_num: 3 {fields} stride: 16 {BOUNDS} }} {NORM}"
    tops = run_layer("DetectionGroupAccuracy", settings, scores, deltas, truth, tops=2)
    wanted = slow_accuracy(scores, deltas, truth, [(40, 30), (20, 60)], 1, True)
    np.testing.assert_allclose([*tops[0].flatten(), tops[1].item()], wanted, rtol=1e-5)


def test_objectness_makes_every_label_one(run_layer):
    truth = np.zeros((1, 6, 1, 2))
    truth[0, 0] = [2, 5]
    blob = np.zeros((1, 6, 1, 2))
    blob[0, 1, 0] = [1, -1]
    field = "cls_num: 2 field_w: 9 field_h: 9 downsample_rate: 8 objectness: true"
    (top,) = run_layer("DetectionAccuracy", f"detection_accuracy_param {{ {field} }}", blob, truth)
    assert top.flatten().tolist() == [0.5, 0.5]


def test_nothing_to_count(run_layer):
    truth = np.zeros((1, 6, 2, 2))
    field = "cls_num: 2 field_w: 9 field_h: 9 downsample_rate: 8"
    tops = run_layer(
        "DetectionAccuracy", f"detection_accuracy_param {{ {field} }}", np.zeros((1, 6, 2, 2)), truth, tops=2
    )
    assert tops[0].flatten().tolist() == [0, -1] and tops[1].item() == -1  # ties: class 1 is chosen
    truth[0, 5] = 1
    tops = run_layer(
        "DetectionAccuracy", f"detection_accuracy_param {{ {field} }}", np.zeros((1, 6, 2, 2)), truth, tops=2
    )
    assert tops[0].flatten().tolist() == [-1, -1]


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("DetectionAccuracy", "cls_num: 2 field_w: 9 field_h: 9 downsample_rate: 8 top_k: 3", "3 of 2 classes"),
        ("DetectionAccuracy", "cls_num: 2 field_w: 9 field_h: 9", "must be positive"),
        ("DetectionAccuracy", "cls_num: 3 field_w: 9 field_h: 9 downsample_rate: 8", r"\[N, 3 \+ 4, H, W\]"),
        ("DetectionGroupAccuracy", "cls_num: 2 field_w: 9 stride: 8", "give as many of each"),
    ],
)
def test_bad_settings(run_layer, kind, settings, message):
    name = {"DetectionAccuracy": "detection_accuracy_param", "DetectionGroupAccuracy": "detection_group_accuracy_param"}
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, f"{name[kind]} {{ {settings} }}", np.zeros((1, 6, 2, 2)), np.zeros((1, 6, 2, 2)))
    assert caught.value.layer == "it"
