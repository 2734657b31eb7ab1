"""Layers that multiply or add a blob of fewer axes: Scale, Bias, Axpy, ChannelScale."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from prototxt.caffe_pb2 import FillerParameter

from .base import Layer, canonical_axis, register


def overwrites(in_place: bool, factor) -> bool:
    """Whether ``x * factor`` may take ``x``'s memory: not if the gradient of ``factor`` will ask for ``x``."""
    return in_place and not (torch.is_grad_enabled() and factor.requires_grad)


def affine(x, factor, shift=None, in_place=False):
    """``x * factor + shift``, both of which broadcast to ``x``; ``in_place`` overwrites ``x`` where it can."""
    y = x.mul_(factor) if overwrites(in_place, factor) else x * factor
    return y if shift is None else y.add_(shift)


def channel_affine(x, weight, bias, in_place=False):
    """``x * weight + bias`` with ``weight`` and ``bias`` ``[C]``, else as :func:`affine`."""
    if overwrites(in_place, weight):
        shape = (-1, *[1] * (x.dim() - 2))
        return affine(x, weight.view(shape), bias.view(shape), True)
    # one pass over x, forward and backward, where a product and a sum take two each
    return F.batch_norm(x, torch.zeros_like(weight), torch.ones_like(weight), weight, bias, eps=0.0)


def learned_shape(layer: Layer, x, p) -> tuple[int, ...]:
    """The axes of ``x`` that a parameter covers: ``num_axes`` of them from ``axis`` on, all with -1.

    Raises:
        PortError: axes that ``x`` does not have.
    """
    axis = canonical_axis(layer, p.axis, x.dim())
    end = x.dim() if p.num_axes == -1 else axis + p.num_axes
    if not axis <= end <= x.dim():
        raise layer.error(f"{p.num_axes} axes from axis {axis} on, of a blob with {x.dim()}", field="num_axes")
    return tuple(x.shape[axis:end])


def aligned(layer: Layer, x, blob, axis: int):
    """``blob``, whose axes are those of ``x`` from ``axis`` on, in a shape that broadcasts to ``x``.

    Raises:
        PortError: sizes that differ from those of ``x``.
    """
    if blob.dim() == 0:
        return blob
    axis = canonical_axis(layer, axis, x.dim())
    if tuple(x.shape[axis : axis + blob.dim()]) != tuple(blob.shape):
        raise layer.error(f"shape {tuple(blob.shape)} does not fit {tuple(x.shape)} from axis {axis} on")
    return blob.reshape(*blob.shape, *[1] * (x.dim() - axis - blob.dim()))


def not_learned(layer: Layer, count: int) -> None:
    """The first ``count`` parameter blobs are statistics: their ``lr_mult`` is 0, stated or not.

    Raises:
        PortError: the prototxt states another one.
    """
    specs = layer.param.param
    for i in range(count):
        if i == len(specs):
            specs.add(lr_mult=0)
        elif specs[i].lr_mult != 0:
            raise layer.error(
                f"lr_mult {specs[i].lr_mult:g} for a statistic, which is not learned",
                field=f"param[{i}].lr_mult",
                hint="state 0, or leave the param out",
            )


@register("Scale")
class Scale(Layer):
    """``ScaleLayer``: multiplies by a learned blob, or by the second bottom, over the axes from ``axis`` on;
    ``bias_term`` adds a learned bias of the same shape.

    ``min_value`` and ``max_value`` (caffe-windows) clamp the multiplier itself, a learned one for good.
    """

    fields = {
        "scale_param": {"axis", "num_axes", "filler", "bias_term", "bias_filler", "min_value", "max_value"},
    }
    num_bottoms = (1, 2)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.scale_param
        if len(bottoms) == 1:
            shape = learned_shape(self, bottoms[0], p)
            self.add_blob(shape, p.filler if p.HasField("filler") else FillerParameter(value=1))
        else:
            shape = bottoms[1].shape
        if p.bias_term:
            self.add_blob(shape, p.bias_filler)

    def forward(self, bottoms):
        x, p = bottoms[0], self.param.scale_param
        factor = bottoms[1] if len(bottoms) > 1 else self.blob(0)
        if p.HasField("min_value") or p.HasField("max_value"):
            low, high = (getattr(p, f) if p.HasField(f) else None for f in ("min_value", "max_value"))
            factor.data.clamp_(low, high)
        broad = aligned(self, x, factor, p.axis)
        if not p.bias_term:
            return [affine(x, broad, None, self.in_place)]
        shift = self.blob(len(self.blobs) - 1)
        if factor.dim() == 1 and broad.dim() == x.dim() - 1:  # a number for each channel
            return [channel_affine(x, factor, shift, self.in_place)]
        return [affine(x, broad, shift.view_as(broad), self.in_place)]


@register("Bias")
class Bias(Layer):
    """``BiasLayer``: adds a learned blob, or the second bottom, over the axes from ``axis`` on."""

    fields = {"bias_param": {"axis", "num_axes", "filler"}}
    num_bottoms = (1, 2)
    saves_top = False

    def setup(self, bottoms):
        if len(bottoms) == 1:
            p = self.param.bias_param
            self.add_blob(learned_shape(self, bottoms[0], p), p.filler)

    def forward(self, bottoms):
        x = bottoms[0]
        bias = aligned(self, x, bottoms[1] if len(bottoms) > 1 else self.blob(0), self.param.bias_param.axis)
        return [x.add_(bias) if self.in_place else x + bias]


@register("Axpy")
class Axpy(Layer):
    """``scale * x + y`` (SENet): bottoms ``[N, C]`` or ``[N, C, 1, 1]``, then two of one shape ``[N, C, ...]``."""

    num_bottoms = (3, 3)
    saves_top = False

    def forward(self, bottoms):
        scale, x, y = bottoms
        if x.shape != y.shape or scale.shape[:2] != x.shape[:2] or scale.shape[2:].numel() != 1:
            raise self.error(f"shapes {[tuple(b.shape) for b in bottoms]} are not [N, C], [N, C, ...] and the same")
        return [affine(x, scale.reshape(*x.shape[:2], *[1] * (x.dim() - 2)), y)]


class _ScaleByPlace(torch.autograd.Function):
    """``x * factor`` with gradients that do as if it were ``x * scale``, as far as they are asked for."""

    @staticmethod
    def forward(ctx, x, scale, factor, to_x, to_scale):
        ctx.save_for_backward(x if to_scale else None, scale if to_x else None)
        return x * factor

    @staticmethod
    def backward(ctx, grad):
        x, scale = ctx.saved_tensors
        to_scale = (grad * x).sum(1, keepdim=True) if x is not None and ctx.needs_input_grad[1] else None
        return grad if scale is None else grad * scale, to_scale, None, None, None


@register("ChannelScale")
class ChannelScale(Layer):
    """Multiplies all channels of one place by one number (caffe-windows).

    Bottoms ``[N, C, H, W]`` and ``[N, 1, H, W]``. Without ``do_forward`` the top is the first bottom, without
    ``do_backward_feature`` the gradient passes to it unscaled, without ``do_backward_scale`` the second bottom gets
    none. ``global_scale`` multiplies by one number instead, the running mean of the second bottom: 0.99 of it remains
    each time in training, kept within ``min_global_scale`` and ``max_global_scale``. It is the only parameter blob, -1
    before the first batch, and the second top if there is one.
    """

    fields = {
        "channel_scale_param": {
            "do_forward", "do_backward_feature", "do_backward_scale",
            "global_scale", "max_global_scale", "min_global_scale",
        }
    }  # fmt: skip
    num_bottoms = (2, 2)
    num_tops = (1, 2)

    def setup(self, bottoms):
        if self.param.channel_scale_param.global_scale:
            self.add_blob((1,), FillerParameter(value=-1))
            not_learned(self, 1)
        elif len(self.param.top) > 1:
            raise self.error("the second top is the global_scale, which is off", field="top")

    def forward(self, bottoms):
        x, p = bottoms[0], self.param.channel_scale_param
        if bottoms[1].numel() * x.shape[1] != x.numel() or len(bottoms[1]) != len(x):
            raise self.error(f"shape {tuple(bottoms[1].shape)} has not one value for each place of {tuple(x.shape)}")
        scale = bottoms[1].reshape(len(x), 1, *x.shape[2:])
        if p.global_scale and p.do_forward and self.context.train:
            self._update(scale.detach().abs().mean())
        factor = x.new_ones(()) if not p.do_forward else self.blobs[0].detach() if p.global_scale else scale
        top = _ScaleByPlace.apply(x, scale, factor, p.do_backward_feature, p.do_backward_scale)
        return [top] if len(self.param.top) < 2 else [top, self.blobs[0].detach().clone()]

    def _update(self, mean) -> None:
        p, running = self.param.channel_scale_param, self.blobs[0].detach()
        running.copy_(torch.where(running < 0, mean, running * 0.99 + mean * 0.01))
        running.clamp_(p.min_global_scale, p.max_global_scale)
