"""Layers that work element by element."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .base import Layer, register


@register("ReLU")
class ReLU(Layer):
    """``ReLULayer``: ``max(x, 0) + negative_slope * min(x, 0)``."""

    fields = {"relu_param": {"negative_slope"}}

    def forward(self, bottoms):
        slope = self.param.relu_param.negative_slope
        if slope:
            return [F.leaky_relu(bottoms[0], slope, inplace=self.in_place)]
        return [F.relu(bottoms[0], inplace=self.in_place)]


@register("Sigmoid")
class Sigmoid(Layer):
    """``SigmoidLayer``."""

    fields = {"sigmoid_param": set()}

    def forward(self, bottoms):
        return [torch.sigmoid(bottoms[0])]


@register("TanH")
class TanH(Layer):
    """``TanHLayer``."""

    fields = {"tanh_param": set()}

    def forward(self, bottoms):
        return [torch.tanh(bottoms[0])]


@register("Dropout")
class Dropout(Layer):
    """``DropoutLayer``: each use draws its own mask from torch's generator.

    With ``scale_train`` (the default) kept values are divided by ``1 - dropout_ratio`` in training and testing is the
    identity; without it training only masks, and testing multiplies by ``1 - dropout_ratio`` (caffe-fast-rcnn).
    """

    fields = {"dropout_param": {"dropout_ratio", "scale_train"}}
    saves_top = False

    def setup(self, bottoms):
        self.ratio = self.param.dropout_param.dropout_ratio
        if not 0 < self.ratio < 1:
            raise self.error(f"must lie between 0 and 1, not {self.ratio}", field="dropout_param.dropout_ratio")

    def forward(self, bottoms):
        scaled = self.param.dropout_param.scale_train
        if not self.context.train:
            return [bottoms[0] if scaled else bottoms[0] * (1 - self.ratio)]
        if scaled:
            return [F.dropout(bottoms[0], self.ratio, training=True, inplace=self.in_place)]
        return [bottoms[0] * torch.empty_like(bottoms[0]).bernoulli_(1 - self.ratio)]
