"""Layers that pick, repeat or reorder parts of a blob."""

from __future__ import annotations

from .base import MANY, Layer, canonical_axis, cheap_to_read, register
from .loss import refuse_gradient


@register("Slice")
class Slice(Layer):
    """``SliceLayer``: cuts a blob along ``axis`` (or the older ``slice_dim``), one top for each part.

    Parts end before each ``slice_point``, or are equal without them.
    """

    fields = {"slice_param": {"axis", "slice_dim", "slice_point"}}
    num_tops = (1, MANY)

    def setup(self, bottoms):
        p = self.param.slice_param
        if p.HasField("axis") and p.HasField("slice_dim"):
            raise self.error("give axis or slice_dim, not both", field="slice_param")
        self.axis = canonical_axis(self, p.slice_dim if p.HasField("slice_dim") else p.axis, bottoms[0].dim())
        points, tops = list(p.slice_point), len(self.param.top)
        if points and len(points) != tops - 1:
            raise self.error(f"{len(points)} points make {len(points) + 1} parts", field="slice_param.slice_point",
                             hint=f"there are {tops} tops")  # fmt: skip
        if any(a >= b for a, b in zip([0, *points], points, strict=False)):
            raise self.error(f"{points} must grow", field="slice_param.slice_point")

    def forward(self, bottoms):
        points, tops = list(self.param.slice_param.slice_point), len(self.param.top)
        size = bottoms[0].shape[self.axis]
        if points and (points[-1] > size or tops > size):
            raise self.error(f"{points} on an axis of {size}", field="slice_param.slice_point")
        if not points and size % tops:
            raise self.error(f"an axis of {size} cannot be cut into {tops} equal parts", field="top")
        ends = [*points, size] if points else [size // tops * (i + 1) for i in range(tops)]
        sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        return [part.contiguous() for part in bottoms[0].split(sizes, self.axis)]


@register("Crop")
class Crop(Layer):
    """``CropLayer``: cuts the first bottom to the second one's sizes from ``axis`` on, starting at ``offset``.

    One offset is for every axis, none is 0. (HED's fork finds the offset by itself from the layers between; no field
    tells its nets apart: give them an offset.)
    """

    fields = {"crop_param": {"axis", "offset"}}
    num_bottoms = (2, 2)

    def allow_force_backward(self, bottom):
        return bottom == 0

    def setup(self, bottoms):
        p, ndim = self.param.crop_param, bottoms[0].dim()
        self.axis = canonical_axis(self, p.axis, ndim)
        if len(p.offset) > 1 and len(p.offset) != ndim - self.axis:
            raise self.error(f"{len(p.offset)} offsets for {ndim - self.axis} axes", field="crop_param.offset")
        if bottoms[1].dim() < ndim:
            raise self.error(f"the reference {tuple(bottoms[1].shape)} has fewer axes than the blob", field="bottom")

    def forward(self, bottoms):
        x, reference = bottoms
        offsets = list(self.param.crop_param.offset) or [0]
        for i, axis in enumerate(range(self.axis, x.dim())):
            offset, size = offsets[i % len(offsets)], reference.shape[axis]
            if offset + size > x.shape[axis]:
                raise self.error(
                    f"{size} cells from {offset} on, of axis {axis} with {x.shape[axis]}", field="crop_param.offset"
                )
            x = x.narrow(axis, offset, size)
        return [x.contiguous()]


@register("Tile")
class Tile(Layer):
    """``TileLayer``: the blob ``tiles`` times over along ``axis``."""

    fields = {"tile_param": {"axis", "tiles"}}

    def setup(self, bottoms):
        p = self.param.tile_param
        self.axis = canonical_axis(self, p.axis, bottoms[0].dim())
        if p.tiles < 1:
            raise self.error(f"must be positive, not {p.tiles}", field="tile_param.tiles")

    def forward(self, bottoms):
        counts = [1] * bottoms[0].dim()
        counts[self.axis] = self.param.tile_param.tiles
        return [bottoms[0].repeat(counts)]


@register("BatchReindex")
class BatchReindex(Layer):
    """``BatchReindexLayer``: the rows of the first bottom that the second lists, in its order, repeated or left out."""

    num_bottoms = (2, 2)

    def allow_force_backward(self, bottom):
        return bottom == 0

    def forward(self, bottoms):
        x, rows = bottoms
        refuse_gradient(self, rows, what="its list of rows")
        if rows.dim() != 1:
            raise self.error(f"the list of rows must have one axis, not shape {tuple(rows.shape)}")
        if cheap_to_read(rows) and ((rows < 0) | (rows >= len(x))).any():
            raise self.error(f"rows {rows.min().item():g} to {rows.max().item():g} of a batch of {len(x)}")
        return [x.index_select(0, rows.long())]


@register("Filter")
class Filter(Layer):
    """``FilterLayer``: of every bottom but the last, the rows where the last one (the selector) is not 0.

    While the net is built, tops have all rows.
    """

    num_bottoms, num_tops = (2, MANY), (1, MANY)

    def allow_force_backward(self, bottom):
        return bottom < len(self.param.bottom) - 1

    def setup(self, bottoms):
        if len(self.param.top) != len(bottoms) - 1:
            raise self.error(f"{len(self.param.top)} tops for {len(bottoms) - 1} bottoms and the selector", field="top")

    def _check(self, bottoms):
        *blobs, selector = bottoms
        if selector.dim() < 1 or selector.numel() != selector.shape[0]:
            raise self.error(f"the selector's axes but the first must be of size 1, not {tuple(selector.shape)}")
        if any(b.shape[:1] != selector.shape[:1] for b in blobs):
            raise self.error(f"bottoms differ in rows: {[tuple(b.shape) for b in bottoms]}")

    def infer(self, bottoms):
        self._check(bottoms)
        return bottoms[:-1]

    def forward(self, bottoms):
        self._check(bottoms)
        refuse_gradient(self, bottoms[-1], what="its selector")
        rows = bottoms[-1].reshape(-1).nonzero()[:, 0]
        return [bottom.index_select(0, rows) for bottom in bottoms[:-1]]


@register("Permute")
class Permute(Layer):
    """SSD's ``PermuteLayer``: axis i of the top is axis ``order[i]`` of the bottom; axes not listed follow in order."""

    fields = {"permute_param": {"order"}}

    def setup(self, bottoms):
        order, ndim = list(self.param.permute_param.order), bottoms[0].dim()
        if len(set(order)) != len(order) or any(axis >= ndim for axis in order):
            raise self.error(f"{order} is no order of {ndim} axes", field="permute_param.order")
        self.order = order + [axis for axis in range(ndim) if axis not in order]

    def forward(self, bottoms):
        return [bottoms[0].permute(self.order).contiguous()]


@register("ShuffleChannel")
class ShuffleChannel(Layer):
    """ShuffleNet's ``ShuffleChannelLayer``: channels seen as [group, C / group] are transposed."""

    fields = {"shuffle_channel_param": {"group"}}

    def setup(self, bottoms):
        if bottoms[0].dim() < 2:
            raise self.error(f"shuffles channels, but the bottom's shape is {tuple(bottoms[0].shape)}")

    def forward(self, bottoms):
        x, group = bottoms[0], self.param.shuffle_channel_param.group
        if not group or x.shape[1] % group:
            raise self.error(f"{group} groups of {x.shape[1]} channels", field="shuffle_channel_param.group")
        rows, channels, *rest = x.shape
        return [x.reshape(rows, group, channels // group, *rest).transpose(1, 2).reshape(x.shape)]


@register("Flip")
class Flip(Layer):
    """caffe-windows' ``FlipLayer``: mirrors [N, C, H, W] maps: ``flip_width`` (default), ``flip_height``."""

    fields = {"flip_param": {"flip_width", "flip_height"}}

    def setup(self, bottoms):
        if bottoms[0].dim() > 4:
            raise self.error(f"flips [N, C, H, W] blobs, not shape {tuple(bottoms[0].shape)}")

    def forward(self, bottoms):
        p = self.param.flip_param
        axes = [axis for axis, flip in ((2, p.flip_height), (3, p.flip_width)) if flip and axis < bottoms[0].dim()]
        return [bottoms[0].flip(axes)]
