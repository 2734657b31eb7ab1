"""Proposals: from the maps of a region proposal network, or of MS-CNN's heads, to a list of RoIs."""

from __future__ import annotations

import math

import numpy as np

from .boxes import (
    at_most,
    bbox_transform_inv,
    counting,
    cut,
    inclusive,
    length,
    map_size,
    one_image,
    only,
    places,
    ranked,
    reshape,
    rows_or,
    split,
    survivors,
    there,
    times,
)
from .detection import normalised_deltas
from .graph import GraphBuilder, Node, exporter
from .slicing import flipped


@exporter("rpn.proposal_layer.ProposalLayer", "pylayer.proposal_layer.ProposalLayer")
def python_proposal_layer(g: GraphBuilder, node: Node) -> list[str]:
    """py-faster-rcnn's proposals, and MNC's, whose second top is the index of each box's anchor."""
    one_image(node)
    layer, cfg = node.layer, node.layer.context.cfg.TEST
    boxes, scores, im_info = _decoded(g, node, layer.stride)
    least = g.op("Mul", g.constant(cfg.RPN_MIN_SIZE), cut(g, im_info, 2, 3, 1))
    scores = only(g, scores, _large(g, boxes, reshape(g, least, -1, 1, 1)))
    top_n = cfg.RPN_PRE_NMS_TOP_N, cfg.RPN_POST_NMS_TOP_N
    rois, scores, anchors = _best(g, node, boxes, scores, *top_n, cfg.RPN_NMS_THRESH)
    second = g.op("Unsqueeze", scores, g.ints(1))
    if node.type.startswith("pylayer"):
        second = g.op("Unsqueeze", g.op("Cast", anchors, to=1), g.ints(0))
    return [rois, second][: len(node.tops)]


@exporter("Proposal")
def proposal(g: GraphBuilder, node: Node) -> list[str]:
    """PVANet's proposals, or those of synopsys-caffe. Of equal scores the later goes first, as in this port."""
    layer = node.layer
    stride = layer.param.proposal_param.feat_stride
    if not layer.pvanet:
        one_image(node)
    boxes, scores, im_info = _decoded(g, node, stride, "YXA" if layer.pvanet else "AYX")
    columns = int(np.prod(node.bottoms[2].sample[1:]))
    scales = g.op("Gather", im_info, g.ints(min(3, columns - 1), 2), axis=1)  # of x and y
    least = g.op("Mul", g.constant(layer.min_size), g.op("Unsqueeze", scales, g.ints(1)))
    large = _large(g, boxes, least)
    if layer.pvanet:
        scores = g.op("Mul", scores, g.op("Cast", large, to=1))
    else:
        height, width = map_size(node)
        last = np.arange(height * width * len(layer.anchors)) == height * width * len(layer.anchors) - 1
        scores = only(g, scores, g.op("Or", large, g.constant([last], bool)))
    top_n = layer.top_n["pre_nms"], layer.top_n["post_nms"]
    rois, scores, _ = _best(g, node, boxes, scores, *top_n, layer.thresh)
    return [rois, scores if layer.pvanet else g.op("Unsqueeze", scores, g.ints(1))][: len(node.tops)]


def _decoded(g, node, stride, order="YXA"):
    """Boxes ``[N, K, 4]`` clipped to the image and scores ``[N, K]`` of all anchors in an ``order`` of rows, columns
    and anchors; im_info ``[N or 1, columns]``."""
    (height, width), anchors, count = map_size(node), np.asarray(node.layer.anchors), len(node.layer.anchors)
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    anchors = np.stack((x, y, x, y), -1) + anchors[:, None, None]  # [A, H, W, 4]
    anchors = anchors.transpose(*("AYX".index(axis) for axis in order), 3).reshape(-1, 4)

    def by_anchor(name, size):
        """``[N, A * size, H, W] -> [N, K, size]``."""
        maps = reshape(g, name, 0, count, size, height, width)
        maps = g.op("Transpose", maps, perm=[0, *({"A": 1, "Y": 3, "X": 4}[axis] for axis in order), 2])
        return reshape(g, maps, 0, -1, size)

    scores = reshape(g, by_anchor(cut(g, node.bottoms[0].name, count, 2 * count, 1), 1), 0, -1)
    boxes = bbox_transform_inv(g, g.constant(anchors), by_anchor(node.bottoms[1].name, 4))
    im_info = node.bottoms[2]
    columns = int(np.prod(im_info.sample[1:]))
    im_info = reshape(g, im_info.name, -1, columns)
    limits = g.op("Sub", g.op("Gather", im_info, g.ints(1, 0, 1, 0), axis=1), g.constant(1))
    boxes = g.op("Min", g.op("Max", boxes, g.constant(0)), g.op("Unsqueeze", limits, g.ints(1)))
    return boxes, scores, im_info


def _large(g, boxes, least):
    """Which boxes ``[N, K, 4]`` (inclusive) have sides of ``least`` ``[N, 1, 2 or 1]`` pixels: ``[N, K]`` bool."""
    low, high = split(g, boxes, 2, 2)
    size = g.op("Add", g.op("Sub", high, low), g.constant(1))
    spare = g.op("ReduceMin", g.op("Sub", size, least), axes=[2], keepdims=0)
    return g.op("GreaterOrEqual", spare, g.constant(0))


def _best(g, node, boxes, scores, pre_nms, post_nms, threshold):
    """RoIs ``[R, 5]``, their scores ``[R]`` and which of the K boxes ``[R]`` they are, image by image, best first."""
    height, width = map_size(node)
    total = height * width * len(node.layer.anchors)
    count = at_most(g, total, pre_nms)
    # of equal scores the later goes first, and TopK takes the first
    scores, boxes, index = ranked(g, flipped(g, scores, 1), flipped(g, boxes, 1), count)
    kept = survivors(g, inclusive(g, boxes), there(g, scores), count, threshold, max(0, post_nms))
    images = length(g, node.bottoms[0], 0)
    where = places(g, reshape(g, kept, -1), times(g, images, at_most(g, count, post_nms)))
    rois = _with_image(g, 5, boxes)
    index = g.op("Sub", g.ints(total - 1), index)
    return [g.op("Gather", rois, where, axis=0)] + [
        g.op("Gather", reshape(g, values, -1), where, axis=0) for values in (scores, index)
    ]


def _with_image(g, width, *columns):
    """``[N, K, c]`` each side by side, behind the number of their image: ``[N * K, width]``."""
    images = g.op("Gather", g.op("Shape", columns[0]), g.ints(0))
    first = cut(g, columns[0], 0, 1)
    image = g.op("Expand", reshape(g, counting(g, images), -1, 1, 1), g.op("Shape", first))
    return reshape(g, g.op("Concat", image, *columns, axis=-1), -1, width)


@exporter("BoxOutput")
def box_output(g: GraphBuilder, node: Node) -> list[str]:
    """MS-CNN's proposals."""
    p, found = node.layer.p, []
    for i, (width, height, stride) in enumerate(zip(p.field_w, p.field_h, p.downsample_rate, strict=True)):
        bottom, limits = node.bottoms[i], _limits(node, i, stride)
        channels = bottom.sample[1]
        background, scores = cut(g, bottom.name, 0, 1, 1), cut(g, bottom.name, 1, channels - 4, 1)
        scores = g.op("Sub", g.op("ReduceMax", scores, axes=[1], keepdims=1), background)  # [N, 1, H, W]
        deltas = cut(g, bottom.name, channels - 4, channels, 1)
        low, size = _fields(g, node, i, deltas, [(width, height)], stride)
        low = g.op("Max", low, g.constant(0))
        size = g.op("Min", size, g.op("Sub", g.constant(limits), low))
        found.append((1, scores, low, g.op("Add", low, size), size))
    return _chosen(g, node, found)


@exporter("BoxGroupOutput")
def box_group_output(g: GraphBuilder, node: Node) -> list[str]:
    """cascade-rcnn's proposals. Boxes that share a single row of pixels overlap, which to that fork they do not."""
    layer, found = node.layer, []
    for i, (fields, group) in enumerate(zip(layer.groups, layer.p.box_group_param, strict=True)):
        prob, deltas, limits = node.bottoms[2 * i], node.bottoms[2 * i + 1], _limits(node, 2 * i, group.stride)
        scores = g.op("Sub", g.constant(1), cut(g, prob.name, 0, 1, 1))
        low, size = _fields(g, node, 2 * i, deltas.name, fields, group.stride)
        high = g.op("Min", g.op("Sub", g.op("Add", low, size), g.constant(1)), g.constant(limits))
        low = g.op("Max", low, g.constant(0))
        size = g.op("Add", g.op("Sub", high, low), g.constant(1))
        scores = reshape(g, scores, -1, len(fields), *map_size(node, 2 * i))
        found.append((len(fields), scores, low, high, size))
    return _chosen(g, node, found, inclusive)


def _limits(node, bottom, stride):
    """Width and height of the image that a map covers."""
    height, width = map_size(node, bottom)
    return width * stride, height * stride


def _fields(g, node, bottom, deltas, fields, stride):
    """Top left corners and sizes ``[N, G, H, W, 2]`` of the boxes that outputs ``[N * G, 4, H, W]`` make of the G
    ``fields`` (width, height); see :func:`ohem_caffe_port.ops.mscnn.decode_fields`."""
    p, (height, width) = node.layer.p, map_size(node, bottom)
    deltas = reshape(g, deltas, -1, len(fields), 4, height, width)
    deltas = normalised_deltas(g, node, g.op("Transpose", deltas, perm=[0, 1, 3, 4, 2]))
    bound = g.constant(np.repeat([1 / p.field_xyr, math.log(p.field_whr)], 2))
    shift, growth = split(g, g.op("Min", g.op("Max", deltas, g.op("Neg", bound)), bound), 2, 2)
    y, x = np.meshgrid((np.arange(height) + 0.5) * stride, (np.arange(width) + 0.5) * stride, indexing="ij")
    fields = g.constant(np.reshape(fields, (-1, 1, 1, 2)))
    size = g.op("Mul", fields, g.op("Exp", growth))
    centre = g.op("Add", g.op("Mul", shift, fields), g.constant(np.stack((x, y), -1)))
    return g.op("Sub", centre, g.op("Mul", size, g.constant(0.5))), size


def _chosen(g, node, found, seen_by_nms=lambda g, boxes: boxes):
    """The tops, of every head's G, scores ``[N, G, H, W]``, corners and sizes ``[N, G, H, W, 2]``."""
    p, parts = node.layer.p, []
    if p.nms_type in ("IOMU", "IOFU"):
        raise node.error(f"nms_type {p.nms_type}: NonMaxSuppression knows the intersection over the union alone")
    total, heads = 0, node.bottoms[:: len(node.bottoms) // len(found)]
    for (fields, score, low, high, size), head in zip(found, heads, strict=True):
        total += fields * math.prod(head.sample[2:])
        least = g.op("GreaterOrEqual", g.op("ReduceMin", size, axes=[4], keepdims=0), g.constant(p.min_size))
        good = g.op("And", least, g.op("GreaterOrEqual", score, g.constant(p.fg_thr)))
        boxes = g.op("Concat", low, high, axis=-1)
        parts.append((reshape(g, only(g, score, good), 0, -1), reshape(g, boxes, 0, -1, 4)))
    scores, boxes = (g.op("Concat", *each, axis=1) if len(each) > 1 else each[0] for each in zip(*parts, strict=True))
    count = at_most(g, total, p.max_nms_num)
    scores, boxes, _ = ranked(g, flipped(g, scores, 1), flipped(g, boxes, 1), count)
    kept = survivors(g, seen_by_nms(g, boxes), there(g, scores), count, p.iou_thr, p.max_post_nms_num)
    table, kept = _with_image(g, 6, boxes, g.op("Unsqueeze", scores, g.ints(-1))), reshape(g, kept, -1)
    images = g.op("Gather", g.op("Shape", scores), g.ints(0))
    most = times(g, images, at_most(g, count, p.max_post_nms_num))
    tops = [rows_or(g, cut(g, table, 0, 5), kept, g.constant([[0, 1, 1, 10, 10]]), most)]
    tops += [rows_or(g, table, kept, g.constant(np.zeros((1, 6))), most)] * (len(node.tops) - 1)
    return [g.op("Unsqueeze", top, g.ints(2, 3)) for top in tops]
