"""What an exporter needs to know of a Net: what it computes, unique value names, sizes that may vary, parameters."""

from __future__ import annotations

from pathlib import Path

import torch

from converters import WeightsError
from converters.naming import suffixes
from converters.onnx import Node, Value, export_graph, layer_type
from prototxt import CaffePortError

from .net import Net
from .open_sizes import open_shapes

# Layers that only serve training, besides the losses: they measure, or say what to learn.
FOR_TRAINING = {
    "Accuracy", "BboxAccuracy", "BoxAnnotatorOHEM", "CenterLoss", "DetectionAccuracy", "DetectionEvaluate",
    "DetectionGroupAccuracy", "EvalDetection", "HDF5Output", "HardMining", "ProposalTarget", "SegAccuracy", "Silence",
    "SmoothL1LossOHEM", "caffe.layers.detectnet.clustering.ClusterGroundtruth",
    "caffe.layers.detectnet.mean_ap.ScoreDetections", "caffe.layers.detectnet.mean_ap.mAP",
    "ohem_caffe_port.python_layers.OHEMMaskLayer", "pylayer.anchor_target_layer.AnchorTargetLayer",
    "pylayer.proposal_target_layer.ProposalTargetLayer", "roi_data_layer.layer.OHEMDataLayer",
    "rpn.anchor_target_layer.AnchorTargetLayer", "rpn.proposal_target_layer.ProposalTargetLayer",
}  # fmt: skip


def to_onnx(net: Net, *, target: str = "onnxruntime", notes: list[str] | None = None, metadata=None):
    """``net`` (TEST phase) as an ``onnx.ModelProto`` whose inputs and outputs have the blobs' names.

    Losses and layers that measure are left out; what such a layer judged is an output then, unless another layer reads
    it. So are inputs that only they read.

    Args:
        target: see :class:`converters.onnx.GraphBuilder`.
        notes: gets a line about everything that a user should know: what was left out, sizes that are fixed, what the
            target needs.
        metadata: ``{key: text}`` to add to the model's ``metadata_props``.

    Raises:
        WeightsError: layers that cannot be expressed in ONNX, all of them named.
    """
    notes = [] if notes is None else notes
    origin = {"prototxt": Path(net.source).name} if net.source else {}
    try:
        nodes, inputs, outputs = describe(net, notes)
        return export_graph(
            net.name, nodes, inputs, outputs, target=target, metadata=origin | (metadata or {}), notes=notes
        )
    except CaffePortError as error:
        raise net.located(error) from None


def describe(net: Net, notes: list[str]) -> tuple[list[Node], list[Value], list[Value]]:
    """The layers that compute something, without the inputs'; the inputs and the outputs of ``net``.

    Raises:
        WeightsError: data come from files, or nothing but losses is there.
    """
    if net.phase != "TEST":
        raise WeightsError("a net in the TRAIN phase has no form in ONNX", hint="Build it with phase TEST.")
    kept, outputs = _kept(net, notes)
    names = _unique_names(net)
    shapes, fixed = open_shapes(net, names, kept)
    notes += fixed
    values = [Value(*described) for described in zip(names, shapes, net.shapes, strict=True)]
    parameters = _parameter_names(net)
    nodes, inputs = [], []
    for i in sorted(kept):
        layer, step = net.layers[i], net.steps[i]
        bottoms, tops = [values[v] for v in step.bottoms], [values[v] for v in step.tops]
        if layer.type == "Input":
            for v in step.tops:
                if v in outputs or any(reader in kept for reader, _ in net.values[v].readers):
                    inputs.append(values[v])
                else:
                    notes.append(f"input '{names[v]}' is left out with the layers that read it")
            continue
        blobs = [layer.blob(j).detach().cpu().numpy() for j in range(len(layer.blobs))]
        blob_names = [parameters[id(b)] for b in layer.blobs]
        nodes.append(Node(layer, bottoms, tops, blobs, blob_names, lambda n=layer, b=bottoms: _fold(n, b)))
    if not inputs:
        notes.append("no input is left, all outputs are constants: --shape BLOB=N,C,H,W makes an input of a data layer")
    return nodes, inputs, [values[v] for v in outputs]


def _kept(net: Net, notes: list[str]) -> tuple[list[int], list[int]]:
    """Which layers the graph has, and the values that are its outputs."""
    judged = [_judges(layer) for layer in net.layers]
    learned = [False] * len(net.values)  # made by a layer with parameters, or from what one made
    for step, layer in zip(net.steps, net.layers, strict=True):
        for v in step.tops:
            learned[v] = len(layer.blobs) > 0 or any(learned[b] for b in step.bottoms)
    needed, outputs, kept = set(), [], set()
    last = {value.name: v for v, value in enumerate(net.values)}
    for i in reversed(range(len(net.layers))):
        step, layer = net.steps[i], net.layers[i]
        if judged[i] and not needed.intersection(step.tops):
            continue
        for v in step.tops:
            readers = [net.layers[r] for r, _ in net.values[v].readers]
            left_out = bool(readers) and all(judged[r] and r not in kept for r, _ in net.values[v].readers)
            judged_alone = left_out and learned[v] and any(layer.type != "Silence" for layer in readers)
            if last[net.values[v].name] == v and (not readers or judged_alone):
                outputs.append(v)
        if layer.type == "Input" or needed.union(outputs).intersection(step.tops):
            kept.add(i)
            needed.update(step.bottoms)
    if not outputs:
        raise WeightsError(f"nothing is left of net '{net.name}' without its losses and measuring layers")
    _refuse_data(net, kept)
    names = [f"'{net.layers[i].name}' ({net.layers[i].type})" for i in range(len(net.layers)) if i not in kept]
    if names:
        notes.append(f"left out, for no output needs them: layers {', '.join(names)}")
    if new := sorted({net.values[v].name for v in outputs} - set(net.outputs)):
        notes.append(f"outputs are what the layers left out judged: {', '.join(new)}")
    return sorted(kept), sorted(outputs, key=lambda v: net.values[v].name)


def _judges(layer) -> bool:
    return layer.is_loss or any(layer.param.loss_weight) or layer_type(layer) in FOR_TRAINING


def _refuse_data(net: Net, kept) -> None:
    """Raises :class:`WeightsError` when a layer that is needed reads files."""
    readers = [net.layers[i] for i in kept if not net.steps[i].bottoms and net.layers[i].type != "Input"]
    for layer in readers:
        if not len(layer.blobs) and layer.type != "DummyData":
            shapes = " ".join(
                f"{net.values[v].name}={','.join(map(str, net.shapes[v]))}"
                for step, other in zip(net.steps, net.layers, strict=True) if other is layer for v in step.tops
            )  # fmt: skip
            raise WeightsError(
                f"{layer.type}: reads data from files, which a graph cannot",
                layer=layer.name,
                hint=f"Make it an input: --shape {shapes}",
            )


def _unique_names(net: Net) -> list[str]:
    """Inputs and the last value of a blob have the blob's name; what an in-place layer makes or overwrites otherwise
    has its maker's name, too."""
    last = {value.name: i for i, value in enumerate(net.values)}
    makers = [net.layers[value.producer] for value in net.values]
    inputs = {value.name for value, maker in zip(net.values, makers, strict=True) if maker.type == "Input"}
    return [
        value.name
        if maker.type == "Input" or (last[value.name] == i and value.name not in inputs)
        else f"{value.name}/{maker.name}"
        for i, (value, maker) in enumerate(zip(net.values, makers, strict=True))
    ]


def _parameter_names(net: Net) -> dict[int, str]:
    """The name of each tensor, by its ``id``: of the first layer that has it, as PyTorch would say."""
    names: dict[int, str] = {}
    for p in net.learnable_params:
        owner, index = p.users[0]
        layer = next(layer for layer in net.layers if layer.name == owner and any(b is p.blob for b in layer.blobs))
        name = f"{owner}.{suffixes(layer.type, len(layer.blobs))[index]}"
        while name in names.values():  # of two layers with one name
            name += "_"
        names[id(p.blob)] = name
    return names


def _fold(layer, bottoms: list[Value]):
    with torch.no_grad():
        return [top.numpy() for top in layer([torch.zeros(b.sample) for b in bottoms])]
