"""Caffemodels into and out of a Net, by Caffe's rules (``Net::CopyTrainedLayersFrom``, ``Net::ToProto``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from converters import CaffeModel, LayerWeights, WeightsError, read_caffemodel

from .net import Net


@dataclass
class LoadReport:
    """What came of loading: ``rows`` are ``(layer, source shapes, verdict)`` for every layer with parameters."""

    path: str
    rows: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def loaded(self) -> list[str]:
        return [layer for layer, _, verdict in self.rows if verdict == "loaded"]

    def summary(self) -> str:
        counts = {
            v: sum(1 for row in self.rows if row[2] == v) for v in ("loaded", "not in the file", "not in the net")
        }
        return f"{self.path}: " + ", ".join(f"{n} layers {verdict}" for verdict, n in counts.items() if n)


def copy_from(net: Net, path) -> LoadReport:
    """Loads a caffemodel into ``net`` by layer name and position.

    Layers that only one side has are left alone and reported. Of several layers that share a tensor the last one in
    the file wins. Legacy 4-d shapes such as ``(1, 1, n, k)`` match ``(n, k)``.

    Raises:
        WeightsError: no file of that kind; a number or shape of parameters that does not fit; not one layer in common.
    """
    model = read_caffemodel(path)
    report = LoadReport(str(path))
    shared = {user for p in net.learnable_params if len(p.users) > 1 for user in p.users}
    planned: list[tuple[torch.Tensor, np.ndarray]] = []  # nothing is copied until everything fits
    seen = set()
    for source in model.layers:
        if not source.blobs:  # in HDF5 perhaps all of them lie under another layer
            continue
        shapes = ", ".join("shared" if b is None else str(b.shape) for b in source.blobs)
        targets = net.params.get(source.name)
        if targets is None:
            report.rows.append((source.name, shapes, "not in the net"))
            continue
        blobs = source.blobs
        if model.shared_once:
            blobs = blobs + [None] * (len(targets) - len(blobs))
        if len(targets) != len(blobs) or any(b is None and (source.name, j) not in shared for j, b in enumerate(blobs)):
            raise WeightsError(
                f"has {len(source.blobs)} parameters in the file and {len(targets)} in the net",
                file=path,
                layer=source.name,
            )
        layer = net.layer_by_name[source.name]
        for j, (target, blob) in enumerate(zip(targets, blobs, strict=True)):
            if blob is None:
                continue
            shape = layer.blob_shapes[j]
            same_size = layer.type == "BN" and blob.size == target.numel()  # forks store (1, C) or (1, C, 1, 1)
            if not (same_size or _shapes_match(blob.shape, shape)):
                raise WeightsError(
                    f"parameter {j} has shape {blob.shape} in the file and {shape} in the net",
                    file=path,
                    layer=source.name,
                    hint="to learn this layer from scratch, rename it in the prototxt",
                )
            planned.append((target, blob))
        seen.add(source.name)
        report.rows.append((source.name, shapes, "loaded"))
    for name, blobs in net.params.items():
        if name not in seen:
            report.rows.append((name, ", ".join(str(tuple(b.shape)) for b in blobs), "not in the file"))
    if not seen and net.params:
        names = ", ".join(layer.name for layer in model.layers if layer.blobs)
        raise WeightsError(
            "no layer of the file is in the net",
            file=path,
            hint=f"the file has {names[:300]}; the net has {', '.join(net.params)[:300]}",
        )
    with torch.no_grad():
        for target, blob in planned:
            # asarray: a writable array is not needed, torch only reads it here
            target.copy_(torch.from_numpy(np.array(blob, dtype=np.float32)).view(target.shape))
    return report


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
        model.layers.append(LayerWeights(layer.name, layer.param.type, bottoms, [names[v] for v in step.tops], blobs))
        for v in step.tops:
            value = net.values[v]
            if len(value.readers) > 1:
                split = f"{value.name}_{layer.name}_{value.top}_split"
                tops = [f"{split}_{n}" for n in range(len(value.readers))]
                reading |= dict(zip(value.readers, tops, strict=True))
                model.layers.append(LayerWeights(split, "Split", [value.name], tops, []))
    return model
