"""Layers that drop values at random in training."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Layer, register


def random_mask(x: Tensor, kept: float, generator: torch.Generator | None = None) -> Tensor:
    """Bool of the shape of ``x``: True with probability ``kept``, each by itself.

    On a CPU, probabilities that are whole 256ths, such as one half, take a random byte for each value, eight to a draw:
    a quarter of the time of ``bernoulli_``.
    """
    if x.device.type == "cpu" and (kept * 256).is_integer():
        draws = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
        return (draws.view(torch.uint8)[: x.numel()] < kept * 256).view(x.shape)
    return torch.empty(x.shape, dtype=torch.bool, device=x.device).bernoulli_(kept, generator=generator)


class _Dropout(Layer):
    def infer(self, bottoms):
        return bottoms

    def check_ratio(self, ratio: float, message: str) -> float:
        if not 0 <= ratio < 1:
            raise self.error(f"must be at least 0 and below 1, not {ratio}", field=f"{message}.dropout_ratio")
        return ratio


@register("Dropout")
class Dropout(_Dropout):
    """``DropoutLayer``: sets the share ``dropout_ratio`` of all values to 0 in training, drawn anew by each use.

    With ``scale_train`` (the default) kept values are divided by ``1 - dropout_ratio``, or by its root with
    ``sqrt_scale`` (caffe-windows), in training, and testing is the identity; without it training only masks, and
    testing multiplies by ``1 - dropout_ratio`` (caffe-fast-rcnn). ``sample_weights_test`` (SegNet) drops in testing
    too. Masks come from torch's generator, or with a ``random_seed`` of 0 and more (NVIDIA) from the layer's own.
    """

    fields = {
        "dropout_param": {"dropout_ratio", "scale_train", "sqrt_scale", "sample_weights_test", "random_seed"},
    }
    saves_top = False

    def setup(self, bottoms):
        self.ratio = self.check_ratio(self.param.dropout_param.dropout_ratio, "dropout_param")
        self.generator = None

    def forward(self, bottoms):
        x, p, kept = bottoms[0], self.param.dropout_param, 1 - self.ratio
        if not (self.context.train or p.sample_weights_test):
            return [x if p.scale_train else x * kept]
        if p.scale_train and not p.sqrt_scale and p.random_seed < 0 and x.device.type != "cpu":
            return [F.dropout(x, self.ratio, training=True, inplace=self.in_place)]
        mask = random_mask(x, kept, self._own_generator(x.device))
        top = x.mul_(mask) if self.in_place else x * mask
        return [top.mul_(math.sqrt(1 / kept) if p.sqrt_scale else 1 / kept) if p.scale_train else top]

    def _own_generator(self, device):
        seed = self.param.dropout_param.random_seed
        if seed >= 0 and (self.generator is None or self.generator.device != device):
            self.generator = torch.Generator(device).manual_seed(seed)
        return self.generator


@register("SpatialDropout")
class SpatialDropout(_Dropout):
    """Dropout of whole channels (Intel; Tompson et al., 2015): one draw for each image and channel.

    Intel's layer reads ``dropout_param``; a ratio in ``spatial_dropout_param``, which its schema has too, goes first.
    """

    fields = {"dropout_param": {"dropout_ratio"}, "spatial_dropout_param": {"dropout_ratio"}}

    def setup(self, bottoms):
        message = "spatial_dropout_param" if self.param.HasField("spatial_dropout_param") else "dropout_param"
        self.ratio = self.check_ratio(getattr(self.param, message).dropout_ratio, message)

    def forward(self, bottoms):
        x = bottoms[0]
        if not self.context.train:
            return [x]
        channels = x.shape[:2] + (1,) * (x.dim() - 2)
        return [x * F.dropout(x.new_ones(channels), self.ratio)]


@register("SeLUDropout")
class SeLUDropout(_Dropout):
    """Alpha dropout (synopsys-caffe; Klambauer et al., 2017): dropped values become ``alpha``, then all are scaled
    and shifted so that mean 0 and variance 1 stay."""

    fields = {"selu_dropout_param": {"dropout_ratio", "alpha"}}

    def setup(self, bottoms):
        self.ratio = self.check_ratio(self.param.selu_dropout_param.dropout_ratio, "selu_dropout_param")

    def forward(self, bottoms):
        x, kept, alpha = bottoms[0], 1 - self.ratio, self.param.selu_dropout_param.alpha
        if not self.context.train:
            return [x]
        scale = (kept * (1 + alpha * alpha * self.ratio)) ** -0.5
        mask = torch.empty_like(x).bernoulli_(kept)
        # scale * (x where kept, alpha where dropped) - scale * alpha * ratio
        return [x * (mask * scale) + (kept - mask) * (scale * alpha)]


@register("SeLuDropout")
class SeLuDropout(SeLUDropout):
    """Alpha dropout in soeaver's spelling."""
