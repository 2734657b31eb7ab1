"""Caffe's solvers and learning-rate policies, in Caffe's order of operations (``solver.cpp``, ``sgd_solver.cpp``)."""

from __future__ import annotations

import math
import os
from collections import deque
from pathlib import Path

import torch

import prototxt
from converters import SolverState, read_solverstate, write_caffemodel, write_solverstate

from . import distributed
from .config import Config
from .debug_info import DebugInfo
from .errors import PortError
from .net import Net
from .optim import POLICIES, update
from .solver_settings import check_settings
from .test_nets import TestNets, output_scores, score_lines, spread
from .weights import copy_from, to_caffemodel


def find_net(path: str, solver_path, what: str = "net") -> Path:
    """A net (or ``what``) that a solver names: relative to the working directory, the solver's folder, or one of its
    parents.

    The original's solvers say ``models/pascal_voc/...``, seen from the top of that repository.

    Raises:
        PortError: it is in none of these places; they are listed.
    """
    places = [Path(path)]
    if solver_path is not None and not Path(path).is_absolute():
        folder = Path(solver_path).resolve().parent
        places += [parent / path for parent in (folder, *folder.parents)]
        places.append(folder / Path(path).name)  # the whole folder was copied elsewhere
    for place in places:
        if place.is_file():
            return place
    shown = [str(p) for p in dict.fromkeys(places)]
    hint = "looked at " + ", ".join(shown)
    raise PortError(f"the solver's {what} '{path}' is not there", file=solver_path, hint=hint)


def state_path(model_path) -> Path:
    """The ``.solverstate`` (``.solverstate.h5``) that belongs to a ``.caffemodel`` (``.caffemodel.h5``)."""
    stem, found, ending = Path(model_path).name.rpartition(".caffemodel")
    if not found:
        return Path(model_path).with_suffix(".solverstate")
    return Path(model_path).with_name(f"{stem}.solverstate{ending}")


class Solver:
    """Optimises a net as a ``SolverParameter`` says.

    One iteration: ``iter_size`` forward and backward passes whose gradients add up; clip the sum by ``clip_gradients``;
    divide by ``iter_size``; add the weight decay; compute the update with ``lr * lr_mult``; subtract it.

    Of several processes (:mod:`~ohem_caffe_port.distributed`) each does ``iter_size`` passes, and all make the update
    of the sum, divided by the number of passes of all. Only the first one tests and writes.

    Args:
        source: path of a solver prototxt, or a ``SolverParameter``.
        net: the net to train; built from the solver's ``train_net`` or ``net`` when left out.
        cfg, device, lenient, precision: for that net and the test nets; see :class:`Net`.

    Attributes:
        net, param: as above.
        iter: iterations done.
        history: per learnable parameter the list of its history blobs (momentum; for Adam first and second moment).
        passes: in an iteration, of all processes: ``iter_size`` times their number.
        loss: mean of the losses of the last iteration's passes; ``smoothed_loss``: over ``average_loss`` iterations.
        losses: the last iteration's single losses by name, meaned over its passes.
        log: called with each line that Caffe would print (``display``, ``debug_info``, tests); nothing is logged
            while it is None.

    Raises:
        PortError: an unknown type or policy, a setting that is missing or refused, each with the field's name.
    """

    def __init__(
        self, source, net: Net | None = None, *, cfg: Config | None = None, device="cpu", lenient=False,
        precision="fp32",
    ):  # fmt: skip
        self.warnings: list[str] = []
        self.lenient = lenient
        self.log = None
        if isinstance(source, (str, os.PathLike)):
            unknown: list = []
            self.source, self.param = str(source), prototxt.read_solver(source, lenient=lenient, unknown=unknown)
            self.warnings += [f"unknown field ignored: {f}" for f in unknown]
        else:
            self.source, self.param = None, source
        self.warnings += check_settings(self.param, self.error)
        if self.param.random_seed >= 0:
            torch.manual_seed(self.param.random_seed)
        self.net = net if net is not None else self._build_net(cfg, device, precision)
        self.passes = self.param.iter_size * distributed.size()
        self._summed: distributed.SummedPasses | None = None
        if distributed.size() > 1:
            self.net.cfg.TRAIN.SEED_PASSES = True
        self.update = update  # of one parameter
        self.iter = 0
        self.net.clock.max_iter = self.param.max_iter
        self.current_step = 0
        self.minimum_loss, self.iter_last_event = torch.finfo(torch.float32).max, 0  # of the policy plateau
        self.loss = math.nan
        self.test_results: list = []
        self.losses: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=max(1, self.param.average_loss))
        blobs = [p.blob for p in self.net.learnable_params]
        slots = 2 if self.param.type in ("Adam", "AdaDelta") else 1
        self.history = [[torch.zeros_like(b) for _ in range(slots)] for b in blobs]
        for path in self.param.weights:
            for part in path.split(","):
                copy_from(self.net, find_net(part.strip(), self.source, "weights file"))

    # ---- set-up

    def _build_net(self, cfg, device, precision) -> Net:
        p = self.param
        given = [f for f in ("net", "train_net", "net_param", "train_net_param") if p.HasField(f)]
        if len(given) != 1:
            raise self.error(f"name one training net; given: {given or 'none'}", "train_net")
        source = getattr(p, given[0])
        if isinstance(source, str):
            source = find_net(source, self.source)
        state = p.train_state
        level = state.level if state.HasField("level") else None
        options = {"cfg": cfg, "device": device, "lenient": self.lenient, "precision": precision}
        return Net(source, "TRAIN", level=level, stages=state.stage, **options)

    def error(self, message, field, hint=None) -> PortError:
        """An error about a field of the solver, with its file and line."""
        line = prototxt.locate(self.source, field=field) if self.source else None
        return PortError(message, file=self.source, line=line, field=field, hint=hint)

    # ---- training

    @property
    def lr(self) -> float:
        """Learning rate of the iteration that comes next.

        Raises:
            PortError: the policy's formula gives none, such as a power of a negative number.
        """
        try:
            rate = POLICIES[self.param.lr_policy](self.param, self.iter, self._next_step())
        except (ArithmeticError, ValueError):
            rate = math.nan
        if not math.isfinite(rate):
            raise self.error(f"'{self.param.lr_policy}' gives no learning rate in iteration {self.iter}", "lr_policy")
        return rate

    def _next_step(self) -> int:
        """The policy's step in the iteration that comes next; multistep goes up by one in an iteration at most."""
        p, step = self.param, self.current_step
        if p.lr_policy == "step":
            return self.iter // p.stepsize
        if p.lr_policy == "multistep" and step < len(p.stepvalue) and self.iter >= p.stepvalue[step]:
            return step + 1
        return step

    @property
    def smoothed_loss(self) -> float:
        return sum(self._recent) / len(self._recent) if self._recent else math.nan

    def step(self, iterations: int = 1) -> float:
        """Does ``iterations`` iterations; returns the smoothed loss.

        Raises:
            PortError: the loss is no longer finite.
        """
        for _ in range(iterations):
            self._iterate()
        return self.smoothed_loss

    def _iterate(self) -> None:
        if distributed.size() == 1:
            self._do_iteration()
            return
        if self._summed is None:
            self._summed = distributed.SummedPasses(self.net)
        self._summed.iteration(self._do_iteration)

    def _do_iteration(self) -> None:
        self.net.clock.iter = self.iter
        self._clear_gradients()
        passes = []
        display = self.log is not None and self.param.display and self.iter % self.param.display == 0
        for i in range(self.param.iter_size):
            debug = DebugInfo(self.net, self.log) if display and self.param.debug_info else None
            self.net.watch = debug
            self._forward_backward(i)
            if debug:
                debug.backward()
            passes.append(torch.stack([self.net.loss.detach(), *(top.sum() for top in self.net.losses.values())]))
        sums = torch.stack(passes).sum(0)
        if self._summed is not None:
            sums = self._summed.totals(sums)
        sums = sums.div(self.passes).tolist()
        self.loss, self.losses = sums[0], dict(zip(self.net.losses, sums[1:], strict=True))
        if not math.isfinite(self.loss):
            cure = "the last snapshot is from before; a lower base_lr is the usual cure"
            if not self._recent:
                cure = "nothing was updated yet: look at the data, scale and mean, the fillers, or the weights loaded"
            raise PortError(
                f"the loss is {self.loss} in iteration {self.iter} ({self.losses})", file=self.source, hint=cure
            )
        self._recent.append(self.loss)
        if display:
            self.log(f"Iteration {self.iter}, loss = {self.smoothed_loss:.6g}")
            for line in score_lines("Train", spread(output_scores(self.net))):
                self.log(line)
        if self.param.lr_policy == "plateau":
            self._watch_plateau(display)
        if display:
            self.log(f"Iteration {self.iter}, lr = {self.lr:g}")
        self.apply_update()
        self.iter += 1

    def _clear_gradients(self) -> None:
        if self._summed is not None:
            self._summed.clear()
            return
        for p in self.net.learnable_params:
            p.blob.grad = None

    def _forward_backward(self, i: int) -> None:
        """Pass ``i`` of this process in this iteration."""
        if self.net.cfg.TRAIN.SEED_PASSES:
            seed = self.param.random_seed if self.param.random_seed >= 0 else self.net.cfg.RNG_SEED
            number = self.iter * self.passes + i * distributed.size() + distributed.rank()
            distributed.seed_pass(self.net, seed, number)
        if self._summed is not None:
            self._summed(last=i == self.param.iter_size - 1)
        else:
            self.net()
            self.net.backward()

    def _watch_plateau(self, display: bool) -> None:
        """SSD's policy: one more step where the smoothed loss has had no new minimum, nor the rate a step, for
        ``plateau_winsize[current_step]`` iterations."""
        p, log = self.param, self.log or (lambda line: None)
        if self.smoothed_loss < self.minimum_loss:
            self.minimum_loss, self.iter_last_event = self.smoothed_loss, self.iter
        windows = p.plateau_winsize[self.current_step :]
        if windows and self.iter >= self.iter_last_event + windows[0]:
            self.current_step += 1
            self.iter_last_event = self.iter
            log(f"Plateau Status: Iteration {self.iter}, step = {self.current_step}")
        if display and self.iter_last_event > self.iter - p.display:
            log(f"Plateau Status: Iteration {self.iter}, current minimum_loss = {self.minimum_loss:.6g}")

    @torch.no_grad()
    def apply_update(self) -> None:
        """Updates the parameters from their accumulated gradients (``SGDSolver::ApplyUpdate``)."""
        rate, self.current_step = self.lr, self._next_step()
        trained = [(p, h) for p, h in zip(self.net.learnable_params, self.history, strict=True) if p.lr_mult]
        for p, _ in trained:
            if p.blob.grad is None:  # no loss reaches it; Caffe decays it all the same
                p.blob.grad = torch.zeros_like(p.blob)
        factors = []
        if self.param.clip_gradients >= 0 and trained:
            # of all gradients, those of parameters with lr_mult 0 included
            given = [p.blob.grad for p in self.net.learnable_params if p.blob.grad is not None]
            norm = math.sqrt(sum(torch.stack([(g * g).sum() for g in given]).tolist()))
            if norm > self.param.clip_gradients:
                factors.append(self.param.clip_gradients / norm)
        if self.passes > 1:
            factors.append(1.0 / self.passes)
        for p, history in trained:
            decay = self.param.weight_decay * p.decay_mult
            options = {"rate": rate * p.lr_mult, "decay": decay, "factors": factors, "iteration": self.iter}
            self.update(self.param, p.blob, p.blob.grad, history, **options)

    def check_iterations(self, iterations: int) -> None:
        """Refuses, before any work is done, more iterations than a ``poly`` learning rate lasts."""
        if self.param.lr_policy == "poly" and iterations > self.param.max_iter:
            end = f"the learning rate of lr_policy poly ends at {self.param.max_iter}"
            raise self.error(f"{end}; {iterations} iterations are wanted", "max_iter")

    # ---- the whole of a training, as `caffe train` does it

    def solve(self, max_iter: int | None = None, prefix=None, on_iteration=lambda: None) -> list[Path]:
        """Trains up to ``max_iter`` iterations (the solver's own unless given); returns the snapshots' caffemodels.

        Tests every ``test_interval`` iterations (before the first unless ``test_initialization`` is false, and after
        the last), displays every ``display``, and writes a snapshot every ``snapshot`` iterations and, unless
        ``snapshot_after_train`` is false, at the end. (``Solver::Solve``)

        Args:
            prefix: of the snapshots, instead of ``snapshot_prefix``.
            on_iteration: called after each iteration.

        Raises:
            PortError: no ``max_iter``; test nets that cannot be built; a loss that is not finite.
        """
        p, paths = self.param, []
        stop = p.max_iter if max_iter is None else max_iter
        if stop < 1:
            raise self.error("is needed: how many iterations are there to do?", "max_iter")
        self.check_iterations(stop)
        tests, every = None, 0
        if distributed.is_root():
            tests = TestNets(self, lambda path, what: find_net(path, self.source, what))
            every = p.test_interval if tests.nets else 0
        while self.iter < stop:
            if every and self.iter % every == 0 and (self.iter or p.test_initialization):
                self._log_tests(tests)
            self._iterate()
            on_iteration()
            if p.snapshot and self.iter % p.snapshot == 0:
                paths.append(self.snapshot(prefix)[0])
        if p.snapshot_after_train and not (p.snapshot and self.iter % p.snapshot == 0 and paths):
            paths.append(self.snapshot(prefix)[0])
        if self.log is not None and p.display and self.iter % p.display == 0:
            with torch.no_grad():
                self.net.watch = None
                self.net()
            self._recent.append(float(self.net.loss))
            self.log(f"Iteration {self.iter}, loss = {self.smoothed_loss:.6g}")
        if every and self.iter % every == 0:
            self._log_tests(tests)
        return paths

    def _log_tests(self, tests: TestNets) -> None:
        log = self.log or (lambda line: None)
        self.test_results = []
        for i in range(len(tests.nets)):
            log(f"Iteration {self.iter}, Testing net (#{i})")
            self.test_results.append(tests.run(i))
            for line in self.test_results[-1].lines():
                log(line)

    # ---- snapshots

    def snapshot_path(self, suffix: str, prefix=None) -> Path:
        """``<prefix>_iter_<iter><suffix>``, with ``.h5`` for ``snapshot_format: HDF5``; the prefix is the solver's
        ``snapshot_prefix`` unless given."""
        ending = ".h5" if self.param.snapshot_format == self.param.HDF5 else ""
        return Path(f"{prefix or self.param.snapshot_prefix or 'snapshot'}_iter_{self.iter}{suffix}{ending}")

    def snapshot(self, prefix=None) -> tuple[Path, Path]:
        """Writes ``.caffemodel`` and ``.solverstate`` as Caffe does; returns their paths."""
        model_path = self.snapshot_path(".caffemodel", prefix)
        if not distributed.is_root():
            return model_path, state_path(model_path)
        model_path.parent.mkdir(parents=True, exist_ok=True)
        write_caffemodel(model_path, to_caffemodel(self.net), phase="TRAIN")
        return model_path, self.save_state(model_path)

    def save_state(self, model_path) -> Path:
        """Writes the ``.solverstate`` that belongs to the caffemodel at ``model_path``."""
        path = state_path(model_path)
        slots = range(len(self.history[0]) if self.history else 0)
        history = [h[slot].cpu().numpy() for slot in slots for h in self.history]
        state = SolverState(self.iter, str(model_path), history, self.current_step)
        if self.param.lr_policy == "plateau":
            state.minimum_loss, state.iter_last_event = self.minimum_loss, self.iter_last_event
        write_solverstate(path, state)
        return path

    def restore(self, path) -> None:
        """Continues from a ``.solverstate``: history, iteration, and the weights of the caffemodel it names.

        Raises:
            CaffePortError: an unreadable file, another net's history, or no caffemodel where the state says.
        """
        state = self.restore_state(path)
        if state.learned_net:
            model = Path(state.learned_net)
            beside = Path(path).parent / model.name
            if not model.is_file() and not beside.is_file():
                raise PortError(f"its weights '{model}' are not there", file=path, hint=f"nor is {beside}")
            copy_from(self.net, beside if beside.is_file() else model)

    def restore_state(self, path) -> SolverState:
        """The part of :meth:`restore` that concerns the solver alone."""
        state = read_solverstate(path)
        slots = len(self.history[0]) if self.history else 0
        expected = [h[slot] for slot in range(slots) for h in self.history]
        if [h.size for h in state.history] != [h.numel() for h in expected]:
            raise PortError(
                f"its {len(state.history)} history blobs do not fit the net's {len(expected)}",
                file=path,
                hint="the state must come from the same net and solver type",
            )
        for target, stored in zip(expected, state.history, strict=True):
            target.copy_(torch.tensor(stored, dtype=torch.float32).view(target.shape))
        self.iter, self.current_step = state.iter, state.current_step
        if state.minimum_loss is not None:
            self.minimum_loss, self.iter_last_event = state.minimum_loss, state.iter_last_event
        return state
