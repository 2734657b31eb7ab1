"""Slow references: loops over cells, anchors and classes, one box at a time, in double precision."""

import math

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer

RNG = np.random.default_rng(0)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softmax(values):
    power = np.exp(np.asarray(values) - np.max(values))
    return power / power.sum()


def iou(a, b):
    w = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    h = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    return 0 if w < 0 or h < 0 else w * h / (a[2] * a[3] + b[2] * b[3] - w * h)


def greedy(found, threshold):
    kept = []
    for one in sorted(found, key=lambda d: -d[0]):
        if all(iou(one[2], other[2]) < threshold for other in kept):
            kept.append(one)
    return kept


def each_box(head, anchors, values, scale):
    """(image, prediction [values], box) with sigmoid applied to the centre; ``scale``: the anchors' unit, x and y."""
    batch, _, height, width = head.shape
    for b in range(batch):
        for row in range(height):
            for column in range(width):
                for n, (w, h) in enumerate(anchors):
                    p = head[b, n * values : (n + 1) * values, row, column].tolist()
                    x, y = (column + sigmoid(p[0])) / width, (row + sigmoid(p[1])) / height
                    yield b, p, (x, y, math.exp(p[2]) * w / scale[0], math.exp(p[3]) * h / scale[1])


def layer_of(kind, settings, *bottoms):
    names = "".join(f'bottom: "b{i}" ' for i in range(len(bottoms)))
    layer = create_layer(
        prototxt.parse_net(f'layer {{ name: "it" type: "{kind}" {names} top: "t" {settings} }}').layer[0],
        Context("TEST"),
    )
    layer.setup([b.to("meta") for b in bottoms])
    layer.infer([b.to("meta") for b in bottoms])
    return layer


def run(kind, settings, *bottoms):
    bottoms = [torch.as_tensor(b, dtype=torch.float32) for b in bottoms]
    return layer_of(kind, settings, *bottoms)(bottoms)[0]


def numbers(name, values):
    return " ".join(f"{name}: {value}" for value in values)


def compare_rows(top, kept):
    rows = [[0, c + 1, s, x - w / 2, y - h / 2, x + w / 2, y + h / 2] for s, c, (x, y, w, h) in kept]
    assert top.shape == (1, 1, len(rows), 7)
    np.testing.assert_allclose(top[0, 0], rows, rtol=1e-4, atol=1e-5)


ANCHORS = [(1.3, 1.7), (3.2, 4.0)]


@pytest.mark.parametrize("heads", [1, 2])
def test_yolo_v2(heads):
    maps = [RNG.standard_normal((1, 2 * 8, side, side)) for side in (4, 6)][:heads]
    found = []
    for head in maps:
        for _, p, box in each_box(head, ANCHORS, 8, head.shape[2:]):
            classes = softmax(p[5:]) * sigmoid(p[4])
            if classes.max() >= 0.3:
                found.append((classes.max(), int(classes.argmax()), box))
    settings = (
        f"num_classes: 3 num_box: 2 confidence_threshold: 0.3 nms_threshold: 0.4 {numbers('biases', np.ravel(ANCHORS))}"
    )
    top = run("YoloDetectionOutput", f"yolo_detection_output_param {{ {settings} }}", *maps)
    kept = greedy(found, 0.4)
    assert len(kept) < len(found)
    compare_rows(top, kept)


@pytest.mark.parametrize("gaussian", [False, True])
def test_yolo_v3(gaussian):
    anchors, values = [(10, 13), (16, 30), (33, 23), (30, 61)], 12 if gaussian else 8
    maps = [RNG.standard_normal((1, 2 * values, h, w)) for h, w in ((3, 5), (6, 4))]
    found = []
    for head, own, pixels in zip(maps, (anchors[2:], anchors[:2]), (32, 16), strict=True):
        if gaussian:  # as a head of plain boxes, with the objectness that their uncertainty leaves
            parts = head.reshape(1, 2, values, *head.shape[2:])
            doubt = 1 / (1 + np.exp(-parts[:, :, 1:8:2]))
            certain = (4 - doubt.sum(2) - doubt[:, :, 0]) / 4 / (1 + np.exp(-parts[:, :, 8]))
            plain = np.concatenate((parts[:, :, :8:2], np.log(certain / (1 - certain))[:, :, None], parts[:, :, 9:]), 2)
            head = plain.reshape(1, -1, *head.shape[2:])
        for _, p, box in each_box(head, own, 8, (head.shape[3] * pixels, head.shape[2] * pixels)):
            scores = [sigmoid(p[4]) * sigmoid(v) for v in p[5:]]
            found += [(s, c, box) for c, s in enumerate(scores) if s > 0.2]
    settings = (
        "num_classes: 3 num_box: 2 confidence_threshold: 0.2 nms_threshold: 0.4 anchors_scale: 32 anchors_scale: 16 "
        f"{numbers('biases', np.ravel(anchors))} {numbers('mask', (2, 3, 0, 1))} "
        f"gaussian_box: {str(gaussian).lower()}"
    )
    top = run("Yolov3DetectionOutput", f"yolov3_detection_output_param {{ {settings} }}", *maps)
    kept = greedy(found, 0.4)
    assert 0 < len(kept) < len(found)
    compare_rows(top, kept)


def test_nothing_found():
    settings = f"num_classes: 3 num_box: 2 confidence_threshold: 2 {numbers('biases', np.ravel(ANCHORS))}"
    top = run("YoloDetectionOutput", f"yolo_detection_output_param {{ {settings} }}", np.zeros((2, 16, 3, 3)))
    assert top.tolist() == [[[[0.0] + [-1] * 6, [1.0] + [-1] * 6]]]


@pytest.mark.parametrize("score_type", ["OBJ", "PROB", "MULTIPLY"])
@pytest.mark.parametrize("nms", [0.3, -1])
def test_eval_detection(score_type, nms):
    anchors, side, classes = RNG.uniform(1, 3, (5, 2)), 4, 3
    head = RNG.standard_normal((2, 5 * 8, side, side))
    truth = []
    for b, p, (x, y, w, h) in each_box(head, anchors, 8, (side, side)):
        if RNG.random() < 0.1:  # ground truth that some detections find
            truth.append([b, 1 + int(np.argmax(p[5:])), 0, x - w / 2, y - h / 2, x + w / 2, y + h / 2, 0])
    truth.append([-1.0] * 8)
    settings = (
        f"side: {side} num_class: {classes} num_object: 5 threshold: 0.6 nms: {nms} score_type: {score_type} "
        f"{numbers('biases', anchors.ravel())}"
    )
    top = run("EvalDetection", f"eval_detection_param {{ {settings} }}", head, [[truth]], np.zeros((2, 3, 9, 9)))
    assert top.shape == (2, classes + side**2 * 20)
    for b in range(2):
        mine = [t for t in truth if t[0] == b]
        objects = [(t[1] - 1, ((t[3] + t[5]) / 2, (t[4] + t[6]) / 2, t[5] - t[3], t[6] - t[4])) for t in mine]
        found = []
        for image, p, box in each_box(head, anchors, 8, (side, side)):
            prob = softmax(p[5:])
            score = {"OBJ": sigmoid(p[4]), "PROB": prob.max(), "MULTIPLY": sigmoid(p[4]) * prob.max()}[score_type]
            if image == b:
                found.append((score, int(prob.argmax()), box))
        kept = [d for d in greedy(found, nms) if d[0] >= 0.005] if nms >= 0 else []
        expected, seen = [sum(c == label for label, _ in objects) for c in range(classes)], set()
        for score, label, box in sorted(kept, key=lambda d: (d[1], -d[0])):
            overlaps = [iou(box, other) if own == label else -1 for own, other in objects]
            best = int(np.argmax(overlaps)) if overlaps else -1
            if not overlaps or overlaps[best] == -1:
                verdict = (0, 1)
            elif overlaps[best] >= 0.6:
                verdict = (0, 1) if best in seen else (1, 0)
                seen.add(best)
            else:
                verdict = (0, 0)
            expected += [label, score, *verdict]
        np.testing.assert_allclose(top[b], np.pad(expected, (0, top.shape[1] - len(expected))), rtol=1e-4, atol=1e-5)


HEAD = torch.zeros(1, 16, 3, 3)
BIASES = numbers("biases", (1, 1, 2, 2))


@pytest.mark.parametrize(
    ("kind", "settings", "message", "field"),
    [
        ("Yolo", "num_box: 2", "must be given", "num_classes"),
        ("Yolo", f"num_classes: 3 num_box: 3 {BIASES}", "4 numbers for anchors", "biases"),
        ("Yolo", f"num_classes: 3 num_box: 2 coords: 5 {BIASES}", "a box has 4", "coords"),
        ("Yolov3", "num_box: 2", "must be given", "num_classes"),
        ("Yolov3", "num_classes: 3", "2 for 1 bottoms", "mask_group_num"),
        ("Yolov3", "num_classes: 3 mask_group_num: 1", "0 for 1 bottoms", "anchors_scale"),
        ("Yolov3", "num_classes: 3 mask_group_num: 1 anchors_scale: 8 mask: 0", "1 for 1 times 3 boxes", "mask"),
    ],
)
def test_bad_settings(kind, settings, message, field):
    name = f"{kind.lower()}_detection_output_param"
    with pytest.raises(PortError, match=message) as caught:
        run(f"{kind}DetectionOutput", f"{name} {{ {settings} }}", HEAD)
    assert (caught.value.layer, caught.value.field) == ("it", f"{name}.{field}")


def test_bad_bottoms():
    settings = f"yolo_detection_output_param {{ num_classes: 3 num_box: 2 {BIASES} }}"
    with pytest.raises(PortError, match="has 16 channels"):
        run("YoloDetectionOutput", settings, HEAD[:, :15])
    with pytest.raises(PortError, match="takes square maps"):
        run("YoloDetectionOutput", settings, HEAD[..., :2])
    five = numbers("biases", [1] * 10)
    with pytest.raises(PortError, match="is not 7 x 7"):
        run(
            "EvalDetection",
            f"eval_detection_param {{ num_object: 5 {five} }}",
            torch.zeros(1, 125, 3, 3),
            torch.zeros(1, 1, 1, 8),
        )
    with pytest.raises(PortError, match="looks at 5 boxes"):
        run("EvalDetection", "eval_detection_param { }", HEAD, torch.zeros(1, 1, 1, 8))
    with pytest.raises(PortError, match="label outside 1 to 20"):
        run(
            "EvalDetection",
            f"eval_detection_param {{ side: 3 num_object: 5 {five} }}",
            torch.zeros(1, 125, 3, 3),
            torch.zeros(1, 1, 1, 8),
        )
