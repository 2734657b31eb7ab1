"""Layers that normalise each example by itself: LRN, MVN, Normalize."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from prototxt.caffe_pb2 import FillerParameter

from ..memory import cache_sized
from .base import Layer, register


def _channel_window_sum(x, size):
    """Sum over ``size`` neighbouring channels centred on each, zero outside."""
    total = x.clone()
    for shift in range(1, (size - 1) // 2 + 1):
        total[:, shift:] += x[:, :-shift]
        total[:, :-shift] += x[:, shift:]
    return total


def _power(scale, beta):
    """``scale ** -beta``; the usual exponent by two roots, in a fifth of the time of ``pow``."""
    if beta != 0.75:
        return scale.pow(-beta)
    root = scale.rsqrt()
    return root.mul_(root.sqrt())


class _AcrossChannels(torch.autograd.Function):
    """``y = x * (k + alpha / size * sum x^2) ** -beta``, with Caffe's closed-form gradient (one window sum)."""

    @staticmethod
    def forward(ctx, x, size, alpha, beta, k):
        y, scale = torch.empty_like(x), torch.empty_like(x)
        for rows in cache_sized(x, 2, 1 << 19):
            part = x[:, :, rows]
            scale[:, :, rows] = _channel_window_sum(part * part, size).mul_(alpha / size).add_(k)
            torch.mul(_power(scale[:, :, rows], beta), part, out=y[:, :, rows])
        ctx.save_for_backward(x, y, scale)
        ctx.settings = size, alpha, beta
        return y

    @staticmethod
    def backward(ctx, grad):
        x, y, scale = ctx.saved_tensors
        size, alpha, beta = ctx.settings
        to_x = torch.empty_like(x)
        for rows in cache_sized(x, 2, 1 << 19):
            g, s = grad[:, :, rows], scale[:, :, rows]
            ratio = _channel_window_sum(g * y[:, :, rows] / s, size).mul_(2 * alpha * beta / size)
            torch.sub(_power(s, beta).mul_(g), ratio.mul_(x[:, :, rows]), out=to_x[:, :, rows])
        return to_x, None, None, None, None


@register("LRN")
class LRN(Layer):
    """``LRNLayer``, local response normalisation: ``x / (k + alpha * mean(x^2)) ** beta``, the mean over ``local_size``
    channels or, ``WITHIN_CHANNEL``, over a square of cells.

    The square's mean is that of Caffe's average pooling, and its ``k`` always 1. (Krizhevsky et al. 2012, section 3.3.)
    """

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


def four_axes(layer: Layer, x):
    """``x`` as ``[N, C, H, W]``, with axes of size 1 behind its own.

    Raises:
        PortError: more than four axes, or none.
    """
    if not 1 <= x.dim() <= 4:
        raise layer.error(f"normalises blobs with up to 4 axes, not shape {tuple(x.shape)}")
    return x.reshape(*x.shape, *[1] * (4 - x.dim()))


class Standardize(torch.autograd.Function):
    """``(x - mean) / std`` over ``axes``; also gives the mean and the (biased) variance, which pass no gradient.

    ``std`` is ``sqrt(variance + eps)`` with ``eps_inside``, else ``sqrt(variance) + eps``; Caffe's gradient,
    ``(g - mean(g) - y mean(g y)) / std``, is the first one's in both cases.
    """

    @staticmethod
    def forward(ctx, x, axes, eps, eps_inside):
        mean = x.mean(axes, keepdim=True)
        y = x - mean
        var = y.square().mean(axes, keepdim=True)
        std = (var + eps).sqrt_() if eps_inside else var.sqrt().add_(eps)
        y.div_(std)
        ctx.save_for_backward(y, std)
        ctx.axes = axes
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    def backward(ctx, grad, *_):
        y, std = ctx.saved_tensors
        along_y = (grad * y).mean(ctx.axes, keepdim=True)
        result = (grad - grad.mean(ctx.axes, keepdim=True)).sub_(y * along_y).div_(std)
        return result, None, None, None


@register("MVN")
class MVN(Layer):
    """``MVNLayer``: subtracts the mean and divides by ``sqrt(variance) + eps``, channel by channel or
    ``across_channels`` of one image.

    Only the mean without ``normalize_variance``; ``sqrt(variance + eps)`` with ``add_eps_before_sqrt``
    (synopsys-caffe). The top has 4 axes.
    """

    fields = {"mvn_param": {"normalize_variance", "across_channels", "eps", "add_eps_before_sqrt"}}

    def forward(self, bottoms):
        x, p = four_axes(self, bottoms[0]), self.param.mvn_param
        axes = (1, 2, 3) if p.across_channels else (2, 3)
        if not p.normalize_variance:
            return [x - x.mean(axes, keepdim=True)]
        return [Standardize.apply(x, axes, p.eps, p.add_eps_before_sqrt)[0]]


class _ScaledUnit(torch.autograd.Function):
    """``scale * x / norm``, with the gradient of SSD's layer, which takes the scale to be the same everywhere."""

    @staticmethod
    def forward(ctx, x, scale, axes, eps, eps_inside):
        squares = x.square().sum(axes, keepdim=True)
        norm = (squares + eps).sqrt_() if eps_inside else squares.sqrt_() + eps
        unit = x / norm
        ctx.save_for_backward(unit, norm, scale)
        ctx.axes = axes
        return unit * scale

    @staticmethod
    def backward(ctx, grad):
        unit, norm, scale = ctx.saved_tensors
        along = grad * unit
        to_x = (grad - unit * along.sum(ctx.axes, keepdim=True)).div_(norm).mul_(scale)
        return to_x, along.sum_to_size(scale.shape) if ctx.needs_input_grad[1] else None, None, None, None


@register("Normalize")
class Normalize(Layer):
    """Divides by a norm: SSD's layer with a learned scale or, by its ``normalize_param`` or two tops, caffe-windows'.

    SSD: ``scale * x / sqrt(sum x^2 + eps)``, the sum over channels at each place, or over the whole image with
    ``across_spatial`` (the default), the scale one number (``channel_shared``, the default) or one for each channel;
    without ``add_eps_before_sqrt`` (synopsys-caffe) a whole image's norm is ``sqrt(sum x^2) + eps``.

    caffe-windows: the sum over channels at each place, L2 (``sqrt(sum x^2 + 1e-6)``) or L1 (``sum |x| + 1e-6``) by
    ``normalize_type``; the norm ``[N, 1, H, W]`` is a second top, whose gradient counts with ``bp_norm``; with
    ``fix_gradient`` the gradient is not divided by the norm. No parameter blob; the top has 4 axes.
    """

    fields = {
        "norm_param": {"across_spatial", "scale_filler", "channel_shared", "eps", "add_eps_before_sqrt"},
        "normalize_param": {"normalize_type", "fix_gradient", "bp_norm"},
    }
    num_tops = (1, 2)

    def setup(self, bottoms):
        self.windows = self.param.HasField("normalize_param") or len(self.param.top) > 1
        p, shape = self.param.norm_param, bottoms[0].shape
        if self.windows:
            if self.param.HasField("norm_param"):
                raise self.error("of SSD's layer, beside a sign of caffe-windows' (normalize_param, a second top)",
                                 field="norm_param")  # fmt: skip
            if self.param.normalize_param.normalize_type not in ("L1", "L2"):
                raise self.error("must be L1 or L2", field="normalize_param.normalize_type")
            return
        self.saves_top = False
        if len(shape) < 2:
            raise self.error(f"takes blobs with two axes and more, not shape {tuple(shape)}")
        filler = p.scale_filler if p.HasField("scale_filler") else FillerParameter(value=1)
        self.add_blob(() if p.channel_shared else (shape[1],), filler)

    def forward(self, bottoms):
        return self._by_channels(bottoms[0]) if self.windows else [self._scaled(bottoms[0])]

    def _scaled(self, x):
        p = self.param.norm_param
        axes = tuple(range(1, x.dim())) if p.across_spatial else (1,)
        scale = self.blob(0) if p.channel_shared else self.blob(0).view(-1, *[1] * (x.dim() - 2))
        return _ScaledUnit.apply(x, scale, axes, p.eps, p.add_eps_before_sqrt or not p.across_spatial)

    def _by_channels(self, x):
        p, x = self.param.normalize_param, four_axes(self, x)
        norm = _channel_norm(x, p.normalize_type)
        tops = [x / norm, norm if p.bp_norm else norm.detach()]
        if p.fix_gradient:
            times_norm = x.detach() + (x - x.detach()) * norm.detach()  # x itself, but its gradient times the norm
            tops[0] = times_norm / _channel_norm(times_norm, p.normalize_type)
        return tops[: len(self.param.top)]


def _channel_norm(x, kind):
    if kind == "L1":
        return x.abs().sum(1, keepdim=True) + 1e-6
    return (x.square().sum(1, keepdim=True) + 1e-6).sqrt()
