"""NVIDIA's DetectNet: lists of boxes from its grid."""

from __future__ import annotations

import math

import numpy as np

from .boxes import counting, cut, length, places, reshape, split
from .graph import GraphBuilder, Node, exporter

MAX_BOXES = 50


@exporter("caffe.layers.detectnet.clustering.ClusterDetections")
def cluster_detections(g: GraphBuilder, node: Node) -> list[str]:
    """OpenCV's ``groupRectangles`` as products of a matrix that says which rectangles are similar.

    The first 50 boxes of an image are kept, where the layer takes more for an error. Every list of rectangles ends with
    one of an image behind the last, so that none is empty. For OpenCV 5, which computes products and differences of all
    pairs wrongly when their number changes from run to run, the list has every cell of the grid, covered or not.
    """
    s, (coverage, corners) = node.layer.settings, node.bottoms
    columns, rows = s["image_size_x"] // s["stride"], s["image_size_y"] // s["stride"]
    y, x = np.mgrid[:rows, :columns]
    x, y = x * (s["image_size_x"] / columns), y * (s["image_size_y"] / rows)
    boxes = g.op("Add", _cropped(g, corners.name, rows, columns), g.constant([x, y, x, y]))
    low, high = split(g, reshape(g, g.op("Transpose", boxes, perm=[0, 2, 3, 1]), -1, 4), 2, 2)
    rects = g.op("Round", g.op("Concat", low, g.op("Sub", high, low), axis=1))
    images = length(g, coverage, 0)
    image = g.op("Add", reshape(g, counting(g, images), -1, 1), g.constant(np.zeros((1, rows * columns))))
    image = reshape(g, image, -1, 1)
    behind = g.op(
        "Concat", reshape(g, g.op("Cast", g.vector(images), to=1), 1, 1), g.constant(np.zeros((1, 4))), axis=1
    )
    maps, threshold = _cropped(g, coverage.name, rows, columns), g.constant(s["gridbox_cvg_threshold"])
    tops = []
    for i in range(len(node.tops)):
        covered = g.op("GreaterOrEqual", reshape(g, cut(g, maps, i, i + 1, 1), -1, 1), threshold)
        if g.for_opencv:
            cell = counting(g, g.op("Gather", g.op("Shape", covered), g.ints(0)))
            alone = g.op("Sub", g.constant(-1), g.op("Unsqueeze", cell, g.ints(1)))  # in an image of its own
            table = g.op("Concat", g.op("Where", covered, image, alone), rects, axis=1)
        else:
            found = places(g, reshape(g, covered, -1))
            table = g.op("Gather", g.op("Concat", image, rects, axis=1), found, axis=0)
        tops.append(_lists(g, g.op("Concat", table, behind, axis=0), s, rows * columns, images))
    return tops


def _cropped(g, maps, rows, columns):
    return g.op("Slice", maps, g.ints(0, 0), g.ints(rows, columns), g.ints(2, 3))


def _pairs(g, op_type, values):
    """The name of ``op(values[i], values[j])`` at ``[i, j]``."""
    return g.op(op_type, g.op("Unsqueeze", values, g.ints(1)), g.op("Unsqueeze", values, g.ints(0)))


def _lists(g, table, s, most, images):
    """Proposals ``[K, 5]`` (image, x, y, width, height), up to ``most`` in an image, as a list of boxes and scores
    ``[N, 50, 5]``, filled up with 0, in half precision as the layer's."""
    threshold, eps = s["gridbox_rect_thresh"], s["gridbox_rect_eps"]
    image, rects = split(g, table, 1, 4)
    image = g.op("Squeeze", image, g.ints(1))
    number = counting(g, g.op("Gather", g.op("Shape", table), g.ints(0)))
    itself, together = _pairs(g, "Equal", number), _pairs(g, "Equal", image)
    kept = g.op("GreaterOrEqual", image, g.constant(0))
    counts = g.op("Add", g.op("Mul", number, g.constant(0)), g.constant(1))
    if threshold > 0:
        low, size = split(g, rects, 2, 2)
        sides = g.op("Concat", low, g.op("Add", low, size), axis=1)
        apart = g.op("ReduceMax", g.op("Abs", _pairs(g, "Sub", sides)), axes=[2], keepdims=0)
        smaller = g.op("ReduceSum", _pairs(g, "Min", size), g.ints(2), keepdims=0)
        similar = g.op("LessOrEqual", apart, g.op("Mul", smaller, g.constant(eps * 0.5)))
        reach = g.op("Cast", g.op("Or", itself, g.op("And", similar, together)), to=1)
        for _ in range(math.ceil(math.log2(max(2, most)))):  # each time over paths of twice the length
            reach = g.op("Min", g.op("MatMul", reach, reach), g.constant(1))
        counts = g.op("ReduceSum", reach, g.ints(1), keepdims=0)
        means = g.op("Mul", g.op("MatMul", reach, rects), g.op("Reciprocal", g.op("Unsqueeze", counts, g.ints(1))))
        rects = g.op("Round", means)
        first = g.op("Equal", g.op("Cast", g.op("ArgMax", reach, axis=1, keepdims=0), to=1), number)
        kept = g.op("And", first, g.op("Greater", counts, g.constant(threshold)))
        others = g.op("And", together, g.op("Not", itself))
        inside = g.op("And", g.op("And", _inside(g, rects, counts, eps), others), g.op("Unsqueeze", kept, g.ints(0)))
        inside = g.op("ReduceMax", g.op("Cast", inside, to=1), axes=[1], keepdims=0)
        kept = g.op("And", kept, g.op("Less", inside, g.constant(0.5)))
    low, size = split(g, rects, 2, 2)
    height = g.op("Squeeze", cut(g, size, 1, 2), g.ints(1))
    kept = g.op("And", kept, g.op("GreaterOrEqual", height, g.constant(s["min_height"])))
    earlier = g.op("And", g.op("And", together, _pairs(g, "Greater", number)), g.op("Unsqueeze", kept, g.ints(0)))
    place = g.op("ReduceSum", g.op("Cast", earlier, to=1), g.ints(1), keepdims=0)
    place = g.op("Where", kept, g.op("Min", place, g.constant(MAX_BOXES)), g.constant(MAX_BOXES))
    where = [g.op("Unsqueeze", column, g.ints(1)) for column in (g.op("Max", image, g.constant(0)), place)]
    score = g.op("Unsqueeze", g.op("Log", counts), g.ints(1))
    values = g.op("Concat", low, g.op("Add", low, size), score, axis=1)
    values = g.op("Cast", g.op("Cast", values, to=10), to=1)  # 10: float16
    one_more = images + 1 if isinstance(images, int) else g.op("Add", images, g.ints(1))
    empty = g.op("Expand", g.constant(0), g.vector(one_more, MAX_BOXES + 1, 5))
    lists = g.op("ScatterND", empty, g.op("Cast", g.op("Concat", *where, axis=1), to=7), values)  # 7: int64
    return g.op("Slice", lists, g.ints(0, 0), g.vector(images, MAX_BOXES), g.ints(0, 1))


def _inside(g, rects, counts, eps):
    """Whether rectangle i lies inside j, which more proposals made: ``[K, K]`` bool."""
    low, size = split(g, rects, 2, 2)
    high, slack = g.op("Add", low, size), g.op("Round", g.op("Mul", size, g.constant(eps)))
    inner = g.op("Concat", low, g.op("Neg", high), axis=1)
    outer = g.op("Concat", g.op("Sub", low, slack), g.op("Neg", g.op("Add", high, slack)), axis=1)
    room = g.op("Sub", g.op("Unsqueeze", inner, g.ints(1)), g.op("Unsqueeze", outer, g.ints(0)))
    fits = g.op("GreaterOrEqual", g.op("ReduceMin", room, axes=[2], keepdims=0), g.constant(0))
    mine, other = g.op("Unsqueeze", counts, g.ints(1)), g.op("Unsqueeze", counts, g.ints(0))
    more = g.op("Greater", other, g.op("Max", mine, g.constant(3)))
    return g.op("And", fits, g.op("Or", more, g.op("Less", mine, g.constant(3))))
