"""Losses between scores and classes, beside SoftmaxWithLoss."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from converters.binaryproto import read_binaryproto
from converters.errors import WeightsError

from .base import canonical_axis, register
from .loss import LossLayer, class_labels, given_gradient, refuse_gradient

_LOG_THRESHOLD = 1e-20  # Caffe's kLOG_THRESHOLD


def _rows(scores):
    """[N, D]: the scores of each row in one piece."""
    return scores.reshape(scores.shape[0], math.prod(scores.shape[1:]))


@register("MultinomialLogisticLoss")
class MultinomialLogisticLoss(LossLayer):
    """``MultinomialLogisticLossLayer``: mean over rows of ``-log(max(p[label], 1e-20))``; bottoms are probabilities
    and one label a row.

    The gradient is ``-1 / max(p, 1e-20)`` below the threshold too.
    """

    def forward(self, bottoms):
        self.check_rows(bottoms)
        prob = _rows(bottoms[0])
        labels, _ = class_labels(self, prob.shape, bottoms[1], 1)
        picked = prob.gather(1, labels[:, None])
        clamped = picked.clamp(min=_LOG_THRESHOLD)
        return [given_gradient(-torch.log(clamped).sum(), picked, -1 / clamped) / len(prob)]


@register("HingeLoss")
class HingeLoss(LossLayer):
    """``HingeLossLayer``: the one-against-all hinge loss; bottoms are scores and one label a row.

    With ``t = -1`` for the label and ``1`` for the other classes, the sum of ``max(0, 1 + t * score)`` (``norm: L1``)
    or of its square (``L2``) over the number of rows.
    """

    fields = {"hinge_loss_param": {"norm"}}

    def forward(self, bottoms):
        self.check_rows(bottoms)
        scores = _rows(bottoms[0])
        labels, _ = class_labels(self, scores.shape, bottoms[1], 1)
        side = torch.ones_like(scores).scatter(1, labels[:, None], -1.0)
        margin = F.relu(1 + side * scores)  # slope 0 at 0, as Caffe's sign
        p = self.param.hinge_loss_param
        return [(margin if p.norm == p.L1 else margin * margin).sum() / len(scores)]


@register("InfogainLoss")
class InfogainLoss(LossLayer):
    """``InfogainLossLayer`` of BVLC master: ``-sum_k H[label, k] log(max(p[k], 1e-20))``, p the softmax of the scores.

    Bottoms: scores, labels (one for each position off ``axis``) and optionally the infogain matrix H (classes x
    classes); else ``source`` is a file with it (a BlobProto, .binaryproto). Tops: the loss and optionally p.
    ``loss_param`` holds ``ignore_label`` and ``normalization``, as in SoftmaxWithLoss. The gradient is
    ``p * sum_k H[label, k] - H[label]``. (Before 2017 the layer took probabilities and had no softmax inside; a net of
    that time cannot be told from its fields.)
    """

    fields = {"infogain_loss_param": {"source", "axis"}, "loss_param": {"ignore_label", "normalization"}}
    num_bottoms = (2, 3)
    num_tops = (1, 2)

    def allow_force_backward(self, bottom):
        return bottom == 0

    def setup(self, bottoms):
        p = self.param.loss_param
        self.axis = canonical_axis(self, self.param.infogain_loss_param.axis, bottoms[0].dim())
        self.ignore_label = p.ignore_label if p.HasField("ignore_label") else None
        self.mode = self.normalization(p.VALID)
        self.matrix = self._read_matrix() if len(bottoms) == 2 else None

    def _read_matrix(self):
        p = self.param.infogain_loss_param
        where = {"field": "infogain_loss_param.source"}
        if not p.source:
            raise self.error("the infogain matrix must be a file or the third bottom", **where)
        try:
            return torch.from_numpy(read_binaryproto(p.source).copy())
        except WeightsError as error:
            raise self.error(f"{p.source}: {error.message}", hint=error.hint, **where) from None

    def forward(self, bottoms):
        scores, labels = bottoms[:2]
        self.check_rows(bottoms)
        refuse_gradient(self, *bottoms[2:])
        classes = scores.shape[self.axis]
        matrix = self.matrix if len(bottoms) == 2 else bottoms[2]
        if matrix.numel() != classes**2:
            raise self.error(f"an infogain matrix of shape {tuple(matrix.shape)} for {classes} classes")
        labels, counted = class_labels(self, scores.shape, labels, self.axis, self.ignore_label)
        matrix = matrix.to(scores).reshape(classes, classes)
        gain = (matrix[labels] * counted[..., None]).movedim(-1, self.axis)
        prob = torch.softmax(scores.detach(), self.axis)
        total = -(gain * torch.log(prob.clamp(min=_LOG_THRESHOLD))).sum()
        total = given_gradient(total, scores, prob * gain.sum(self.axis, keepdim=True) - gain)
        rows = math.prod(scores.shape[: self.axis])
        valid = None if self.ignore_label is None else counted.sum()
        return [total / self.normalizer(self.mode, rows, labels.numel(), valid), prob][: len(self.param.top)]


@register("SigmoidCrossEntropyLoss")
class SigmoidCrossEntropyLoss(LossLayer):
    """``SigmoidCrossEntropyLossLayer``: the sum of ``-t log(sigmoid(x)) - (1 - t) log(1 - sigmoid(x))``, divided by the
    batch size unless ``loss_param.normalization`` says otherwise.

    Bottoms: scores x and targets t (probabilities) of the same size. A target that, cut to an integer, is
    ``ignore_label`` counts for nothing. Modes: BATCH_SIZE (default, also what forks of 2015 do), FULL and VALID (all
    entries, or those not ignored), NONE; never less than 1. MNC's third bottom holds a weight for each entry: the sum
    is then divided by the weights' sum (0 when that is not positive; MNC keeps the loss before). HED's fork gives the
    type another meaning, with weights by class, that no field tells apart; this is Caffe's.
    """

    fields = {"loss_param": {"ignore_label", "normalization", "normalize"}}
    num_bottoms = (2, 3)

    def allow_force_backward(self, bottom):
        return bottom == 0

    def setup(self, bottoms):
        p = self.param.loss_param
        self.ignore_label = p.ignore_label if p.HasField("ignore_label") else None
        self.mode = self.normalization(p.BATCH_SIZE)
        if len(bottoms) == 3 and (p.HasField("normalization") or p.HasField("normalize")):
            raise self.error("with weights, the sum is divided by the sum of the weights", field="loss_param")

    def forward(self, bottoms):
        self.check_rows(bottoms)
        self.check_sizes(bottoms)
        refuse_gradient(self, *bottoms[1:])
        x, target = bottoms[0], bottoms[1].reshape(bottoms[0].shape)
        weight, valid = None, None
        if self.ignore_label is not None:
            weight = (target.long() != self.ignore_label).to(x.dtype)
            valid = weight.sum()
        divisor = self.normalizer(self.mode, x.shape[0], x.numel(), valid)
        if len(bottoms) == 3:
            weight = bottoms[2].reshape(x.shape) * (1 if weight is None else weight)
            divisor = weight.sum()
            divisor = torch.where(divisor > 0, divisor, torch.inf)
        return [F.binary_cross_entropy_with_logits(x, target, weight, reduction="sum") / divisor]
