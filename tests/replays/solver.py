"""Solver cases: a small net, one solver and policy, weights and history at every iteration."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import prototxt
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.weights import copy_from

from .common import Differences, compare_history, compare_weights, register_stub


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
    compare_history(found, solver, golden)
    # what Caffe saved half-way leads to the same end
    for state in sorted(folder.glob("snap_iter_*.solverstate")):
        resumed = Solver(folder / "solver.prototxt")
        resumed.restore(state)
        resumed.net.layers[0].step = resumed.iter * resumed.param.iter_size
        resumed.step(len(golden["lr"]) - resumed.iter)
        compare_weights(found, resumed.net, golden, f"w/{len(golden['lr'])}/", "resumed_weights")
    found.tolerances["resumed_weights"] = found.tolerances["weights"]
    return found.report()
