r"""What each fast path costs in fidelity: training runs that real Caffe did, repeated on that path with Caffe's own
minibatches, and compared with Caffe's numbers and with those of the faithful mode.

    python benchmarks/fast_paths.py
    python benchmarks/fast_paths.py --paths bf16 compile --folders tests/data/golden/ohem_vggm_small_b

Losses are compared pass by pass and relative to themselves; weights after the last iteration, relative to the largest
of their layer. Where mining picks another RoI the two runs train on different data from then on: the last column says
how many of the mined RoIs were the same.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table

import prototxt
from ohem_caffe_port import distributed, python_layers  # noqa: F401  registers what is put back after each stub
from ohem_caffe_port.data.roidb import add_bbox_regression_targets
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import PYTHON_LAYERS
from ohem_caffe_port.net import Net
from ohem_caffe_port.precision import Precision
from ohem_caffe_port.segments import compile_net, compile_update
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.weights import copy_from
from prototxt import CaffePortError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before tests/, whose folders have the packages' names, in other processes too
sys.path.append(str(ROOT / "tests"))
from replays.common import config_of, flat, register_stub  # noqa: E402
from replays.end_to_end import load_roidb  # noqa: E402

FORMS = ("inputs.npz", "roidb.npz")  # minibatches as Caffe's data layer made them; images for the data layer here


@dataclass
class Run:
    """Of one training run: losses ``[passes, losses]``, the RoIs chosen in each pass, and ``{"<layer>/<i>": weights}``
    at the end."""

    losses: list = field(default_factory=list)
    chosen: list = field(default_factory=list)
    weights: dict = field(default_factory=dict)


def padded(param) -> None:
    """Mining gives as many rows as there can be, and the loss ignores those too many."""
    for layer in param.layer:
        if layer.python_param.layer == "OHEMDataLayer":
            layer.python_param.param_str += "\n'padded': True"
        if layer.type == "SoftmaxWithLoss":
            layer.loss_param.ignore_label = -1


@dataclass(frozen=True)
class Way:
    """A way to train: how exactly to compute, what to change in the net's description, in the net, and while it
    trains; and how many processes share the passes of an iteration."""

    precision: Precision = Precision()
    edit: Callable = lambda param: None
    prepare: Callable = lambda net: setattr(net, "keep_blobs", False)
    fused: bool = False
    during: Callable[[], AbstractContextManager] = nullcontext
    processes: int = 1


def compiled(net) -> None:
    net.keep_blobs = False
    compile_net(net)


def op(name: str):
    """The module; some give ``ops`` a function of the same name."""
    return import_module(f"ohem_caffe_port.ops.{name}")


def plain_pooling():
    return mock.patch.object(op("roi_pool"), "_kernels", lambda device: None)


def one_dnn_products():
    """These nets' inner products are too small for it otherwise."""
    return mock.patch.multiple(op("linear"), _LEAST_WEIGHTS=0, _LEAST_ROWS=0)


PATHS = {
    "faithful": Way(),
    "plain_pooling": Way(during=plain_pooling),
    "one_dnn_products": Way(during=one_dnn_products),
    "two_processes": Way(processes=2),
    "channels_last": Way(Precision("fp32", channels_last=True)),
    "padded": Way(edit=padded),
    "fused_update": Way(fused=True),
    "compile": Way(prepare=compiled),
    "bf16": Way(Precision("bf16")),
    "tf32": Way(Precision("tf32")),
    "tf32_channels_last": Way(Precision("tf32", channels_last=True)),
}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paths", nargs="+", choices=PATHS, default=list(PATHS), help=f"[{' '.join(PATHS)}]")
    parser.add_argument("--folders", nargs="+", metavar="DIR", help="training runs of Caffe [all that are here]")
    parser.add_argument("--device", default="cpu", help="[cpu]")
    parser.add_argument("--iters", type=int, help="so many iterations of each run; weights are then not Caffe's [all]")
    args = parser.parse_args()
    if args.iters is not None and args.iters < 1:
        parser.error(f"--iters must be positive, not {args.iters}")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: no CUDA device here")
    args.folders = [Path(folder) for folder in args.folders or training_runs()]
    for folder in args.folders:
        if not any((folder / name).is_file() for name in FORMS):
            parser.error(f"{folder} is no training run of Caffe: it has neither {' nor '.join(FORMS)}")
    return args


def training_runs() -> list[Path]:
    """The runs in ``tests/data/golden`` and, where there is one, in a ``shared/golden`` beside the checkout."""
    found = {}
    for root in (ROOT.parent / "shared" / "golden", ROOT / "tests" / "data" / "golden"):
        found |= {path.parent.name: path.parent for name in FORMS for path in root.glob(f"*/{name}")}
    return [found[name] for name in sorted(found)]


def main() -> int:
    args = parse_args()
    threads = f"{torch.get_num_threads()} threads" if args.device == "cpu" else torch.cuda.get_device_name(args.device)
    pooling = op("roi_pool")._kernels(torch.device(args.device).type)
    by = pooling.__name__.rpartition("_")[2] if pooling else "plain torch"
    print(f"{threads}, torch {torch.__version__}; the faithful way pools RoIs by {by}")
    for folder in args.folders:
        print(f"\n{folder.name}: largest relative difference")
        table = Table(
            "path", "losses: from Caffe", "from faithful", "weights: from Caffe", "from faithful", "same RoIs"
        )
        notes: list[str] = []
        faithful = replayed(folder, PATHS["faithful"], args)
        caffe = of_caffe(folder, faithful, args)
        for name in args.paths:
            try:
                replay = shared_out if PATHS[name].processes > 1 else replayed
                run = faithful if name == "faithful" else replay(folder, PATHS[name], args)
            except CaffePortError as error:
                table.add_row(name)
                notes.append(f"{name}: not measured: {error.message}")
                continue
            columns = zip(differences(run, caffe), differences(run, faithful), strict=True)
            table.add_row(name, *(cell for pair in columns for cell in pair), same_rois(run, faithful))
        Console(width=130).print(table, *notes, sep="\n")
    return 0


def replayed(folder: Path, path: Way, args) -> Run:
    """Caffe's training run, done again on this path; of several processes that share it, this one's passes.

    Raises:
        CaffePortError: the machine cannot go this path.
    """
    param = prototxt.read_net(folder / "train.prototxt")
    path.edit(param)
    options = {"device": args.device, "precision": path.precision, "path": folder / "train.prototxt"}
    net = (fed_with_images if from_images(folder) else fed_with_minibatches)(folder, param, options)
    path.prepare(net)
    settings = prototxt.read_solver(folder / "solver.prototxt")
    settings.iter_size //= distributed.size()
    solver, run, forward = Solver(settings, net), Run(), net.forward
    mining = next((layer for layer in net.layers if hasattr(layer, "select") or layer.type == "BoxAnnotatorOHEM"), None)
    if mining is not None:
        mining.register_forward_hook(lambda layer, bottoms, tops: run.chosen.append(chosen(layer, tops)))

    def watched(**blobs):
        result = forward(**blobs)
        run.losses.append([net.losses[net.values[v].name].item() for v in net.loss_weights])
        return result

    net.forward = watched
    if path.fused:
        compile_update(solver)
    with path.during():
        solver.step(args.iters or iterations(folder))
    for layer, blobs in net.params.items():
        run.weights |= {f"{layer}/{i}": flat(blob) for i, blob in enumerate(blobs)}
    return run


def shared_out(folder: Path, path: Way, args) -> Run:
    """Caffe's training run by processes that share the passes of each iteration.

    Raises:
        PortError: they cannot: too few passes, or devices.
    """
    passes = prototxt.read_solver(folder / "solver.prototxt").iter_size
    if passes % path.processes:
        raise PortError(f"iter_size is {passes}, for {path.processes} processes")
    if not (dist.is_available() and dist.is_gloo_available()):
        raise PortError("this PyTorch has no gloo")
    if args.device != "cpu" and torch.cuda.device_count() < path.processes:
        raise PortError(f"CUDA devices here: {torch.cuda.device_count()}")
    with tempfile.TemporaryDirectory() as scratch, torch.multiprocessing.get_context("spawn").Manager() as manager:
        runs = manager.list()
        options = (path.processes, f"file://{scratch}/store", folder, args, runs)
        torch.multiprocessing.spawn(one_of_several, options, path.processes)
        return runs[0]


def one_of_several(rank: int, count: int, store: str, folder: Path, args, runs) -> None:
    """A process's part in :func:`shared_out`; the first one adds what all have done to ``runs``."""
    backend = "gloo"
    if args.device != "cpu":
        backend, args.device = "cpu:gloo,cuda:nccl", f"cuda:{rank}"
        torch.cuda.set_device(rank)
    dist.init_process_group(backend, init_method=store, rank=rank, world_size=count)
    run = replayed(folder, PATHS["faithful"], args)
    run.losses, run.chosen = distributed.gathered(run.losses), distributed.gathered(run.chosen)
    if distributed.is_root():
        runs.append(run)
    while not runs:
        time.sleep(0.05)  # until the first one needs the others no more
    os._exit(0)  # gloo's threads may abort a process that ends in the ordinary way


def from_images(folder: Path) -> bool:
    return not (folder / "inputs.npz").exists()


def fed_with_minibatches(folder: Path, param, options) -> Net:
    """A net whose data layer hands out what Caffe's did; process r of K, in every K-th pass from the r-th."""
    inputs, known = np.load(folder / "inputs.npz"), dict(PYTHON_LAYERS)
    data, tops = param.layer[0].python_param, list(param.layer[0].top)

    def minibatch(step):
        step = step * distributed.size() + distributed.rank()
        k = int(inputs["schedule"][step % len(inputs["schedule"])])
        return {top: inputs[f"{top}_{k}"] for top in tops}

    register_stub(data.module, data.layer, minibatch)
    settings = folder / "cfg.json"
    try:
        net = Net(param, cfg=config_of(json.loads(settings.read_text())) if settings.exists() else None, **options)
    finally:
        PYTHON_LAYERS.clear()
        PYTHON_LAYERS.update(known)
    copy_from(net, folder / "initial.caffemodel")
    return net


def fed_with_images(folder: Path, param, options) -> Net:
    """A net whose data layer reads the images that Caffe's read."""
    info = json.loads((folder / "info.json").read_text())
    cfg = config_of(info)
    cfg.RNG_SEED = info["rng_seed"]
    cfg.TRAIN.SEED_PASSES = distributed.size() > 1  # as the solver will, which here comes after the data
    roidb, images = load_roidb(folder)
    scratch = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, scratch)
    for i, (entry, image) in enumerate(zip(roidb, images, strict=True)):
        entry["image"] = str(scratch / f"{i}.png")
        cv2.imwrite(entry["image"], image)
    add_bbox_regression_targets(roidb, cfg)
    net = Net(param, cfg=cfg, **options)
    copy_from(net, folder / "pretrained.caffemodel")
    net.layers[0].set_roidb(roidb)
    return net


def chosen(layer, tops) -> np.ndarray:
    """The RoIs that a layer mined: their numbers, or those of the rows that it left a label."""
    return np.sort(flat(layer.hard_inds)) if hasattr(layer, "hard_inds") else np.flatnonzero(flat(tops[0]) >= 0)


def iterations(folder: Path) -> int:
    if from_images(folder):
        return json.loads((folder / "info.json").read_text())["iters"]
    golden = np.load(folder / "golden.npz")
    return len(golden["loss_iter"] if "loss_iter" in golden else golden["losses"])


def of_caffe(folder: Path, like: Run, args) -> Run:
    """Caffe's own numbers of this run."""
    golden, end = np.load(folder / "golden.npz"), args.iters or iterations(folder)
    losses = golden["losses_sub"] if "losses_sub" in golden else golden["losses"][:, None]
    last = f"w_iter{end}/"
    if from_images(folder) and end == iterations(folder):
        last = "w_final_normalized/"
    weights = {key[len(last) :]: golden[key] for key in golden.files if key.startswith(last)}
    return Run(losses[: len(like.losses), : len(like.losses[0])].tolist(), weights=weights)


def differences(run: Run, reference: Run) -> tuple[str, str]:
    """Of losses and of weights, the largest relative ones."""
    a, b = np.array(run.losses), np.array(reference.losses)
    losses = (np.abs(a - b) / np.maximum(np.abs(b), 1e-6)).max()
    gaps, largest = defaultdict(float), defaultdict(float)  # by layer
    for key, blob in reference.weights.items():
        layer = key.rpartition("/")[0]
        gaps[layer] = max(gaps[layer], np.abs(run.weights[key].reshape(blob.shape) - blob).max())
        largest[layer] = max(largest[layer], np.abs(blob).max())
    weights = [gaps[layer] / scale for layer, scale in largest.items() if scale]
    return f"{losses:.1e}", f"{max(weights):.1e}" if weights else "-"


def same_rois(run: Run, reference: Run) -> str:
    """How many of the RoIs mined are the same, of all passes together."""
    if not reference.chosen:
        return "-"
    same = sum(len(np.intersect1d(a, b)) for a, b in zip(run.chosen, reference.chosen, strict=True))
    return f"{same} of {sum(map(len, reference.chosen))}"


if __name__ == "__main__":
    sys.exit(main())
