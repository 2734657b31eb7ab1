"""Training runs fed with Caffe's own blobs: ``inputs.npz`` beside solver, net and snapshots."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import torch

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.train import save_unnormalized
from ohem_caffe_port.weights import copy_from

from .common import Differences, compare_history, compare_weights, config_of, flat, register_stub
from .end_to_end import compare_models

# NMS over predicted boxes amplifies rounding. What is mined must agree all the same.
ILL_CONDITIONED = {
    "losses": {"rel": 4e-4}, "gradients": {"rel": 1e-4}, "weights": {"abs": 2e-6}, "history": {"rel": 1e-4}
}  # fmt: skip


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
    net, iterations = solver.net, len(golden["loss_iter"] if "loss_iter" in golden else golden["losses"])
    golden_losses = golden["losses_sub"] if "losses_sub" in golden else golden["losses"][:, None]
    # the columns of losses_sub: tops with a loss_weight, then accuracies
    loss_names = [net.values[v].name for v in net.loss_weights]
    loss_names += [top for layer in net.layers if layer.type == "Accuracy" for top in layer.param.top]
    kinds = {"rois_hard": "rois", "labels_hard": "indices"}
    kinds |= {top: "indices" for layer in net.layers if layer.type == "BoxAnnotatorOHEM" for top in layer.param.top}
    mining = next((layer for layer in net.layers if hasattr(layer, "select")), None)
    sub = 0
    after_forward = net.forward

    def watched(**kwargs):
        nonlocal sub
        result = after_forward(**kwargs)
        losses = [net.blobs[n].item() for n in loss_names]
        found.add("losses", losses, golden_losses[sub], f"pass {sub}")
        if mining is not None and f"sub/{sub}/hard_inds" in golden:
            found.add("indices", mining.hard_inds, golden[f"sub/{sub}/hard_inds"], f"pass {sub}")
            found.add("roi_loss", mining.roi_loss, golden[f"sub/{sub}/ohem_loss"], f"pass {sub}")
        for name, blob in net.blobs.items():
            if (key := f"sub/{sub}/{name}") in golden:
                found.add(kinds.get(name, "roi_loss"), flat(blob), golden[key], key)
        if sub == 0:
            for key in golden.files:
                if key.startswith("act0/"):
                    found.add("outputs", flat(net.blobs[key[5:]]), golden[key], key)
        for name in ("mbox_loc", "mbox_conf"):
            if name in net.blobs:
                net.blobs[name].retain_grad()
        sub += 1
        return result

    net.forward = watched
    apply_update = solver.apply_update

    def before_update():
        compare_priors(found, net, golden, solver.iter)
        prefixes = (f"grad_accum_it{solver.iter}/", f"grad_it{solver.iter}/")
        for key in (k for k in golden.files if k.startswith(prefixes)):
            layer, j = key.split("/", 1)[1].rsplit("/", 1)
            blob = net.params[layer][int(j)]
            found.add("gradients", flat(torch.zeros_like(blob) if blob.grad is None else blob.grad), golden[key], key)
        apply_update()

    solver.apply_update = before_update
    for _ in range(iterations):
        solver.step()
        compare_weights(found, net, golden, f"w_iter{solver.iter}/")
    found.notes["iterations"] = iterations
    compare_history(found, solver, golden)
    for reference in folder.glob("unnormalized_iter_*.caffemodel"):
        compare_unnormalized(found, net, reference, json.loads((folder / "info.json").read_text()))
        compare_test_outputs(found, reference, inputs, golden)
    multibox = [layer.param.multibox_loss_param for layer in net.layers if layer.type == "MultiBoxLoss"]
    if multibox:
        compare_test_outputs(found, folder / f"snap_iter_{iterations}.caffemodel", inputs, golden)
    if any(p.HasField("nms_param") for p in multibox):
        found.tolerances |= ILL_CONDITIONED

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


def compare_unnormalized(found, net: Net, reference: Path, info: dict) -> None:
    """What py-R-FCN writes when box targets are divided by given numbers: two classes, background and foreground."""
    means, stds = (np.tile(info[f"bbox_normalize_{kind}"], 2) for kind in ("means", "stds"))
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / reference.name
        save_unnormalized(net, path, means, stds, Config())
        compare_models(found, path, reference)


def compare_priors(found, net, golden, step: int) -> None:
    """SSD: ``<loc or conf>_diff_rows/<k>``, the priors that got a gradient, and ``actdiff0/<blob>``, that gradient."""
    for kind in ("loc", "conf"):
        name, rows = f"mbox_{kind}", f"{kind}_diff_rows/{step}"
        if rows in golden:
            grad = flat(net.blobs[name].grad)
            found.add("indices", grad.reshape(*golden[rows].shape, -1).any(2), golden[rows], rows)
            if step == 0:
                found.add("gradients", grad, golden[f"actdiff0/{name}"], f"actdiff0/{name}")


def compare_test_outputs(found, snapshot: Path, inputs, golden) -> None:
    """``test/<k>/<blob>``: the test net on the images (and all RoIs) of minibatch k, with Caffe's own snapshot."""
    net = Net(snapshot.with_name("test.prototxt"), "TEST")
    copy_from(net, snapshot)
    keys = [key for key in golden.files if key.startswith("test/")]
    for k in sorted({key.split("/")[1] for key in keys}):
        with torch.no_grad():
            named = {"data": f"data_{k}", "rois": f"all_rois_{k}"}
            net(**{name: torch.from_numpy(inputs[named[name]]) for name in net.inputs})
        for key in (key for key in keys if key.startswith(f"test/{k}/")):
            found.add("detections", flat(net.blobs[key.split("/")[2]]), golden[key], key)
