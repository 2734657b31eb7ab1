"""Gradient harmonising (Li, Liu, Wang, *Gradient Harmonized Single-stage Detector*, AAAI 2019): an example weighs the
less, the more others have a gradient as long as its own. Nothing here makes a GPU's host wait, except for
:func:`gradient_density`.

The moving average over iterations is a tensor of yours, ``acc_sum`` ``[bins]``, zeros at first, that each call brings
up to date: keep it in the checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


@torch.no_grad()
def ghm_weights(
    length: Tensor,
    valid: Tensor,
    total: Tensor,
    *,
    bins: int,
    momentum: float = 0.0,
    acc_sum: Tensor | None = None,
    rule: str = "code",
) -> Tensor:
    """``beta = total / density`` of every example, in the shape of ``length``; 0 where it is not valid.

    The density of an example is the number of valid ones in its bin, one of ``bins`` of equal width over [0, 1] (paper,
    equation 10; the last also takes what is longer), times the number of bins. With ``acc_sum`` that number is the
    average ``acc_sum <- momentum acc_sum + (1 - momentum) count`` (equation 12).

    ``rule``:

    - "code" (libuyu/GHM_Detection and mmdetection): empty bins keep their average, and density is counts times the
      number of bins that are *not empty*.
    - "paper": empty bins decay, too, and density is counts times ``bins``.

    Since ``acc_sum`` starts at 0, the first weights are 1 / (1 - momentum) times as large as without an average.

    Args:
        length: norm of each example's gradient, at least 0.
        valid: bool, of its shape.
        total: N, a scalar tensor or a number.
        acc_sum: ``[bins]`` floating point, changed in place; None: no average.
    """
    if rule not in ("code", "paper"):
        raise ValueError(f"rule is 'code' or 'paper', not {rule!r}")
    edges = torch.arange(1, bins, dtype=torch.float32, device=length.device) / bins
    index = torch.bucketize(length.detach().float(), edges, right=True)
    counts = torch.zeros(bins, dtype=torch.int64, device=length.device)
    counts.scatter_add_(0, index.flatten(), valid.flatten().long())
    filled, density = counts > 0, counts.float()
    if acc_sum is not None:
        average = momentum * acc_sum + (1 - momentum) * density
        acc_sum.copy_(torch.where(filled, average, acc_sum) if rule == "code" else average)
        density = acc_sum.float()
    regions = filled.sum().clamp(min=1) if rule == "code" else bins
    weights = torch.where(filled, total / density, 0) / regions
    return torch.where(valid, weights[index], 0)


def ghmc_loss(
    logits: Tensor,
    targets: Tensor,
    label_weight: Tensor | None = None,
    *,
    bins: int = 30,
    momentum: float = 0.75,
    acc_sum: Tensor | None = None,
    rule: str = "code",
) -> Tensor:
    """GHM-C: ``sum(beta CE) / N``, a scalar (paper, equation 9).

    CE is the sigmoid's cross-entropy of every (example, class), the gradient's norm ``|sigmoid(logit) - target|``, and
    N the number of valid ones, at least 1.

    Args:
        targets: 0 or 1, of the shape of ``logits``.
        label_weight: of that shape, or one that broadcasts to it; valid is what is above 0. None: all.
        momentum, acc_sum, rule, bins: see :func:`ghm_weights`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # a half's sum would not hold N
    targets = targets.to(logits.dtype)
    valid = torch.ones_like(logits, dtype=torch.bool) if label_weight is None else (label_weight > 0)
    valid = valid.expand_as(logits)
    total = valid.sum().clamp(min=1)
    length = (torch.sigmoid(logits.detach()) - targets).abs()
    beta = ghm_weights(length, valid, total, bins=bins, momentum=momentum, acc_sum=acc_sum, rule=rule)
    return F.binary_cross_entropy_with_logits(logits, targets, beta, reduction="sum") / total


def asl1_loss(difference: Tensor, mu: float = 0.02) -> Tensor:
    """The authentic smooth L1 loss ``sqrt(d^2 + mu^2) - mu`` of every difference (paper, equation 13)."""
    return torch.sqrt(difference * difference + mu * mu) - mu


def ghmr_loss(
    pred: Tensor,
    target: Tensor,
    label_weight: Tensor | None = None,
    *,
    mu: float = 0.02,
    bins: int = 10,
    momentum: float = 0.7,
    acc_sum: Tensor | None = None,
    rule: str = "code",
) -> Tensor:
    """GHM-R: ``sum(beta ASL1(pred - target)) / N``, a scalar (paper, equation 15).

    The gradient's norm is ``|d| / sqrt(d^2 + mu^2)``, N the sum of ``label_weight``, at least 1. The paper's nets
    multiply the result by 10.

    Args:
        pred, target: box coordinates, of one shape.
        label_weight: 0 for coordinates that do not count, of their shape or one that broadcasts to it. None: all do.
        momentum, acc_sum, rule, bins: see :func:`ghm_weights`.
    """
    pred = pred.to(torch.promote_types(pred.dtype, torch.float32))  # a half's squares overflow
    difference = pred - target
    weight = torch.ones_like(difference) if label_weight is None else label_weight.to(pred.dtype).expand_as(difference)
    total = weight.sum().clamp(min=1)
    d = difference.detach()
    length = d.abs() / torch.sqrt(d * d + mu * mu)
    beta = ghm_weights(length, weight > 0, total, bins=bins, momentum=momentum, acc_sum=acc_sum, rule=rule)
    return (beta * asl1_loss(difference, mu)).sum() / total


@torch.no_grad()
def gradient_density(length: Tensor, epsilon: float = 1 / 30) -> Tensor:
    """The density that bins approximate (paper, equations 3 to 5), in the shape of ``length``.

    ``GD(g) = #{k: g - epsilon / 2 <= g_k < g + epsilon / 2} / l(g)``, ``l(g)`` the part of that interval inside [0, 1].
    The exact GHM-C is ``sum(CE / GD)``. By sorting, in O(N log N).
    """
    ordered = length.flatten().sort().values
    low, high = length - epsilon / 2, length + epsilon / 2
    count = torch.searchsorted(ordered, high.contiguous()) - torch.searchsorted(ordered, low.contiguous())
    return count / (high.clamp(max=1) - low.clamp(min=0))
