"""Eltwise: several blobs of one shape, element by element."""

from __future__ import annotations

import torch

from .base import MANY, Layer, canonical_axis, register


@register("Eltwise")
class Eltwise(Layer):
    """``EltwiseLayer``: PROD, SUM (with ``coeff``), MAX and forks' operations on two and more bottoms of one shape.

    caffe-windows' SORT is the product of ``1 + x``; synopsys-caffe's MIN and DIV (of two bottoms) are what they say;
    yjxiong/caffe's STOCHASTIC_SUM takes each bottom with the probability ``coeff`` in TRAIN (from torch's generator)
    and is SUM in TEST. With synopsys-caffe's ``axis`` the second bottom may be smaller: its axes are the first one's
    from ``axis`` on.
    """

    fields = {"eltwise_param": {"operation", "coeff", "axis"}}
    num_bottoms = (2, MANY)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.eltwise_param
        if len(p.coeff) not in (0, len(bottoms)):
            raise self.error(f"{len(p.coeff)} coefficients for {len(bottoms)} bottoms", field="eltwise_param.coeff")
        if p.coeff and p.operation not in (p.SUM, p.STOCHASTIC_SUM):
            raise self.error("only SUM takes coefficients", field="eltwise_param.coeff")
        if p.operation == p.DIV and len(bottoms) != 2:
            raise self.error(f"DIV of {len(bottoms)} bottoms; it is for two", field="eltwise_param.operation")

    def forward(self, bottoms):
        p = self.param.eltwise_param
        if p.HasField("axis"):
            bottoms = [bottoms[0], self._spread(bottoms[1], bottoms[0].shape), *bottoms[2:]]
        if len({tuple(b.shape) for b in bottoms}) > 1:
            raise self.error(f"bottoms differ in shape: {[tuple(b.shape) for b in bottoms]}")
        if p.operation in (p.SUM, p.STOCHASTIC_SUM):
            return [self._sum(bottoms)]
        if p.operation == p.DIV:
            return [bottoms[0] / bottoms[1]]
        result = bottoms[0] + 1 if p.operation == p.SORT else bottoms[0]
        for i, bottom in enumerate(bottoms[1:], start=1):
            if p.operation == p.PROD:
                result = result * bottom
            elif p.operation == p.SORT:
                result = result * (bottom + 1)
            else:
                # Caffe never halves the gradient of a tie: the second bottom gets it, of later ties the earlier one
                beats = torch.gt if p.operation == p.MAX else torch.lt
                wins = beats(bottom, result) if i > 1 else ~beats(result, bottom)
                result = torch.where(wins, bottom, result)
        return [result]

    def _sum(self, bottoms):
        p = self.param.eltwise_param
        coeff = list(p.coeff) or [1.0] * len(bottoms)
        if p.operation == p.STOCHASTIC_SUM and self.context.train:
            coeff = [float(draw <= share) for draw, share in zip(torch.rand(len(coeff)).tolist(), coeff, strict=True)]
        result = bottoms[0] if coeff[0] == 1 else bottoms[0] * coeff[0]
        for bottom, c in zip(bottoms[1:], coeff[1:], strict=True):
            result = torch.add(result, bottom, alpha=c)
        return result

    def _spread(self, bottom, shape):
        axis = canonical_axis(self, self.param.eltwise_param.axis, len(shape))
        end = axis + bottom.dim()
        if tuple(shape[axis:end]) != tuple(bottom.shape):
            raise self.error(f"{tuple(bottom.shape)} does not fit {tuple(shape)} from axis {axis} on",
                             field="eltwise_param.axis")  # fmt: skip
        return bottom.reshape(*bottom.shape, *(1,) * (len(shape) - end)).expand(shape)
