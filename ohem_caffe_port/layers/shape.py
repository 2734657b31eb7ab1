"""Layers that arrange blobs: Concat, Eltwise, Split, Flatten, Reshape, Silence."""

from __future__ import annotations

import math

import torch

from .base import Layer, canonical_axis, register

_MANY = (1, 1 << 30)


@register("Concat")
class Concat(Layer):
    """``ConcatLayer`` along ``axis`` (or the older ``concat_dim``)."""

    fields = {"concat_param": {"axis", "concat_dim"}}
    num_bottoms = _MANY
    saves_top = False

    def setup(self, bottoms):
        p = self.param.concat_param
        axis = p.concat_dim if p.HasField("concat_dim") else p.axis
        self.axis = canonical_axis(self, axis, bottoms[0].dim())

    def forward(self, bottoms):
        return [torch.cat(bottoms, self.axis)]


@register("Eltwise")
class Eltwise(Layer):
    """``EltwiseLayer``: PROD, SUM (with ``coeff``) or MAX of two and more bottoms of one shape."""

    fields = {"eltwise_param": {"operation", "coeff"}}
    num_bottoms = (2, 1 << 30)
    saves_top = True

    def setup(self, bottoms):
        p = self.param.eltwise_param
        if len(p.coeff) not in (0, len(bottoms)):
            raise self.error(f"{len(p.coeff)} coefficients for {len(bottoms)} bottoms", field="eltwise_param.coeff")
        if p.coeff and p.operation != p.SUM:
            raise self.error("only SUM takes coefficients", field="eltwise_param.coeff")

    def forward(self, bottoms):
        if len({tuple(b.shape) for b in bottoms}) > 1:
            raise self.error(f"bottoms differ in shape: {[tuple(b.shape) for b in bottoms]}")
        p = self.param.eltwise_param
        result = bottoms[0] * p.coeff[0] if p.coeff else bottoms[0]
        for i, bottom in enumerate(bottoms[1:], start=1):
            if p.operation == p.PROD:
                result = result * bottom
            elif p.operation == p.SUM:
                result = torch.add(result, bottom, alpha=p.coeff[i] if p.coeff else 1)
            else:
                # Caffe never halves the gradient of a tie: the second bottom gets it, of later ties the earlier one
                wins = bottom >= result if i == 1 else bottom > result
                result = torch.where(wins, bottom, result)
        return [result]


@register("Split")
class Split(Layer):
    """``SplitLayer``: the same blob under several names; gradients add up by themselves."""

    num_tops = _MANY

    def forward(self, bottoms):
        return [bottoms[0].view_as(bottoms[0]) for _ in self.param.top]


@register("Silence")
class Silence(Layer):
    """``SilenceLayer``: consumes blobs so that they are no outputs of the net."""

    num_bottoms, num_tops = _MANY, (0, 0)

    def forward(self, bottoms):
        return []


@register("Flatten")
class Flatten(Layer):
    """``FlattenLayer``: axes ``axis`` to ``end_axis`` become one."""

    fields = {"flatten_param": {"axis", "end_axis"}}

    def setup(self, bottoms):
        p, ndim = self.param.flatten_param, bottoms[0].dim()
        self.axes = canonical_axis(self, p.axis, ndim), canonical_axis(self, p.end_axis, ndim)

    def forward(self, bottoms):
        return [bottoms[0].flatten(*self.axes)]


@register("Reshape")
class Reshape(Layer):
    """``ReshapeLayer``: ``dim: 0`` copies the bottom's size, one ``dim: -1`` is inferred, over ``num_axes`` axes from
    ``axis`` on."""

    fields = {"reshape_param": {"shape", "axis", "num_axes"}}

    def forward(self, bottoms):
        p, shape = self.param.reshape_param, list(bottoms[0].shape)
        start = p.axis if p.axis >= 0 else len(shape) + p.axis + 1
        end = len(shape) if p.num_axes == -1 else start + p.num_axes
        if not 0 <= start <= end <= len(shape):
            raise self.error(f"axes {p.axis} and {p.num_axes} of a blob of shape {shape}", field="reshape_param")
        dims = list(p.shape.dim)
        if any(d == 0 and start + i >= len(shape) for i, d in enumerate(dims)) or dims.count(-1) > 1:
            raise self.error(f"dims {dims} on a blob of shape {shape}", field="reshape_param.shape")
        dims = [shape[start + i] if d == 0 else d for i, d in enumerate(dims)]
        target = shape[:start] + dims + shape[end:]
        known = math.prod(d for d in target if d != -1)
        count = math.prod(shape)
        if (-1 in target and (known == 0 or count % known)) or (-1 not in target and known != count):
            raise self.error(f"{shape} cannot become {target}", field="reshape_param.shape")
        return [bottoms[0].reshape(target)]
