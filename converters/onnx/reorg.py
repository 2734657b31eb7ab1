"""Layers that move cells between channels and space, or put a border around them."""

from __future__ import annotations

from .convolution import padded
from .graph import GraphBuilder, Node, exporter
from .shape import reshape


@exporter("SpaceToDepth", "DepthToSpace")
def blocks(g: GraphBuilder, node: Node) -> list[str]:
    """SpaceToDepth or DepthToSpace, between two Transposes for NHWC blobs."""
    layer, x = node.layer, node.bottoms[0].name
    x = g.op("Transpose", x, perm=[0, 3, 1, 2]) if layer.format == "NHWC" else x
    mode = None if node.type == "SpaceToDepth" else "CRD" if layer.format == "CRD" else "DCR"
    x = g.op(node.type, x, blocksize=layer.block, mode=mode)
    return [g.op("Transpose", x, perm=[0, 2, 3, 1]) if layer.format == "NHWC" else x]


@exporter("Reorg")
def reorg(g: GraphBuilder, node: Node) -> list[str]:
    """SpaceToDepth of the same memory in another shape, as in darknet; DepthToSpace for ``reverse``."""
    p, x, top = node.layer.param.reorg_param, node.bottoms[0], node.tops[0].shape
    if p.reverse:
        return [g.op("DepthToSpace", x.name, blocksize=p.stride, mode="DCR")]
    if any(isinstance(size, str) for size in x.shape[1:]):
        raise node.error(f"mixes the cells of an image of open size, {x.shape}")
    n, channels, height, width = x.shape
    wide = reshape(g, x.name, x.shape, (n, channels // p.stride**2, height * p.stride, width * p.stride))
    moved = g.op("SpaceToDepth", wide, blocksize=p.stride)
    return [reshape(g, moved, (n, channels, height, width), top)]


@exporter("Pad")
def pad(g: GraphBuilder, node: Node) -> list[str]:
    """Pad."""
    p = node.layer.param.pad_param
    sides = list(zip(p.paddings[::2], p.paddings[1::2], strict=True))
    return [padded(g, node.bottoms[0].name, len(sides), sides, p.constant_values)]
