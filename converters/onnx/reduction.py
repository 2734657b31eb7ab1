"""Layers that reduce axes of a blob or normalise along one: sums, maxima, softmax, distances."""

from __future__ import annotations

import math

import numpy as np

from .activations import clip, linear
from .graph import GraphBuilder, Node, Value, exporter
from .shape import product, reshape
from .slicing import flipped


@exporter("Softmax")
def softmax(g: GraphBuilder, node: Node) -> list[str]:
    """Softmax."""
    return [g.op("Softmax", node.bottoms[0].name, axis=node.layer.axis)]


@exporter("LogSoftmax")
def log_softmax(g: GraphBuilder, node: Node) -> list[str]:
    """LogSoftmax with its least value; for OpenCV, whose own gives -inf below -87, its formula."""
    x, axis = node.bottoms[0].name, node.layer.axis
    if g.for_opencv:
        x = g.op("Sub", x, _reduce(g, "ReduceMax", x, [axis], keepdims=1))
        result = g.op("Sub", x, _reduce(g, "ReduceLogSumExp", x, [axis], keepdims=1))
    else:
        result = g.op("LogSoftmax", x, axis=axis)
    return [clip(g, result, low=math.log(2.0**-149))]  # of the least float32, the fork's 1e-45f


@exporter("Reduction")
def reduction(g: GraphBuilder, node: Node) -> list[str]:
    """ReduceSum, ReduceL1, ReduceSumSquare or ReduceMean, times ``coeff``."""
    p, x = node.layer.param.reduction_param, node.bottoms[0]
    operator = {p.SUM: "ReduceSum", p.ASUM: "ReduceL1", p.SUMSQ: "ReduceSumSquare", p.MEAN: "ReduceMean"}[p.operation]
    result = _reduce(g, operator, x.name, range(node.layer.axis, len(x.shape)) if node.layer.axis else None)
    return [linear(g, result, p.coeff)]


def _reduce(g: GraphBuilder, operator: str, x: str, axes=None, keepdims: int = 0) -> str:
    """The name of ``x`` reduced along ``axes``, or along all: OpenCV 5 cannot read a scalar made by naming them all."""
    axes = None if axes is None else list(axes)
    if operator == "ReduceSum" and axes is not None:  # the one that takes its axes as an input in opset 17
        return g.op(operator, x, g.ints(*axes), keepdims=keepdims)
    return g.op(operator, x, axes=axes, keepdims=keepdims)


@exporter("BatchReduction")
def batch_reduction(g: GraphBuilder, node: Node) -> list[str]:
    """ReduceSum or ReduceMean of each piece of a pyramid (Split and Concat), of a diagonal (Gather) or of TopK's
    values."""
    p, layer, x = node.layer.param.batch_reduction_param, node.layer, node.bottoms[0]
    r, axis, name, shape = p.reduction_param, node.layer.axis, x.name, x.shape
    if p.pos:
        size = x.shape[axis]
        if isinstance(size, str):
            raise node.error(f"takes the diagonal of an open size, {x.shape}")
        shape = (*shape[:axis], size, *shape[axis + 2 :])
        name = reshape(g, name, x.shape, (*shape[:axis], size * size, *shape[axis + 1 :]))
        name = g.op("Gather", name, g.ints(*range(0, size * size, size + 1)), axis=axis)
    if r.operation == r.TOPK:
        name, _ = g.op("TopK", name, g.ints(r.k), outputs=2, axis=axis)
    operator = "ReduceSum" if r.operation == r.SUM else "ReduceMean"
    if layer.levels == [1]:
        return [_reduce(g, operator, name, [axis] if len(shape) > 1 else None)]
    sizes = [level**2 for level in layer.levels]
    parts = g.op("Split", name, g.ints(*sizes), outputs=len(sizes), axis=axis) if len(sizes) > 1 else [name]
    parts = [_reduce(g, operator, part, [axis], keepdims=1) for part in parts]
    return [g.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]]


@exporter("ArgMax")
def arg_max(g: GraphBuilder, node: Node) -> list[str]:
    """ArgMax of the last of equal values, or TopK along the axis turned around, which takes the last one, too.

    ``min_first`` is ArgMin of the first one, or TopK of the smallest.
    """
    p, layer, x = node.layer.param.argmax_param, node.layer, node.bottoms[0]
    axis, name, shape = layer.axis, x.name, x.shape
    if axis is None:
        axis, shape = 1, (x.shape[0], product(x.shape[1:]))
        name = reshape(g, name, x.shape, shape)
    values = None
    if p.top_k == 1:
        operator, last = ("ArgMin", 0) if p.min_first else ("ArgMax", 1)
        places = g.op(operator, name, axis=axis, keepdims=1, select_last_index=last)
    else:
        name = name if p.min_first else flipped(g, name, axis)
        values, places = g.op("TopK", name, g.ints(p.top_k), outputs=2, axis=axis, largest=int(not p.min_first))
        if not p.min_first:
            places = g.op("Sub", g.op("Sub", g.sizes(Value(name, shape), axis), g.ints(1)), places)
    places = g.op("Cast", places, to=1)  # 1: float
    if p.out_max_val and values is None:
        values = _reduce(g, "ReduceMin" if p.min_first else "ReduceMax", name, [axis], keepdims=1)
    if layer.axis is not None:
        return [values if p.out_max_val else places]
    rows = [reshape(g, row, (shape[0], p.top_k), (shape[0], 1, p.top_k))
            for row in ([places, values] if p.out_max_val else [places])]  # fmt: skip
    top = g.op("Concat", *rows, axis=1) if len(rows) > 1 else rows[0]
    return [reshape(g, top, (shape[0], len(rows), p.top_k), node.tops[0].shape)]


@exporter("InnerDistance")
def inner_distance(g: GraphBuilder, node: Node) -> list[str]:
    """The differences of every row to every centre, and ReduceSumSquare or ReduceL1 of them.

    A bottom of labels changes gradients alone.
    """
    p, axis, x = node.layer.param.inner_distance_param, node.layer.axis, node.bottoms[0]
    size = product(x.shape[axis:])
    rows = reshape(g, x.name, x.shape, (product(x.shape[:axis]), 1, size))
    if len(node.bottoms) > 1:
        other = node.bottoms[1]
        count = other.shape[0]
        centers = reshape(g, other.name, other.shape, (count, product(other.shape[1:])))
    else:
        array, count = node.blobs[0], len(node.blobs[0])
        if p.normalize:
            array = array / np.sqrt(np.square(array).sum(1, keepdims=True) + 1e-6)
        centers = g.weight(node, 0, array)
    operator = "ReduceL1" if p.distance_type == "L1" else "ReduceSumSquare"
    distances = _reduce(g, operator, g.op("Sub", rows, centers), [2])
    return [reshape(g, distances, (product(x.shape[:axis]), count), node.tops[0].shape)]


@exporter("pyloss.EuclideanLossLayer")
def euclidean_loss_in_python(g: GraphBuilder, node: Node) -> list[str]:
    """ReduceSumSquare of the difference, over twice the number of rows."""
    x, target = node.bottoms
    apart = g.op("Sub", x.name, reshape(g, target.name, target.shape, x.shape))
    total = g.op("Reshape", _reduce(g, "ReduceSumSquare", apart), g.ints(1))
    rows = g.op("Cast", g.sizes(x, 0), to=1)  # 1: float
    return [g.op("Div", total, g.op("Mul", rows, g.constant([2])))]


@exporter("pyLayer.DiceLoss")
def dice_loss(g: GraphBuilder, node: Node) -> list[str]:
    """Comparisons, and their sums."""
    prob, label = node.bottoms
    rows, _, cells = prob.shape
    labels = reshape(g, label.name, label.shape, (rows, 1, cells))
    background, foreground = g.op("Split", prob.name, outputs=2, axis=1)
    found = g.op("Cast", g.op("Greater", foreground, background), to=1)  # 1: float
    truth = g.op("Cast", g.op("Greater", labels, g.constant(0.5)), to=1)
    both, union = (_reduce(g, "ReduceSum", g.op(operator, found, truth), [2]) for operator in ("Mul", "Add"))
    share = g.op("Div", g.op("Mul", both, g.constant(2)), g.op("Add", union, g.constant(0.00001)))
    return [_reduce(g, "ReduceSum", g.op("Reshape", share, g.ints(-1)), [0], keepdims=1)]
