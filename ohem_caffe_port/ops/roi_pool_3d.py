"""RoI max pooling with a third spatial axis, on top of :mod:`roi_pool`'s range-maximum tables."""

from __future__ import annotations

import torch
from torch import Tensor

from .roi_pool import Bins, bin_edges, channel_rows, log2_floor, ordered, pool_bins
from .rois import image_index, round_half_away

_INDEX = 0xFFFFFFFF


def roi_pool_3d(
    features: Tensor, rois: Tensor, pooled_d: int, pooled_h: int, pooled_w: int, spatial_scale: float
) -> Tensor:
    """Max over each bin of each RoI: ``[N, C, D, H, W], [R, 7] -> [R, C, pd, ph, pw]``.

    ``ROIPoolingLayer`` of Intel's fork for blobs of five axes: :func:`roi_pool`'s rounding on every axis, and a
    gradient for every maximum (of equal ones the first in row-major order). A bin's range of slices is the union of
    two blocks of ``2^k`` slices, whose maxima are taken once for all RoIs and then pooled as images of their own.

    Args:
        rois: rows ``(batch_index, z1, x1, y1, z2, x2, y2)``, inclusive; ``spatial_scale`` makes them cells.
    """
    batch, channels, depth, height, width = features.shape
    if features.is_meta:
        return features.new_empty((len(rois), channels, pooled_d, pooled_h, pooled_w))
    image = image_index(rois, batch)[:, None]
    ends = round_half_away(rois[:, [1, 4]] * torch.tensor(spatial_scale, dtype=rois.dtype, device=rois.device))
    first, last = bin_edges(ends[:, 0], ends[:, 1], pooled_d, depth)  # [R, pd]
    level = log2_floor(last - first)
    cells = features.permute(0, 2, 3, 4, 1)
    index = torch.arange(batch * depth * height * width, device=features.device)
    # (value, cell) in one number, whose maximum is the first of the largest values; see roi_pool
    blocks = [(ordered(cells.detach()) << 32) | (_INDEX - index.view(batch, depth, height, width, 1))]
    for k in range(int(level.max()) if level.numel() else 0):
        block = blocks[-1].clone()
        torch.maximum(blocks[-1][:, : -(1 << k)], blocks[-1][:, 1 << k :], out=block[:, : -(1 << k)])
        blocks.append(block)
    images = torch.stack(blocks).view(-1, height, width, channels)
    flat = rois[:, [0, 2, 3, 5, 6]].repeat_interleave(pooled_d, 0)

    def pooled(start):
        slices = (level * batch + image) * depth + start.clamp(max=depth - 1)
        rows = torch.cat([slices.view(-1, 1).to(flat.dtype), flat[:, 1:]], 1)
        bins = Bins(rows, (len(images), channels, height, width), pooled_h, pooled_w, spatial_scale)
        return pool_bins(images, bins), bins.filled

    (keys, filled), (late_keys, _) = pooled(first), pooled((last - (1 << level)).clamp(min=0))
    filled = (filled & (last > first).view(-1, 1, 1))[:, None]
    argmax = torch.where(filled, _INDEX - (torch.maximum(keys, late_keys) & _INDEX), 0)
    values = cells.reshape(-1, channels).gather(0, channel_rows(argmax))
    values = values.view(-1, pooled_h, pooled_w, channels).permute(0, 3, 1, 2)
    values = torch.where(filled, values, 0).view(len(rois), pooled_d, channels, pooled_h, pooled_w)
    return values.transpose(1, 2)
