"""Layers that multiply with a matrix, look rows up in one, or are their parameter."""

from __future__ import annotations

import numpy as np

from .convolution import fused_relu
from .graph import GraphBuilder, Node, exporter


@exporter("InnerProduct")
def inner_product(g: GraphBuilder, node: Node) -> list[str]:
    """Gemm of the bottom as a matrix; with ``axis`` above 1 a MatMul over its last axis."""
    layer, bottom, p = node.layer, node.bottoms[0], node.layer.param.inner_product_param
    x, axes, axis = bottom.name, len(bottom.shape), layer.axis
    if axis < 2:
        if axes != 2 or axis != 1:
            x = g.op("Flatten", x, axis=axis)
        x = g.op("Gemm", x, *[g.weight(node, j) for j in range(len(node.blobs))], transB=int(not p.transpose))
        return [fused_relu(g, x if axis else g.op("Reshape", x, g.ints(-1)), p)]
    if axis < axes - 1:
        x = g.op("Reshape", x, g.ints(*[0] * axis, -1))
    x = g.op("MatMul", x, g.weight(node, 0, node.blobs[0] if p.transpose else node.blobs[0].T))
    return [fused_relu(g, g.op("Add", x, g.weight(node, 1)) if p.bias_term else x, p)]


@exporter("Embed")
def embed(g: GraphBuilder, node: Node) -> list[str]:
    """Gather of the table's rows."""
    index = g.op("Cast", node.bottoms[0].name, to=7)  # int64
    rows = g.op("Gather", g.weight(node, 0), index, axis=0)
    return [g.op("Add", rows, g.weight(node, 1)) if node.layer.param.embed_param.bias_term else rows]


@exporter("Parameter")
def parameter(g: GraphBuilder, node: Node) -> list[str]:
    """The parameter itself."""
    return [g.weight(node, 0)]


@exporter("DummyData")
def dummy_data(g: GraphBuilder, node: Node) -> list[str]:
    """Constants; random numbers have no place in a graph."""
    fillers = {filler.type for filler in node.layer.param.dummy_data_param.data_filler}
    if fillers - {"constant"}:
        raise node.error(
            f"makes new numbers for each run ({', '.join(sorted(fillers - {'constant'}))})",
            hint=f"make it an input: --shape {' '.join(top.name + '=...' for top in node.tops)}",
        )
    return [g.constant(np.asarray(top)) for top in node.fold()]
