"""A net as an ``onnx.ModelProto``: every layer's exporter in turn, and the model around what they write."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from dataclasses import replace
from pathlib import Path

from prototxt.errors import CaffePortError

from ..errors import WeightsError
from ..extras import library
from .graph import EXPORTERS, OPSET, TARGETS, GraphBuilder, Node, Value, value_info


def has_exporter(node: Node) -> bool:
    """Whether layers of this type have a form in ONNX here (some of their settings may have none)."""
    _load_exporters()
    return node.type in EXPORTERS


def export_graph(
    name: str, nodes: list[Node], inputs: list[Value], outputs: list[Value],
    *, target="onnxruntime", metadata=None, notes: list[str] | None = None,
):  # fmt: skip
    """The ``onnx.ModelProto`` of a net.

    Args:
        nodes: the layers in their order, without those of the inputs.
        target: see :class:`GraphBuilder`.
        metadata: ``{key: text}`` for the model's ``metadata_props``.
        notes: gets lines about what a user of the target should know.

    Raises:
        WeightsError: layers that cannot be expressed, all of them named; onnx is not installed.
    """
    if target not in TARGETS:
        raise WeightsError(f"no such target: {target}", hint=f"There are {', '.join(TARGETS)}.")
    g = GraphBuilder(target)
    current = {value.name: value.name for value in inputs}  # a blob's value -> its name in the graph
    g.taken |= {value.name for node in nodes for value in node.tops} | set(current)
    read = {value.name for node in nodes for value in node.bottoms}
    errors = []
    for node in nodes:
        first = len(g.nodes)
        try:
            current.update(zip((top.name for top in node.tops), _export(g, node, current), strict=True))
        except CaffePortError as error:
            errors.append(error)
            current.update((top.name, top.name) for top in node.tops)  # go on, to name every such layer
        finds_rows = any(operator.op_type == "NonZero" for operator in g.nodes[first:])
        if g.for_opencv and finds_rows and read.intersection(top.name for top in node.tops):
            g.notes.append(
                f"how many rows layer '{node.name}' gives depends on the data, and OpenCV plans the layers behind it "
                "for those of the first run: before every other run give setInput a blob of another shape first"
            )
    if errors:
        raise (
            errors[0]
            if len(errors) == 1
            else WeightsError(f"{len(errors)} layers cannot be expressed in ONNX:\n  " + "\n  ".join(map(str, errors)))
        )
    if notes is not None:
        notes += g.notes
    for value in outputs:
        if current[value.name] != value.name:
            copied = g.op("Identity", current[value.name])
            _rename(g.nodes[-1:], {copied: value.name})
    return _model(g, name, inputs, outputs, {"target": target, **(metadata or {})})


def _export(g: GraphBuilder, node: Node, current: dict[str, str]) -> list[str]:
    """Writes one layer; the names of its tops' values in the graph: the tops' own for what it made."""
    if not has_exporter(node):
        raise node.error("has no form in ONNX here")
    g.prefix, first = node.name, len(g.nodes)
    bottoms = [Value(current[v.name], v.shape, v.sample) for v in node.bottoms]
    results = EXPORTERS[node.type](g, replace(node, bottoms=bottoms))
    if len(results) != len(node.tops):
        raise node.error(f"{len(results)} results were written for {len(node.tops)} tops")
    made = {name for operator in g.nodes[first:] for name in operator.output}
    renamed = {result: top.name for top, result in reversed(list(zip(node.tops, results, strict=True)))
               if result in made}  # fmt: skip
    _rename(g.nodes[first:], renamed)
    return [renamed.get(result, result) for result in results]


def _rename(operators, names: dict[str, str]) -> None:
    for operator in operators:
        operator.input[:] = [names.get(name, name) for name in operator.input]
        operator.output[:] = [names.get(name, name) for name in operator.output]
        for attribute in operator.attribute:  # the body of a loop
            _rename(attribute.g.node, names)
            for result in attribute.g.output:
                result.name = names.get(result.name, result.name)


def _model(g: GraphBuilder, name: str, inputs, outputs, metadata: dict[str, str]):
    onnx = library("onnx", "onnx")
    operators, used = _needed(g.nodes, {value.name for value in outputs})
    model = onnx.ModelProto(ir_version=8, producer_name="ohem_caffe_port")
    model.opset_import.add(domain="", version=OPSET)
    onnx.helper.set_model_props(model, metadata)
    model.graph.name = name or "net"
    model.graph.node.extend(operators)
    model.graph.input.extend(value_info(value) for value in inputs)
    model.graph.output.extend(value_info(value) for value in outputs)
    for key, array in g.initializers.items():
        if key in used:  # filled in place: onnx's helpers copy, and fail above 2 GiB
            tensor = model.graph.initializer.add(name=key, dims=array.shape)
            tensor.data_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor.raw_data = array.tobytes()
    return model


def _needed(nodes, wanted: set[str]):
    """The operators that ``wanted`` values depend on, and the names of all that they read."""
    used, kept = set(wanted), []
    for operator in reversed(nodes):
        if used.intersection(operator.output):
            kept.append(operator)
            used.update(_reads(operator))
    return kept[::-1], used


def _reads(operator):
    yield from operator.input
    for attribute in operator.attribute:  # what the bodies of loops read from around them
        for inner in attribute.g.node:
            yield from _reads(inner)


@functools.cache
def _load_exporters() -> None:
    """Imports every module beside this one, which registers its exporters."""
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        importlib.import_module(f"{__package__}.{module.name}")
