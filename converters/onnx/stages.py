"""RoIs on their way to the next stage: cascade-rcnn's ScaleRoute and MNC's StageBridgeLayer."""

from __future__ import annotations

import math

from .activations import refuse_training
from .boxes import bbox_transform_inv, counting, cut, length, places, reshape, split
from .graph import GraphBuilder, Node, exporter


@exporter("ScaleRoute")
def scale_route(g: GraphBuilder, node: Node) -> list[str]:
    """Gather of the rows whose scale is within the limits; of the one with the nearest scale where none is.

    Where no RoI has an area, which the layer refuses, it is the first row.
    """
    layer, rois = node.layer, reshape(g, node.bottoms[0].name, -1, 5)
    extent = g.op("Sub", cut(g, rois, 3, 5), cut(g, rois, 1, 3))
    width, height = split(g, g.op("Add", extent, g.constant(1)), 1, 1)
    real = g.op("GreaterOrEqual", g.op("ReduceMin", extent, axes=[1], keepdims=1), g.constant(0))
    area = g.op("Where", real, g.op("Mul", width, height), g.constant(0))
    scale = g.op("Sqrt", g.op("Squeeze", area, g.ints(1)))
    fits = g.op("GreaterOrEqual", scale, g.constant(layer.low))
    if layer.high < math.inf:
        fits = g.op("And", fits, g.op("Less", scale, g.constant(layer.high)))
    distance = g.op("Abs", g.op("Log", g.op("Div", scale, g.constant(layer.middle))))
    nearest = g.op("Cast", g.op("ArgMin", distance, axis=0, keepdims=1), to=1)
    count = length(g, node.bottoms[0], 0)
    found = g.op("ReduceMax", g.op("Cast", fits, to=1), axes=[0], keepdims=1)
    stand_in = g.op("And", g.op("Equal", counting(g, count), nearest), g.op("Less", found, g.constant(0.5)))
    found = places(g, g.op("Or", fits, stand_in), count)
    return [g.op("Gather", bottom.name, found, axis=0) for bottom in node.bottoms]


@exporter("pylayer.stage_bridge_layer.StageBridgeLayer")
def stage_bridge(g: GraphBuilder, node: Node) -> list[str]:
    """The deltas of the best class by GatherND, applied to the RoIs, which are clipped to the image."""
    refuse_training(node)
    rois, deltas, scores, im_info = node.bottoms
    classes = node.layer.num_classes
    best = g.op("ArgMax", reshape(g, scores.name, -1, classes), axis=1, keepdims=1)
    deltas = g.op("GatherND", reshape(g, deltas.name, -1, classes, 4), best, batch_dims=1)
    boxes = bbox_transform_inv(g, cut(g, reshape(g, rois.name, -1, 5), 1, 5), deltas)
    sizes = cut(g, reshape(g, im_info.name, -1), 0, 2, 0)  # height and width
    limits = g.op("Sub", g.op("Gather", sizes, g.ints(1, 0, 1, 0), axis=0), g.constant(1))
    boxes = g.op("Min", g.op("Max", boxes, g.constant(0)), limits)
    return [g.op("Pad", boxes, g.ints(0, 1, 0, 0))]
