"""Differences and their tolerances, and what several forms need."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.layers import PYTHON_LAYERS, PythonLayer, register_python
from prototxt import CaffePortError

TOLERANCES = {
    "losses": {"rel": 2e-6},
    "indices": {"abs": 0},
    "rois": {"abs": 0},
    "roi_loss": {"rel": 1e-5},
    "weights": {"abs": 5e-7},
    "outputs": {"rel": 1e-5},
    "statistics": {"rel": 1e-5},
    "gradients": {"rel": 1e-5},
    "history": {"rel": 1e-5},
    "rate": {"rel": 1e-6},
    "inputs": {"abs": 1e-4},
    "detections": {"rel": 1e-5},
}  # fmt: skip
# Sums over thousands of terms, in an order of their own in every implementation of a matrix product.
LONG_SUMS = {"gradients": {"rel": 1e-4}}


class Differences:
    """The largest absolute and relative difference of each kind, and where they were found."""

    def __init__(self, tolerances=None):
        self.found: dict[str, dict] = {}
        self.tolerances = TOLERANCES | (tolerances or {})
        self.notes: dict[str, object] = {}

    def add(self, kind: str, ours, reference, where: str) -> None:
        ours, reference = np.asarray(ours), np.asarray(reference)
        entry = self.found.setdefault(kind, {"abs": 0.0, "rel": 0.0, "compared": 0})
        entry["compared"] += 1
        if ours.shape != reference.shape and ours.size == reference.size:
            ours = ours.reshape(reference.shape)
        if ours.shape != reference.shape:
            entry.update(abs=math.inf, rel=math.inf, at=f"{where}: shape {ours.shape}, Caffe's {reference.shape}")
            return
        if not reference.size:
            return
        ours, reference = ours.astype(np.float64), reference.astype(np.float64)
        same = (ours == reference) | (np.isnan(ours) & np.isnan(reference))
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.where(same, 0, np.abs(ours - reference))
        gap = np.where(np.isnan(gap), math.inf, gap)
        largest = float(gap.max())
        scale = float(np.nanmax(np.abs(np.where(np.isfinite(reference), reference, 0))))
        # gradients of a few 1e-12 beside zero are rounding, not a difference
        relative = largest / max(scale, 1e-6)
        if kind == "losses":
            with np.errstate(invalid="ignore"):
                each = np.where(same, 0, gap / np.maximum(np.abs(reference), 1e-6))
            relative = float(np.nan_to_num(each, nan=math.inf).max())
        if relative > entry["rel"] or (largest > entry["abs"]):
            entry["at"] = where
        entry["abs"], entry["rel"] = max(entry["abs"], largest), max(entry["rel"], relative)

    def report(self) -> dict:
        result = {}
        for kind, entry in self.found.items():
            limits = self.tolerances.get(kind, {})
            entry["tolerance"] = limits
            entry["ok"] = all(entry[measure] <= limit for measure, limit in limits.items())
            result[kind] = entry
        return {"ok": bool(result) and all(e["ok"] for e in result.values()), "differences": result, **self.notes}


def replay_index(folder: Path, unknown_of: Callable, replay: Callable) -> dict:
    """All cases of ``index.json``, and the largest differences among them.

    Args:
        unknown_of: ``(name, entry)`` to what the case needs and is not here; such a case counts as missing.
        replay: ``(name, entry)`` to the case's report.
    """
    index = json.loads((folder / "index.json").read_text())
    cases, missing = {}, {}
    for name, entry in index.items():
        if unknown := unknown_of(name, entry):
            missing[name] = sorted(unknown)
            continue
        try:
            cases[name] = replay(name, entry)
        except CaffePortError as error:
            cases[name] = {"ok": False, "error": str(error), "differences": {}}
    worst: dict[str, dict] = {}
    for name, case in cases.items():
        for kind, entry in case["differences"].items():
            if kind not in worst or entry["rel"] > worst[kind]["rel"]:
                worst[kind] = {"abs": entry["abs"], "rel": entry["rel"], "at": name}
    failed = {name: case for name, case in cases.items() if not case["ok"]}
    return {
        "ok": not failed and not missing,
        "differences": worst,
        "cases": len(index),
        "replayed": len(cases),
        "failed": failed,
        "unknown_layers": missing,
    }


def register_stub(module: str, layer: str, make) -> None:
    """Makes ``make(step) -> {top: array}`` the Python layer ``module.layer``, for data that a file replays."""
    PYTHON_LAYERS.pop((module, layer), None)

    @register_python(module, layer)
    class Replayed(PythonLayer):
        def setup(self, bottoms):
            self.step = 0

        def infer(self, bottoms):
            return [torch.empty(np.shape(make(0)[top]), device="meta") for top in self.param.top]

        def forward(self, bottoms):
            blobs = make(self.step)
            self.step += 1
            return [torch.from_numpy(np.array(blobs[top], dtype=np.float32)) for top in self.param.top]


def config_of(options: dict) -> Config:
    cfg = Config()
    known = {
        g: {k: v for k, v in options[g].items() if hasattr(getattr(cfg, g), k)}
        for g in ("TRAIN", "TEST")
        if g in options
    }
    cfg.merge(known, source="info.json")
    return cfg


def flat(tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def compare_weights(found, net, golden, prefix, kind="weights") -> None:
    for key in (k for k in golden.files if k.startswith(prefix)):
        layer, j = key[len(prefix) :].rsplit("/", 1)
        found.add(kind, flat(net.params[layer][int(j)]), golden[key], key)


def compare_history(found, solver, golden) -> None:
    """``history/<i>``: the solver's blobs in Caffe's order, all parameters' first ones, then all second ones."""
    history = [h[slot] for slot in range(len(solver.history[0])) for h in solver.history]
    for i, blob in enumerate(history):
        if f"history/{i}" in golden:
            found.add("history", flat(blob), golden[f"history/{i}"], f"history/{i}")
