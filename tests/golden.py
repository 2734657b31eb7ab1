"""Replays what real Caffe computed and measures the difference.

    python tests/golden.py FOLDER [FOLDER ...]

A folder is a training run (``inputs.npz``), an end-to-end run (``info.json`` with ``sequence``), a solver case (or a
folder of them), a layer index or a selection index. Prints one JSON object for each folder with the largest absolute
and relative difference of each kind, and exits with 1 when one is above its tolerance. Relative differences are taken
against the largest magnitude of the reference array; losses are compared one by one.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch

# This folder has subfolders named like the packages; the packages come first.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import prototxt
from converters import read_caffemodel
from ohem_caffe_port.config import Config
from ohem_caffe_port.data.roidb import add_bbox_regression_targets
from ohem_caffe_port.detect import detections_by_class, im_detect
from ohem_caffe_port.layers import LAYERS, PYTHON_LAYERS, PythonLayer, register_python
from ohem_caffe_port.mining import ohem_roi_loss, select_hard_rois
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.train import save_unnormalized
from ohem_caffe_port.weights import copy_from
from prototxt import CaffePortError

TOLERANCES = {
    "losses": {"rel": 2e-6},
    "indices": {"abs": 0},
    "rois": {"abs": 0},
    "roi_loss": {"rel": 1e-5},
    "weights": {"abs": 5e-7},
    "outputs": {"rel": 1e-5},
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


# ---- training runs fed with Caffe's own blobs


def replay_training(folder: Path) -> dict:
    found = Differences()
    inputs, golden = np.load(folder / "inputs.npz"), np.load(folder / "golden.npz")
    schedule = inputs["schedule"]
    net_param = prototxt.read_net(folder / "train.prototxt")
    data_layer = net_param.layer[0].python_param

    def minibatch(step):
        k = int(schedule[step % len(schedule)])
        return {top: inputs[f"{top}_{k}"] for top in net_param.layer[0].top}

    register_stub(data_layer.module, data_layer.layer, minibatch)
    options = folder / "cfg.json"
    cfg = config_of(json.loads(options.read_text())) if options.exists() else Config()

    def fresh() -> Solver:
        solver = Solver(folder / "solver.prototxt", Net(folder / "train.prototxt", cfg=cfg))
        copy_from(solver.net, folder / "initial.caffemodel")
        return solver

    solver = fresh()
    net, iterations = solver.net, len(golden["loss_iter"])
    loss_names = [layer.param.top[0] for layer in net.layers if layer.is_loss]
    mining = next((layer for layer in net.layers if hasattr(layer, "select")), None)
    sub = 0
    after_forward = net.forward

    def watched(**kwargs):
        nonlocal sub
        result = after_forward(**kwargs)
        found.add("losses", [net.losses[n].item() for n in loss_names], golden["losses_sub"][sub], f"pass {sub}")
        if mining is not None and f"sub/{sub}/hard_inds" in golden:
            found.add("indices", mining.hard_inds, golden[f"sub/{sub}/hard_inds"], f"pass {sub}")
            found.add("roi_loss", mining.roi_loss, golden[f"sub/{sub}/ohem_loss"], f"pass {sub}")
            found.add("rois", net.blobs["rois_hard"], golden[f"sub/{sub}/rois_hard"], f"pass {sub}")
        if sub == 0:
            for key in golden.files:
                if key.startswith("act0/"):
                    found.add("outputs", flat(net.blobs[key[5:]]), golden[key], key)
        sub += 1
        return result

    net.forward = watched
    apply_update = solver.apply_update

    def before_update():
        prefix = f"grad_accum_it{solver.iter}/"
        for key in (k for k in golden.files if k.startswith(prefix)):
            layer, j = key[len(prefix) :].rsplit("/", 1)
            blob = net.params[layer][int(j)]
            found.add("gradients", flat(torch.zeros_like(blob) if blob.grad is None else blob.grad), golden[key], key)
        apply_update()

    solver.apply_update = before_update
    for _ in range(iterations):
        solver.step()
        compare_weights(found, net, golden, f"w_iter{solver.iter}/")
    found.notes["iterations"] = iterations

    for state in sorted(folder.glob("snap_iter_*.solverstate")):
        resumed = fresh()
        resumed.restore(state)
        if resumed.iter >= iterations:
            continue
        data = next(layer for layer in resumed.net.layers if hasattr(layer, "step"))
        data.step = resumed.iter * resumed.param.iter_size
        resumed.step(iterations - resumed.iter)
        compare_weights(found, resumed.net, golden, f"w_iter{iterations}/", "resumed_weights")
    found.tolerances["resumed_weights"] = found.tolerances["weights"]
    return found.report()


def compare_weights(found, net, golden, prefix, kind="weights") -> None:
    for key in (k for k in golden.files if k.startswith(prefix)):
        layer, j = key[len(prefix) :].rsplit("/", 1)
        found.add(kind, flat(net.params[layer][int(j)]), golden[key], key)


# ---- solver cases


def replay_solver(folder: Path) -> dict:
    found = Differences()
    golden = np.load(folder / "golden.npz")
    data = np.load(folder / "data.npz" if (folder / "data.npz").exists() else folder.parent / "data.npz")
    rows = len(data[data.files[0]])
    python = prototxt.read_net(folder / "train.prototxt").layer[0].python_param
    register_stub(python.module, python.layer, lambda step: {k: data[k][step % rows] for k in data.files})
    solver = Solver(folder / "solver.prototxt")
    net = solver.net
    copy_from(net, folder / "initial.caffemodel")
    losses: list[float] = []
    forward = net.forward

    def watched(**kwargs):
        result = forward(**kwargs)
        losses.append(net.loss.item())
        return result

    net.forward = watched
    for t in range(len(golden["lr"])):
        found.add("rate", solver.lr, golden["lr"][t], f"lr {t}")
        solver.step()
        compare_weights(found, net, golden, f"w/{t + 1}/")
    found.add("losses", losses, golden["loss_sub"], "loss_sub")
    slots = range(len(solver.history[0]))
    history = [h[slot] for slot in slots for h in solver.history]
    for i, blob in enumerate(history):
        if f"history/{i}" in golden:
            found.add("history", flat(blob), golden[f"history/{i}"], f"history/{i}")
    # what Caffe saved half-way leads to the same end
    for state in sorted(folder.glob("snap_iter_*.solverstate")):
        resumed = Solver(folder / "solver.prototxt")
        resumed.restore(state)
        resumed.net.layers[0].step = resumed.iter * resumed.param.iter_size
        resumed.step(len(golden["lr"]) - resumed.iter)
        compare_weights(found, resumed.net, golden, f"w/{len(golden['lr'])}/", "resumed_weights")
    found.tolerances["resumed_weights"] = found.tolerances["weights"]
    return found.report()


# ---- single layers


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
    original = net._as_blob
    net._as_blob = lambda value: value  # the very tensors, to read their gradients
    net(**inputs)
    net._as_blob = original
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
    return {layer.type for layer in prototxt.read_net(f"{base}.prototxt").layer}


def replay_layers(folder: Path) -> dict:
    index = json.loads((folder / "index.json").read_text())
    cases, missing = {}, {}
    for name, entry in index.items():
        base = folder / entry["file"]
        unknown = layer_types(base) - set(LAYERS)
        if unknown:
            missing[name] = sorted(unknown)
            continue
        try:
            cases[name] = replay_layer(base, entry)
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


# ---- mining alone


def replay_selection(folder: Path) -> dict:
    found = Differences()
    index = json.loads((folder / "index.json").read_text())
    for name, case in index.items():
        arrays = np.load(folder / f"{name}.npz")
        bottoms = {key[3:]: torch.from_numpy(arrays[key]) for key in arrays.files if key.startswith("in/")}
        boxes = [bottoms[k] for k in ("bbox_pred", "bbox_targets", "bbox_inside_weights", "bbox_outside_weights")]
        loss = ohem_roi_loss(bottoms["cls_prob"], bottoms["labels"], *boxes)
        thresh = case["thresh"] if case["use_nms"] else None
        hard = select_hard_rois(loss, bottoms["rois"], bottoms["labels"], case["batch"], nms_thresh=thresh)
        found.add("roi_loss", loss, arrays["loss"], name)
        # exact ties: numpy's unstable sort decided which of equals is taken, their losses are the same
        ours, reference = np.sort(loss[hard].numpy()), np.sort(arrays["loss"][arrays["hard_inds"]])
        found.add("selected_losses", ours, reference, name)
        if not case["n_tied"]:
            found.add("indices", hard, arrays["hard_inds"], name)
            found.add("rois", bottoms["rois"][hard], arrays["out/rois_hard"], name)
    found.tolerances["selected_losses"] = {"abs": 0}
    found.notes["cases"] = len(index)
    return found.report()


# ---- end to end: images and roidb through the data layer, the solver wrapper and testing


def load_roidb(folder: Path) -> tuple[list[dict], list[np.ndarray]]:
    arrays = np.load(folder / "roidb.npz")
    roidb, images = [], []
    for i in range(int(arrays["n"])):
        keys = ("boxes", "gt_classes", "max_classes", "max_overlaps", "gt_overlaps")
        entry = {key: arrays[f"{key}_{i}"] for key in keys}
        entry |= {key: int(arrays[f"{key}_{i}"]) for key in ("width", "height")}
        entry["flipped"] = bool(arrays[f"flipped_{i}"])
        roidb.append(entry)
        images.append(arrays[f"image_{i}"])
    return roidb, images


def replay_end_to_end(folder: Path) -> dict:
    found = Differences()
    info = json.loads((folder / "info.json").read_text())
    golden = np.load(folder / "golden.npz")
    cfg = config_of(info)
    cfg.RNG_SEED = info["rng_seed"]
    roidb, images = load_roidb(folder)
    with tempfile.TemporaryDirectory() as scratch:
        for i, (entry, image) in enumerate(zip(roidb, images, strict=True)):
            entry["image"] = f"{scratch}/{i}.png"
            cv2.imwrite(entry["image"], image)
        means, stds = add_bbox_regression_targets(roidb, cfg)
        solver = Solver(folder / "solver.prototxt", cfg=cfg)
        net = solver.net
        copy_from(net, folder / "pretrained.caffemodel")
        data_layer = net.layers[0]
        data_layer.set_roidb(roidb)
        sequence: list[list[int]] = []
        plans = data_layer.loader._plans

        def recorded():
            for plan in plans():
                sequence.append(plan.roidb_inds)
                yield plan

        data_layer.loader._plans = recorded
        loss_names = [layer.param.top[0] for layer in net.layers if layer.is_loss]
        sub, forward = 0, net.forward

        def watched(**kwargs):
            nonlocal sub
            result = forward(**kwargs)
            found.add("losses", [net.losses[n].item() for n in loss_names], golden["losses_sub"][sub], f"pass {sub}")
            for name in data_layer.names:
                blob = flat(net.blobs[name])
                if f"sub/{sub}/{name}" in golden:
                    found.add("inputs", blob, golden[f"sub/{sub}/{name}"], f"sub/{sub}/{name}")
                elif f"sub/{sub}/{name}_sum" in golden:
                    sums = [blob.sum(dtype=np.float64), np.abs(blob).sum(dtype=np.float64)]
                    found.add("input_sums", sums, golden[f"sub/{sub}/{name}_sum"], f"sub/{sub}/{name}_sum")
            if f"sub/{sub}/rois_hard" in golden:
                found.add("rois", net.blobs["rois_hard"], golden[f"sub/{sub}/rois_hard"], f"pass {sub}")
            sub += 1
            return result

        net.forward = watched
        for _ in range(info["iters"]):
            solver.step()
            reference = [s for s in info["snapshots"] if s.endswith(f"_iter_{solver.iter}.caffemodel")]
            for name in reference:
                path = Path(scratch) / name
                save_unnormalized(net, path, means, stds, cfg)
                compare_models(found, path, folder / name)
        found.add("indices", sequence[: len(info["sequence"])], info["sequence"], "sequence of images")
        compare_weights(found, net, golden, "w_final_normalized/")
    compare_detections(found, folder, golden, cfg, info["snapshots"][-1])
    found.tolerances["input_sums"] = {"rel": 1e-6}
    return found.report()


def compare_models(found, ours: Path, reference: Path) -> None:
    """Layer by layer, in order: names, types, bottoms and tops (the automatic splits too), and values."""
    a, b = read_caffemodel(ours), read_caffemodel(reference)
    listed = [[(x.name, x.type, x.bottoms, x.tops) for x in model.layers] for model in (a, b)]
    found.add("snapshot_layers", listed[0] != listed[1], False, reference.name)
    by_name = {layer.name: layer for layer in a.layers}
    for layer in b.layers:
        for j, blob in enumerate(layer.blobs):
            found.add("snapshot", by_name[layer.name].blobs[j], blob, f"{reference.name}/{layer.name}/{j}")
    found.tolerances |= {"snapshot": {"abs": 5e-7}, "snapshot_layers": {"abs": 0}}


def compare_detections(found, folder, golden, cfg, snapshot) -> None:
    net = Net(folder / "test.prototxt", "TEST", cfg=cfg)
    copy_from(net, folder / snapshot)  # Caffe's own snapshot, so that this compares testing alone
    images = [cv2.imread(str(path)) for path in sorted((folder / "images").glob("im_*.png"))]
    for k in sorted({int(key.split("/")[1]) for key in golden.files if key.startswith("det/")}):
        boxes = golden[f"det/{k}/boxes_in"]
        scores, pred_boxes = im_detect(net, images[k], boxes, cfg)
        found.add("inputs", flat(net.blobs["data"]), golden[f"det/{k}/data"], f"det/{k}/data")
        found.add("inputs", flat(net.blobs["rois"]), golden[f"det/{k}/rois_dedup"], f"det/{k}/rois_dedup")
        found.add("detections", scores, golden[f"det/{k}/scores"], f"det/{k}/scores")
        found.add("detections", pred_boxes, golden[f"det/{k}/pred_boxes"], f"det/{k}/pred_boxes")
        by_class = detections_by_class(scores, pred_boxes, cfg, thresh=0.05, max_per_image=0)
        for cls, dets in enumerate(by_class):
            if f"det/{k}/cls{cls}" in golden:
                found.add("detections", dets, golden[f"det/{k}/cls{cls}"], f"det/{k}/cls{cls}")
                found.notes["detections_compared"] = found.notes.get("detections_compared", 0) + len(dets)


def replay(folder) -> dict:
    """Replays a folder of any of these forms; see the module's docstring.

    Raises:
        CaffePortError: a folder of no known form.
    """
    folder = Path(folder)
    if (folder / "inputs.npz").exists():
        return replay_training(folder)
    index = {}
    if (folder / "index.json").exists():
        index = json.loads((folder / "index.json").read_text())
    first = next(iter(index.values()), {})
    if "file" in first:
        return replay_layers(folder)
    if "batch" in first and "use_nms" in first:
        return replay_selection(folder)
    if (folder / "info.json").exists() and "sequence" in json.loads((folder / "info.json").read_text()):
        return replay_end_to_end(folder)
    if (folder / "golden.npz").exists() and (folder / "solver.prototxt").exists():
        return replay_solver(folder)
    cases = sorted(p.parent for p in folder.glob("*/solver.prototxt"))
    if cases and (folder / "data.npz").exists():
        results = {case.name: replay_solver(case) for case in cases}
        return {"ok": all(r["ok"] for r in results.values()), "cases": results}
    raise CaffePortError("holds none of the forms that can be replayed", file=folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    status = 0
    for folder in parser.parse_args().folders:
        try:
            result = replay(folder)
        except CaffePortError as error:
            result = {"ok": False, "error": str(error)}
        except (KeyError, OSError) as error:
            result = {"ok": False, "error": f"the folder lacks what its form needs: {error}"}
        print(json.dumps({"folder": os.fspath(folder), **result}, indent=1, default=float))
        status |= not result["ok"]
    return status


if __name__ == "__main__":
    sys.exit(main())
