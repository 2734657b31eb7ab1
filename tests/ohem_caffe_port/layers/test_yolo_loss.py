"""Slow references, one box and one object at a time in the order of the forks' loops, in double precision."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

RNG = np.random.default_rng(0)
CLASSES = 3


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def iou(a, b):
    w = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    h = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    return 0 if w < 0 or h < 0 else w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def scene(batch=2, objects=5):
    """Objects ``(image, class, x, y, w, h)``, some of them in one cell with one shape."""
    truth = []
    for b in range(batch):
        for _ in range(objects):
            truth.append((b, int(RNG.integers(CLASSES)), *RNG.uniform(0.2, 0.8, 2), *RNG.uniform(0.05, 0.5, 2)))
        truth.append((b, (truth[-1][1] + 1) % CLASSES, *truth[-1][2:]))
    return truth


def dense(truth, batch=2):
    labels = np.zeros((batch, 1, 300, 5), np.float32)
    for b in range(batch):
        mine = [t[1:] for t in truth if t[0] == b]
        labels[b, 0, : len(mine)] = np.reshape(mine, (-1, 5))
    return labels


def sparse(truth):
    rows = [(b, c + 1, 0, x - w / 2, y - h / 2, x + w / 2, y + h / 2, 0) for b, c, x, y, w, h in truth]
    return np.array([[*rows[::-1], [-1] * 8]], np.float32)[None]


def run(run_layer, kind, settings, head, labels):
    x = torch.tensor(head, dtype=torch.float32, requires_grad=True)
    (loss,) = run_layer(kind, settings, x, labels)
    loss.backward()
    return loss.item(), x.grad.numpy()


def slow_region(head, truth, anchors, thresh=0.4, scales=(5, 1, 2, 3), bias_match=True, rescore=True, intel=False):
    """``scales``: object, noobject, class, coord."""
    batch, _, side, _ = head.shape
    n, size = len(anchors), 5 + CLASSES
    maps = head.reshape(batch, n, size, side, side).astype(float)
    slope = np.zeros_like(maps)

    def box(b, a, j, i):
        x, y, w, h = maps[b, a, :4, j, i]
        return (i + sigmoid(x)) / side, (j + sigmoid(y)) / side, *(np.exp((w, h)) * anchors[a] / side)

    for b, a, j, i in np.ndindex(batch, n, side, side):
        p = sigmoid(maps[b, a, 4, j, i])
        if max((iou(box(b, a, j, i), t[2:]) for t in truth if t[0] == b), default=0) <= thresh:
            slope[b, a, 4, j, i] = scales[1] * p * p * (1 - p)
    for b, c, x, y, w, h in truth:
        i, j = int(x * side), int(y * side)
        sizes = [np.array(anchor) / side if bias_match else box(b, a, j, i)[2:] for a, anchor in enumerate(anchors)]
        a = int(np.argmax([iou((0, 0, *s), (0, 0, w, h)) for s in sizes]))
        here = (b, a, slice(None), j, i)
        values, p = maps[here], sigmoid(maps[here][4])
        offsets = sigmoid(values[:2])
        error = np.array(
            [x * side - i - offsets[0], y * side - j - offsets[1]]
            + [math.log(v * side / anchors[a][k]) - values[2 + k] for k, v in enumerate((w, h))]
        )
        error = error.clip(-1, 1) if intel else error
        error[:2] *= offsets * (1 - offsets)
        scale = scales[3] * (1 if rescore or intel else 2 - w * h)
        if intel:
            strength = 2 * (1 - p) ** 3
        else:
            strength = (iou(box(b, a, j, i), (x, y, w, h)) if rescore else 1) - p
        prob = np.exp(values[5:]) / np.exp(values[5:]).sum()
        classes = scales[2] * (prob - np.eye(CLASSES)[c])
        slope[here] = [*(-scale * error), -scales[0] * strength * p * (1 - p), *classes]
    total = (slope**2).sum()
    return (total if intel else total / batch), slope.reshape(head.shape) / batch


REGION = (
    "num_class: 3 num: 2 object_scale: 5 noobject_scale: 1 class_scale: 2 coord_scale: 3 thresh: 0.4 "
    "biases: 1.1 biases: 1.4 biases: 2.5 biases: 1.9"
)
ANCHORS = np.array([(1.1, 1.4), (2.5, 1.9)])


@pytest.mark.parametrize("bias_match", [0, 1])
@pytest.mark.parametrize("rescore", [0, 1])
@pytest.mark.parametrize("intel", [False, True])
def test_region_loss(run_layer, bias_match, rescore, intel):
    head, truth = RNG.standard_normal((2, 16, 4, 4)) * 1.5, scene()
    settings = f"region_loss_param {{ {REGION} bias_match: {bias_match} rescore: {rescore} }}"
    loss, grad = run(run_layer, "RegionLoss", settings, head, sparse(truth) if intel else dense(truth))
    ordered = truth[::-1] if intel else truth
    expected, slope = slow_region(head, ordered, ANCHORS, bias_match=bias_match, rescore=rescore, intel=intel)
    assert loss == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(grad, slope, rtol=1e-3, atol=1e-5)


def slow_yolov3(head, truth, anchors, mask, pixels, smooth, logic=False, focal=False, iou_thresh=0.3, thresh=0.4):
    """object_scale 5, class_scale 2, coord_scale 3."""
    batch, _, height, width = head.shape
    maps = head.reshape(batch, len(mask), 5 + CLASSES, height, width).astype(float)
    out, slope = sigmoid(maps), np.zeros_like(maps)
    out[:, :, 2:4] = maps[:, :, 2:4]
    net = np.array([width, height]) * pixels
    for b, k, j, i in np.ndindex(batch, len(mask), height, width):
        x, y, w, h = out[b, k, :4, j, i]
        box = ((i + x) / width, (j + y) / height, *(np.exp((w, h)) * anchors[mask[k]] / net))
        if max((iou(box, t[2:]) for t in truth if t[0] == b), default=0) <= thresh:
            slope[b, k, 4, j, i] = out[b, k, 4, j, i]
    for b, c, x, y, w, h in truth:
        i, j = int(x * width), int(y * height)
        shapes = [iou((0, 0, *(a / net)), (0, 0, w, h)) for a in anchors]
        best, places = int(np.argmax(shapes)), []
        if best in mask:
            best = mask.index(best)
            places.append(best)
        places += [mask.index(a) for a in range(len(anchors)) if a in mask and a != best and shapes[a] > iou_thresh]
        for k in places:
            here, anchor = (b, k, slice(None), j, i), anchors[mask[k]]
            values, grad = out[here], slope[here].copy()
            wanted = (x * width - i, y * height - j, math.log(w * net[0] / anchor[0]), math.log(h * net[1] / anchor[1]))
            grad[:4] = -3 * (2 - w * h) * (np.array(wanted) - values[:4])
            grad[4] = -(1 - values[4]) * (5 if logic else 1)
            if grad[5 + c]:
                grad[5 + c] = -2 * (1 - smooth / 2 - values[5 + c])
            elif focal:
                p = values[5 + c]
                grad[5:] = -2 * (np.eye(CLASSES)[c] - values[5:]) * 0.5 * -(1 - p) * (2 * p * math.log(p) + p - 1)
            else:
                grad[5:] = -2 * (np.eye(CLASSES)[c] * (1 - smooth) + smooth / 2 - values[5:])
            slope[here] = grad
    loss = (slope**2).sum() / batch
    if logic:
        steep = out * (1 - out)
        steep[:, :, 2:4] = 1
        slope = slope * steep
    return loss, slope.reshape(head.shape) / batch


PIXELS = np.array([(20.0, 30), (60, 40), (50, 70), (110, 90)])


@pytest.mark.parametrize("mask", [(0, 1), (2, 3), (3, 1)])
@pytest.mark.parametrize(("logic", "focal", "smooth"), [(False, False, 0.1), (True, False, 0), (False, True, 0.2)])
@pytest.mark.parametrize("iou_thresh", [0.3, 1])
def test_yolov3(run_layer, mask, logic, focal, smooth, iou_thresh):
    head, truth = RNG.standard_normal((2, 16, 4, 5)), scene()
    settings = (
        f"num_class: 3 num: 2 object_scale: 5 class_scale: 2 coord_scale: 3 thresh: 0.4 anchors_scale: 32 "
        f"mask: {mask[0]} mask: {mask[1]} use_logic_gradient: {int(logic)} use_focal_loss: {int(focal)} "
        f"iou_thresh: {iou_thresh} label_smooth_eps: {smooth} " + " ".join(f"biases: {v}" for v in PIXELS.ravel())
    )
    loss, grad = run(run_layer, "Yolov3", f"yolov3_param {{ {settings} }}", head, dense(truth))
    threshold = iou_thresh if iou_thresh < 1 else 2
    expected, slope = slow_yolov3(head, truth, PIXELS, list(mask), 32, smooth, logic, focal, threshold)
    assert loss == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(grad, slope, rtol=1e-3, atol=1e-5)


def test_without_objects(run_layer):
    head = RNG.standard_normal((2, 16, 4, 4))
    loss, grad = run(run_layer, "RegionLoss", f"region_loss_param {{ {REGION} }}", head, dense([]))
    expected, slope = slow_region(head, [], ANCHORS)
    assert loss == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(grad, slope, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("truth", [[], [(0, 1, 0.5, 0.5, 0.05, 0.1)]])
def test_no_object_belongs_to_a_head(run_layer, truth):
    """None in the image, or none that one of its anchors fits best."""
    head = RNG.standard_normal((2, 16, 4, 5))
    settings = "num_class: 3 num: 2 anchors_scale: 32 thresh: 0.4 iou_thresh: 1 mask: 2 mask: 3 "
    settings += " ".join(f"biases: {v}" for v in PIXELS.ravel())
    loss, grad = run(run_layer, "Yolov3", f"yolov3_param {{ {settings} }}", head, dense(truth))
    expected, slope = slow_yolov3(head, truth, PIXELS, [2, 3], 32, 0, iou_thresh=2)
    assert loss == pytest.approx(expected, rel=1e-4)
    np.testing.assert_allclose(grad, slope, rtol=1e-3, atol=1e-5)


HEAD, LABELS = np.zeros((1, 16, 4, 4)), np.zeros((1, 1, 300, 5))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("RegionLoss", "region_loss_param { num: 2 num_class: 3 }", "0 numbers for anchors"),
        ("RegionLoss", f"region_loss_param {{ {REGION} coords: 5 }}", "a box has 4"),
        ("RegionLoss", f'region_loss_param {{ {REGION} softmax_tree: "9k.tree" }}', "not supported by the RegionLoss"),
        ("Yolov3", "yolov3_param { num: 2 num_class: 3 iou_loss: GIOU }", "only MSE"),
        ("Yolov3", "yolov3_param { num: 2 num_class: 3 mask: 0 }", "1 for 2 boxes of a cell"),
        ("Yolov3", "yolov3_param { num: 1 num_class: 3 mask: 2 biases: 1 biases: 2 }", "2 numbers for anchors"),
    ],
)
def test_bad_settings(run_layer, kind, settings, message):
    with pytest.raises(PortError, match=message):
        run(run_layer, kind, settings, HEAD, LABELS)


def test_bad_bottoms(run_layer):
    settings = f"region_loss_param {{ {REGION} }}"
    with pytest.raises(PortError, match="takes square maps"):
        run(run_layer, "RegionLoss", settings, HEAD[:, :, :3], LABELS)
    with pytest.raises(PortError, match="has 16 channels"):
        run(run_layer, "RegionLoss", settings, HEAD[:, :12], LABELS)
    with pytest.raises(PortError, match="labels hold 1 x 300 x 5"):
        run(run_layer, "RegionLoss", settings, HEAD, LABELS[:, :, :30])
    with pytest.raises(PortError, match="class 3 .from 0. in a net of 3"):
        run(run_layer, "RegionLoss", settings, HEAD, dense([(0, 3, 0.5, 0.5, 0.2, 0.2)], 1))
    with pytest.raises(PortError, match="not in a batch of 1"):
        run(run_layer, "RegionLoss", settings, HEAD, sparse([(1, 0, 0.5, 0.5, 0.2, 0.2)]))
