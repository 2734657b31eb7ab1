"""Focal loss (Lin, Goyal, Girshick, He, Dollár, *Focal Loss for Dense Object Detection*, ICCV 2017): every example
counts, the easy ones next to nothing. Nothing here makes a GPU's host wait."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_FLT_MIN = torch.finfo(torch.float32).tiny
_EPS = 1e-10  # the least 1 - p that the Caffe forks divide by


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, *, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """``-alpha_t (1 - p_t)^gamma log(p_t)`` of every logit (paper, equation 5), in the shape of ``logits``.

    ``p = sigmoid(logit)``; ``p_t`` and ``alpha_t`` are ``p`` and ``alpha`` where the target is above 0, else ``1 - p``
    and ``1 - alpha``. Exact for any finite logit and any ``gamma >= 0``: powers are taken of logarithms. Sum it and
    divide by :func:`num_positives`.

    Args:
        targets: 0 or 1, of the shape of ``logits``.
        alpha: a negative one leaves the weight out, as in torchvision.
    """
    positive = targets > 0
    towards = torch.where(positive, logits, -logits)
    log_right = F.logsigmoid(towards)
    loss = -torch.exp(gamma * (log_right - towards)) * log_right  # log(1 - p_t) = log(p_t) - x_t
    return loss if alpha < 0 else torch.where(positive, alpha * loss, (1 - alpha) * loss)


def focal_loss_star(logits: Tensor, targets: Tensor, *, gamma: float = 2.0, beta: float = 1.0) -> Tensor:
    """``FL* = -log(sigmoid(gamma x_t + beta)) / gamma`` of every logit (paper, appendix A), of their shape.

    ``x_t`` is the logit where the target is above 0, else its negative. The paper's pairs (gamma, beta) are (2, 1) and
    (4, 0).
    """
    towards = torch.where(targets > 0, logits, -logits)
    return F.softplus(-(gamma * towards + beta)) / gamma


def softmax_focal_loss(
    scores: Tensor, labels: Tensor, *, alpha: float | Tensor = 0.25, gamma: float = 2.0, axis: int = -1
) -> Tensor:
    """``-alpha (1 - p_t)^gamma log(p_t)`` of every position, with ``p_t`` the softmax probability of its label.

    The form of the Caffe forks, where one ``alpha`` weighs all classes, background too (zimenglan-sysu-512/Focal-Loss,
    chuanqi305/FocalLoss); ``log`` is of at least 1.2e-38.

    Args:
        scores: ``[..., C, ...]``, classes along ``axis``.
        labels: class of every position, the shape of ``scores`` without ``axis``.
        alpha: a number, or ``[C]``, a weight for each class.
    """
    loss = _SoftmaxFocalLoss.apply(scores, labels.long(), gamma, axis)
    return loss * (alpha[labels.long()] if torch.is_tensor(alpha) else alpha)


class _SoftmaxFocalLoss(torch.autograd.Function):
    """With ``power = (1 - p_t)^gamma`` the gradient by the scores is ``g (p - onehot)``,
    ``g = power - gamma power / (1 - p_t) p_t log(p_t)``."""

    @staticmethod
    def forward(ctx, scores, labels, gamma, axis):
        prob, index = torch.softmax(scores, axis), labels.unsqueeze(axis)
        right = prob.gather(axis, index)
        log = torch.log(right.clamp(min=_FLT_MIN))
        power = (1 - right) ** gamma
        ctx.save_for_backward(prob, index, power - gamma * power / (1 - right).clamp(min=_EPS) * right * log)
        ctx.axis = axis
        return (-power * log).squeeze(axis)

    @staticmethod
    def backward(ctx, grad):
        prob, index, slope = ctx.saved_tensors
        slope = slope * grad.unsqueeze(ctx.axis)
        return (prob * slope).scatter_add_(ctx.axis, index, -slope), None, None, None


def num_positives(labels: Tensor) -> Tensor:
    """What the paper divides by: how many labels are above 0, at least 1 (a scalar tensor on their device)."""
    return (labels > 0).sum().clamp(min=1)


def prior_bias(prior: float = 0.01) -> float:
    """``-log((1 - prior) / prior)``: the bias of the last class layer with which every sigmoid starts at ``prior``
    (paper, section 4.1), so that the many easy negatives do not swamp the first iterations."""
    return -math.log((1 - prior) / prior)


def softmax_prior_bias(prior: float, classes: int) -> float:
    """The background's bias, beside 0 for the other classes, with which a softmax over ``classes`` classes, background
    included, starts at ``prior`` for all objects together."""
    return math.log(classes - 1) - prior_bias(prior)
