"""Layers that change a blob's shape and none of its values, and those that join blobs or hand them on."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from .base import MANY, Layer, canonical_axis, register


class _Reshaping(Layer):
    """A layer whose top is the bottom's values in another shape, or under another name."""

    def setup(self, bottoms):
        if self.param.bottom[0] in self.param.top:
            raise self.error("cannot work in place", field="top", hint="give the top a name of its own")


@register("Concat")
class Concat(Layer):
    """``ConcatLayer``: joins blobs that differ in ``axis`` (or the older ``concat_dim``) alone along it."""

    fields = {"concat_param": {"axis", "concat_dim"}}
    num_bottoms = (1, MANY)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.concat_param
        if p.HasField("axis") and p.HasField("concat_dim"):
            raise self.error("give axis or concat_dim, not both", field="concat_param")
        axis = p.concat_dim if p.HasField("concat_dim") else p.axis
        self.axis = canonical_axis(self, axis, bottoms[0].dim())

    def forward(self, bottoms):
        others = {(*b.shape[: self.axis], None, *b.shape[self.axis + 1 :]) for b in bottoms}
        if len(others) > 1:
            raise self.error(f"bottoms differ off axis {self.axis}: {[tuple(b.shape) for b in bottoms]}")
        return [torch.cat(bottoms, self.axis)]


@register("Split")
class Split(_Reshaping):
    """``SplitLayer``: the same blob under several names; gradients add up by themselves."""

    fields = {"split_param": set()}
    num_tops = (1, MANY)

    def forward(self, bottoms):
        return [bottoms[0].view_as(bottoms[0]) for _ in self.param.top]


@register("Silence")
class Silence(Layer):
    """``SilenceLayer``: consumes blobs so that they are no outputs of the net."""

    num_bottoms, num_tops = (1, MANY), (0, 0)

    def forward(self, bottoms):
        return []


@register("Flatten")
class Flatten(_Reshaping):
    """``FlattenLayer``: axes ``axis`` to ``end_axis`` become one (a new one of size 1 if end_axis is just before)."""

    fields = {"flatten_param": {"axis", "end_axis"}}

    def setup(self, bottoms):
        super().setup(bottoms)
        p, ndim = self.param.flatten_param, bottoms[0].dim()
        self.axis, self.end = canonical_axis(self, p.axis, ndim), canonical_axis(self, p.end_axis, ndim) + 1
        if self.end < self.axis:
            raise self.error(f"{p.end_axis} lies before axis {p.axis}", field="flatten_param.end_axis")

    def forward(self, bottoms):
        shape = bottoms[0].shape
        flat = math.prod(shape[self.axis : self.end])
        return [bottoms[0].reshape(*shape[: self.axis], flat, *shape[self.end :])]


@register("Reshape")
class Reshape(_Reshaping):
    """``ReshapeLayer``: ``dim: 0`` copies the bottom's size, one ``dim: -1`` is inferred, over ``num_axes`` axes from
    ``axis`` on.

    synopsys-caffe's ``pixelshuffler: r`` instead spreads groups of r x r channels over an r times larger map.
    """

    fields = {"reshape_param": {"shape", "axis", "num_axes", "pixelshuffler"}}

    def forward(self, bottoms):
        p, shape = self.param.reshape_param, list(bottoms[0].shape)
        if p.pixelshuffler != 1:
            if len(shape) != 4 or p.pixelshuffler < 1 or shape[1] % p.pixelshuffler**2:
                raise self.error(f"{p.pixelshuffler} on a blob of shape {shape}", field="reshape_param.pixelshuffler")
            return [F.pixel_shuffle(bottoms[0], p.pixelshuffler)]
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


@register("Squeeze")
class Squeeze(_Reshaping):
    """synopsys-caffe's ``SqueezeLayer``: removes the axes ``axis``, which must be of size 1, or all axes of size 1."""

    fields = {"squeeze_param": {"axis"}}

    def forward(self, bottoms):
        shape = bottoms[0].shape
        axes = {canonical_axis(self, axis, len(shape)) for axis in self.param.squeeze_param.axis}
        for axis in axes:
            if shape[axis] != 1:
                raise self.error(f"axis {axis} of {tuple(shape)} is not of size 1", field="squeeze_param.axis")
        return [bottoms[0].reshape([d for i, d in enumerate(shape) if (i not in axes if axes else d != 1)])]


class _SingleProcess(Layer):
    """What MPI does between processes, when there is one: every bottom is handed on."""

    num_bottoms = num_tops = (1, MANY)

    def setup(self, bottoms):
        if len(bottoms) != len(self.param.top):
            raise self.error(f"{len(self.param.top)} tops for {len(bottoms)} bottoms", field="top")

    def forward(self, bottoms):
        return [bottom.view_as(bottom) for bottom in bottoms]


@register("Scatter")
class Scatter(_SingleProcess):
    """yjxiong/caffe's ``ScatterLayer``: hands each MPI process its part of the batch; to a single one, all of it."""


@register("Gather")
class Gather(_SingleProcess):
    """synopsys-caffe's ``GatherLayer``: the slices ``indices`` of ``axis``; that axis becomes the axes ``shape``.

    ``shape`` absent or ``0`` with a single index removes the axis. Without ``gather_param`` it is yjxiong/caffe's: it
    joins the batches of all MPI processes, which with a single process hands every bottom on.
    """

    fields = {"gather_param": {"indices", "shape", "axis"}}

    def setup(self, bottoms):
        super().setup(bottoms)
        if not self.param.HasField("gather_param"):
            return
        p = self.param.gather_param
        if len(bottoms) != 1:
            raise self.error(f"gathers from one bottom, not {len(bottoms)}", field="bottom")
        self.axis = canonical_axis(self, p.axis, bottoms[0].dim())
        self.sizes = [] if list(p.shape) == [0] else list(p.shape)
        if len(p.indices) != math.prod(self.sizes):
            raise self.error(f"{len(p.indices)} indices for the shape {self.sizes}", field="gather_param.indices")

    def forward(self, bottoms):
        if not self.param.HasField("gather_param"):
            return super().forward(bottoms)
        x, indices = bottoms[0], list(self.param.gather_param.indices)
        shape = x.shape
        if any(i >= shape[self.axis] for i in indices):
            raise self.error(f"{max(indices)} of an axis of {shape[self.axis]}", field="gather_param.indices")
        picked = x.index_select(self.axis, torch.tensor(indices, device=x.device))
        return [picked.reshape(*shape[: self.axis], *self.sizes, *shape[self.axis + 1 :])]
