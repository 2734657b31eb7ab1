"""Caffe's prototxt: its schema, reading (any generation, any fork), locating and writing. Knows nothing of torch."""

from prototxt import caffe_pb2
from prototxt.errors import CaffePortError, PrototxtError, nearest
from prototxt.reader import UnknownField, locate, parse_net, parse_solver, read_any, read_net, read_solver
from prototxt.writer import to_text, write_text

__all__ = [
    "CaffePortError",
    "PrototxtError",
    "UnknownField",
    "caffe_pb2",
    "locate",
    "nearest",
    "parse_net",
    "parse_solver",
    "read_any",
    "read_net",
    "read_solver",
    "to_text",
    "write_text",
]
