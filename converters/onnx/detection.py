"""Detections: the layers that decode box predictions, suppress what overlaps, and list the rest."""

from __future__ import annotations

import numpy as np

from .boxes import (
    at_most,
    bbox_transform_inv,
    best_overall,
    counting,
    cut,
    inclusive,
    length,
    only,
    ranked,
    reshape,
    rows,
    rows_or,
    split,
    survivors,
    there,
    times,
)
from .graph import GraphBuilder, Node, exporter


@exporter("DetectionOutput")
def detection_output(g: GraphBuilder, node: Node) -> list[str]:
    """SSD's detections, in the layer's order; RefineDet's two more bottoms included. Result files are not written.

    Among equal scores at the cut of ``keep_top_k`` the first class and prior stay, where Caffe's choice is that of an
    unstable sort.
    """
    p = node.layer.param.detection_output_param
    nms = p.nms_param
    if nms.eta != 1:
        raise node.error(
            f"nms_param.eta {nms.eta:g} lowers the threshold with every box, which NonMaxSuppression cannot",
            hint="eta: 1 keeps one threshold",
        )
    if p.keep_top_k == 0 or (nms.HasField("top_k") and nms.top_k == 0):
        raise node.error("a top_k or keep_top_k of 0 keeps nothing")
    classes = [c for c in range(p.num_classes) if c != p.background_label_id]
    scores, boxes = _ssd_scores(g, node), _ssd_boxes(g, node)
    scores = g.op("Gather", g.op("Transpose", scores, perm=[0, 2, 1]), g.ints(*classes), axis=1)  # [B, K, P]
    if p.HasField("confidence_threshold"):
        scores = only(g, scores, g.op("Greater", scores, g.constant(p.confidence_threshold)))
    if p.share_location:
        boxes = g.op("Squeeze", boxes, g.ints(2))  # [B, P, 4]
    else:
        boxes = g.op("Gather", g.op("Transpose", boxes, perm=[0, 2, 1, 3]), g.ints(*classes), axis=1)  # [B, K, P, 4]
    priors = node.bottoms[2]
    if any(isinstance(size, str) for size in priors.shape):
        count = g.op("Div", g.op("Size", priors.name), g.ints(8))
    else:
        count = int(np.prod(priors.shape)) // 8
    count = at_most(g, count, nms.top_k if nms.HasField("top_k") else -1)
    scores, boxes, _ = ranked(g, scores, boxes, count, batch_dims=1 if p.share_location else 2)
    groups = reshape(g, boxes, -1, count, 4), reshape(g, there(g, scores), -1, count)
    kept = survivors(g, *groups, count, nms.nms_threshold)  # [B * K, k]
    per_image = times(g, len(classes), count)
    kept = reshape(g, kept, -1, per_image)
    if p.keep_top_k > 0:
        flat = reshape(g, scores, -1, per_image)
        kept = best_overall(g, flat, kept, at_most(g, per_image, p.keep_top_k))
    image = reshape(g, counting(g, length(g, node.bottoms[1], 0)), -1, 1, 1, 1)
    score = g.op("Unsqueeze", scores, g.ints(-1))
    shape = g.op("Shape", score)
    label = g.constant(np.reshape(classes, (1, -1, 1, 1)))
    table = g.op("Concat", g.op("Expand", image, shape), g.op("Expand", label, shape), score, boxes, axis=-1)
    found = rows_or(g, reshape(g, table, -1, 7), reshape(g, kept, -1), no_detections(g, reshape(g, image, -1, 1)))
    return [g.op("Unsqueeze", found, g.ints(0, 1))]


def no_detections(g: GraphBuilder, image: str) -> str:
    """``[B, 7]``: the rows ``(image, -1, ...)`` that stand for no detections; ``image`` is ``[B, 1]``."""
    return g.op("Pad", image, g.ints(0, 0, 0, 6), g.constant(-1))


def _ssd_scores(g, node):
    """``[B, P, C]``; RefineDet's easy negatives are background."""
    p = node.layer.param.detection_output_param
    scores = reshape(g, node.bottoms[1].name, 0, -1, p.num_classes)
    if node.layer.refines:
        objectness = cut(g, reshape(g, node.bottoms[3].name, 0, -1, 2), 1, 2)
        easy = g.op("Less", objectness, g.constant(p.objectness_score))
        scores = g.op("Where", easy, g.constant(np.arange(p.num_classes) == 0), scores)
    return scores


def _ssd_boxes(g, node):
    """``[B, P, L, 4]``, L being 1 or the number of classes."""
    layer, p = node.layer, node.layer.param.detection_output_param
    priors = reshape(g, node.bottoms[2].name, 2, -1, 1, 4)
    priors, variances = (g.op("Gather", priors, g.constant(i, np.int64), axis=0) for i in (0, 1))  # [P, 1, 4]
    variances = None if p.variance_encoded_in_target else variances
    if layer.refines and len(node.bottoms) > 4:
        priors = _decode_ssd(g, priors, reshape(g, node.bottoms[4].name, 0, -1, 1, 4), layer.code, variances)
    codes = reshape(g, node.bottoms[0].name, 0, -1, 1 if p.share_location else p.num_classes, 4)
    return _decode_ssd(g, priors, codes, layer.code, variances)


def _decode_ssd(g, priors, codes, code, variances):
    """SSD (Liu et al., ECCV 2016), equation 2 for CENTER_SIZE; boxes in units of the image, open at their ends."""
    if variances is not None:
        codes = g.op("Mul", variances, codes)
    if code == "CORNER":
        return g.op("Add", priors, codes)
    low, high = split(g, priors, 2, 2)
    size = g.op("Sub", high, low)
    if code == "CORNER_SIZE":
        return g.op("Add", priors, g.op("Mul", codes, g.op("Concat", size, size, axis=-1)))
    half = g.constant(0.5)
    shift, growth = split(g, codes, 2, 2)
    centre = g.op("Add", g.op("Mul", shift, size), g.op("Mul", g.op("Add", low, high), half))
    half = g.op("Mul", g.op("Mul", g.op("Exp", growth), size), half)
    return g.op("Concat", g.op("Sub", centre, half), g.op("Add", centre, half), axis=-1)


def normalised_deltas(g: GraphBuilder, node: Node, deltas: str) -> str:
    """Regression outputs ``[..., 4]`` as ``bbox_reg_param`` undoes their normalisation."""
    means, stds = node.layer.norm
    return g.op("Add", g.op("Mul", deltas, g.constant(stds)), g.constant(means))


@exporter("DecodeBBox")
def decode_bbox(g: GraphBuilder, node: Node) -> list[str]:
    """cascade-rcnn's next proposals."""
    deltas = cut(g, reshape(g, node.bottoms[0].name, -1, 8), 4, 8)
    image, rois = split(g, reshape(g, node.bottoms[1].name, -1, 5), 1, 4)
    boxes = bbox_transform_inv(g, rois, normalised_deltas(g, node, deltas))
    boxes = g.op("Sub", boxes, g.constant([0, 0, 1, 1]))
    return [g.op("Unsqueeze", g.op("Concat", image, boxes, axis=-1), g.ints(2, 3))]


@exporter("FrcnnOutput")
def frcnn_output(g: GraphBuilder, node: Node) -> list[str]:
    """cascade-rcnn's detections. Result files are not written. Boxes that share a single row of pixels count as
    overlapping, which to that fork they do not."""
    layer, p = node.layer, node.layer.param.frcnn_output_param
    if p.nms_type in ("IOMU", "IOFU"):
        raise node.error(f"nms_type {p.nms_type}: NonMaxSuppression knows the intersection over the union alone")
    prob, deltas, rois, size = node.bottoms
    classes, count = prob.sample[1], length(g, prob, 0)
    scores = g.op("Transpose", cut(g, reshape(g, prob.name, -1, classes), 1, classes), perm=[1, 0])  # [C - 1, R]
    columns = rois.sample[1]
    anchors = cut(g, reshape(g, rois.name, -1, 1, columns), 1, 5)
    deltas = reshape(g, deltas.name, -1, classes if layer.cls_aware else 2, 4)
    boxes = bbox_transform_inv(g, anchors, normalised_deltas(g, node, cut(g, deltas, 1, classes, 1)))
    low, high = split(g, boxes, 2, 2)
    height, width = split(g, reshape(g, size.name, 1, 1, 2), 1, 1)
    high = g.op("Min", g.op("Sub", high, g.constant(1)), g.op("Concat", width, height, axis=-1))
    boxes = g.op("Concat", g.op("Max", low, g.constant(0)), high, axis=-1)
    boxes = g.op("Transpose", boxes, perm=[1, 0, 2])  # [C - 1 or 1, R, 4]
    if not layer.cls_aware:
        boxes = g.op("Expand", boxes, g.vector(classes - 1, 1, 1))
    scores = only(g, scores, g.op("GreaterOrEqual", scores, g.constant(p.conf_thr)))
    scores, boxes, _ = ranked(g, scores, boxes, count)
    kept = survivors(g, inclusive(g, boxes), there(g, scores), count, p.iou_thr)
    flat, kept = reshape(g, scores, 1, -1), reshape(g, kept, 1, -1)
    if p.max_det_num > 0:
        kept = best_overall(g, flat, kept, at_most(g, times(g, classes - 1, count), p.max_det_num))
    score = g.op("Unsqueeze", scores, g.ints(-1))
    label = g.op("Expand", g.constant(np.arange(1, classes).reshape(-1, 1, 1)), g.op("Shape", score))
    table = g.op("Concat", g.op("Mul", label, g.constant(0)), boxes, label, score, axis=-1)
    first = g.constant([[0, *[-1] * 6]])
    table = g.op("Concat", first, reshape(g, table, -1, 7), axis=0)
    flags = g.op("Concat", g.constant([1]), g.op("Cast", reshape(g, kept, -1), to=1), axis=0)
    return [g.op("Unsqueeze", rows(g, table, flags), g.ints(2, 3))]
