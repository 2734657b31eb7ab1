"""Layers that change the size of images."""

from __future__ import annotations

import numpy as np

from .graph import GraphBuilder, Node, Value, exporter
from .shape import product, reshape
from .slicing import END, cut


def resize(g: GraphBuilder, x: Value, *size: int | str, places: str) -> str:
    """The name of ``x`` ``[N, C, H, W]`` resized with bilinear interpolation.

    OpenCV 5 reads memory behind an axis of a single cell; it gets that cell twice.

    Args:
        size: height and width, as numbers or names of int64 vectors.
        places: ONNX's ``coordinate_transformation_mode``.
    """
    sizes, name = g.vector(g.sizes(x, 0, 1), *size), x.name
    if g.for_opencv and 1 in x.shape[2:]:
        name = g.op("Tile", name, g.ints(1, 1, *(1 + (cells == 1) for cells in x.shape[2:])))
    return g.op("Resize", name, "", "", sizes, mode="linear", coordinate_transformation_mode=places)


@exporter("Interp")
def interp(g: GraphBuilder, node: Node) -> list[str]:
    """Resize with corners aligned, after a Slice where ``pad_beg`` and ``pad_end`` crop."""
    p, x, size = node.layer.param.interp_param, node.bottoms[0], list(node.tops[0].shape[2:])
    if p.pad_beg or p.pad_end:
        name = cut(g, x.name, (2, 3), [-p.pad_beg] * 2, [p.pad_end or END] * 2)
        sizes = [cells if isinstance(cells, str) else cells + p.pad_beg + p.pad_end for cells in x.shape[2:]]
        x = Value(name, (*x.shape[:2], *sizes))
    if any(isinstance(cells, str) for cells in size):
        size = [g.sizes(node.bottoms[1], 2, 3) if node.layer.by_blob else _zoomed(g, node, g.sizes(x, 2, 3))]
    return [resize(g, x, *size, places="align_corners")]


def _zoomed(g: GraphBuilder, node: Node, size: str) -> str:
    """Interp's rules for sizes that are known while the graph runs only."""
    p, layer = node.layer.param.interp_param, node.layer
    if not (layer.shrinks or layer.zooms):
        return g.op("Mul", size, g.ints(p.full_zoom_factor))
    steps = g.op("Div", g.op("Sub", size, g.ints(1)), g.ints(p.shrink_factor))
    return g.op("Add", g.op("Mul", steps, g.ints(p.zoom_factor)), g.ints(1))


@exporter("ResizeBilinear")
def resize_bilinear(g: GraphBuilder, node: Node) -> list[str]:
    """Resize, between two Transposes for NHWC blobs."""
    p, layer, x = node.layer.param.resize_bilinear_param, node.layer, node.bottoms[0]
    size = node.tops[0].shape[layer.first : layer.first + 2]
    if any(isinstance(cells, str) for cells in size):
        raise node.error(f"scales images of an open size, {x.shape}", hint="state output_height and output_width")
    if layer.first == 1:
        shape = [x.shape[axis] for axis in (0, 3, 1, 2)]
        x = Value(g.op("Transpose", x.name, perm=[0, 3, 1, 2]), tuple(shape))
    places = "align_corners" if p.align_corners else "half_pixel" if p.half_pixel_centers else "asymmetric"
    result = resize(g, x, *size, places=places)
    return [g.op("Transpose", result, perm=[0, 2, 3, 1]) if layer.first == 1 else result]


@exporter("Resample")
def resample(g: GraphBuilder, node: Node) -> list[str]:
    """Products with constant matrices, one for the rows and one for the columns; Gather for the nearest cells."""
    x, size = node.bottoms[0], node.tops[0].shape[2:]
    if any(isinstance(cells, str) for cells in (*x.shape[2:], *size)):
        raise node.error(f"has constants for each size, and {x.shape} to {node.tops[0].shape} leaves one open")
    rows, columns = (np.asarray(cells) for cells in node.layer.cells(x.shape[2:], size))
    if rows.ndim == 1:
        return [g.op("Gather", g.op("Gather", x.name, g.ints(*rows), axis=2), g.ints(*columns), axis=3)]
    return [g.op("MatMul", g.op("MatMul", g.constant(rows), x.name), g.constant(columns.T))]


@exporter("Upsample")
def upsample(g: GraphBuilder, node: Node) -> list[str]:
    """Resize to the nearest cells; with a mask ScatterElements into zeros, flat in each channel."""
    layer, x, top = node.layer, node.bottoms[0], node.tops[0].shape
    if len(node.bottoms) == 1:
        options = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return [g.op("Resize", x.name, "", g.constant([1, 1, *layer.scale]), **options)]
    if any(isinstance(cells, str) for cells in top[2:]):
        raise node.error(f"places cells by a mask in an image of open size, {top}")
    flat = (*x.shape[:2], product(x.shape[2:]))
    values, places = (reshape(g, bottom.name, x.shape, flat) for bottom in node.bottoms)
    zeros = g.op("Expand", g.constant([[[0]]]), g.vector(g.sizes(x, 0, 1), top[2] * top[3]))
    result = g.op("ScatterElements", zeros, g.op("Cast", places, to=7), values, axis=2)  # 7: int64
    return [reshape(g, result, (*top[:2], top[2] * top[3]), top)]
