"""Losses on distances between features, and the layer that measures distances to centres."""

from __future__ import annotations

import math

import torch

from .base import Layer, canonical_axis, register
from .loss import LossLayer, class_labels, given_gradient


def _vectors(layer, bottoms):
    """The bottoms as [N, C], when each holds one vector a row and all are of one shape."""
    shapes = {tuple(b.shape) for b in bottoms}
    shape = shapes.pop()
    if shapes or len(shape) < 2 or any(d != 1 for d in shape[2:]):
        raise layer.error(f"takes [N, C] features of one shape, not {[tuple(b.shape) for b in bottoms]}")
    return [b.reshape(shape[:2]) for b in bottoms]


@register("ContrastiveLoss")
class ContrastiveLoss(LossLayer):
    """``ContrastiveLossLayer``: pulls similar pairs together and pushes others ``margin`` apart.

    Bottoms: features a and b ([N, C] or [N, C, 1, 1]) and one number a row, not 0 where the pair is similar; with four
    (caffe-windows) a label for each of a and b, similar where they are equal. With the distance ``d = |a - b|`` it is
    the mean of ``d^2 / 2`` (similar) and ``max(margin - d, 0)^2 / 2`` (others; Hadsell et al. 2006, equation 4), or
    ``max(margin - d^2, 0) / 2`` with ``legacy_version``. Caffe's gradient divides by ``d + 1e-4``.
    """

    fields = {"contrastive_loss_param": {"margin", "legacy_version"}}
    num_bottoms = (3, 4)

    def allow_force_backward(self, bottom):
        return bottom < 2

    def forward(self, bottoms):
        a, b = _vectors(self, bottoms[:2])
        marks = [m.detach().long() for m in bottoms[2:]]
        if any(m.numel() != len(a) for m in marks):
            raise self.error(f"{marks[0].numel()} marks of similarity for {len(a)} pairs")
        marks = [m.reshape(-1, 1) for m in marks]
        similar = marks[0] != 0 if len(marks) == 1 else marks[0] == marks[1]
        p, difference = self.param.contrastive_loss_param, a - b
        square = (difference * difference).detach().sum(1, keepdim=True)
        if p.legacy_version:
            gap = p.margin - square
            far, pull = gap.clamp(min=0), torch.ones_like(gap)
        else:
            distance = square.sqrt()
            gap = p.margin - distance
            far, pull = gap.clamp(min=0) ** 2, gap / (distance + 1e-4)
        total = torch.where(similar, square, far).sum() / 2
        slope = torch.where(similar, 1.0, torch.where(gap > 0, -pull, 0.0)) * difference
        return [given_gradient(total, difference, slope) / len(a)]


@register("TripletLoss")
class TripletLoss(LossLayer):
    """caffe-windows' ``TripletLossLayer``: an anchor nearer to the positive than to the negative by ``margin``.

    Bottoms: anchor, positive and negative features, [N, C] or [N, C, 1, 1]; all get a gradient. The mean over rows of
    ``max(0, margin + |a - p|^2 - |a - n|^2) / 2``.
    """

    fields = {"triplet_loss_param": {"margin"}}
    num_bottoms = (3, 3)

    def allow_force_backward(self, bottom):
        return True

    def forward(self, bottoms):
        anchor, positive, negative = _vectors(self, bottoms)
        near, far = ((anchor - other).square().sum(1) for other in (positive, negative))
        return [torch.relu(self.param.triplet_loss_param.margin + near - far).sum() / len(anchor) / 2]


class _CenterLoss(torch.autograd.Function):
    """Sum of distances to the labels' centres; the centres get their own update, not a derivative."""

    @staticmethod
    def forward(ctx, x, centers, labels, l1, repeated):
        distance = x - centers[labels]
        ctx.save_for_backward(distance.sign() if l1 else distance, labels)
        ctx.settings = len(centers), repeated
        return distance.abs().sum() if l1 else (distance * distance).sum() / 2

    @staticmethod
    def backward(ctx, grad):
        distance, labels = ctx.saved_tensors
        classes, repeated = ctx.settings
        update = None
        if ctx.needs_input_grad[1]:
            count = torch.bincount(labels, minlength=classes).to(distance.dtype)
            rate = (count if repeated else 1) / (count + 1)
            update = -distance.new_zeros(classes, distance.shape[1]).index_add(0, labels, distance) * rate[:, None]
        return distance * grad, update, None, None, None


@register("CenterLoss")
class CenterLoss(LossLayer):
    """caffe-face's ``CenterLossLayer``: half the squared distance of each feature to its class's centre, over the rows.

    Bottoms: features and one label a row. Its blob holds the centres, [num_output, features]. What reaches the solver
    as their gradient is not the derivative but ``sum of (centre - x) / (1 + n)`` over the n rows of a class, whatever
    the loss_weight (Wen et al. 2016, equation 4); lr_mult is the rate. caffe-windows, told by ``distance_type`` ("L2"
    or "L1", the absolute distance), adds that sum once for every such row, so n times. As in Caffe, without an explicit
    loss_weight it adds nothing to the net's loss (its set-up skips the one of losses).
    """

    fields = {"center_loss_param": {"num_output", "center_filler", "axis", "distance_type"}}
    is_loss = False

    def allow_force_backward(self, bottom):
        return bottom == 0

    def setup(self, bottoms):
        p = self.param.center_loss_param
        if p.distance_type not in ("L1", "L2"):
            raise self.error(f"L1 or L2, not '{p.distance_type}'", field="center_loss_param.distance_type")
        if not p.num_output:
            raise self.error("the number of classes must be positive", field="center_loss_param.num_output")
        axis = canonical_axis(self, p.axis, bottoms[0].dim())
        if math.prod(bottoms[0].shape[1:axis]) != 1 or axis == 0:
            raise self.error(f"a feature must be one whole row of {tuple(bottoms[0].shape)}", field="axis")
        self.add_blob((p.num_output, math.prod(bottoms[0].shape[axis:])), p.center_filler)

    def forward(self, bottoms):
        self.check_rows(bottoms)
        p, centers = self.param.center_loss_param, self.blob(0)
        x = bottoms[0].reshape(len(bottoms[0]), centers.shape[1])
        labels, _ = class_labels(self, (len(x), len(centers)), bottoms[1], 1)
        repeated = p.HasField("distance_type")
        return [_CenterLoss.apply(x, centers, labels, p.distance_type == "L1", repeated) / len(x)]


@register("InnerDistance")
class InnerDistance(Layer):
    """caffe-windows' ``InnerDistanceLayer``: distances of each feature to ``num_output`` learned centres, or to the
    rows of a second bottom.

    The top is the bottom's shape up to ``axis`` and the number of centres. ``distance_type``: "L2" (the squared
    distance) or "L1". ``normalize`` first scales the centres, for good, to length 1. With ``update_center_only`` and
    a third bottom of labels, only the centre of a row's label gets a gradient from that row. The fork reads neither
    ``bias_term`` nor ``bias_filler``, and its ``transpose`` does not work.
    """

    fields = {
        "inner_distance_param": {
            "num_output", "weight_filler", "axis", "distance_type", "normalize", "update_center_only",
            "bias_term", "bias_filler",
        }
    }  # fmt: skip
    num_bottoms = (1, 3)

    def setup(self, bottoms):
        p = self.param.inner_distance_param
        if p.distance_type not in ("L1", "L2"):
            raise self.error(f"L1 or L2, not '{p.distance_type}'", field="inner_distance_param.distance_type")
        if p.update_center_only != (len(bottoms) == 3):
            raise self.error(
                f"{len(bottoms)} bottoms", field="inner_distance_param.update_center_only",
                hint="it is for three bottoms: features, centres and labels",
            )  # fmt: skip
        self.axis = canonical_axis(self, p.axis, bottoms[0].dim())
        if len(bottoms) == 1:
            if not p.num_output:
                raise self.error("must be positive", field="inner_distance_param.num_output")
            self.add_blob((p.num_output, math.prod(bottoms[0].shape[self.axis :])), p.weight_filler)

    def forward(self, bottoms):
        p, shape = self.param.inner_distance_param, bottoms[0].shape
        x = bottoms[0].reshape(math.prod(shape[: self.axis]), math.prod(shape[self.axis :]))
        if len(bottoms) == 1 and p.normalize:
            with torch.no_grad():
                self.blob(0).div_((self.blob(0).square().sum(1, keepdim=True) + 1e-6).sqrt())
        centers = bottoms[1].flatten(1) if len(bottoms) > 1 else self.blob(0)
        if centers.shape[1] != x.shape[1]:
            raise self.error(f"features of {x.shape[1]} numbers and centres of {centers.shape[1]}")
        top = self._distances(x, centers)
        if p.update_center_only:
            labels, _ = class_labels(self, top.shape, bottoms[2], 1)
            own = torch.zeros_like(top).scatter(1, labels[:, None], 1.0)
            apart = self._distances(x.detach(), centers)
            top = self._distances(x, centers.detach()) + own * (apart - apart.detach())
        return [top.reshape(*shape[: self.axis], len(centers))]

    def _distances(self, x, centers):
        if self.param.inner_distance_param.distance_type == "L1":
            return torch.cdist(x, centers, p=1)
        return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").square()
