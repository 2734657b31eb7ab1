"""Training runs fed with Caffe's own blobs: ``inputs.npz`` beside solver, net and snapshots."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.weights import copy_from

from .common import Differences, compare_weights, config_of, flat, register_stub


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
