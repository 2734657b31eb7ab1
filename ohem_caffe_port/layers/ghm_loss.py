"""Gradient harmonising (Li, Liu, Wang, AAAI 2019): losses in which examples with a common gradient weigh less."""

from __future__ import annotations

import math

import torch

from prototxt.caffe_pb2 import FillerParameter

from ..mining import ghm_weights, ghmc_loss, ghmr_loss
from .base import Layer, register
from .loss import LossLayer, class_labels, given_gradient, refuse_gradient
from .scale import not_learned

MOST_BINS = 10**6


class GradientAverage:
    """Settings of one loss, and the moving average of its bins, a parameter blob of the layer that is never learned, so
    that snapshots hold it.

    Args:
        message: ``ghmc_loss_param`` or ``ghmr_loss_param``. ``bins`` and ``momentum`` may be spelled ``m`` and
            ``alpha``, as in GHM_Loss-caffe.
        bins, momentum: where none is stated.

    Raises:
        PortError: settings out of range.
    """

    def __init__(self, layer: Layer, message: str, bins: int, momentum: float):
        p = getattr(layer.param, message)
        self.bins = p.bins if p.HasField("bins") else p.m if p.HasField("m") else bins
        self.momentum = p.momentum if p.HasField("momentum") else p.alpha if p.HasField("alpha") else momentum
        self.rule = p.Rule.Name(p.rule).lower()
        if not 1 <= self.bins <= MOST_BINS:
            field = "bins" if p.HasField("bins") else "m"
            raise layer.error(f"must be from 1 to {MOST_BINS}", field=f"{message}.{field}")
        if not 0 <= self.momentum < 1:
            field = "momentum" if p.HasField("momentum") else "alpha"
            raise layer.error("must be 0 or more, and less than 1", field=f"{message}.{field}")
        self.layer, self.index = layer, len(layer.blobs)
        if self.momentum:
            layer.add_blob((self.bins,), FillerParameter(value=0))
            not_learned(layer, len(layer.blobs))

    def options(self) -> dict:
        """Keyword arguments of :mod:`ohem_caffe_port.mining.ghm`; in TEST the average is read and not changed."""
        acc_sum = None
        if self.momentum:
            acc_sum = self.layer.blobs[self.index].detach()
            if acc_sum.is_meta or not self.layer.context.train:
                acc_sum = acc_sum.clone()
        return {"bins": self.bins, "momentum": self.momentum, "acc_sum": acc_sum, "rule": self.rule}


def _weights(layer: Layer, bottoms, shape):
    """The third bottom in ``shape``, or repeated over its last axes; None without one."""
    if len(bottoms) < 3:
        return None
    weight = bottoms[2].detach()
    if weight.numel() == shape.numel():
        return weight.reshape(shape)
    if weight.numel() == shape[0]:
        return weight.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    raise layer.error(f"{weight.numel()} weights for predictions {tuple(shape)}", field="bottom[2]")


@register("GHMCLoss")
class GHMCLoss(LossLayer):
    """GHM-C, the gradient harmonised cross-entropy of sigmoid scores (ours; the layer of libuyu/GHM_Detection).

    Bottoms: scores; labels, either 0 or 1 for every score, or a class for every position off axis 1, where 0 is
    background and class k is channel k - 1; optionally a weight for every score or every row, 0 for those that do not
    count. ``ignore_label`` does not count either. The loss is ``sum(beta CE) / N`` over the N scores that count; it has
    no other normaliser. ``bins`` 30 and ``momentum`` 0.75 unless stated, which are the paper's;
    :func:`ohem_caffe_port.mining.ghm_weights` says what they and ``rule`` do. With momentum the layer has one blob,
    the average number of scores in each bin.
    """

    fields = {
        "ghmc_loss_param": {"bins", "momentum", "rule", "m", "alpha"},
        "loss_param": {"ignore_label"},
    }
    num_bottoms = (2, 3)

    def setup(self, bottoms):
        loss = self.param.loss_param
        self.ignore_label = loss.ignore_label if loss.HasField("ignore_label") else None
        self.average = GradientAverage(self, "ghmc_loss_param", 30, 0.75)

    def forward(self, bottoms):
        self.check_rows(bottoms)
        scores, labels = bottoms[:2]
        refuse_gradient(self, *bottoms[1:])
        weight = _weights(self, bottoms, scores.shape)
        if labels.numel() == scores.numel():
            targets = labels.reshape(scores.shape).long()
            counted = targets != self.ignore_label if self.ignore_label is not None else None
        else:
            classes = list(scores.shape)
            classes[1] += 1  # and the background
            index, counted = class_labels(self, classes, labels, 1, self.ignore_label)
            channels = torch.arange(1, classes[1], device=scores.device).view(-1, *[1] * (scores.dim() - 2))
            targets, counted = index.unsqueeze(1) == channels, counted.unsqueeze(1).expand_as(scores)
        if counted is not None:
            weight = counted if weight is None else weight * counted
        return [ghmc_loss(scores, targets > 0, weight, **self.average.options())]


@register("GHMRLoss")
class GHMRLoss(LossLayer):
    """GHM-R, the gradient harmonised box loss (ours; the layer of libuyu/GHM_Detection).

    Bottoms: predictions, targets, optionally a weight for every coordinate or every row, 0 for those that do not count.
    The loss is ``sum(beta ASL1) / N``, N the sum of the weights. ``bins`` 10, ``momentum`` 0.7 and ``mu`` 0.02 unless
    stated, which are the paper's, with a loss_weight of 10. With momentum the layer has one blob, the average number of
    coordinates in each bin.
    """

    fields = {"ghmr_loss_param": {"bins", "momentum", "rule", "mu", "m", "alpha"}}
    num_bottoms = (2, 3)

    def setup(self, bottoms):
        self.mu = ghmr_mu(self)
        self.average = GradientAverage(self, "ghmr_loss_param", 10, 0.7)

    def forward(self, bottoms):
        self.check_rows(bottoms)
        self.check_sizes(bottoms[:2])
        refuse_gradient(self, *bottoms[1:], what="its targets")
        target, weight = bottoms[1].reshape(bottoms[0].shape), _weights(self, bottoms, bottoms[0].shape)
        return [ghmr_loss(bottoms[0], target, weight, mu=self.mu, **self.average.options())]


def ghmr_mu(layer: Layer) -> float:
    """``ghmr_loss_param.mu``.

    Raises:
        PortError: it is not positive and finite.
    """
    mu = layer.param.ghmr_loss_param.mu
    if not 0 < mu < math.inf:
        raise layer.error("must be positive and finite", field="ghmr_loss_param.mu")
    return mu


@register("GhmcLoss")
class GhmcLoss(LossLayer):
    """GHM-C of softmax scores, of the fork GHM_Loss-caffe.

    Bottoms: scores ``[N, C]`` and one label a row; tops: the loss, optionally the probabilities. All ``|p - onehot|``
    of rows that are not ``ignore_label`` fill the ``m`` bins (30); a row weighs ``rows / (count valid bins)``, the
    count of its label's bin, averaged with ``alpha`` (0: not at all); its log loss and gradient are multiplied by that,
    and the sum divided by what ``normalization`` says (VALID). An element of exactly 1 is in no bin there and weighs as
    those of the first; here it is in the last.
    """

    fields = {
        "ghmc_loss_param": {"m", "alpha", "bins", "momentum", "rule"},
        "loss_param": {"ignore_label", "normalization", "normalize"},
        "softmax_param": {"axis"},
    }
    num_tops = (1, 2)

    def setup(self, bottoms):
        loss = self.param.loss_param
        self.ignore_label = loss.ignore_label if loss.HasField("ignore_label") else None
        self.mode = self.normalization(loss.VALID)
        if bottoms[0].numel() != bottoms[0].shape[:2].numel() or self.param.softmax_param.axis not in (1, -1):
            raise self.error(f"takes scores [N, C], not {tuple(bottoms[0].shape)}", field="bottom[0]")
        self.average = GradientAverage(self, "ghmc_loss_param", 30, 0.0)

    def forward(self, bottoms):
        self.check_rows(bottoms)
        scores = bottoms[0].flatten(1)
        index, counted = class_labels(self, scores.shape, bottoms[1], 1, self.ignore_label)
        index = index.unsqueeze(1)
        prob = torch.softmax(scores.detach(), 1)
        slope = prob.scatter_add(1, index, -torch.ones_like(prob[:, :1]))
        rows = counted.unsqueeze(1)
        beta = ghm_weights(slope.abs(), rows.expand_as(slope), counted.sum(), **self.average.options()).gather(1, index)
        loss = -torch.log(prob.gather(1, index).clamp(min=torch.finfo(torch.float32).tiny)) * beta
        valid = None if self.ignore_label is None else counted.sum()
        total = given_gradient(loss.sum(), scores, slope * beta)
        tops = [total / self.normalizer(self.mode, len(scores), len(scores), valid), prob.view(bottoms[0].shape)]
        return tops[: max(1, len(self.param.top))]


@register("GhmrLoss")
class GhmrLoss(GHMRLoss):
    """GHM-R of the fork GHM_Loss-caffe: GHMRLoss without weights whose ``mu`` is ``alpha``, as there.

    ``m`` bins; ``alpha``, which must be positive, is the momentum as well.
    """

    fields = {"ghmr_loss_param": {"m", "alpha"}}
    num_bottoms = (2, 2)

    def setup(self, bottoms):
        self.average = GradientAverage(self, "ghmr_loss_param", 30, 0.0)
        self.mu = self.average.momentum
        if not self.mu:
            raise self.error("must be positive", field="ghmr_loss_param.alpha")
