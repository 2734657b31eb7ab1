"""Layers that change a blob's shape and none of its values, and those that join blobs or hand them on."""

from __future__ import annotations

import math

from .graph import GraphBuilder, Node, Value, exporter


def product(sizes) -> int | str:
    """How many cells axes of these sizes have; a name of its own where one is open."""
    return "*".join(map(str, sizes)) if any(isinstance(size, str) for size in sizes) else math.prod(sizes)


def reshape(g: GraphBuilder, x: str, old, new) -> str:
    """The name of ``x``, of shape ``old``, in the shape ``new``.

    Open sizes are strings, and equal ones have one name. At most one of ``new`` may not be in ``old``.
    """
    old, new = tuple(old), tuple(new)
    if old == new:
        return x
    is_open = [size for size in new if isinstance(size, str)]
    parts: list[int | str] = []
    for axis, size in enumerate(new):
        if isinstance(size, int):
            parts.append(size)
        elif len(is_open) == 1 or size not in old:
            parts.append(-1)
        else:
            parts.append(0 if old[axis : axis + 1] == (size,) else g.sizes(Value(x, old), old.index(size)))
    return g.op("Reshape", x, g.vector(*parts))


@exporter("Flatten", "Squeeze", "pylayer.mask_layer.MaskLayer")
def reshaping(g: GraphBuilder, node: Node) -> list[str]:
    """Reshape."""
    if len(node.tops) > 1:
        raise node.error("compares masks with ground truth in the TRAIN phase", hint="a graph is of the TEST phase")
    bottom = node.bottoms[0]
    return [reshape(g, bottom.name, bottom.shape, node.tops[0].shape)]


@exporter("Reshape")
def reshape_layer(g: GraphBuilder, node: Node) -> list[str]:
    """Reshape, or DepthToSpace for ``pixelshuffler``."""
    factor = node.layer.param.reshape_param.pixelshuffler
    if factor == 1:
        return reshaping(g, node)
    return [g.op("DepthToSpace", node.bottoms[0].name, blocksize=factor, mode="CRD")]


@exporter("Concat")
def concat(g: GraphBuilder, node: Node) -> list[str]:
    """Concat."""
    names = [bottom.name for bottom in node.bottoms]
    return names if len(names) == 1 else [g.op("Concat", *names, axis=node.layer.axis)]


@exporter("Scatter")
def pass_on(g: GraphBuilder, node: Node) -> list[str]:
    """The bottoms themselves: there is one process."""
    return [bottom.name for bottom in node.bottoms]


@exporter("Gather")
def gather(g: GraphBuilder, node: Node) -> list[str]:
    """Gather of constant indices; the bottoms themselves where it stands for MPI's."""
    p = node.layer.param
    if not p.HasField("gather_param"):
        return pass_on(g, node)
    indices = g.ints(*p.gather_param.indices)
    picked = g.op("Gather", node.bottoms[0].name, indices, axis=node.layer.axis)
    shape, axis = node.bottoms[0].shape, node.layer.axis
    shape = (*shape[:axis], len(p.gather_param.indices), *shape[axis + 1 :])
    return [reshape(g, picked, shape, node.tops[0].shape)]


@exporter("Permute")
def permute(g: GraphBuilder, node: Node) -> list[str]:
    """Transpose."""
    return [g.op("Transpose", node.bottoms[0].name, perm=node.layer.order)]


@exporter("Silence")
def silence(g: GraphBuilder, node: Node) -> list[str]:
    """Nothing."""
    return []
