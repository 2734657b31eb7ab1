"""Caffe's layers, a family to a file; importing this package imports every file and so fills :data:`LAYERS`."""

import importlib
import pkgutil

from .base import LAYERS, Clock, Context, Layer, check_memory, create_layer, register
from .python import PYTHON_LAYERS, PythonLayer, register_python

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "LAYERS",
    "PYTHON_LAYERS",
    "Clock",
    "Context",
    "Layer",
    "PythonLayer",
    "check_memory",
    "create_layer",
    "register",
    "register_python",
]
