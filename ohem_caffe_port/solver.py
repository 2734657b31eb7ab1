"""Caffe's solvers and learning-rate policies, in Caffe's order of operations (``solver.cpp``, ``sgd_solver.cpp``)."""

from __future__ import annotations

import math
import os
from collections import deque
from pathlib import Path

import torch

import prototxt
from converters import SolverState, read_solverstate, write_caffemodel, write_solverstate
from prototxt.errors import nearest

from .config import Config
from .errors import PortError
from .net import Net
from .weights import copy_from, to_caffemodel

HONOURED = {
    "net", "train_net", "net_param", "train_net_param", "train_state", "type", "base_lr", "lr_policy", "gamma", "power",
    "stepsize", "stepvalue", "max_iter", "momentum", "momentum2", "rms_decay", "delta", "weight_decay",
    "regularization_type", "clip_gradients", "iter_size", "average_loss", "display", "snapshot_prefix",
    "random_seed", "weights",
}  # fmt: skip
# Without influence on the result of training: Caffe's own test and snapshot schedule, and how it runs.
NEUTRAL = {"snapshot", "snapshot_after_train", "snapshot_diff", "snapshot_format", "solver_mode", "device_id",
           "debug_info", "layer_wise_reduce", "test_initialization", "test_compute_loss", "test_iter",
           "test_interval"}  # fmt: skip


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


class Solver:
    """Optimises a net as a ``SolverParameter`` says.

    One iteration: ``iter_size`` forward and backward passes whose gradients add up; clip the sum by ``clip_gradients``;
    divide by ``iter_size``; add the weight decay; compute the update with ``lr * lr_mult``; subtract it.

    Args:
        source: path of a solver prototxt, or a ``SolverParameter``.
        net: the net to train; built from the solver's ``train_net`` or ``net`` when left out.
        cfg, device, lenient: for that net; see :class:`Net`.

    Attributes:
        net, param: as above.
        iter: iterations done.
        history: per learnable parameter the list of its history blobs (momentum; for Adam first and second moment).
        loss: mean of the losses of the last iteration's passes; ``smoothed_loss``: over ``average_loss`` iterations.
        losses: the last iteration's single losses by name, meaned over ``iter_size``.

    Raises:
        PortError: an unknown type or policy, a setting that is missing or refused, each with the field's name.
    """

    def __init__(self, source, net: Net | None = None, *, cfg: Config | None = None, device="cpu", lenient=False):
        self.warnings: list[str] = []
        if isinstance(source, (str, os.PathLike)):
            unknown: list = []
            self.source, self.param = str(source), prototxt.read_solver(source, lenient=lenient, unknown=unknown)
            self.warnings += [f"unknown field ignored: {f}" for f in unknown]
        else:
            self.source, self.param = None, source
        self._check()
        if self.param.random_seed >= 0:
            torch.manual_seed(self.param.random_seed)
        self.net = net if net is not None else self._build_net(cfg, device, lenient)
        self.iter = 0
        self.current_step = 0
        self.loss = math.nan
        self.losses: dict[str, float] = {}
        self._recent: deque[float] = deque(maxlen=max(1, self.param.average_loss))
        blobs = [p.blob for p in self.net.learnable_params]
        slots = 2 if self.param.type in ("Adam", "AdaDelta") else 1
        self.history = [[torch.zeros_like(b) for _ in range(slots)] for b in blobs]
        for path in self.param.weights:
            for part in path.split(","):
                copy_from(self.net, find_net(part.strip(), self.source, "weights file"))

    # ---- set-up

    def _check(self) -> None:
        p = self.param
        if p.type not in _UPDATES:
            near = nearest(p.type, _UPDATES)
            raise self._error(f"unknown solver type '{p.type}'" + (f"; did you mean {near}?" if near else ""), "type")
        if p.lr_policy not in _POLICIES:
            near = nearest(p.lr_policy, _POLICIES)
            raise self._error(
                f"unknown policy '{p.lr_policy}'" + (f"; did you mean '{near}'?" if near else ""), "lr_policy"
            )
        needs = {"step": ["stepsize", "gamma"], "exp": ["gamma"], "inv": ["gamma", "power"], "multistep": ["gamma"],
                 "sigmoid": ["gamma", "stepsize"], "poly": ["max_iter"]}.get(p.lr_policy, [])  # fmt: skip
        for field in ["base_lr", *needs]:
            if not p.HasField(field):
                raise self._error(f"is needed (lr_policy '{p.lr_policy}')", field)
        if p.lr_policy == "step" and p.stepsize < 1:
            raise self._error("must be positive", "stepsize")
        if p.regularization_type not in ("L1", "L2"):
            raise self._error(f"is L1 or L2, not '{p.regularization_type}'", "regularization_type")
        if p.iter_size < 1:
            raise self._error("must be positive", "iter_size")
        if p.type == "AdaGrad" and p.momentum or p.type == "RMSProp" and p.momentum:
            raise self._error(f"cannot be used with {p.type}", "momentum")
        if p.type == "Adam" and not (0 <= p.momentum < 1 and 0 <= p.momentum2 < 1):
            raise self._error("must lie between 0 and 1, as must momentum2 (Adam)", "momentum")
        if p.max_iter < 0:
            raise self._error("must not be negative", "max_iter")
        if p.type == "RMSProp" and not 0 <= p.rms_decay < 1:
            raise self._error("must lie between 0 and 1", "rms_decay")
        for descriptor, value in p.ListFields():
            if descriptor.name in NEUTRAL and value:
                self.warnings.append(f"solver field {descriptor.name} has no effect on this training")
            elif descriptor.name not in HONOURED | NEUTRAL:
                self.warnings.append(f"solver field {descriptor.name} is not supported, and ignored")

    def _build_net(self, cfg, device, lenient) -> Net:
        p = self.param
        given = [f for f in ("net", "train_net", "net_param", "train_net_param") if p.HasField(f)]
        if len(given) != 1:
            raise self._error(f"name one training net; given: {given or 'none'}", "train_net")
        source = getattr(p, given[0])
        if isinstance(source, str):
            source = find_net(source, self.source)
        state = p.train_state
        return Net(source, "TRAIN", level=state.level, stages=state.stage, cfg=cfg, device=device, lenient=lenient)

    def _error(self, message, field) -> PortError:
        line = prototxt.locate(self.source, field=field) if self.source else None
        return PortError(message, file=self.source, line=line, field=field)

    # ---- training

    @property
    def lr(self) -> float:
        """Learning rate of the iteration that comes next.

        Raises:
            PortError: the policy's formula gives none, such as a power of a negative number.
        """
        try:
            rate = _POLICIES[self.param.lr_policy](self.param, self.iter, self._next_step())
        except (ArithmeticError, ValueError):
            rate = math.nan
        if not math.isfinite(rate):
            raise self._error(f"'{self.param.lr_policy}' gives no learning rate in iteration {self.iter}", "lr_policy")
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
        for p in self.net.learnable_params:
            p.blob.grad = None
        passes = []
        for _ in range(self.param.iter_size):
            self.net()
            self.net.backward()
            passes.append(torch.stack([self.net.loss.detach(), *self.net.losses.values()]).flatten())
        sums = torch.stack(passes).sum(0).div(self.param.iter_size).tolist()
        self.loss, self.losses = sums[0], dict(zip(self.net.losses, sums[1:], strict=True))
        if not math.isfinite(self.loss):
            raise PortError(
                f"the loss is {self.loss} in iteration {self.iter} ({self.losses})",
                hint="the last snapshot is from before; a lower base_lr is the usual cure",
            )
        self._recent.append(self.loss)
        self.apply_update()
        self.iter += 1

    @torch.no_grad()
    def apply_update(self) -> None:
        """Updates the parameters from their accumulated gradients (``SGDSolver::ApplyUpdate``)."""
        rate, self.current_step = self.lr, self._next_step()
        trained = [(p, h) for p, h in zip(self.net.learnable_params, self.history, strict=True) if p.lr_mult]
        for p, _ in trained:
            if p.blob.grad is None:  # no loss reaches it; Caffe decays it all the same
                p.blob.grad = torch.zeros_like(p.blob)
        if not trained:
            return
        weights = [p.blob for p, _ in trained]
        grads = [p.blob.grad for p, _ in trained]
        if self.param.clip_gradients >= 0:
            norm = math.sqrt(sum(torch.stack([(g * g).sum() for g in grads]).tolist()))
            if norm > self.param.clip_gradients:
                torch._foreach_mul_(grads, self.param.clip_gradients / norm)
        if self.param.iter_size > 1:
            torch._foreach_mul_(grads, 1.0 / self.param.iter_size)
        decay = self.param.weight_decay
        for (p, _), weight, grad in zip(trained, weights, grads, strict=True):
            if decay * p.decay_mult:
                pull = weight if self.param.regularization_type == "L2" else weight.sign()
                grad.add_(pull, alpha=decay * p.decay_mult)
        rates = [rate * p.lr_mult for p, _ in trained]
        update = _UPDATES[self.param.type]
        for grad, (_, history), local in zip(grads, trained, rates, strict=True):
            update(self.param, grad, history, local, self.iter)
        torch._foreach_sub_(weights, grads)

    # ---- snapshots

    def snapshot_path(self, suffix: str, prefix=None) -> Path:
        """``<prefix>_iter_<iter><suffix>``; the prefix is the solver's ``snapshot_prefix`` unless given."""
        return Path(f"{prefix or self.param.snapshot_prefix or 'snapshot'}_iter_{self.iter}{suffix}")

    def snapshot(self, prefix=None) -> tuple[Path, Path]:
        """Writes ``.caffemodel`` and ``.solverstate`` as Caffe does; returns their paths."""
        model_path = self.snapshot_path(".caffemodel", prefix)
        model_path.parent.mkdir(parents=True, exist_ok=True)
        write_caffemodel(model_path, to_caffemodel(self.net), phase="TRAIN")
        return model_path, self.save_state(model_path)

    def save_state(self, model_path) -> Path:
        """Writes the ``.solverstate`` that belongs to the caffemodel at ``model_path``."""
        path = Path(model_path).with_suffix(".solverstate")
        slots = range(len(self.history[0]) if self.history else 0)
        history = [h[slot].cpu().numpy() for slot in slots for h in self.history]
        write_solverstate(path, SolverState(self.iter, str(model_path), history, self.current_step))
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
        return state


# ---- learning-rate policies: (param, iter, current_step) -> rate

_POLICIES = {
    "fixed": lambda p, i, s: p.base_lr,
    "step": lambda p, i, s: p.base_lr * math.pow(p.gamma, s),
    "exp": lambda p, i, s: p.base_lr * math.pow(p.gamma, i),
    "inv": lambda p, i, s: p.base_lr * math.pow(1 + p.gamma * i, -p.power),
    "multistep": lambda p, i, s: p.base_lr * math.pow(p.gamma, s),
    "poly": lambda p, i, s: p.base_lr * math.pow(1 - i / p.max_iter, p.power),
    "sigmoid": lambda p, i, s: p.base_lr / (1 + math.exp(-p.gamma * (i - p.stepsize))),
}


# ---- update rules: turn the gradient into the update, in place, and keep the history


def _sgd(p, grad, history, rate, iteration):
    momentum = history[0].mul_(p.momentum).add_(grad, alpha=rate)
    grad.copy_(momentum)


def _nesterov(p, grad, history, rate, iteration):
    before = history[0].clone()
    history[0].mul_(p.momentum).add_(grad, alpha=rate)
    torch.sub(history[0] * (1 + p.momentum), before, alpha=p.momentum, out=grad)


def _adagrad(p, grad, history, rate, iteration):
    history[0].addcmul_(grad, grad)
    grad.div_(history[0].sqrt().add_(p.delta)).mul_(rate)


def _rmsprop(p, grad, history, rate, iteration):
    history[0].mul_(p.rms_decay).addcmul_(grad, grad, value=1 - p.rms_decay)
    grad.div_(history[0].sqrt().add_(p.delta)).mul_(rate)


def _adadelta(p, grad, history, rate, iteration):
    squared, updates = history
    squared.mul_(p.momentum).addcmul_(grad, grad, value=1 - p.momentum)
    grad.mul_(((updates + p.delta) / (squared + p.delta)).sqrt_())
    updates.mul_(p.momentum).addcmul_(grad, grad, value=1 - p.momentum)
    grad.mul_(rate)


def _adam(p, grad, history, rate, iteration):
    mean, variance = history
    mean.mul_(p.momentum).add_(grad, alpha=1 - p.momentum)
    variance.mul_(p.momentum2).addcmul_(grad, grad, value=1 - p.momentum2)
    t = iteration + 1
    correction = math.sqrt(1 - math.pow(p.momentum2, t)) / (1 - math.pow(p.momentum, t))
    torch.div(mean, variance.sqrt().add_(p.delta), out=grad).mul_(rate * correction)


_UPDATES = {
    "SGD": _sgd,
    "Nesterov": _nesterov,
    "AdaGrad": _adagrad,
    "RMSProp": _rmsprop,
    "AdaDelta": _adadelta,
    "Adam": _adam,
}
