r"""Train a net from its Caffe solver: a detector on a data set, or any net whose data layers name their data.

    python tools/train_from_prototxt.py solver.prototxt
    python tools/train_from_prototxt.py models/pascal_voc/VGG16/fast_rcnn_ohem/solver.prototxt \
        --weights VGG16.v2.caffemodel --imdb voc_2007_trainval --cfg experiments/cfgs/fast_rcnn_ohem.yml --iters 40000

``torchrun --nproc-per-node K`` in the place of ``python`` makes it K processes, each with iter_size minibatches.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import _cli
import numpy as np
import torch
from tqdm import tqdm

import prototxt
from ohem_caffe_port import distributed
from ohem_caffe_port.data.roidb import get_training_roidb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.roi_loss import Curve, RoiLoss
from ohem_caffe_port.solver import Solver, state_path
from ohem_caffe_port.train import Trainer, load_weights, settle_mining

DEFAULT_IMDB, DEFAULT_ITERS = "voc_2007_trainval", 40000  # train_net.py's own


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("solver", nargs="?", help="solver prototxt")
    parser.add_argument("--solver", dest="solver_option", metavar="FILE", help="the same, as train_net.py spells it")
    parser.add_argument("--weights", metavar="FILE[,FILE]", help="caffemodel to start from")
    parser.add_argument("--resume", metavar="FILE", help="continue from this .solverstate")
    parser.add_argument("--iters", type=int, help=f"iterations in all [max_iter of the solver, or {DEFAULT_ITERS}]")
    parser.add_argument("--rand", action="store_true", help="do not fix the random seeds")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that prepare images ahead [none]")
    group = parser.add_argument_group("mean loss over all RoIs, whatever RoIs it trains on")
    group.add_argument("--roi_loss", type=int, metavar="N", help="measure it on so many training images; 0: on all")
    group.add_argument("--roi_loss_every", type=int, metavar="K", help="iterations in between [a tenth of all]")
    _cli.add_common_options(parser)
    _cli.add_speed_options(parser)
    args = parser.parse_args()
    args.solver = args.solver or args.solver_option
    if not args.solver:
        parser.error("which solver.prototxt?")
    return args


@distributed.joined()
def main() -> int:
    args = parse_args()
    cfg = _cli.load_config(args, args.solver)
    if args.workers is not None:
        cfg.TRAIN.USE_PREFETCH, cfg.TRAIN.PREFETCH_WORKERS = args.workers > 0, args.workers
    if args.iters is not None and args.iters < 1:
        raise PortError(f"--iters must be positive, not {args.iters}")
    if args.roi_loss is not None and args.roi_loss < 0:
        raise PortError(f"--roi_loss must not be negative, not {args.roi_loss}")
    if args.roi_loss_every is not None and (args.roi_loss_every < 1 or args.roi_loss is None):
        raise PortError("--roi_loss_every goes with --roi_loss and must be positive")
    if args.rand:
        cfg.RNG_SEED = distributed.from_root(int(np.random.SeedSequence().generate_state(1)[0]))
    torch.manual_seed(cfg.RNG_SEED)
    device = _cli.pick_device(args, prototxt.read_solver(args.solver, lenient=True, unknown=[]))

    precision = _cli.pick_precision(args, device)
    solver = Solver(args.solver, cfg=cfg, device=device, lenient=args.lenient, precision=precision)
    solver.net.keep_blobs = False
    _cli.compile_if_asked(args, solver.net, solver)
    detector = any(hasattr(layer, "set_roidb") for layer in solver.net.layers)
    if args.roi_loss is not None and not detector:
        raise PortError("--roi_loss is for nets that train on RoIs; this one takes none", file=solver.net.source)
    _cli.show([*solver.warnings, *solver.net.warnings, *(settle_mining(solver.net, cfg) if detector else ())])
    if args.weights and args.resume:
        _cli.show(["--weights has no effect: --resume brings the weights of its snapshot"])
    elif args.weights:
        print("\n".join(load_weights(solver.net, args.weights)))
    elif not (args.resume or solver.param.weights):
        blank = [name for name, blobs in solver.net.params.items() if not blobs[0].any()]
        if blank:
            _cli.show([f"no --weights, and no filler: these layers start at zero: {', '.join(blank)}"])
    snapshots = train_detector(args, cfg, solver) if detector else train_net(args, solver)
    print(f"last snapshot: {snapshots[-1] if snapshots else 'none (all iterations were done already)'}")
    return 0


def train_detector(args, cfg, solver: Solver) -> list[Path]:
    """Trains on the images and proposals of a data set, as ``train_net.py`` does."""
    schedule = [name for name in ("test_iter", "test_net", "test_net_param") if len(getattr(solver.param, name))]
    _cli.show(f"solver field {name} has no effect: test a detector with test_from_prototxt.py" for name in schedule)
    if solver.param.snapshot:
        _cli.show(["solver field snapshot has no effect: TRAIN.SNAPSHOT_ITERS counts, as in train_net.py"])
    name = args.imdb or cfg.TRAIN.IMDB or DEFAULT_IMDB
    imdb = _cli.open_imdb(args, cfg, name, cfg.TRAIN.PROPOSAL_METHOD)
    roidb = get_training_roidb(imdb, cfg)
    output = Path(args.output or Path("output") / cfg.EXP_DIR / imdb.name)
    trainer = Trainer(solver, roidb, cfg, output)
    if args.resume:
        _cli.show(trainer.resume(args.resume))
    _cli.output_folder(output)
    iterations = args.iters or solver.param.max_iter or DEFAULT_ITERS
    measure = None if args.roi_loss is None else roi_loss_recorder(args, trainer, roidb, imdb.name, iterations)
    images = len(trainer.data_layer.loader.roidb)
    mirrored = " with their mirror images" if cfg.TRAIN.USE_FLIPPED else ""
    print(f"{imdb.name}: {images} images{mirrored}; {solver.net.name}: {iterations} iterations, to {output}")
    with progress(solver, iterations, trainer.snapshot) as (on_iteration, write):
        step = display(solver, on_iteration, write)
        return trainer.run(iterations, step if measure is None else measure(step, write))


def roi_loss_recorder(args, trainer: Trainer, roidb, imdb_name: str, iterations: int):
    """``measure(on_iteration, write)``: ``on_iteration`` that also records the loss over all RoIs in a file beside the
    snapshots, now, every ``--roi_loss_every`` iterations and at the end."""
    solver, roi_loss = trainer.solver, RoiLoss(trainer.net, roidb, args.roi_loss)
    every = args.roi_loss_every or max(1, iterations // 10)
    about = {"net": solver.net.name, "imdb": imdb_name, "images": roi_loss.images, "rois": roi_loss.rois}
    curve = Curve(trainer.prefix.with_name(trainer.prefix.name + Curve.ENDING), about)
    if args.resume:
        beside = Path(args.resume).with_name(curve.path.name)
        curve.follow(curve.path if curve.path.is_file() else beside, solver.iter)

    def measure(on_iteration, write):
        def record():
            curve.add(solver.iter, roi_loss())
            write(f"iteration {solver.iter}: loss {curve.points[solver.iter]:.4f} over all {roi_loss.rois} RoIs of "
                  f"{roi_loss.images} images")  # fmt: skip

        def step():
            on_iteration()
            if solver.iter % every == 0 or solver.iter >= iterations:
                record()

        if solver.iter not in curve.points and solver.iter < iterations:
            record()
        return step

    return measure


def train_net(args, solver: Solver) -> list[Path]:
    """Trains as ``caffe train`` does, with the solver's own tests and snapshots, and prints what Caffe prints."""
    if solver.net.inputs:
        raise PortError(
            f"nothing fills its inputs {', '.join(solver.net.inputs)}; a net to train has a data layer",
            file=solver.net.source,
            hint="was the test net given in the place of the training net?",
        )
    prefix = Path(solver.param.snapshot_prefix or "snapshot")
    if args.output:
        prefix = Path(args.output) / prefix.name
    _cli.output_folder(prefix.parent)
    if not solver.net.loss_weights:
        _cli.show(["no layer of the net has a loss: nothing is trained"])
    if args.resume:
        solver.restore(args.resume)
    iterations = args.iters or solver.param.max_iter
    print(f"{solver.net.name or args.solver}: {iterations} iterations, snapshots to {prefix}_iter_*")
    with progress(solver, iterations, lambda: solver.snapshot(prefix)[0]) as (on_iteration, write):
        solver.log = write if distributed.is_root() else None
        return solver.solve(iterations, prefix, on_iteration)


def display(solver: Solver, on_iteration, write):
    """``on_iteration`` with a line of losses every ``display`` iterations."""
    every = solver.param.display
    started, first = time.perf_counter(), solver.iter

    def step():
        on_iteration()
        if every and solver.iter % every == 0:
            pace = (time.perf_counter() - started) / (solver.iter - first)
            parts = " ".join(f"{name} {value:.4f}" for name, value in solver.losses.items())
            line = f"iteration {solver.iter}: loss {solver.smoothed_loss:.4f} ({parts}) lr {solver.lr:g}"
            write(f"{line}, {pace:.2f} s/it")

    return step


@contextmanager
def progress(solver: Solver, iterations: int, snapshot):
    """A progress bar; gives ``(on_iteration, write)``. An interrupt writes a snapshot before it goes on."""
    started, first = time.perf_counter(), solver.iter

    def write(line):
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    with tqdm(
        total=iterations, initial=solver.iter, unit="it", dynamic_ncols=True, disable=not sys.stderr.isatty()
    ) as bar:

        def on_iteration():
            bar.update()
            bar.set_postfix(loss=f"{solver.smoothed_loss:.4f}", refresh=False)

        try:
            yield on_iteration, write
        except KeyboardInterrupt:
            print(f"\nstopped; continue with --resume {state_path(snapshot())}")
            raise
    done, seconds = solver.iter - first, time.perf_counter() - started
    if done:
        print(f"{done} iterations in {seconds:.0f} s ({seconds / done:.2f} s/it), last loss {solver.loss:.4f}")


if __name__ == "__main__":
    _cli.run(main)
