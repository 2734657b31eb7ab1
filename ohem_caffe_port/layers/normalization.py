"""Local response normalisation."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .base import Layer, register


def _channel_window_sum(x, size):
    """Sum over ``size`` neighbouring channels centred on each, zero outside."""
    half = (size - 1) // 2
    padded = F.pad(x, (0, 0, 0, 0, half, half))
    total = padded[:, : x.shape[1]].clone()
    for shift in range(1, size):
        total += padded[:, shift : shift + x.shape[1]]
    return total


class _AcrossChannels(torch.autograd.Function):
    """``y = x * (k + alpha / size * sum x^2) ** -beta``, with Caffe's closed-form gradient (one window sum)."""

    @staticmethod
    def forward(ctx, x, size, alpha, beta, k):
        scale = _channel_window_sum(x * x, size).mul_(alpha / size).add_(k)
        y = scale.pow(-beta).mul_(x)
        ctx.save_for_backward(x, y, scale)
        ctx.settings = size, alpha, beta
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, scale = ctx.saved_tensors
        size, alpha, beta = ctx.settings
        ratio = _channel_window_sum(grad * y / scale, size).mul_(2 * alpha * beta / size)
        return scale.pow(-beta).mul_(grad).sub_(ratio.mul_(x)), None, None, None, None


@register("LRN")
class LRN(Layer):
    """``LRNLayer``, over channels or (``WITHIN_CHANNEL``) over a square of cells, whose mean Caffe's average pooling
    takes and whose ``k`` is always 1."""

    fields = {"lrn_param": {"local_size", "alpha", "beta", "norm_region", "k"}}

    def setup(self, bottoms):
        p = self.param.lrn_param
        if p.local_size % 2 == 0:
            raise self.error(f"must be odd, not {p.local_size}", field="lrn_param.local_size")
        if bottoms[0].dim() != 4:
            raise self.error(f"normalises [N, C, H, W] blobs, not shape {tuple(bottoms[0].shape)}")

    def forward(self, bottoms):
        x, p = bottoms[0], self.param.lrn_param
        if p.norm_region == p.ACROSS_CHANNELS:
            return [_AcrossChannels.apply(x, p.local_size, p.alpha, p.beta, p.k)]
        mean = F.avg_pool2d(x * x, p.local_size, stride=1, padding=(p.local_size - 1) // 2)
        return [x * (1 + p.alpha * mean).pow(-p.beta)]
