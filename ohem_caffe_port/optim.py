"""Caffe's learning-rate policies and update rules (``sgd_solver.cpp`` and its siblings)."""

from __future__ import annotations

import math
from itertools import accumulate

import torch
from torch import Tensor

from .memory import cache_sized


def _vsteps(p):
    """SPP_net's policy: ``vstep_lr[k]`` holds for ``vstep_size[k]`` iterations, the last one for good."""
    return zip(p.vstep_lr, accumulate(p.vstep_size), strict=True)


def _stage(p, iteration):
    """Intel's and MobileNet-YOLO's policy: ``stagelr[k]`` holds up to and in iteration ``stageiter[k]``, the last one
    for good."""
    return next((lr for lr, end in zip(p.stagelr, p.stageiter, strict=True) if iteration <= end), p.stagelr[-1])


# (solver param, iteration, current_step) -> rate
POLICIES = {
    "fixed": lambda p, i, s: p.base_lr,
    "step": lambda p, i, s: p.base_lr * math.pow(p.gamma, s),
    "exp": lambda p, i, s: p.base_lr * math.pow(p.gamma, i),
    "inv": lambda p, i, s: p.base_lr * math.pow(1 + p.gamma * i, -p.power),
    "multistep": lambda p, i, s: p.base_lr * math.pow(p.gamma, s),
    "poly": lambda p, i, s: p.base_lr * math.pow(1 - i / p.max_iter, p.power),
    "vstep": lambda p, i, s: next((lr for lr, end in _vsteps(p) if i < end), p.vstep_lr[-1]),
    "sigmoid": lambda p, i, s: p.base_lr / (1 + math.exp(-p.gamma * (i - p.stepsize))),
    "plateau": lambda p, i, s: p.base_lr * math.pow(p.gamma, s),
    "multifixed": lambda p, i, s: _stage(p, i),
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


UPDATES = {
    "SGD": _sgd,
    "Nesterov": _nesterov,
    "AdaGrad": _adagrad,
    "RMSProp": _rmsprop,
    "AdaDelta": _adadelta,
    "Adam": _adam,
}


def update(p, weight: Tensor, grad: Tensor, history: list[Tensor], *, rate, decay, factors=(), iteration: int) -> None:
    """One parameter's ``Normalize``, ``Regularize``, ``ComputeUpdateValue`` and ``Update`` of ``SGDSolver``, in place.

    Args:
        p: the ``SolverParameter``.
        weight, grad: of one shape; the gradient becomes the update that was subtracted.
        history: the rule's blobs, of the same shape.
        rate: learning rate of this parameter.
        decay: its weight decay, L2 or L1 as ``regularization_type`` says.
        factors: what the gradient is multiplied by first, one after the other.
    """
    rule = UPDATES[p.type]
    for part in cache_sized(weight):
        w, g = weight[part], grad[part]
        for factor in factors:
            g.mul_(factor)
        if decay:
            g.add_(w if p.regularization_type == "L2" else w.sign(), alpha=decay)
        rule(p, g, [blob[part] for blob in history], rate, iteration)
        w.sub_(g)
