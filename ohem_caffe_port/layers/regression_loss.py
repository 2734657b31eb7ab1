"""Losses between a prediction and a target of its size."""

from __future__ import annotations

import torch

from .base import register
from .loss import LossLayer, given_gradient


@register("SmoothL1Loss")
class SmoothL1Loss(LossLayer):
    """``SmoothL1LossLayer`` of Fast R-CNN and the forks after it: squared near the target, absolute beyond.

    With ``d = inside * (prediction - target)`` it is the sum of ``outside * s(d)`` over the number of rows, where
    ``s(d)`` is ``0.5 (sigma d)^2`` for ``|d| < 1 / sigma^2`` and ``|d| - 0.5 / sigma^2`` beyond. (Fast R-CNN,
    Girshick 2015, equation 3; sigma is of caffe-fast-rcnn.) Prediction and target can get a gradient, the weights not.

    Bottoms: prediction, target; with a third one (the first Fast R-CNN, SSD, caffe-rfcn) the inside weight alone, which
    those forks leave out of the gradient (it is 0 or 1); with a fourth one (caffe-fast-rcnn) inside and outside weight.
    synopsys-caffe's ``abssum`` decides otherwise: true leaves the inside weight out and sums absolute values.
    A second top (caffe-rfcn, cascade-rcnn) is the sum of ``outside * s(d)`` over the channels, [N, 1, H, W].

    ``loss_param`` divides by something else: FULL and VALID by rows x places (caffe-rfcn), BATCH_SIZE by rows,
    PRE_FIXED by ``pre_fixed_normalizer`` (caffe-rfcn), NONE (caffe-rfcn, Intel) by 1; never by less than 1.
    """

    fields = {
        "smooth_l1_loss_param": {"sigma", "abssum"},
        "loss_param": {"normalization", "normalize", "pre_fixed_normalizer"},
    }
    num_bottoms = (2, 4)
    num_tops = (1, 2)

    def allow_force_backward(self, bottom):
        return bottom < 2

    def setup(self, bottoms):
        p = self.param.loss_param
        self.mode = self.normalization(p.BATCH_SIZE, pre_fixed=True)
        if not self.param.smooth_l1_loss_param.sigma:
            raise self.error("must not be 0", field="smooth_l1_loss_param.sigma")
        if bottoms[0].dim() < 2 and len(self.param.top) == 2:
            raise self.error(f"sums over channels, but the prediction's shape is {tuple(bottoms[0].shape)}")

    def forward(self, bottoms):
        self.check_rows(bottoms)
        self.check_sizes(bottoms)
        prediction = bottoms[0]
        p = self.param.smooth_l1_loss_param
        sigma2 = p.sigma**2
        difference = prediction - bottoms[1].reshape(prediction.shape)
        weights = [w.detach().reshape(prediction.shape) for w in bottoms[2:]]
        d = weights[0] * difference if weights else difference
        magnitude = d.abs()
        near = magnitude < 1 / sigma2
        error = torch.where(near, 0.5 * sigma2 * d * d, magnitude - 0.5 / sigma2)
        if len(weights) == 2:
            error = weights[1] * error
        total = error.abs().sum() if p.HasField("abssum") and p.abssum else error.sum()
        if weights and (p.abssum if p.HasField("abssum") else len(weights) == 1):
            slope = torch.where(near, sigma2 * d, d.sign())
            total = given_gradient(total, difference, weights[1] * slope if len(weights) == 2 else slope)
        places = prediction.numel() // max(1, prediction.shape[:2].numel())
        tops = [total / self.normalizer(self.mode, len(prediction), len(prediction) * places)]
        if len(self.param.top) == 2:
            each = error.detach().sum(1, keepdim=True)
            tops.append(each.reshape(*each.shape, *(1,) * (4 - each.dim())))
        return tops


@register("EuclideanLoss")
class EuclideanLoss(LossLayer):
    """``EuclideanLossLayer``: half the squared distance, divided by the number of rows.

    caffe-windows' third bottom multiplies the difference; its gradient has the weight once, not squared.
    """

    num_bottoms = (2, 3)

    def allow_force_backward(self, bottom):
        return bottom < 2

    def forward(self, bottoms):
        self.check_rows(bottoms)
        self.check_sizes(bottoms)
        d = bottoms[0] - bottoms[1].reshape(bottoms[0].shape)
        if len(bottoms) == 3:
            weighted = d * bottoms[2].detach().reshape(d.shape)
            total = given_gradient((weighted * weighted).sum() / 2, d, weighted)
        else:
            total = (d * d).sum() / 2
        return [total / bottoms[0].shape[0]]


@register("L1Loss")
class L1Loss(LossLayer):
    """``L1LossLayer``: the sum of absolute differences over the number of rows (NVIDIA, for DetectNet).

    With ``l1_loss_param``, or with a single bottom that is the difference already, it is synopsys-caffe's (FlowNet's):
    entries that are not a number count for nothing; ``normalize_by_num_entries`` divides by the number of the others
    over the channels; differences below ``plateau`` cost nothing; a difference of 0 has slope -1. With
    ``l2_per_location`` it sums ``sqrt(sum over channels of d^2 + epsilon)``, the sum over channels taken as 0 where it
    is below ``plateau^2``, and divided by the channels with ``l2_prescale_by_channels``.
    """

    fields = {
        "l1_loss_param": {
            "l2_per_location", "l2_prescale_by_channels", "normalize_by_num_entries", "epsilon", "plateau",
        }
    }  # fmt: skip
    num_bottoms = (1, 2)

    def allow_force_backward(self, bottom):
        return True

    def forward(self, bottoms):
        d = bottoms[0]
        if len(bottoms) == 2:
            self.check_rows(bottoms)
            self.check_sizes(bottoms)
            d = d - bottoms[1].reshape(d.shape)
        if len(bottoms) == 2 and not self.param.HasField("l1_loss_param"):
            return [d.abs().sum() / d.shape[0]]
        if d.dim() < 2:
            raise self.error(f"takes bottoms with channels, not shape {tuple(d.shape)}")
        p = self.param.l1_loss_param
        entries = ~d.isnan()
        rows = entries.sum() / d.shape[1] if p.normalize_by_num_entries else d.shape[0]
        d = torch.where(entries, d, 0)
        if not p.l2_per_location:
            costs = entries & (d.abs() >= p.plateau)
            slope = torch.where(d > 0, 1.0, -1.0) * costs
            return [given_gradient((d.abs() * costs).sum(), d, slope) / rows]
        square = (d * d).sum(1) / (d.shape[1] if p.l2_prescale_by_channels else 1)
        if p.plateau > 0:
            square = torch.where(square < p.plateau**2, 0, square)
        return [torch.sqrt(square + p.epsilon).sum() / rows]
