"""Pooling by Caffe's rules, which are not quite ONNX's."""

from __future__ import annotations

import numpy as np

from .convolution import flat_pads, padded
from .graph import GraphBuilder, Node, exporter

_FLT_MAX = np.finfo(np.float32).max


@exporter("Pooling")
def pooling(g: GraphBuilder, node: Node) -> list[str]:
    """MaxPool or AveragePool with pads that give Caffe's number of windows."""
    layer, sizes = node.layer, _sizes(node)
    kernel = layer.kernel or sizes
    sides = layer.same_sides(sizes, kernel) if layer.param.pooling_param.pad_type else layer.sides
    return pool(g, node, layer.method, kernel, layer.stride, sides, node.tops[0].shape[2:])


@exporter("Pooling3D")
def pooling_3d(g: GraphBuilder, node: Node) -> list[str]:
    """The same over three axes."""
    layer, p = node.layer, node.layer.param.pooling3d_param
    kernel = layer.kernel or _sizes(node)
    return pool(g, node, p.PoolMethod.Name(p.pool), kernel, layer.stride, layer.sides, node.tops[0].shape[2:])


@exporter("SPP")
def spp(g: GraphBuilder, node: Node) -> list[str]:
    """A pooling for each level of the pyramid, side by side."""
    p, levels = node.layer.param.spp_param, []
    for bins, kernel, sides in node.layer.levels(_sizes(node)):
        levels += pool(g, node, p.PoolMethod.Name(p.pool), kernel, kernel, sides, (bins, bins))
    if len(levels) == 1:
        return levels
    return [g.op("Concat", *(g.op("Flatten", level, axis=1) for level in levels), axis=1)]


def _sizes(node: Node) -> tuple[int, ...]:
    sizes = node.bottoms[0].shape[2:]
    if any(isinstance(size, str) for size in sizes):
        raise node.error(f"an image whose size is open: {node.bottoms[0].shape}")
    return sizes


def pool(g: GraphBuilder, node: Node, method: str, kernel, stride, sides, counts) -> list[str]:
    """``counts`` windows along each axis, the first of which starts ``before`` cells in front of the image.

    Args:
        method: "MAX", "AVE" (counts the cells of the stated padding, not those beyond that only rounding up reaches),
            "AVE_EXC_PAD" (counts those of the image) or "STOCHASTIC" (the sum of squares over the sum).
        sides: the stated padding ``(before, after)`` of each axis.
    """
    x, sizes, axes = node.bottoms[0].name, _sizes(node), len(kernel)
    # cells from the image's end to the last window's; below 0: the last cells are in no window
    reached = [(before, (n - 1) * s + k - before - size)
               for size, k, s, (before, _), n in zip(sizes, kernel, stride, sides, counts, strict=True)]  # fmt: skip
    pads = [(before, max(after, 0)) for before, after in reached]
    of_image, whole = _areas(sizes, kernel, stride, [(0, 0)] * axes, reached, counts), np.prod(kernel)
    areas = _areas(sizes, kernel, stride, sides, reached, counts) if method == "AVE" else of_image
    # ONNX's own pads are smaller than the kernel, its number of windows rounds down, and it counts all pads or none
    simple = all(
        max(side) < k and (size + sum(side) - k) // s + 1 == n
        for size, k, s, side, n in zip(sizes, kernel, stride, pads, counts, strict=True)
    ) and (method in ("MAX", "STOCHASTIC") or (areas == of_image).all() or (areas == whole).all())
    options = {"kernel_shape": kernel, "strides": stride}
    if simple:
        options["pads"] = flat_pads(pads)
    else:
        x = padded(g, x, 2 + axes, reached, -_FLT_MAX if method == "MAX" else 0.0)
    if method == "MAX":
        if len(node.tops) == 1:
            return [g.op("MaxPool", x, **options)]
        pooled, index = g.op("MaxPool", x, outputs=2, **options)
        return [pooled, _mask(g, pooled, index, sizes, None if simple else reached)]
    if method == "STOCHASTIC":
        squares, sums = (g.op("AveragePool", of, **options, count_include_pad=1) for of in (g.op("Mul", x, x), x))
        zero = g.constant(np.float32(0))
        return [g.op("Where", g.op("Greater", sums, zero), g.op("Div", squares, sums), zero)]
    x = g.op("AveragePool", x, **options, count_include_pad=int((areas != of_image).any()))
    if simple or (areas == whole).all():
        return [x]
    with np.errstate(divide="ignore"):  # a window without a cell: 0 times infinity, Caffe's 0/0
        return [g.op("Mul", x, g.constant(whole / areas))]


def _areas(sizes, kernel, stride, counted, reached, counts) -> np.ndarray:
    """How many cells each window's average counts: those of the image and of the padding ``counted``."""
    area = np.ones(())
    for size, k, s, (before, after), (start, _), n in zip(sizes, kernel, stride, counted, reached, counts, strict=True):
        first = np.arange(n) * s - start
        cells = np.minimum(first + k, size + after) - np.maximum(first, -before)
        area = np.multiply.outer(area, np.maximum(cells, 0))
    return area


def _mask(g: GraphBuilder, pooled: str, index: str, sizes, reached) -> str:
    """ONNX's position of each maximum in the whole tensor as ``h * W + w`` of its image, -1 for a window without a
    cell; ``reached`` is the padding that was made cells, if it was."""
    height, width = sizes
    if reached is None:
        return g.op("Cast", g.op("Mod", index, g.ints(height * width)), to=1)
    (top, bottom), (left, right) = reached
    wide = left + width + right
    index = g.op("Mod", index, g.ints((top + height + bottom) * wide))
    row = g.op("Sub", g.op("Div", index, g.ints(wide)), g.ints(top))
    column = g.op("Sub", g.op("Mod", index, g.ints(wide)), g.ints(left))
    place = g.op("Cast", g.op("Add", g.op("Mul", row, g.ints(width)), column), to=1)
    empty = g.op("Equal", pooled, g.constant(np.float32(-_FLT_MAX)))
    return g.op("Where", empty, g.constant(np.float32(-1)), place)
