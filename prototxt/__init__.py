"""Caffe's prototxt: its schema, reading (any generation, any fork), locating and writing. Knows nothing of torch."""

from importlib import import_module

from prototxt.errors import CaffePortError, PrototxtError, nearest

# Imported when first used: they need protobuf, a seventh of the time that `tools/convert.py` takes to start.
_READER = ("UnknownField", "locate", "parse_net", "parse_solver", "read_any", "read_net", "read_solver")
_HOMES = {**dict.fromkeys(_READER, "reader"), "to_text": "writer", "write_text": "writer"}

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


def __getattr__(name: str):
    if name == "caffe_pb2":
        return import_module("prototxt.caffe_pb2")
    if name in _HOMES:
        return getattr(import_module(f"prototxt.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'prototxt' has no attribute '{name}'")
