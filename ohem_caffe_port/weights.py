"""Weight files into and out of a Net, by Caffe's rules (``Net::CopyTrainedLayersFrom``, ``Net::ToProto``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from converters import CaffeModel, LayerWeights, WeightsError
from converters.caffemodel import without_trailing
from converters.formats import read
from converters.named import NamedArrays
from converters.naming import from_named, is_caffes, model_of_net
from prototxt.caffe_pb2 import NetParameter

from .net import Net

LOADED, NOT_IN_FILE, NOT_IN_NET = "loaded", "not in the file", "not in the net"
_MISFIT = "mis-shaped: "


@dataclass
class LoadReport:
    """What weights and a net have in common.

    ``rows`` are ``(layer, shapes in the file, verdict)`` for every layer with parameters, those of the file first;
    shapes are the net's for layers that only the net has. A verdict is "loaded", "not in the file", "not in the net",
    or "mis-shaped: " and why, with both shapes.
    """

    path: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def loaded(self) -> list[str]:
        return [layer for layer, _, verdict in self.rows if verdict == LOADED]

    @property
    def misfits(self) -> list[tuple[str, str]]:
        """``(layer, why)``: parameters of other shapes, or another number of them, in file and net."""
        return [(layer, v.removeprefix(_MISFIT)) for layer, _, v in self.rows if v.startswith(_MISFIT)]

    def summary(self) -> str:
        """One line: how many layers have which verdict."""
        verdicts = [_MISFIT[:-2] if v.startswith(_MISFIT) else v for _, _, v in self.rows]
        counts = {v: verdicts.count(v) for v in (LOADED, NOT_IN_FILE, NOT_IN_NET, _MISFIT[:-2])}
        return f"{self.path}: " + ", ".join(f"{n} layers {verdict}" for verdict, n in counts.items() if n)


def check(net: Net, content, path="") -> LoadReport:
    """How weights fit a net, by layer name and position; changes nothing (``net`` may lie on the meta device).

    ``content`` is what :func:`converters.formats.read` gives: a ``CaffeModel``, or ``NamedArrays`` of Caffe or PyTorch.

    Raises:
        WeightsError: no weights but a solver state or a mean; damaged metadata.
    """
    return _match(net, content, path)[0]


def copy_from(net: Net, path) -> LoadReport:
    """Loads a weight file of any kind (:func:`converters.formats.read`) into ``net`` by layer name and position.

    Layers that only one side has are left alone and reported. Of several layers that share a tensor the last one in
    the file wins. Legacy 4-d shapes such as ``(1, 1, n, k)`` match ``(n, k)``. Values go from the mapped file to their
    tensors in one copy.

    Raises:
        WeightsError: no weight file; numbers or shapes of parameters that do not fit, all of them told; not one layer
            in common. Then nothing has been copied.
    """
    report, planned = _match(net, read(path), path)
    if report.misfits:
        (layer, why), *others = report.misfits
        hint = "to learn a layer from scratch, rename it in the prototxt"
        if others:
            hint = "; ".join(f"layer '{name}': {reason}" for name, reason in others[:20]) + f"; {hint}"
        raise WeightsError(why, file=path, layer=layer, hint=hint)
    if net.params and not report.loaded:
        in_file = ", ".join(layer for layer, _, verdict in report.rows if verdict == NOT_IN_NET)
        raise WeightsError(
            "no layer of the file is in the net",
            file=path,
            hint=f"the file has {in_file[:300]}; the net has {', '.join(net.params)[:300]}",
        )
    for target, blob in planned:
        _store(target, blob)
    return report


def _match(net: Net, content, path) -> tuple[LoadReport, list[tuple[Tensor, np.ndarray]]]:
    """The report, and what is to be copied where."""
    report, planned, seen = LoadReport(str(path)), [], set()
    model, useless = _as_model(net, content, path)
    shared = {user for p in net.learnable_params if len(p.users) > 1 for user in p.users}
    for source in model.layers:
        if not source.blobs:  # in HDF5 perhaps all of them lie under another layer
            continue
        shapes = ", ".join("shared" if b is None else str(b.shape) for b in source.blobs)
        targets, verdict = net.params.get(source.name), NOT_IN_NET
        if targets is not None:
            seen.add(source.name)
            blobs = source.blobs
            if model.shared_once:
                blobs = blobs + [None] * (len(targets) - len(blobs))
            pairs = list(zip(targets, blobs, strict=False))
            why = _misfit(net.layer_by_name[source.name], source, blobs, shared)
            verdict = _MISFIT + why if why else LOADED
            planned += [] if why else [(target, blob) for target, blob in pairs if blob is not None]
        report.rows.append((source.name, shapes, verdict))
    report.rows += [(name, str(array.shape), NOT_IN_NET) for name, array in useless.items()]
    for name, blobs in net.params.items():
        if name not in seen:
            report.rows.append((name, ", ".join(str(tuple(b.shape)) for b in blobs), NOT_IN_FILE))
    return report, planned


def _as_model(net: Net, content, path) -> tuple[CaffeModel, dict[str, np.ndarray]]:
    """The weights by layer, and the arrays that no layer of the net has a place for."""
    useless: dict[str, np.ndarray] = {}
    try:
        if isinstance(content, NamedArrays) and is_caffes(content):
            content = from_named(content)
        elif isinstance(content, NamedArrays):
            arrays, net_param = content.arrays, NetParameter(name=net.name, layer=[layer.param for layer in net.layers])
            content, _, extra = model_of_net(content, net_param)
            useless = {name: arrays[name] for name in extra}
    except WeightsError as error:
        error.file = error.file or path
        raise
    if not isinstance(content, CaffeModel):
        what = "a mean image" if isinstance(content, np.ndarray) else "a solver state"
        raise WeightsError(f"holds {what}, no weights", file=path)
    return content, useless


def _misfit(layer, source: LayerWeights, blobs: list, shared: set) -> str:
    """Why the blobs of a file cannot be those of ``layer``; "" if they can."""
    shapes = layer.blob_shapes
    absent = [j for j, blob in enumerate(blobs) if blob is None and (source.name, j) not in shared]
    if len(blobs) != len(shapes) or absent:
        return f"has {len(source.blobs)} parameters in the file and {len(shapes)} in the net"
    wrong = [
        f"parameter {j} has shape {blob.shape} in the file and {shape} in the net"
        for j, (blob, shape) in enumerate(zip(blobs, shapes, strict=True))
        # forks store BN's rows as (1, C) or (1, C, 1, 1)
        if blob is not None
        and not _shapes_match(blob.shape, shape)
        and not (layer.type == "BN" and blob.size == np.prod(shape))
    ]
    return ", ".join(wrong)


def _store(target: Tensor, blob: np.ndarray) -> None:
    """One copy from the file to the tensor, whether the file's values are aligned or not."""
    with torch.no_grad():
        if target.device.type != "cpu" or not target.is_contiguous():
            target.copy_(torch.from_numpy(np.array(blob, np.float32)).view(target.shape))
            return
        place = target.detach().numpy().reshape(-1)
        blob = blob.reshape(-1)
        if blob.dtype == place.dtype:  # bytes: numpy would copy unaligned numbers one by one
            place, blob = place.view(np.uint8), blob.view(np.uint8)
        np.copyto(place, blob, casting="same_kind")


def _shapes_match(stored: tuple, wanted: tuple) -> bool:
    """Equal, or equal once a legacy shape's leading ones are dropped (``Blob::ShapeEquals``)."""
    if len(stored) == 4 and len(wanted) < 4:
        return stored == (1,) * (4 - len(wanted)) + tuple(wanted)
    return tuple(stored) == tuple(wanted)


def to_caffemodel(net: Net) -> CaffeModel:
    """The net's weights as Caffe's ``Net::ToProto`` lists them: every layer, data layers and the automatic splits
    included, a shared tensor under each of its layers (there it is the same array)."""
    model = CaffeModel(net.name)
    arrays = {id(p.blob): p.blob.detach().cpu().numpy() for p in net.learnable_params}
    names = {v: value.name for v, value in enumerate(net.values)}
    reading: dict[tuple[int, int], str] = {}  # (step, bottom) -> the split's top it reads
    for i, (step, layer) in enumerate(zip(net.steps, net.layers, strict=True)):
        bottoms = [reading.get((i, b), names[v]) for b, v in enumerate(step.bottoms)]
        blobs = [arrays[id(b)].reshape(s) for b, s in zip(layer.blobs, layer.blob_shapes, strict=True)]
        tops, params = [names[v] for v in step.tops], without_trailing([param.name for param in layer.param.param])
        transposed = layer.type == "InnerProduct" and layer.param.inner_product_param.transpose
        model.layers.append(LayerWeights(layer.name, layer.param.type, bottoms, tops, blobs, params, transposed))
        for v in step.tops:
            value = net.values[v]
            if len(value.readers) > 1:
                split = f"{value.name}_{layer.name}_{value.top}_split"
                tops = [f"{split}_{n}" for n in range(len(value.readers))]
                reading |= dict(zip(value.readers, tops, strict=True))
                model.layers.append(LayerWeights(split, "Split", [value.name], tops, []))
    return model
