"""Pooling of regions of interest with interpolation: features at points between the cells.

RoiAlign for the layers that are Mask R-CNN's; for others a sum over the cells around each point, of which Gather takes
one for all points of all RoIs.
"""

from __future__ import annotations

from functools import reduce
from itertools import product

import numpy as np

from .boxes import cut, map_size, reshape, split
from .graph import GraphBuilder, Node, exporter
from .roi import bin_edges, bin_size, clipped, padded, plane_of, rounded, whole


@exporter("ROIAlign")
def roi_align(g: GraphBuilder, node: Node) -> list[str]:
    """RoiAlign for the layer that Caffe ports took from Caffe2; samples of their own for those of other forks."""
    layer, p = node.layer, node.layer.p
    kind, settings = getattr(layer.pool, "func", layer.pool).__name__, getattr(layer.pool, "keywords", {})
    if kind == "roi_align_window":
        return [_windows(g, node)]
    if kind == "roi_align":
        return [_roi_align(g, node, p.pooled_h, p.pooled_w, settings["sampling_ratio"])]
    rois = reshape(g, node.bottoms[1].name, -1, 5)
    if settings["pad_ratio"]:
        rois = padded(g, rois, settings["pad_ratio"])
    image, first, last = split(g, rois, 1, 2, 2)
    first, last = (g.op("Mul", corner, g.constant(p.spatial_scale)) for corner in (first, last))
    offsets = [0.25, 0.75] if settings.get("multiple") else [0.5]
    taps = []
    height, width = map_size(node)
    for column, bins, size in ((1, p.pooled_h, height), (0, p.pooled_w, width)):
        start, end = (cut(g, corner, column, column + 1) for corner in (first, last))
        if kind == "roi_align_grid":
            start, end = (g.op("Sub", corner, g.constant(0.5)) for corner in (start, end))
            extent = g.op("Sub", end, start)
            step = g.op("Div", extent, g.constant(bins))
            position = g.op("Add", start, g.op("Mul", g.constant(np.arange(bins + 1)), step))
            formed = g.op("Cast", g.op("Greater", extent, g.constant(0)), to=1)
            taps.append([(cell, g.op("Mul", weight, formed)) for cell, weight in _lerp(g, position, size, 0.5)])
        else:
            start = g.op("Max", start, g.constant(0))
            end = g.op("Min", end, g.constant(np.floor(size / p.spatial_scale + 0.5) - 1))
            extent = g.op("Max", g.op("Add", g.op("Sub", end, start), g.constant(1)), g.constant(1))
            steps = g.constant((np.arange(bins)[:, None] + np.array(offsets)).ravel())
            position = g.op("Add", g.op("Mul", steps, g.op("Div", extent, g.constant(bins))), start)
            position = clipped(g, position, 0, size - 1)
            taps.append((_cubic if settings["cubic"] else _between)(g, position, size))
    values = _sampled(g, node, image, *taps)
    if kind == "roi_align_max":
        values = _over_points(g, values, p.pooled_h, len(offsets), node.bottoms[0].sample[1], "ReduceMax")
    return [g.op("Transpose", values, perm=[0, 3, 1, 2])]


def _windows(g, node):
    """synopsys-caffe's layer as it is: see :func:`ohem_caffe_port.ops.roi_align.roi_align_window`."""
    p, channels, (height, width) = node.layer.p, node.bottoms[0].sample[1], map_size(node)
    image, first, last = split(g, reshape(g, node.bottoms[1].name, -1, 5), 1, 2, 2)
    first, last = (g.op("Mul", corner, g.constant(p.spatial_scale)) for corner in (first, last))
    axes = []  # of each: where the RoI starts, its extent, first cells, number of cells and emptiness of the bins
    for column, bins, size, shape in (
        (1, p.pooled_h, height, (-1, p.pooled_h, 1, 1)),
        (0, p.pooled_w, width, (-1, 1, p.pooled_w, 1)),
    ):
        start, end = (cut(g, corner, column, column + 1) for corner in (first, last))
        extent = g.op("Sub", end, start)
        step = g.op("Div", g.op("Max", g.op("Add", extent, g.constant(1)), g.constant(1)), g.constant(bins))
        low, high = (
            clipped(g, g.op("Add", g.op("Mul", g.constant(np.arange(n, n + bins)), step), start), 0, size)
            for n in (0, 1)
        )
        cell = g.op("Ceil", low)
        number = g.op("Max", g.op("Add", g.op("Sub", g.op("Floor", high), cell), g.constant(1)), g.constant(0))
        bins_of = [reshape(g, value, *shape) for value in (cell, number, g.op("LessOrEqual", high, low))]
        axes.append([*(reshape(g, value, -1, 1, 1, 1) for value in (start, extent)), *bins_of])
    (*ends_y, first_y, rows, empty_y), (*ends_x, first_x, columns, empty_x) = axes
    cell = g.constant(np.arange(4))  # of a bin only the first four cells count
    at_least_one = g.op("Max", columns, g.constant(1))
    dy = g.op("Floor", g.op("Div", cell, at_least_one))
    dx = g.op("Sub", cell, g.op("Mul", dy, at_least_one))
    there = g.op("And", g.op("Less", dy, rows), g.op("Greater", columns, g.constant(0)))
    y, x = g.op("Add", first_y, dy), g.op("Add", first_x, dx)  # [R, ph, pw, 4]
    near_y, near_x = _nearness(g, y, *ends_y), _nearness(g, x, *ends_x)
    # a cell past a map's end is the first of the next channel's map, and behind the last map there are zeros
    reached = height * width + width + 1
    index = g.op("Where", there, g.op("Add", g.op("Mul", y, g.constant(width)), x), g.constant(0))
    index = g.op("Cast", clipped(g, index, 0, reached - 1), to=7)
    index = g.op("Add", g.op("Mul", whole(g, image, [-1, 1, 1, 1]), g.ints(reached)), index)
    behind = g.op("Pad", reshape(g, node.bottoms[0].name, -1), g.ints(0, width + 1))
    maps = g.op("Mul", g.sizes(node.bottoms[0], 0), g.ints(channels))
    maps = g.op("Range", g.constant(0, np.int64), g.op("Squeeze", maps, g.ints(0)), g.constant(1, np.int64))
    starts = g.op("Mul", g.op("Unsqueeze", maps, g.ints(1)), g.ints(height * width))
    cells = g.op("Gather", behind, g.op("Add", starts, g.constant(np.arange(reached), np.int64)), axis=0)
    cells = g.op("Transpose", reshape(g, cells, -1, channels, reached), perm=[0, 2, 1])
    cells = g.op("Gather", reshape(g, cells, -1, channels), index, axis=0)  # [R, ph, pw, 4, C]
    counts = g.op("Cast", there, to=1)
    samples = []
    for one, other in product(near_y, near_x):
        weight = g.op("Unsqueeze", g.op("Mul", g.op("Mul", one, other), counts), g.ints(-1))
        samples.append(g.op("ReduceSum", g.op("Mul", cells, weight), g.ints(3), keepdims=0))
    best = g.op("Max", *samples)
    empty = g.op("Or", empty_y, empty_x)
    best = g.op("Where", empty, g.op("Max", best, g.constant(0)), best)
    return g.op("Transpose", best, perm=[0, 3, 1, 2])


def _nearness(g, cell, start, extent):
    """What cells ``[R, ph, pw, 4]`` count for the samples at -0.5 and 0.5 of an axis on which the RoI is [-1, 1]."""
    is_point = g.op("Equal", extent, g.constant(0))
    place = g.op("Div", g.op("Sub", cell, start), g.op("Where", is_point, g.constant(1), extent))
    place = g.op("Sub", g.op("Mul", place, g.constant(2)), g.constant(1))
    place = clipped(g, g.op("Where", is_point, g.constant(0), place), -1, 1)
    away = [g.op("Abs", g.op("Sub", g.constant(at), place)) for at in (-0.5, 0.5)]
    return [g.op("Max", g.op("Sub", g.constant(1), distance), g.constant(0)) for distance in away]


@exporter("PSROIAlign")
def ps_roi_align(g: GraphBuilder, node: Node) -> list[str]:
    """Light-Head R-CNN's means of samples; with ``sampling_ratio`` RoiAlign of all maps, and each bin takes its own."""
    p, channels, (height, width) = node.layer.p, node.bottoms[0].sample[1], map_size(node)
    group, depth = p.group_size, channels // p.group_size**2
    if p.HasField("sampling_ratio"):
        pooled = reshape(g, _roi_align(g, node, group, group, p.sampling_ratio), -1, depth, group**4)
        own = np.arange(group**2) * (group**2 + 1)  # bin b of the maps of bin b
        return [reshape(g, g.op("Gather", pooled, g.ints(*own), axis=2), -1, depth, group, group)]
    image, first, last = split(g, reshape(g, node.bottoms[1].name, -1, 5), 1, 2, 2)
    scale, samples = g.constant(p.spatial_scale), p.sample_num
    first, last = g.op("Mul", first, scale), g.op("Mul", g.op("Add", last, g.constant(1)), scale)
    taps = []
    for column, size in ((1, height), (0, width)):
        start, end = (cut(g, corner, column, column + 1) for corner in (first, last))
        low, high = (clipped(g, edge, 0, size - 1) for edge in bin_edges(g, start, end, group))
        step = g.op("Div", bin_size(g, start, end, group), g.constant(samples + 1))
        points = g.op("Mul", g.constant(np.tile(np.arange(1, samples + 1), group)), step)
        each = g.ints(*np.repeat(np.arange(group), samples))
        low, high = (g.op("Gather", edge, each, axis=1) for edge in (low, high))
        position = g.op("Add", low, points)
        share = g.op("Mul", g.op("Cast", g.op("Less", position, high), to=1), g.constant(1 / samples))
        taps.append([(cell, g.op("Mul", weight, share)) for cell, weight in _lerp(g, position, size)])
    values = _sampled(g, node, image, *taps, group, samples)
    values = _over_points(g, values, group, samples, depth, "ReduceSum")
    return [g.op("Transpose", values, perm=[0, 3, 1, 2])]


@exporter("ROIWarping")
def roi_warping(g: GraphBuilder, node: Node) -> list[str]:
    """MNC's samples, one for each bin."""
    p = node.layer.p
    image, corners = split(g, reshape(g, node.bottoms[1].name, -1, 5), 1, 4)
    corners = rounded(g, g.op("Mul", corners, g.constant(p.spatial_scale)))
    taps = []
    height, width = map_size(node)
    for column, bins, size in ((1, p.pooled_h, height), (0, p.pooled_w, width)):
        start, end = cut(g, corners, column, column + 1), cut(g, corners, column + 2, column + 3)
        step = g.op("Div", g.op("Max", g.op("Sub", end, start), g.constant(0)), g.constant(bins))
        position = g.op("Add", start, g.op("Mul", g.constant(np.arange(bins)), step))
        taps.append(_lerp(g, position, size, 0.5))
    return [g.op("Transpose", _sampled(g, node, image, *taps), perm=[0, 3, 1, 2])]


@exporter("MaskPooling")
def mask_pooling(g: GraphBuilder, node: Node) -> list[str]:
    """Mul, the mask's one channel with all of the features."""
    return [g.op("Mul", node.bottoms[0].name, node.bottoms[1].name)]


@exporter("MaskResize")
def mask_resize(g: GraphBuilder, node: Node) -> list[str]:
    """Two products with the matrices that say what each cell takes of each other."""
    p, (height, width) = node.layer.param.mask_resize_param, map_size(node)
    rows = g.op("MatMul", g.constant(_resize_matrix(height, p.output_height)), node.bottoms[0].name)
    return [g.op("MatMul", rows, g.constant(_resize_matrix(width, p.output_width).T))]


def _resize_matrix(size, output):
    """``[output, size]``: cell ``i`` is at ``i * size / output``, between two cells, of which the last is repeated for
    half a cell."""
    position = np.arange(output, dtype=np.float32) * np.float32(size / output)
    weight = np.maximum(0, 1 - np.abs(np.clip(position, 0, size - 1)[:, None] - np.arange(size)))
    return weight * (position <= size - 0.5)[:, None]


def _roi_align(g, node, pooled_h, pooled_w, sampling_ratio):
    image, corners = split(g, reshape(g, node.bottoms[1].name, -1, 5), 1, 4)
    return g.op(
        "RoiAlign", node.bottoms[0].name, corners, whole(g, image, [-1]), mode="avg", output_height=pooled_h,
        coordinate_transformation_mode="output_half_pixel", output_width=pooled_w,
        sampling_ratio=max(0, sampling_ratio), spatial_scale=float(node.layer.p.spatial_scale),
    )  # fmt: skip


def _lerp(g, position, size, reach=None):
    """Linear interpolation at ``position`` ``[R, points]``: pairs of cells and weights, see
    :func:`ohem_caffe_port.ops.bilinear.lerp`."""
    inside = clipped(g, position, 0, size - 1)
    low = g.op("Floor", inside)
    part = g.op("Sub", inside, low)
    weights = [g.op("Sub", g.constant(1), part), part]
    if reach is not None:
        near = g.op("And", g.op("GreaterOrEqual", position, g.constant(-reach)),
                    g.op("LessOrEqual", position, g.constant(size - 1 + reach)))  # fmt: skip
        weights = [g.op("Mul", weight, g.op("Cast", near, to=1)) for weight in weights]
    high = g.op("Min", g.op("Add", low, g.constant(1)), g.constant(size - 1))
    return list(zip((low, high), weights, strict=True))


def _between(g, position, size):
    """Weights are the distances to the cells below and above, both 0 on the last cell."""
    low = g.op("Floor", position)
    high = g.op("Min", g.op("Add", low, g.constant(1)), g.constant(size - 1))
    return [(low, g.op("Sub", high, position)), (high, g.op("Sub", position, low))]


def _cubic(g, position, size):
    """Cubic convolution with a = -1, over four cells."""
    low = g.op("Floor", position)
    part, taps = g.op("Sub", position, low), []
    for offset in range(-1, 3):
        d = g.op("Abs", g.op("Sub", part, g.constant(offset)))
        powers = [d, g.op("Mul", d, d)]
        powers.append(g.op("Mul", powers[1], d))
        near, far = ([g.op("Mul", power, g.constant(f)) for power, f in zip(powers, factors, strict=True) if f]
                     for factors in ((0, -2, 1), (-8, 5, -1)))  # fmt: skip
        near = reduce(lambda a, b: g.op("Add", a, b), near, g.constant(1))
        far = reduce(lambda a, b: g.op("Add", a, b), far, g.constant(4))
        far = g.op("Where", g.op("Less", d, g.constant(2)), far, g.constant(0))
        weight = g.op("Where", g.op("Less", d, g.constant(1)), near, far)
        taps.append((clipped(g, g.op("Add", low, g.constant(offset)), 0, size - 1), weight))
    return taps


def _sampled(g, node, image, y, x, group=1, points=1):
    """The values ``[R, points of y, points of x, D]`` of grids of points: sums over pairs of their taps, which are
    pairs of cells and weights ``[R, points]``; with ``group`` each ``points x points`` of them read the maps of a bin
    of their own."""
    channels, (height, width) = node.bottoms[0].sample[1], map_size(node)
    maps = reshape(g, node.bottoms[0].name, 0, channels // group**2, group**2, height, width)
    rows = reshape(g, g.op("Transpose", maps, perm=[0, 2, 3, 4, 1]), -1, channels // group**2)
    plane = plane_of(g, image, group, points)
    total = None
    for (row, weight), (column, other) in product(y, x):
        row, column = (g.op("Unsqueeze", g.op("Cast", v, to=7), g.ints(a)) for v, a in ((row, 2), (column, 1)))
        index = g.op("Add", g.op("Mul", plane, g.ints(height)), row)
        index = g.op("Add", g.op("Mul", index, g.ints(width)), column)
        weight = g.op("Mul", g.op("Unsqueeze", weight, g.ints(2)), g.op("Unsqueeze", other, g.ints(1)))
        part = g.op("Mul", g.op("Gather", rows, index, axis=0), g.op("Unsqueeze", weight, g.ints(-1)))
        total = part if total is None else g.op("Add", total, part)
    return total


def _over_points(g, values, bins, points, depth, op_type):
    """``[R, bins * points, ... * points, depth]`` reduced to a value for each bin, one axis after the other: OpenCV 5
    errs with axes that do not lie side by side."""
    for axis, shape in ((2, (0, bins, points, -1, depth)), (3, (0, 0, -1, points, depth))):
        values = reshape(g, values, *shape)
        if op_type == "ReduceSum":
            values = g.op("ReduceSum", values, g.ints(axis), keepdims=0)
        else:
            values = g.op(op_type, values, axes=[axis], keepdims=0)
    return values
