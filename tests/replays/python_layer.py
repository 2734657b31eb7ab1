"""Python layers of known projects, each inside a net of its own: outputs and how much randomness they used."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch

import ohem_caffe_port.python_layers  # noqa: F401  fills the registry
import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.layers import PYTHON_LAYERS
from ohem_caffe_port.mining import select_rois_by_ratio
from ohem_caffe_port.net import Net

from .common import Differences, flat, replay_index

TIGHT = {"outputs": {"rel": 1e-6}, "indices": {"abs": 0}, "randomness": {"abs": 0}}
WHOLE = ("labels", "weights")  # in the names of tops with values that are exact or wrong


def unknown_python_layers(base: Path, entry: dict) -> set[str]:
    """What a case needs and is not here: Python layers that are not registered, or another function."""
    if "function" in entry:
        return {entry["function"]} - {"get_ohem_minibatch_ratio"}
    net = prototxt.read_net(f"{base}.prototxt")
    layers = {(x.python_param.module, x.python_param.layer) for x in net.layer if x.type == "Python"}
    return {".".join(key) for key in layers - set(PYTHON_LAYERS)}


def replay_python_layer(base: Path, entry: dict) -> dict:
    """One case: the tops for the recorded bottoms, and the next numbers of the random stream."""
    if "function" in entry:
        return replay_ratio(base, entry)
    if "calls" in entry:
        return replay_calls(base, entry)
    found = Differences(TIGHT)
    arrays = np.load(f"{base}.npz")
    cfg, phase = Config(), entry["phase"]
    cfg.merge({phase: entry["cfg_overrides"]}, source=base.name)
    rng = np.random.RandomState(entry["np_seed"])
    net = Net(f"{base}.prototxt", phase, cfg=cfg, rng=rng)
    inputs = {name: torch.from_numpy(arrays[f"in/{name}"]) for name in net.inputs}
    outputs = {key for key in arrays.files if key.startswith("out/")}
    if base.name.startswith("Proposal__tied"):
        inputs, scores = without_ties(net.layer_by_name["L"], inputs, arrays)
        outputs.remove("out/scores")
        found.add("outputs", scores, arrays["out/scores"], "out/scores")
    net(**inputs)
    for key in sorted(outputs):
        whole = any(word in key for word in WHOLE)
        found.add("indices" if whole else "outputs", flat(net.blobs[key[4:]]), arrays[key], key)
    _, keys, position, *_ = rng.get_state()
    digest = np.frombuffer(hashlib.sha1(keys.tobytes()).digest(), dtype=np.uint8)
    found.add("randomness", position, arrays["np_state_after/pos"], "np_state_after/pos")
    found.add("randomness", digest, arrays["np_state_after/keys_sha1"], "np_state_after/keys_sha1")
    following = arrays["np_next_randint"]
    found.add("randomness", rng.randint(0, 2**31 - 1, following.shape), following, "np_next_randint")
    return found.report()


def replay_calls(base: Path, entry: dict) -> dict:
    """Several forwards of one net, each with a backward where there is a loss; the layers' state goes on between."""
    found = Differences(TIGHT | {"losses": {"rel": 1e-6}, "gradients": {"rel": 1e-6}})
    arrays = np.load(f"{base}.npz")
    rng = np.random.RandomState(entry["np_seed"])
    net = Net(f"{base}.prototxt", "TRAIN", rng=rng)
    for call in range(entry["calls"]):
        found.add("randomness", rng.get_state()[2], arrays[f"np_pos_before/{call}"], f"np_pos_before/{call}")
        net(**{name: torch.from_numpy(arrays[f"in/{call}/{name}"]) for name in net.inputs})
        found.add("randomness", rng.get_state()[2], arrays[f"np_pos_after/{call}"], f"np_pos_after/{call}")
        for key in (key for key in arrays.files if key.startswith(f"out/{call}/")):
            top = net.blobs[key.split("/")[2]]
            whole = any(word in key for word in (*WHOLE, "mask"))
            found.add("indices" if whole else "outputs", flat(top), arrays[key], key)
        if f"loss/{call}" not in arrays:
            continue
        found.add("losses", flat(net.loss), arrays[f"loss/{call}"], f"loss/{call}")
        weight = arrays[f"dout/{call}/loss"]
        for name in (name for name in net.inputs if f"din/{call}/{name}" in arrays):
            gradient = torch.zeros_like(net.blobs[name])
            if net.loss.requires_grad:
                (gradient,) = torch.autograd.grad(net.loss, net.blobs[name])
            found.add("gradients", gradient, arrays[f"din/{call}/{name}"], f"din/{call}/{name}")
            unweighted = arrays[f"din_after_forward/{call}/{name}"] * weight
            found.add("gradients", gradient, unweighted, f"din_after_forward/{call}/{name}")
    following = arrays["np_next_randint"]
    found.add("randomness", rng.randint(0, 2**31 - 1, following.shape), following, "np_next_randint")
    return found.report()


def replay_ratio(base: Path, entry: dict) -> dict:
    """adversarial-frcnn's choice of RoIs."""
    found = Differences(TIGHT)
    arrays = np.load(f"{base}.npz")
    rng = np.random.RandomState(entry["np_seed"])
    given = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("in/")}
    chosen = select_rois_by_ratio(
        given["loss"], given["rois"], given["labels"], entry["batch"], ratio=entry["ratio"],
        hard_negative=entry["hard_negative"], nms_thresh=0.7 if entry["use_nms"] else None, rng=rng,
    )  # fmt: skip
    found.add("indices", chosen, arrays["hard_inds"], "hard_inds")
    for key in (key for key in arrays.files if key.startswith("out/")):
        found.add("indices", given[key[4:].removesuffix("_hard")][chosen], arrays[key], key)
    following = arrays["np_next_randint"]
    found.add("randomness", rng.randint(0, 2**31 - 1, following.shape), following, "np_next_randint")
    return found.report()


def without_ties(layer, inputs: dict, arrays) -> tuple[dict, np.ndarray]:
    """Inputs of a ProposalLayer whose scores are ranks, and the scores of the boxes that Caffe kept.

    numpy's unstable sort decided between equal scores. Of equals those go first that Caffe kept, in its order; if its
    result is that of a greedy suppression at all, this order leads to the very same one.
    """
    cfg, count = layer.context.cfg.TEST, len(layer.anchors)
    settings = {"RPN_PRE_NMS_TOP_N": -1, "RPN_POST_NMS_TOP_N": -1, "RPN_NMS_THRESH": 1.0}
    stated = {key: getattr(cfg, key) for key in settings}
    vars(cfg).update(settings)  # every box, none suppressed
    boxes, scores, rows = (flat(v) for v in layer.propose(list(inputs.values())))
    vars(cfg).update(stated)
    kept = arrays["out/rois"][:, 1:]
    distance = np.abs(boxes[None] - kept[:, None]).max(2) + np.abs(scores[None] - arrays["out/scores"])
    match = distance.argmin(1)
    turn = np.full(len(boxes), len(boxes))
    turn[match] = np.arange(len(kept))
    ranks = np.empty(len(boxes), np.float32)
    ranks[np.lexsort((-turn, scores))] = np.arange(1, len(boxes) + 1)
    name = next(iter(inputs))
    ranked = inputs[name].clone()
    height, width = ranked.shape[2:]
    by_row = np.zeros(height * width * count, np.float32)
    by_row[rows] = ranks
    ranked[0, count:] = torch.from_numpy(by_row.reshape(height, width, count).transpose(2, 0, 1))
    return inputs | {name: ranked}, scores[match][:, None]


def replay_python_layers(folder: Path) -> dict:
    """All cases of an index; layers that are not registered are named, and count as missing."""

    def unknown_of(name, entry):
        return unknown_python_layers(folder / name, entry)

    return replay_index(folder, unknown_of, lambda name, entry: replay_python_layer(folder / name, entry))
