"""Layers that reduce axes of a blob: sums, means, positions of maxima."""

from __future__ import annotations

import math

import torch

from .base import Layer, canonical_axis, register
from .loss import refuse_gradient


@register("Reduction")
class Reduction(Layer):
    """``ReductionLayer``: SUM, ASUM (of absolute values), SUMSQ (of squares) or MEAN over all axes from ``axis`` on,
    times ``coeff``."""

    fields = {"reduction_param": {"operation", "axis", "coeff"}}

    def setup(self, bottoms):
        p = self.param.reduction_param
        self.axis = canonical_axis(self, p.axis, bottoms[0].dim())
        if p.operation not in (p.SUM, p.ASUM, p.SUMSQ, p.MEAN):
            raise self.error("TOPK is for BatchReduction", field="reduction_param.operation")

    def forward(self, bottoms):
        p, x = self.param.reduction_param, bottoms[0].flatten(self.axis)
        if p.operation == p.ASUM:
            x = x.abs()
        elif p.operation == p.SUMSQ:
            x = x * x
        result = x.mean(-1) if p.operation == p.MEAN else x.sum(-1)
        return [result * p.coeff if p.coeff != 1 else result]


@register("BatchReduction")
class BatchReduction(Layer):
    """yjxiong/caffe's ``BatchReductionLayer``: reduces one axis, in pieces of a pyramid or whole.

    Without ``level``, or with ``level: 1``, ``axis`` (of ``reduction_param``) goes away. Else it is the concatenation
    of pieces of ``level^2`` cells and becomes one cell for each piece. ``operation``: SUM, MEAN, or TOPK, the mean of
    the ``k`` largest of a single piece. ``pos`` (a single piece) takes the diagonal of this and the next axis.
    """

    fields = {"batch_reduction_param": {"level", "reduction_param", "pos"}}

    def setup(self, bottoms):
        p = self.param.batch_reduction_param
        r, ndim = p.reduction_param, bottoms[0].dim()
        unread = {f.name for f, _ in r.ListFields()} - {"operation", "axis", "k"}
        if unread:
            raise self.error(
                "BatchReduction does not read it", field=f"batch_reduction_param.reduction_param.{unread.pop()}"
            )
        self.levels = list(p.level) or [1]
        self.axis = canonical_axis(self, r.axis, ndim)
        if r.operation not in (r.SUM, r.MEAN, r.TOPK):
            raise self.error("only SUM, MEAN and TOPK", field="batch_reduction_param.reduction_param.operation")
        if len(self.levels) > 1 and (p.pos or r.operation == r.TOPK):
            raise self.error("pos and TOPK are for one level", field="batch_reduction_param.level")
        if p.pos and (r.operation == r.TOPK or self.axis + 1 >= ndim):
            raise self.error("needs an axis after it, and no TOPK", field="batch_reduction_param.pos")

    def forward(self, bottoms):
        p, x = self.param.batch_reduction_param, bottoms[0]
        r, size = p.reduction_param, x.shape[self.axis]
        pieces = [size] if self.levels == [1] else [level**2 for level in self.levels]
        if sum(pieces) != size:
            raise self.error(f"pieces of {pieces} cells on an axis of {size}", field="batch_reduction_param.level")
        if p.pos:
            if x.shape[self.axis + 1] != size:
                raise self.error(f"axes {self.axis} and the next differ: {tuple(x.shape)}",
                                 field="batch_reduction_param.pos")  # fmt: skip
            x = x.diagonal(dim1=self.axis, dim2=self.axis + 1).movedim(-1, self.axis)
        if r.operation == r.TOPK:
            if not 0 < r.k <= size:
                raise self.error(f"the {r.k} largest of {size}", field="batch_reduction_param.reduction_param.k")
            # sorted, so that of equal values the first get the gradient
            x = x.sort(dim=self.axis, descending=True, stable=True).values.narrow(self.axis, 0, r.k)
            pieces = [r.k]
        parts = [part.sum(self.axis) if r.operation == r.SUM else part.mean(self.axis)
                 for part in x.split(pieces, self.axis)]  # fmt: skip
        return parts if self.levels == [1] else [torch.stack(parts, self.axis)]


@register("ArgMax")
class ArgMax(Layer):
    """``ArgMaxLayer``: the places of the ``top_k`` largest values, largest first; of equal values the last one.

    With ``axis`` they lie along that axis, and ``out_max_val`` gives the values instead. Without, they are counted over
    a whole row, and the top is [N, 1, top_k], or [N, 2, top_k] with the values after the places, and as many axes as
    the bottom. synopsys-caffe's ``min_first`` gives the smallest, of equal ones the first. No gradient, as in Caffe.
    """

    fields = {"argmax_param": {"out_max_val", "top_k", "axis", "min_first"}}

    def allow_force_backward(self, bottom):
        return False

    def setup(self, bottoms):
        p = self.param.argmax_param
        self.axis = canonical_axis(self, p.axis, bottoms[0].dim()) if p.HasField("axis") else None
        if p.top_k < 1:
            raise self.error("must be at least 1", field="argmax_param.top_k")

    def forward(self, bottoms):
        refuse_gradient(self, bottoms[0], what="its bottom")
        p, x = self.param.argmax_param, bottoms[0].detach()
        if self.axis is None:
            x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        axis = 1 if self.axis is None else self.axis
        size = x.shape[axis]
        if p.top_k > size:
            raise self.error(f"the {p.top_k} largest of {size}", field="argmax_param.top_k")
        if p.min_first:
            place = x.argsort(dim=axis, stable=True).narrow(axis, 0, p.top_k)
        elif p.top_k == 1:  # a quarter of the sort's time on 21 classes
            place = size - 1 - x.flip(axis).argmax(axis, keepdim=True)
        else:
            place = size - 1 - x.flip(axis).argsort(dim=axis, descending=True, stable=True).narrow(axis, 0, p.top_k)
        if self.axis is not None:
            return [x.gather(axis, place) if p.out_max_val else place.to(x.dtype)]
        rows = [place.to(x.dtype), x.gather(1, place)] if p.out_max_val else [place.to(x.dtype)]
        top = torch.stack(rows, 1)
        return [top.reshape(*top.shape, *(1,) * (bottoms[0].dim() - 3))]
