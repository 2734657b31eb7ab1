"""The graph under construction, and the registry from Caffe's layer types to the functions that write them in ONNX."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from ..errors import WeightsError
from ..extras import library

OPSET = 17
TARGETS = ("onnxruntime", "opencv")
EXPORTERS: dict[str, Callable] = {}


def layer_type(layer) -> str:
    """Caffe's type; of a layer in Python its class, as ``rpn.proposal_layer.ProposalLayer``."""
    python = layer.param.python_param
    return f"{python.module}.{python.layer}" if layer.type == "Python" else layer.type


@dataclass
class Value:
    """A blob at one point of its life. ``name`` is unique in the graph and is the blob's own where that is possible.

    ``shape`` has numbers, and strings for sizes that the graph leaves open ("batch", "num_rois", or another name for
    one that depends on them or on the data). ``sample`` has the numbers that the net was built with.
    """

    name: str
    shape: tuple[int | str, ...]
    sample: tuple[int, ...] = ()


@dataclass
class Node:
    """What an exporter is told of one layer.

    ``layer`` is the built layer with its settings; ``blobs`` its parameters as float32 arrays, in its own shapes;
    ``blob_names`` their names in the graph (one name for a shared tensor). ``fold()`` runs the layer on zeros of the
    bottoms' ``sample`` shapes and returns its tops as arrays: what a layer makes whose output depends on shapes alone.
    """

    layer: object
    bottoms: list[Value]
    tops: list[Value]
    blobs: list[np.ndarray] = field(default_factory=list)
    blob_names: list[str] = field(default_factory=list)
    fold: Callable[[], list[np.ndarray]] | None = None

    @property
    def name(self) -> str:
        return self.layer.name

    @property
    def type(self) -> str:
        """:func:`layer_type`."""
        return layer_type(self.layer)

    def error(self, message: str, *, hint: str | None = None) -> WeightsError:
        """An error about this layer, to raise."""
        return WeightsError(f"{self.type}: {message}", layer=self.name, hint=hint)


def exporter(*types: str):
    """Function decorator: ``function(g, node)`` writes layers of these types (``module.layer`` for Python layers).

    It adds operators to the builder ``g`` and returns the names of the results, one for each top; a bottom's name for a
    top that is the same values.
    """

    def add(function):
        for name in types:
            if name in EXPORTERS and EXPORTERS[name].__module__ != function.__module__:
                raise ValueError(f"layer type {name} has two exporters")
            EXPORTERS[name] = function
        return function

    return add


class GraphBuilder:
    """Collects the operators and constants of a graph.

    Args:
        target: "onnxruntime", or "opencv" for operators that OpenCV 5 runs.
    """

    def __init__(self, target: str = "onnxruntime"):
        self.target = target
        self.nodes: list = []
        self.initializers: dict[str, np.ndarray] = {}
        self.prefix = ""  # the layer that is being written, for names
        self.taken: set[str] = set()
        self.notes: list[str] = []  # what a user should know of what was written
        self._helper, self._counts = library("onnx", "onnx").helper, Counter()
        self._constants: dict[tuple, str] = {}

    @property
    def for_opencv(self) -> bool:
        return self.target == "opencv"

    def op(self, op_type: str, *inputs: str, outputs: int = 1, **attributes):
        """Adds one operator; the name of its result, or a list of them when ``outputs`` is not 1.

        ``inputs`` are names ("" for an optional one left out). Attributes that are None are left out.
        """
        names = [self._new_name(op_type) for _ in range(outputs)]
        attributes = {key: value for key, value in attributes.items() if value is not None}
        self.nodes.append(self._helper.make_node(op_type, list(inputs), names, name=names[0], **attributes))
        return names[0] if outputs == 1 else names

    def loop(self, times: str, states: list[Value], step: Callable) -> tuple[str, list[str]]:
        """Writes a loop; the name of the first state after every round, stacked along a new first axis, and the names
        of all states after the last one.

        Args:
            times: name of the number of rounds, a scalar int64.
            states: what one round hands to the next: the names of the first ones, with their shapes.
            step: ``step(round, states) -> states`` writes a round, given the name of its number (from 0, a scalar
                int64; OpenCV 5 makes it one of shape [1]) and those of the states; called once.
        """
        helper = self._helper
        outer, self.nodes = self.nodes, []
        number, goes_on, *old = [self._new_name("loop") for _ in range(2 + len(states))]
        new = step(number, old)
        goes_on_, *new = [self.op("Identity", name) for name in [goes_on, *new, new[0]]]
        shapes = [value.shape for value in states]
        integer, boolean = 7, 9  # of TensorProto.DataType
        body = helper.make_graph(
            self.nodes,
            self._new_name("body"),
            [
                helper.make_tensor_value_info(number, integer, []),
                helper.make_tensor_value_info(goes_on, boolean, []),
                *(value_info(Value(name, shape)) for name, shape in zip(old, shapes, strict=True)),
            ],
            [
                helper.make_tensor_value_info(goes_on_, boolean, []),
                *(value_info(Value(n, shape)) for n, shape in zip(new, [*shapes, shapes[0]], strict=True)),
            ],
        )
        self.nodes = outer
        *last, stacked = self.op("Loop", times, "", *(v.name for v in states), outputs=len(new), body=body)
        return stacked, last

    def constant(self, values, dtype=np.float32) -> str:
        """The name of a constant with these values; equal ones are stored once."""
        array = np.asarray(values, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self._store(self._new_name("const"), array)
        return self._constants[key]

    def ints(self, *values: int) -> str:
        """The name of a constant int64 vector."""
        return self.constant(values, np.int64)

    def weight(self, node: Node, index: int, array: np.ndarray | None = None) -> str:
        """The name of parameter ``index``; with ``array``, of what this layer makes of it (reshaped, scaled...)."""
        name = node.blob_names[index]
        array = np.asarray(node.blobs[index] if array is None else array, np.float32)
        count = 1
        while name in self.taken:
            stored = self.initializers.get(name)
            if stored is not None and stored.dtype == array.dtype and np.array_equal(stored, array, equal_nan=True):
                return name
            count += 1
            name = f"{node.blob_names[index]}_{count}"
        return self._store(name, array)

    def sizes(self, value: Value, *axes: int) -> str:
        """The name of an int64 vector: the sizes of these axes of ``value``; a constant where none of them is open."""
        axes = tuple(axis % len(value.shape) for axis in axes)
        if not any(isinstance(value.shape[axis], str) for axis in axes):
            return self.ints(*(value.shape[axis] for axis in axes))
        return self.op("Gather", self.op("Shape", value.name), self.ints(*axes), axis=0)

    def vector(self, *parts: int | str) -> str:
        """The name of an int64 vector of whole numbers and, where a part is a name, what that vector holds."""
        if all(isinstance(part, int) for part in parts):
            return self.ints(*parts)
        names = [part if isinstance(part, str) else self.ints(part) for part in parts]
        return names[0] if len(names) == 1 else self.op("Concat", *names, axis=0)

    def _store(self, name: str, array: np.ndarray) -> str:
        self.taken.add(name)
        self.initializers[name] = array
        return name

    def _new_name(self, what: str) -> str:
        """``layer/what``, ``layer/what_1``, ``layer/what_2``..."""
        base = f"{self.prefix}/{what}"
        while True:
            count = self._counts[base]
            self._counts[base] += 1
            name = f"{base}_{count}" if count else base
            if name not in self.taken:
                self.taken.add(name)
                return name


def value_info(value: Value):
    """What ONNX says of an input or output."""
    helper = library("onnx", "onnx").helper
    return helper.make_tensor_value_info(value.name, 1, list(value.shape))  # 1: float
