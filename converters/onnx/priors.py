"""SSD's default boxes, which depend on sizes alone."""

from __future__ import annotations

from .boxes import map_size
from .graph import GraphBuilder, Node, exporter


@exporter("PriorBox")
def prior_box(g: GraphBuilder, node: Node) -> list[str]:
    """A constant: the priors of the sizes that the net was built with."""
    for bottom in range(1 if node.layer.image else 2):
        map_size(node, bottom)
    return [g.constant(node.fold()[0])]
