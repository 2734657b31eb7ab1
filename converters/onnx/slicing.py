"""Layers that pick, repeat or reorder parts of a blob."""

from __future__ import annotations

from .graph import GraphBuilder, Node, exporter
from .shape import product, reshape

END = 2**31 - 1  # as the end of a slice: of the axis


def cut(g: GraphBuilder, x: str, axes, starts, ends, steps=None) -> str:
    """The name of a slice; ``ends`` are numbers or names of int64 vectors."""
    inputs = [g.ints(*starts), g.vector(*ends), g.ints(*axes)]
    return g.op("Slice", x, *inputs, *([g.ints(*steps)] if steps else []))


def flipped(g: GraphBuilder, x: str, *axes: int) -> str:
    """The name of ``x`` with these axes in the other direction."""
    if not axes:
        return x
    ones = [1] * len(axes)
    return cut(g, x, axes, [-i for i in ones], [-END] * len(axes), [-i for i in ones])


@exporter("Slice")
def slice_layer(g: GraphBuilder, node: Node) -> list[str]:
    """Split, or Slice for parts of an open axis."""
    x, axis = node.bottoms[0].name, node.layer.axis
    points, sizes = list(node.layer.param.slice_param.slice_point), [top.shape[axis] for top in node.tops]
    if len(sizes) == 1:
        return [x]
    if all(isinstance(size, int) for size in sizes):
        return g.op("Split", x, g.ints(*sizes), outputs=len(sizes), axis=axis)
    if not points:
        return g.op("Split", x, outputs=len(sizes), axis=axis)
    return [cut(g, x, [axis], [a], [b]) for a, b in zip([0, *points], [*points, END], strict=True)]


@exporter("Crop")
def crop(g: GraphBuilder, node: Node) -> list[str]:
    """Slice; the reference's sizes are read while the graph runs where they are open."""
    x, reference = node.bottoms
    offsets = list(node.layer.param.crop_param.offset) or [0]
    axes, starts, ends = [], [], []
    for i, axis in enumerate(range(node.layer.axis, len(x.shape))):
        offset, size = offsets[i % len(offsets)], reference.shape[axis]
        if offset == 0 and size == x.shape[axis]:
            continue
        if isinstance(size, str):
            size = g.sizes(reference, axis)
            ends.append(g.op("Add", size, g.ints(offset)) if offset else size)
        else:
            ends.append(offset + size)
        axes.append(axis)
        starts.append(offset)
    return [cut(g, x.name, axes, starts, ends) if axes else x.name]


@exporter("Tile")
def tile(g: GraphBuilder, node: Node) -> list[str]:
    """Tile."""
    counts = [1] * len(node.bottoms[0].shape)
    counts[node.layer.axis] = node.layer.param.tile_param.tiles
    return [g.op("Tile", node.bottoms[0].name, g.ints(*counts))]


@exporter("BatchReindex")
def batch_reindex(g: GraphBuilder, node: Node) -> list[str]:
    """Gather along the first axis. (Rows that the batch does not have are an error of the runtime.)"""
    x, rows = node.bottoms
    return [g.op("Gather", x.name, g.op("Cast", rows.name, to=7), axis=0)]  # 7: int64


@exporter("Filter")
def filter_layer(g: GraphBuilder, node: Node) -> list[str]:
    """NonZero of the selector, and Gather."""
    *blobs, selector = node.bottoms
    flat = reshape(g, selector.name, selector.shape, selector.shape[:1])
    rows = g.op("Reshape", g.op("NonZero", flat), g.ints(-1))
    return [g.op("Gather", blob.name, rows, axis=0) for blob in blobs]


@exporter("ShuffleChannel")
def shuffle_channel(g: GraphBuilder, node: Node) -> list[str]:
    """Reshape, Transpose, Reshape."""
    group, shape = node.layer.param.shuffle_channel_param.group, node.bottoms[0].shape
    each, cells = shape[1] // group, product(shape[2:])
    x = reshape(g, node.bottoms[0].name, shape, (shape[0], group, each, cells))
    x = g.op("Transpose", x, perm=[0, 2, 1, 3])
    return [reshape(g, x, (shape[0], each, group, cells), shape)]


@exporter("Flip")
def flip(g: GraphBuilder, node: Node) -> list[str]:
    """Slice with steps of -1."""
    p = node.layer.param.flip_param
    wanted = ((2, p.flip_height), (3, p.flip_width))
    axes = [axis for axis, is_wanted in wanted if is_wanted and axis < len(node.bottoms[0].shape)]
    return [flipped(g, node.bottoms[0].name, *axes)]
