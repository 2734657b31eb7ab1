"""A built net as an ONNX graph of standard operators, written layer by layer."""

from .file import write_onnx
from .graph import OPSET, TARGETS, GraphBuilder, Node, Value, exporter, layer_type
from .model import export_graph, has_exporter

__all__ = [
    "OPSET",
    "TARGETS",
    "GraphBuilder",
    "Node",
    "Value",
    "export_graph",
    "exporter",
    "has_exporter",
    "layer_type",
    "write_onnx",
]
