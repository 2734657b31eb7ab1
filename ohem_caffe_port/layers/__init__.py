"""Caffe's layers, a family to a file; importing this package fills the registry :data:`LAYERS`."""

from . import convolution, data, inner_product, loss, neuron, normalization, pooling, python, roi, shape
from .base import LAYERS, Context, Layer, create_layer, register
from .python import PYTHON_LAYERS, PythonLayer, register_python

__all__ = [
    "LAYERS",
    "PYTHON_LAYERS",
    "Context",
    "Layer",
    "PythonLayer",
    "create_layer",
    "register",
    "register_python",
]
_FAMILIES = (convolution, data, inner_product, loss, neuron, normalization, pooling, python, roi, shape)
