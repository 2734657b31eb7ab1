"""Single layers and small nets of an index: outputs, gradients of bottoms and of parameters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import prototxt
from ohem_caffe_port.layers import LAYERS
from ohem_caffe_port.net import Net

from .common import LONG_SUMS, Differences, flat, replay_index


def replay_layer(base: Path, entry: dict) -> dict:
    """One case of a layer index: outputs, gradients of bottoms and of parameters."""
    found = Differences(LONG_SUMS if entry.get("long_sums") else None)
    arrays = np.load(f"{base}.npz")
    param = prototxt.read_net(f"{base}.prototxt")
    param.force_backward |= bool(entry.get("backward"))
    net = Net(param, entry.get("phase", "TRAIN"))
    groups: dict[str, dict[str, np.ndarray]] = {}
    for key in arrays.files:
        group, _, name = key.partition("/")
        groups.setdefault(group, {})[name] = arrays[key]
    with torch.no_grad():
        for name, value in groups.get("param", {}).items():
            layer, j = name.rsplit("/", 1)
            net.params[layer][int(j)].copy_(torch.from_numpy(value.reshape(net.params[layer][int(j)].shape)))
    inputs = {name: torch.tensor(groups["in"][name]).requires_grad_() for name in net.inputs}
    net._as_blob = lambda value: value  # the very tensors, to read their gradients
    for _ in range(entry.get("forwards", 3 if base.name.endswith("_fwd3") else 1)):
        net(**inputs)
    for name, value in groups.get("param_after", {}).items():
        layer, j = name.rsplit("/", 1)
        found.add("statistics", flat(net.params[layer][int(j)]), value, f"param_after/{name}")
    for name, value in groups["out"].items():
        found.add("outputs", flat(net.blobs[name]), value, f"out/{name}")
    shapes_agree = all(net.blobs[n].numel() == value.size for n, value in groups["out"].items())
    if entry.get("backward") and "din" in groups and shapes_agree:
        terms = []
        for name, dout in groups.get("dout", {}).items():
            blob = net.blobs[name]
            if blob.requires_grad and name not in net.losses:
                terms.append((blob * torch.from_numpy(dout.reshape(blob.shape))).sum())
        total = sum(terms, net.loss)
        if total.requires_grad:
            total.backward()
        wanted = entry.get("grad_inputs")
        if sum(layer.type != "Input" for layer in param.layer) > 1 and not any(v.any() for v in groups["din"].values()):
            wanted = ()  # a net that ran without force_backward: no gradient reached its inputs
        for name, value in groups["din"].items():
            if wanted is None or name in wanted:
                grad = inputs[name].grad
                found.add("gradients", np.zeros_like(value) if grad is None else flat(grad), value, f"din/{name}")
        for name, value in groups.get("dparam", {}).items():
            layer, j = name.rsplit("/", 1)
            grad = net.params[layer][int(j)].grad
            found.add("gradients", np.zeros_like(value) if grad is None else flat(grad), value, f"dparam/{name}")
    return found.report()


def layer_types(base: Path) -> set[str]:
    """The types in a case's prototxt."""
    return {layer.type for layer in prototxt.read_net(f"{base}.prototxt").layer}


def replay_layers(folder: Path) -> dict:
    """All cases of an index of layers; types that are not registered are named, and count as missing."""

    def unknown_of(name, entry):
        return layer_types(folder / entry["file"]) - set(LAYERS)

    return replay_index(folder, unknown_of, lambda name, entry: replay_layer(folder / entry["file"], entry))
