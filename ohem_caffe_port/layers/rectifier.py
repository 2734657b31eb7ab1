"""Layers that leave positive values alone and bend negative ones: ReLU and its kin."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from prototxt.caffe_pb2 import FillerParameter

from .base import register
from .neuron import Neuron, with_derivative


def relu(x, slope=0.0, low=-math.inf, high=math.inf, in_place=False):
    """``max(x, 0) + slope * min(x, 0)``, kept between ``low`` and ``high``; no gradient where ``x`` is not."""
    if (low, high) == (-math.inf, math.inf):
        # torch inverts only a rising function
        return F.leaky_relu(x, slope, inplace=in_place and slope > 0) if slope else F.relu(x, inplace=in_place)
    if not slope:
        return F.hardtanh(x, max(low, 0.0), high, inplace=in_place)
    y = F.leaky_relu(x, slope).clamp_(low, high)
    return with_derivative(x, y, lambda: torch.where(x > 0, 1.0, slope) * ((x > low) & (x < high)))


@register("ReLU")
class ReLU(Neuron):
    """``ReLULayer``: ``max(x, 0) + negative_slope * min(x, 0)``.

    synopsys-caffe caps the result, by default not at all: to at most 6 with ``relu6``, to at most ``maximum`` if that
    is positive, to at least ``minimum`` if that is not 0; a bottom outside these limits gets no gradient. ``fuse``
    (Intel) says that an earlier layer has done the same already; once more changes nothing.
    """

    fields = {"relu_param": {"negative_slope", "relu6", "maximum", "minimum", "fuse"}}
    saves_top = True

    def setup(self, bottoms):
        p = self.settings
        highest = [6.0] * p.relu6 + [p.maximum] * (p.maximum > 0)
        self.low, self.high = p.minimum or -math.inf, min(highest, default=math.inf)
        if self.low > self.high:
            raise self.error(f"lies above the greatest value, {self.high}", field=f"{self.message}.minimum")

    def forward(self, bottoms):
        return [relu(bottoms[0], self.settings.negative_slope, self.low, self.high, self.in_place)]


@register("XLU")
class XLU(ReLU):
    """ReLU with caps under another name (synopsys-caffe)."""

    fields = {"xlu_param": {"negative_slope", "relu6", "maximum", "minimum"}}


@register("ReLU6")
class ReLU6(Neuron):
    """ReLU capped at ``threshold``, 6 unless stated (MobileNet-YOLO)."""

    fields = {"relu6_param": {"negative_slope", "threshold"}}
    saves_top = True

    def setup(self, bottoms):
        if self.settings.threshold <= 0:
            raise self.error(f"must be positive, not {self.settings.threshold}", field="relu6_param.threshold")

    def forward(self, bottoms):
        slope, high = self.settings.negative_slope, self.settings.threshold
        return [relu(bottoms[0], slope, high=high, in_place=self.in_place)]


@register("PReLU")
class PReLU(Neuron):
    """``PReLULayer``: ``max(x, 0) + slope * min(x, 0)`` with a learned slope for each channel, or one for all
    (``channel_shared``); 0.25 at first unless a ``filler`` is given (He et al., 2015)."""

    fields = {"prelu_param": {"filler", "channel_shared"}}

    def setup(self, bottoms):
        p = self.settings
        if bottoms[0].dim() < 2:
            raise self.error(f"takes blobs with two axes and more, not shape {tuple(bottoms[0].shape)}")
        filler = p.filler if p.HasField("filler") else FillerParameter(value=0.25)
        self.add_blob(() if p.channel_shared else (bottoms[0].shape[1],), filler)

    def forward(self, bottoms):
        return [F.prelu(bottoms[0], self.blob(0))]


@register("ELU")
class ELU(Neuron):
    """``ELULayer``: ``x`` above 0, ``alpha * (exp(x) - 1)`` below; all times ``lambda`` (NVIDIA, 1 by default).

    The gradient below 0 is NVIDIA's ``lambda * (alpha + top)``, which is the derivative only where ``lambda`` is 1.
    """

    fields = {"elu_param": {"alpha", "lambda"}}
    saves_top = True

    def forward(self, bottoms):
        x, alpha, scale = bottoms[0], self.settings.alpha, getattr(self.settings, "lambda")
        if scale == 1:
            return [F.elu(x, alpha, inplace=self.in_place and alpha >= 0)]
        y = F.elu(x, alpha) * scale
        return [with_derivative(x, y, lambda: torch.where(x > 0, 1.0, y + alpha) * scale)]


@register("SeLU")
class SeLU(Neuron):
    """ELU times ``lambda``, which with the default ``alpha`` keeps mean 0 and variance 1 (Klambauer et al., 2017;
    synopsys-caffe)."""

    fields = {"selu_param": {"alpha", "lambda"}}

    def forward(self, bottoms):
        return [F.elu(bottoms[0], self.settings.alpha) * getattr(self.settings, "lambda")]


@register("SeLu")
class SeLu(SeLU):
    """SeLU in soeaver's spelling."""


@register("Insanity")
class Insanity(Neuron):
    """Randomised leaky ReLU (caffe-windows; Xu et al., 2015): negative values are divided by a number drawn evenly from
    ``lb`` to ``ub`` for each of them, in testing by ``(ub - lb) / (log |ub| - log |lb|)``."""

    fields = {"insanity_param": {"lb", "ub"}}

    def setup(self, bottoms):
        lb, ub = self.settings.lb, self.settings.ub
        if lb >= ub or lb * ub == 0 or lb == -ub:
            raise self.error(f"no range to draw from: {lb} to {ub}", field="insanity_param")
        self.mean = (ub - lb) / (math.log(abs(ub)) - math.log(abs(lb)))

    def forward(self, bottoms):
        x, p = bottoms[0], self.settings
        slope = torch.empty_like(x).uniform_(p.lb, p.ub) if self.context.train else self.mean
        return [torch.where(x > 0, x, x / slope)]
