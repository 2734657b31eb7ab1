"""Softmax and losses."""

from __future__ import annotations

import math

import torch

from .base import Layer, canonical_axis, register

_FLT_MIN = torch.finfo(torch.float32).tiny


@register("Softmax")
class Softmax(Layer):
    """``SoftmaxLayer`` along ``axis``."""

    fields = {"softmax_param": {"axis"}}

    def setup(self, bottoms):
        self.axis = canonical_axis(self, self.param.softmax_param.axis, bottoms[0].dim())

    def forward(self, bottoms):
        return [torch.softmax(bottoms[0], self.axis)]


class LossLayer(Layer):
    """A layer whose first top is a scalar with loss_weight 1 unless stated."""

    is_loss = True
    num_bottoms = (2, 2)


class _SoftmaxLoss(torch.autograd.Function):
    """Sum of ``-log(max(p[label], FLT_MIN))`` over counted positions, and ``p``; gradient ``p - onehot`` there."""

    @staticmethod
    def forward(ctx, scores, labels, axis, ignore_label):
        prob = torch.softmax(scores, axis)
        counted = torch.ones_like(labels, dtype=torch.bool) if ignore_label is None else labels != ignore_label
        index = torch.where(counted, labels, 0).unsqueeze(axis)
        picked = prob.gather(axis, index).squeeze(axis)
        ctx.save_for_backward(prob, index, counted)
        ctx.axis = axis
        ctx.mark_non_differentiable(prob)
        return -(torch.log(picked.clamp(min=_FLT_MIN)) * counted).sum(), prob

    @staticmethod
    def backward(ctx, grad, _):
        prob, index, counted = ctx.saved_tensors
        diff = prob.clone()
        diff.scatter_add_(ctx.axis, index, diff.new_full((), -1.0).expand(index.shape))
        return diff.mul_(counted.unsqueeze(ctx.axis)).mul_(grad), None, None, None


@register("SoftmaxWithLoss")
class SoftmaxWithLoss(LossLayer):
    """``SoftmaxWithLossLayer``: bottoms scores and labels (one for each position off the softmax axis); tops the loss
    and, optionally, the probabilities.

    ``loss_param.normalization``: VALID (default; positions that are not ``ignore_label``), FULL, BATCH_SIZE, NONE,
    never less than 1. The older ``normalize: false`` means BATCH_SIZE.
    """

    fields = {"softmax_param": {"axis"}, "loss_param": {"ignore_label", "normalization", "normalize"}}
    num_tops = (1, 2)

    def setup(self, bottoms):
        self.axis = canonical_axis(self, self.param.softmax_param.axis, bottoms[0].dim())
        p = self.param.loss_param
        self.ignore_label = p.ignore_label if p.HasField("ignore_label") else None
        self.mode = p.normalization
        if p.HasField("normalize") and not p.HasField("normalization"):
            self.mode = p.VALID if p.normalize else p.BATCH_SIZE
        if self.mode not in (p.FULL, p.VALID, p.BATCH_SIZE, p.NONE):
            raise self.error("this normalisation does not exist for SoftmaxWithLoss", field="loss_param.normalization")

    def forward(self, bottoms):
        scores, labels = bottoms
        positions = (*scores.shape[: self.axis], *scores.shape[self.axis + 1 :])
        if labels.numel() != math.prod(positions):
            raise self.error(f"{labels.numel()} labels for {math.prod(positions)} predictions {tuple(scores.shape)}")
        labels = labels.reshape(positions).long()
        self._check_labels(labels, scores.shape[self.axis])
        total, prob = _SoftmaxLoss.apply(scores, labels, self.axis, self.ignore_label)
        return [total / self._normalizer(labels), prob][: max(1, len(self.param.top))]

    def _normalizer(self, labels):
        p = self.param.loss_param
        if self.mode == p.VALID and self.ignore_label is not None:
            return (labels != self.ignore_label).sum().clamp(min=1)
        if self.mode == p.NONE:
            return 1
        return max(1, len(labels) if self.mode == p.BATCH_SIZE else labels.numel())

    def _check_labels(self, labels, classes):
        """On the CPU, where looking costs nothing; a GPU reports an index out of range by itself."""
        if labels.device.type != "cpu" or not labels.numel():
            return
        wrong = (labels < 0) | (labels >= classes)
        if self.ignore_label is not None:
            wrong &= labels != self.ignore_label
        if wrong.any():
            raise self.error(
                f"label {labels[wrong][0].item()} in a net of {classes} classes",
                hint="the data set has other classes than the net; check num_output and the imdb's class list",
            )


@register("SmoothL1Loss")
class SmoothL1Loss(LossLayer):
    """caffe-fast-rcnn's ``SmoothL1LossLayer``: bottoms prediction, target, and optionally inside and outside weights.

    With ``d = inside * (prediction - target)`` it is the sum of ``outside * s(d)`` over the number of rows, where
    ``s(d)`` is ``0.5 (sigma d)^2`` for ``|d| < 1 / sigma^2`` and ``|d| - 0.5 / sigma^2`` beyond. (Fast R-CNN,
    Girshick 2015, equation 3; sigma is of caffe-fast-rcnn.) Prediction and target can get a gradient, the weights not.
    """

    fields = {"smooth_l1_loss_param": {"sigma"}}
    num_bottoms = (2, 4)

    def allow_force_backward(self, bottom):
        return bottom < 2

    def setup(self, bottoms):
        if len(bottoms) == 3:
            raise self.error("takes 2 bottoms, or 4 with the inside and the outside weights; it has 3")

    def forward(self, bottoms):
        prediction, target = bottoms[:2]
        for other in bottoms[1:]:
            if other.numel() != prediction.numel():
                raise self.error(f"bottoms differ in size: {[tuple(b.shape) for b in bottoms]}")
        sigma2 = self.param.smooth_l1_loss_param.sigma**2
        d = prediction - target.view_as(prediction)
        if len(bottoms) == 4:
            d = bottoms[2].detach().view_as(d) * d
        magnitude = d.abs()
        error = torch.where(magnitude < 1 / sigma2, 0.5 * sigma2 * d * d, magnitude - 0.5 / sigma2)
        if len(bottoms) == 4:
            error = bottoms[3].detach().view_as(d) * error
        return [error.sum() / prediction.shape[0]]


@register("EuclideanLoss")
class EuclideanLoss(LossLayer):
    """``EuclideanLossLayer``: half the squared distance, divided by the number of rows."""

    def allow_force_backward(self, bottom):
        return True

    def forward(self, bottoms):
        if bottoms[0].numel() != bottoms[1].numel():
            raise self.error(f"bottoms differ in size: {[tuple(b.shape) for b in bottoms]}")
        d = bottoms[0] - bottoms[1].view_as(bottoms[0])
        return [(d * d).sum() / bottoms[0].shape[0] / 2]
