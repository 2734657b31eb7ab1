"""RoI max pooling with the arithmetic of caffe-fast-rcnn's ``ROIPooling`` layer.

Every bin is the maximum over a rectangle of the feature map, so it is answered from range-maximum tables: table
``(a, b)`` holds, for each cell, the maximum over the ``2**a x 2**b`` cells that start there. Any rectangle is the union
of four such blocks, and the maximum of four rows of channels is its answer. That costs the same for a bin of 100 cells
as for one of 4, reads memory in whole rows, and is exact: a maximum does not depend on the order of its arguments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .rois import image_index, round_half_away

_CHUNK_FLOATS = 1 << 20  # rows gathered at a time: small enough to stay in cache


def bin_edges(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First and past-the-end cell of every bin along one axis: two ``[R, bins]``, clipped to ``[0, size]``.

    Caffe's order of operations in single precision: an extent of 57, 114 or 121 cells in 7 bins ends one cell late.
    """
    extent = (end - start + 1).clamp(min=1)
    bin_size = (extent.float() / torch.full((), bins, dtype=torch.float32, device=start.device))[:, None]
    steps = torch.arange(bins + 1, dtype=torch.float32, device=start.device)
    low = torch.floor(steps[:-1] * bin_size).long() + start[:, None]
    high = torch.ceil(steps[1:] * bin_size).long() + start[:, None]
    return low.clamp(0, size), high.clamp(0, size)


def log2_floor(n: Tensor) -> Tensor:
    """The largest k with ``2^k <= n``, as int64; 0 where n is below 1."""
    return torch.floor(torch.log2(n.clamp(min=1).double())).long()


class Bins:
    """Where the bins of a set of RoIs lie on feature maps of ``[N, C, H, W]``.

    Attributes:
        size: cells in all images, which is also the number of rows of one table.
        x1, y1, x2, y2: ``[R]`` rounded corners in cells, inclusive.
        levels_y, levels_x: tables that the largest bin needs along each axis.
        filled: ``[R, pooled_h, pooled_w]`` bool, the bins that hold a cell.
        rows: ``[4, R, pooled_h, pooled_w]``, the rows of all tables (:func:`_tables`) whose maximum each bin is.

    Raises:
        ValueError: a RoI whose batch index is no image of the batch.
    """

    def __init__(self, rois, shape, pooled_h, pooled_w, spatial_scale, pad_ratio=0.0):
        batch, _, height, width = shape
        self.size = batch * height * width
        self.image = image_index(rois, batch)
        corners = rois[:, 1:5]
        if pad_ratio:
            pad = (corners[:, 2:] - corners[:, :2] + 1) * pad_ratio
            corners = torch.cat([corners[:, :2] - pad, corners[:, 2:] + pad], 1)
        corners = round_half_away(corners * torch.tensor(spatial_scale, dtype=rois.dtype, device=rois.device))
        self.x1, self.y1, self.x2, self.y2 = corners.unbind(1)
        top, bottom = bin_edges(self.y1, self.y2, pooled_h, height)
        left, right = bin_edges(self.x1, self.x2, pooled_w, width)
        level_y, level_x = log2_floor(bottom - top), log2_floor(right - left)
        self.levels_y = int(level_y.max()) + 1 if level_y.numel() else 1
        self.levels_x = int(level_x.max()) + 1 if level_x.numel() else 1
        empty = (bottom <= top)[:, :, None] | (right <= left)[:, None, :]
        table = (level_y[:, :, None] * self.levels_x + level_x[:, None, :]) * batch + self.image[:, None, None]
        late_y, late_x = bottom - (1 << level_y), right - (1 << level_x)
        corner_rows = [
            (table * height + y[:, :, None]) * width + x[:, None, :] for y in (top, late_y) for x in (left, late_x)
        ]
        zero_row = self.levels_y * self.levels_x * self.size  # empty bins read the row of zeros behind all tables
        self.filled = ~empty
        self.rows = torch.stack([row.masked_fill(empty, zero_row) for row in corner_rows])


def _tables(cells: Tensor, bins: Bins) -> Tensor:
    """All range-maximum tables of ``cells`` ``[N, H, W, C]``, as rows ``[levels * N*H*W + 1, C]``; the last is zero."""
    batch, height, width, channels = cells.shape
    rows = cells.new_zeros((bins.levels_y * bins.levels_x * bins.size + 1, channels))
    table = rows[:-1].view(bins.levels_y, bins.levels_x, batch, height, width, channels)
    table[0, 0] = cells
    for y in range(bins.levels_y):
        if y:  # twice as high: the table below merged with itself half a block further down
            step = 1 << (y - 1)
            torch.maximum(table[y - 1, 0, :, :-step], table[y - 1, 0, :, step:], out=table[y, 0, :, :-step])
        for x in range(1, bins.levels_x):
            step = 1 << (x - 1)
            torch.maximum(table[y, x - 1, :, :, :-step], table[y, x - 1, :, :, step:], out=table[y, x, :, :, :-step])
    return rows


def pool_bins(cells: Tensor, bins: Bins) -> Tensor:
    """The maximum of every bin: ``[R, C, pooled_h, pooled_w]``, 0 for empty ones."""
    rows = _tables(cells, bins)
    _, rois, pooled_h, pooled_w = bins.rows.shape
    channels = cells.shape[-1]
    output = cells.new_empty((rois, channels, pooled_h * pooled_w))
    chunk = max(1, _CHUNK_FLOATS // (channels * pooled_h * pooled_w))
    for first in range(0, rois, chunk):
        corners = bins.rows[:, first : first + chunk].reshape(4, -1)
        best = rows.index_select(0, corners[0])
        for corner in corners[1:]:
            torch.maximum(best, rows.index_select(0, corner), out=best)
        output[first : first + chunk] = best.view(-1, pooled_h * pooled_w, channels).transpose(1, 2)
    return output.view(rois, channels, pooled_h, pooled_w)


def ordered(values: Tensor) -> Tensor:
    """int64 numbers in [-2^31, 2^31) that compare as ``values`` do."""
    if values.dtype == torch.float64:
        return values.unique(return_inverse=True)[1].view(values.shape)
    # adding 0 turns -0 into 0, which it is equal to
    bits = (values.float() + 0.0).view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long()


class _RoIPoolFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, rois, pooled_h, pooled_w, spatial_scale, pad_ratio, gradient):
        bins = Bins(rois, features.shape, pooled_h, pooled_w, spatial_scale, pad_ratio)
        cells = features.permute(0, 2, 3, 1)
        if not ctx.needs_input_grad[0]:
            return pool_bins(cells, bins)
        # The same maximum over (value, cell) packed into one number finds the argmax: of equal values the one first in
        # row-major order (Caffe's strict `>`), whose complement is the largest.
        batch, _, height, width = features.shape
        cell = torch.arange(bins.size, device=features.device).view(batch, height, width, 1)
        keys = pool_bins((ordered(cells) << 32) | (0xFFFFFFFF - cell), bins)
        filled = bins.filled[:, None]
        argmax = torch.where(filled, 0xFFFFFFFF - (keys & 0xFFFFFFFF), 0)
        y, x = argmax // width % height, argmax % width
        counts = filled
        if gradient == "inside":
            x1, y1, x2, y2 = (v[:, None, None, None] for v in (bins.x1, bins.y1, bins.x2, bins.y2))
            counts = filled & (x >= x1) & (x <= x2) & (y >= y1) & (y <= y2)
        elif gradient == "mscnn":
            counts = filled & _mscnn_finds(y, bins.y1, bins.y2, -2, height, spatial_scale)
            counts &= _mscnn_finds(x, bins.x1, bins.x2, -1, width, spatial_scale)
        argmax = channel_rows(argmax)
        ctx.save_for_backward(argmax, counts)
        ctx.shape = features.shape
        pooled = cells.reshape(bins.size, -1).gather(0, argmax)
        pooled = pooled.view(-1, pooled_h, pooled_w, pooled.shape[1]).permute(0, 3, 1, 2)
        return torch.where(filled, pooled, 0)

    @staticmethod
    def backward(ctx, grad):
        argmax, counts = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        grad_cells = grad.new_zeros((batch * height * width, channels))
        grad_cells.scatter_add_(0, argmax, channel_rows(grad * counts))
        return grad_cells.view(batch, height, width, channels).permute(0, 3, 1, 2), None, None, None, None, None, None


def _mscnn_finds(cell: Tensor, first: Tensor, last: Tensor, axis: int, size: int, spatial_scale: float) -> Tensor:
    """Whether MS-CNN's backward finds the bins ``[R, C, h, w]`` that hold ``cell``: it looks for them in the RoI as
    clipped to the image, whose bins are smaller than those that were pooled."""
    first = first.clamp(min=0)[:, None, None, None]
    last = last.clamp(max=math.floor(size / spatial_scale + 0.5) - 1)[:, None, None, None]
    bins = cell.shape[axis]
    bin_size = (last - first + 1).clamp(min=1).float() / bins
    offset = (cell - first).float()
    index = torch.arange(bins, device=cell.device)
    index = index[:, None] if axis == -2 else index
    found = (index >= torch.floor(offset / bin_size)) & (index < torch.ceil((offset + 1) / bin_size))
    return found & (cell >= first) & (cell <= last)


def channel_rows(blob: Tensor) -> Tensor:
    """``[R, C, h, w]`` as rows of channels ``[R*h*w, C]``."""
    return blob.permute(0, 2, 3, 1).reshape(-1, blob.shape[1])


def roi_pool(
    features: Tensor,
    rois: Tensor,
    pooled_h: int,
    pooled_w: int,
    spatial_scale: float,
    *,
    pad_ratio: float = 0.0,
    gradient: str = "inside",
) -> Tensor:
    """Max over each of ``pooled_h x pooled_w`` bins of each RoI, ``[N, C, H, W], [R, 5] -> [R, C, ph, pw]``.

    Caffe-fast-rcnn's ``ROIPoolingLayer``: corners are multiplied by ``spatial_scale`` and rounded (halves away from
    zero), both ends inclusive; a malformed RoI counts as one cell; bins that hold no cell give 0; among equal maxima
    the first in row-major order gets the gradient.

    Args:
        features: ``[N, C, H, W]``.
        rois: ``[R, 5]`` rows ``(batch_index, x1, y1, x2, y2)`` in pixels of the network's input image.
        spatial_scale: cells per input pixel, e.g. 1/16.
        pad_ratio: MS-CNN's context: this part of its width and height is added to a RoI on every side.
        gradient: which maxima get one: "inside", those inside the rounded RoI (caffe-fast-rcnn); "all" (Intel);
            "mscnn", those that the search of MS-CNN's backward finds again.

    Raises:
        ValueError: a RoI whose batch index is no image of the batch.
    """
    if features.is_meta:
        return features.new_empty((rois.shape[0], features.shape[1], pooled_h, pooled_w))
    return _RoIPoolFunction.apply(features, rois, pooled_h, pooled_w, spatial_scale, pad_ratio, gradient)


class RoIPool(nn.Module):
    """:func:`roi_pool` as a module."""

    def __init__(self, pooled_h: int, pooled_w: int, spatial_scale: float):
        super().__init__()
        self.pooled_h, self.pooled_w, self.spatial_scale = pooled_h, pooled_w, spatial_scale

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return roi_pool(features, rois, self.pooled_h, self.pooled_w, self.spatial_scale)
