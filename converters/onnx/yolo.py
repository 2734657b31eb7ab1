"""Detections of YOLO heads, as MobileNet-YOLO's layers list them."""

from __future__ import annotations

import math

import numpy as np

from .boxes import counting, length, map_size, only, ranked, reshape, rows_or, split, survivors, there, times
from .detection import no_detections
from .graph import GraphBuilder, Node, exporter


@exporter("YoloDetectionOutput")
def yolo_detection_output(g: GraphBuilder, node: Node) -> list[str]:
    """Detections of YOLO v2 heads. Of equal scores the first goes first, where the fork has an unstable sort."""
    layer, p = node.layer, node.layer.param.yolo_detection_output_param
    found = []
    for i in range(len(node.bottoms)):
        _, width = map_size(node, i)
        head = _cells(g, node, i, p.num_box, 5 + p.num_classes)
        centre, size, objectness, classes = split(g, head, 2, 2, 1, p.num_classes)
        boxes = _boxes(g, node, i, centre, size, layer.anchors, (width, width))
        classes = g.op("Softmax", classes, axis=-1)
        label = g.op("Cast", g.op("ArgMax", classes, axis=4, keepdims=1), to=1)
        score = g.op("Mul", g.op("Sigmoid", objectness), g.op("ReduceMax", classes, axes=[4], keepdims=1))
        valid = g.op("GreaterOrEqual", score, g.constant(p.confidence_threshold))
        found.append((p.num_box * math.prod(map_size(node, i)), *_flat(g, boxes, label, only(g, score, valid))))
    return _rows(g, node, found, p.nms_threshold)


@exporter("Yolov3DetectionOutput")
def yolov3_detection_output(g: GraphBuilder, node: Node) -> list[str]:
    """Detections of YOLO v3 heads, Gaussian ones too; ties as in v2."""
    layer, p = node.layer, node.layer.param.yolov3_detection_output_param
    found = []
    for i, scale in zip(range(len(node.bottoms)), p.anchors_scale, strict=False):
        height, width = map_size(node, i)
        head = _cells(g, node, i, p.num_box, (9 if p.gaussian_box else 5) + p.num_classes)
        coords, objectness, classes = split(g, head, 8 if p.gaussian_box else 4, 1, p.num_classes)
        objectness, classes = g.op("Sigmoid", objectness), g.op("Sigmoid", classes)
        if p.gaussian_box:
            doubt = g.op("Sigmoid", g.op("Gather", coords, g.ints(1, 1, 3, 5, 7), axis=4))  # that of x counts twice
            sure = g.op("Sub", g.constant(4), g.op("ReduceSum", doubt, g.ints(4), keepdims=1))
            objectness = g.op("Mul", g.op("Mul", objectness, sure), g.constant(0.25))
            coords = g.op("Gather", coords, g.ints(0, 2, 4, 6), axis=4)
        boxes = _boxes(g, node, i, *split(g, coords, 2, 2), layer.anchors[i], (width * scale, height * scale))
        score = g.op("Mul", classes, objectness)  # [B, H, W, n, C]
        score = g.op(
            "Unsqueeze", only(g, score, g.op("Greater", score, g.constant(p.confidence_threshold))), g.ints(-1)
        )
        shape = g.op("Shape", score)
        label = g.op("Expand", g.constant(np.arange(p.num_classes)[:, None]), shape)
        wide = g.op("Mul", shape, g.ints(1, 1, 1, 1, 1, 4))
        boxes = g.op("Expand", g.op("Unsqueeze", boxes, g.ints(4)), wide)
        found.append((p.num_box * p.num_classes * height * width, *_flat(g, boxes, label, score)))
    return _rows(g, node, found, p.nms_threshold)


def _cells(g, node, bottom, anchors, values):
    """A head as ``[B, H, W, n, values]``: the fork's order is cells, then anchors."""
    maps = reshape(g, node.bottoms[bottom].name, 0, anchors, values, *map_size(node, bottom))
    return g.op("Transpose", maps, perm=[0, 3, 4, 1, 2])


def _boxes(g, node, bottom, centre, size, anchors, scale):
    """``[B, H, W, n, 4]`` corners: see :func:`ohem_caffe_port.ops.yolo.cell_boxes`."""
    height, width = map_size(node, bottom)
    y, x = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    cells = g.constant(np.stack((x, y), -1)[:, :, None])
    centre = g.op("Div", g.op("Add", g.op("Sigmoid", centre), cells), g.constant([width, height]))
    size = g.op("Div", g.op("Mul", g.op("Exp", size), g.constant(anchors)), g.constant(scale))
    half = g.op("Mul", size, g.constant(0.5))
    return g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=-1)


def _flat(g, boxes, label, score):
    """A head's candidates as tables ``[B, K, 4]``, ``[B, K, 1]`` and ``[B, K, 1]``."""
    return reshape(g, boxes, 0, -1, 4), reshape(g, label, 0, -1, 1), reshape(g, score, 0, -1, 1)


def _rows(g, node, found, threshold):
    """The top, of the number of candidates of an image and the tables of each head. All images are one group."""
    images = length(g, node.bottoms[0], 0)
    count = times(g, images, sum(each for each, *_ in found))
    parts = [[reshape(g, part, -1, size) for part, size in zip(tables, (4, 1, 1), strict=True)] for _, *tables in found]
    boxes, label, score = (
        g.op("Concat", *tables, axis=0) if len(tables) > 1 else tables[0] for tables in zip(*parts, strict=True)
    )
    table = g.op("Unsqueeze", g.op("Concat", label, boxes, axis=1), g.ints(0))
    score, table, _ = ranked(g, reshape(g, score, 1, -1), table, count)
    label, boxes = split(g, table, 1, 4)
    # here boxes that overlap by just as much go, too
    threshold = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
    kept = survivors(g, boxes, there(g, score), count, threshold)
    image, label = g.op("Mul", label, g.constant(0)), g.op("Add", label, g.constant(1))
    rows = g.op("Concat", image, label, g.op("Unsqueeze", score, g.ints(-1)), boxes, axis=-1)
    stand_ins = no_detections(g, reshape(g, counting(g, images), -1, 1))
    top = rows_or(g, reshape(g, rows, -1, 7), reshape(g, kept, -1), stand_ins)
    return [g.op("Unsqueeze", top, g.ints(0, 1))]
