"""Pooling of regions of interest without interpolation: maxima and means over bins of cells.

onnxruntime has MaxRoiPool with Caffe's numbers. All else is made of Gather: maxima come from tables of maxima, means
from summed-area tables, so that what a RoI costs does not depend on its size.
"""

from __future__ import annotations

from itertools import product

import numpy as np

from .boxes import cut, map_size, reshape, split
from .graph import GraphBuilder, Node, exporter


@exporter("ROIPooling")
def roi_pooling(g: GraphBuilder, node: Node) -> list[str]:
    """MaxRoiPool; for OpenCV 5, which lacks it, and for maps with a third axis, :func:`_range_maxima`."""
    layer, p = node.layer, node.layer.param.roi_pooling_param
    axes = len(layer.pooled)
    rois = reshape(g, node.bottoms[1].name, -1, 1 + 2 * axes)
    if p.pad_ratio:
        rois = padded(g, rois, p.pad_ratio)
    if axes == 2 and not g.for_opencv:
        scale = float(p.spatial_scale)
        return [g.op("MaxRoiPool", node.bottoms[0].name, rois, pooled_shape=layer.pooled, spatial_scale=scale)]
    image, first, last = split(g, rois, 1, axes, axes)
    order = (1, 0) if axes == 2 else (0, 2, 1)  # RoIs have x before y
    ends = [rounded(g, g.op("Mul", corner, g.constant(p.spatial_scale))) for corner in (first, last)]
    starts, ends = ([cut(g, end, i, i + 1) for i in order] for end in ends)
    return [_range_maxima(g, node, image, starts, ends, layer.pooled)]


def _range_maxima(g, node, image, starts, ends, pooled):
    """The maximum of every bin, from tables of the maxima over ``2^a x 2^b`` cells from each cell on: any range of
    cells is the union of two blocks along each axis. See :mod:`ohem_caffe_port.ops.roi_pool`, which does the same."""
    features, axes = node.bottoms[0], range(len(pooled))
    channels, sizes = features.sample[1], map_size(node)
    tables = [g.op("Transpose", features.name, perm=[0, *(2 + a for a in axes), 1])]
    for axis, size in enumerate(sizes):
        tables = [level for table in tables for level in _doubled(g, table, 1 + axis, size)]
    rows = reshape(g, g.op("Concat", *tables, axis=0) if len(tables) > 1 else tables[0], -1, channels)
    table, filled, blocks = None, None, []
    for axis, (start, end, bins, size) in enumerate(zip(starts, ends, pooled, sizes, strict=True)):
        low, high = _bins(g, start, end, bins, size)
        number, powers = g.op("Sub", high, low), 2.0 ** np.arange(1, max(2, size.bit_length()))
        longer = g.op("GreaterOrEqual", g.op("Unsqueeze", number, g.ints(2)), g.constant(powers))
        longer = g.op("Cast", longer, to=1)  # [R, bins, levels - 1]
        level = g.op("ReduceSum", longer, g.ints(2), keepdims=0)
        block = g.op("ReduceSum", g.op("Mul", longer, g.constant(powers / 2)), g.ints(2), keepdims=0)
        late = g.op("Max", g.op("Sub", high, g.op("Add", block, g.constant(1))), g.constant(0))
        shape = [-1, *(bins if a == axis else 1 for a in axes)]
        blocks.append([whole(g, cell, shape) for cell in (g.op("Min", low, g.constant(size - 1)), late)])
        level, holds = whole(g, level, shape), reshape(g, g.op("Greater", number, g.constant(0)), *shape)
        table = level if table is None else g.op("Add", g.op("Mul", table, g.ints(size.bit_length())), level)
        filled = holds if filled is None else g.op("And", filled, holds)
    plane = g.op("Add", g.op("Mul", table, g.sizes(features, 0)), whole(g, image, [-1, *(1 for _ in axes)]))
    parts = []
    for corner in product(*blocks):
        index = plane
        for cell, size in zip(corner, sizes, strict=True):
            index = g.op("Add", g.op("Mul", index, g.ints(size)), cell)
        parts.append(g.op("Gather", rows, index, axis=0))
    best = g.op("Where", g.op("Unsqueeze", filled, g.ints(-1)), g.op("Max", *parts), g.constant(0))
    return g.op("Transpose", best, perm=[0, len(pooled) + 1, *(1 + a for a in axes)])


def _doubled(g, table, axis, size):
    """``table`` and its maxima over 2, 4, 8 ... cells along ``axis``; what would reach past the end is never read."""
    levels = [table]
    for step in (1 << k for k in range(size.bit_length() - 1)):
        last = levels[-1]
        ahead = g.op("Concat", cut(g, last, step, size, axis), cut(g, last, size - step, size, axis), axis=axis)
        levels.append(g.op("Max", last, ahead))
    return levels


def _bins(g, start, end, bins, size):
    """First and past-the-end cell ``[R, bins]`` of every bin of rounded ends ``[R, 1]``, in Caffe's order of operations
    in single precision."""
    extent = g.op("Max", g.op("Add", g.op("Sub", end, start), g.constant(1)), g.constant(1))
    step = g.op("Div", extent, g.constant(bins))
    low = g.op("Floor", g.op("Mul", g.constant(np.arange(bins)), step))
    high = g.op("Ceil", g.op("Mul", g.constant(np.arange(1, bins + 1)), step))
    return [clipped(g, g.op("Add", edge, start), 0, size) for edge in (low, high)]


@exporter("PSROIPooling")
def ps_roi_pooling(g: GraphBuilder, node: Node) -> list[str]:
    """R-FCN's means, from a summed-area table in double precision."""
    p, features = node.layer.p, node.bottoms[0]
    channels, (height, width) = features.sample[1], map_size(node)
    group, depth = p.group_size, channels // p.group_size**2
    image, first, last = split(g, reshape(g, node.bottoms[1].name, -1, 5), 1, 2, 2)
    scale = g.constant(p.spatial_scale)
    first = g.op("Mul", rounded(g, first), scale)
    last = g.op("Mul", g.op("Add", rounded(g, last), g.constant(1)), scale)
    table = g.op("Cast", features.name, to=11)  # double
    for axis in (2, 3):
        table = g.op("CumSum", table, g.constant(axis, np.int64))
    table = g.op("Pad", table, g.ints(0, 0, 1, 1, 0, 0, 0, 0))
    table = reshape(g, table, 0, depth, group, group, height + 1, width + 1)
    table = reshape(g, g.op("Transpose", table, perm=[0, 2, 3, 4, 5, 1]), -1, depth)
    plane = plane_of(g, image, group)
    edges, area = [], None
    for column, size, shape in ((1, height, [-1, group, 1]), (0, width, [-1, 1, group])):
        start, end = (cut(g, corner, column, column + 1) for corner in (first, last))
        low, high = bin_edges(g, start, end, group)
        low, high = clipped(g, g.op("Floor", low), 0, size), clipped(g, g.op("Ceil", high), 0, size)
        number = reshape(g, g.op("Max", g.op("Sub", high, low), g.constant(0)), *shape)
        area = number if area is None else g.op("Mul", area, number)
        edges.append([whole(g, edge, shape) for edge in (low, high)])
    (top, bottom), (left, right) = edges

    def corner(y, x):
        rows = g.op("Add", g.op("Mul", plane, g.ints(height + 1)), y)
        return g.op("Gather", table, g.op("Add", g.op("Mul", rows, g.ints(width + 1)), x), axis=0)

    total = g.op("Sub", g.op("Sub", corner(bottom, right), corner(top, right)), corner(bottom, left))
    total = g.op("Add", total, corner(top, left))
    area = g.op("Unsqueeze", area, g.ints(-1))
    cells = g.op("Cast", g.op("Max", area, g.constant(1)), to=11)
    mean = g.op("Cast", g.op("Div", total, cells), to=1)
    mean = g.op("Where", g.op("Greater", area, g.constant(0)), mean, g.constant(0))
    return [g.op("Transpose", mean, perm=[0, 3, 1, 2])]


# ---- what all of them share


def padded(g, rois, pad_ratio):
    """RoIs with this part of their width and height more on every side."""
    image, first, last = split(g, rois, 1, 2, 2)
    size = g.op("Add", g.op("Sub", last, first), g.constant(1))
    pad = g.op("Mul", size, g.constant(pad_ratio))
    return g.op("Concat", image, g.op("Sub", first, pad), g.op("Add", last, pad), axis=-1)


def rounded(g, x):
    """C's ``round``: halves go away from zero."""
    size = g.op("Abs", x)
    low = g.op("Floor", size)
    up = g.op("Cast", g.op("GreaterOrEqual", g.op("Sub", size, low), g.constant(0.5)), to=1)
    return g.op("Mul", g.op("Sign", x), g.op("Add", low, up))


def clipped(g, x, low, high):
    """``x`` in ``[low, high]``."""
    return g.op("Clip", x, g.constant(float(low)), g.constant(float(high)))


def whole(g, x, shape):
    """Whole numbers as int64 of this shape."""
    return reshape(g, g.op("Cast", x, to=7), *shape)


def bin_size(g, start, end, bins):
    """The size of a position-sensitive bin ``[R, 1]``: a malformed RoI is widened to 0.1 cells."""
    return g.op("Div", g.op("Max", g.op("Sub", end, start), g.constant(0.1)), g.constant(bins))


def bin_edges(g, start, end, bins):
    """Where the bins begin and where they end, ``[R, bins]`` each."""
    step = bin_size(g, start, end, bins)
    numbers = np.arange(bins + 1)
    return [g.op("Add", g.op("Mul", g.constant(n), step), start) for n in (numbers[:-1], numbers[1:])]


def plane_of(g, image, group, points=1):
    """Which map each point reads, its image's: ``[R, 1, 1]``; with ``group`` the map of its bin, ``[R, group * points,
    group * points]``."""
    plane = whole(g, image, [-1, 1, 1])
    if group > 1:
        bins = np.repeat(np.arange(group), points)
        bins = g.constant(bins[:, None] * group + bins, np.int64)
        plane = g.op("Add", g.op("Mul", plane, g.ints(group**2)), bins)
    return plane
