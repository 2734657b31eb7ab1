"""Position-sensitive pooling of RoIs (R-FCN, Dai et al. 2016): every bin of a RoI reads score maps of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from .bilinear import Taps, averaged, lerp, sample
from .rois import image_index, round_half_away

_LEAST_EXTENT = 0.1  # cells; what a malformed RoI is widened to


def ps_roi_pool(features: Tensor, rois: Tensor, output_dim: int, group_size: int, spatial_scale: float) -> Tensor:
    """Mean over each of ``g x g`` bins of each RoI: ``[N, output_dim * g^2, H, W], [R, 5] -> [R, output_dim, g, g]``.

    ``PSROIPoolingLayer`` of microsoft/caffe (R-FCN, equation 1): bin ``(i, j)`` of output ``d`` is the mean of channel
    ``(d * g + i) * g + j`` over the cells from ``floor`` of its start to ``ceil`` of its end. A RoI starts at
    ``round(x1) * spatial_scale`` and ends at ``(round(x2) + 1) * spatial_scale``, halves rounded away from zero, and is
    at least 0.1 cells wide. Bins without a cell give 0.

    Sums come from a summed-area table in double precision, so their cost does not depend on the size of the RoIs.

    Args:
        features: ``[N, output_dim * group_size^2, H, W]``.
        rois: ``[R, 5]`` rows ``(batch_index, x1, y1, x2, y2)`` in pixels of the network's input image.

    Raises:
        ValueError: a RoI whose batch index is no image of the batch.
    """
    batch, _, height, width = features.shape
    if features.is_meta:
        return features.new_empty((len(rois), output_dim, group_size, group_size))
    image = image_index(rois, batch)[:, None, None]
    corners = round_half_away(rois[:, 1:5]).to(rois.dtype)
    corners[:, 2:] += 1
    x1, y1, x2, y2 = (corners * spatial_scale).unbind(1)
    top, bottom = _edges(y1, y2, group_size, height)
    left, right = _edges(x1, x2, group_size, width)
    # table[..., y, x, d] is the sum of the cells above y and left of x
    maps = features.reshape(batch, output_dim, group_size, group_size, height, width).permute(0, 2, 3, 4, 5, 1)
    table = maps.double().cumsum(3).cumsum(4)
    table = torch.nn.functional.pad(table, (0, 0, 1, 0, 1, 0)).reshape(-1, output_dim)
    cell = torch.arange(group_size, device=image.device)
    plane = (image * group_size + cell[:, None]) * group_size + cell

    def corner(y, x):
        row = (plane * (height + 1) + y[:, :, None]) * (width + 1) + x[:, None, :]
        return table.index_select(0, row.flatten())

    total = corner(bottom, right) - corner(top, right) - corner(bottom, left) + corner(top, left)
    area = ((bottom - top).clamp(min=0)[:, :, None] * (right - left).clamp(min=0)[:, None, :]).view(-1, 1)
    mean = torch.where(area > 0, total / area.clamp(min=1), 0).to(features.dtype)
    return mean.view(-1, group_size, group_size, output_dim).permute(0, 3, 1, 2)


def _edges(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First and past-the-end cell of every bin along one axis: two ``[R, bins]``, clipped to ``[0, size]``."""
    bin_size = ((end - start).clamp(min=_LEAST_EXTENT) / bins)[:, None]
    steps = torch.arange(bins + 1, dtype=start.dtype, device=start.device)
    edges = steps * bin_size + start[:, None]
    return torch.floor(edges[:, :-1]).long().clamp(0, size), torch.ceil(edges[:, 1:]).long().clamp(0, size)


def ps_roi_align(
    features: Tensor, rois: Tensor, output_dim: int, group_size: int, spatial_scale: float, sample_num: int = 2
) -> Tensor:
    """Mean of ``sample_num^2`` points of each bin: ``[N, output_dim * g^2, H, W], [R, 5] -> [R, output_dim, g, g]``.

    The ``PSROIAlignLayer`` that Caffe ports of Light-Head R-CNN use. Channels as in :func:`ps_roi_pool`; corners are
    not rounded. Points lie at multiples of ``1 / (sample_num + 1)`` of the bin from where it starts inside the map;
    those behind the bin's clipped end count as 0. As in the original, a cell gets a gradient only if it is one of the
    cells of the bin (from ``floor`` of its start, up to ``ceil`` of its end). (The original's skipped points leave the
    gradient of whatever points stood in their memory; here they have none.)
    """
    if features.is_meta:
        return features.new_empty((len(rois), output_dim, group_size, group_size))
    image = image_index(rois, len(features))
    corners = rois[:, 1:5].clone()
    corners[:, 2:] += 1
    x1, y1, x2, y2 = (corners * spatial_scale).unbind(1)
    y = _align_taps(y1, y2, group_size, features.shape[2], sample_num)
    x = _align_taps(x1, x2, group_size, features.shape[3], sample_num)
    return sample(features, image, y, x, group_size)


def _align_taps(start: Tensor, end: Tensor, bins: int, size: int, sample_num: int) -> Taps:
    bin_size = ((end - start).clamp(min=_LEAST_EXTENT) / bins)[:, None]
    steps = torch.arange(bins + 1, dtype=start.dtype, device=start.device)
    edges = steps * bin_size + start[:, None]
    first, last = edges[:, :-1].clamp(0, size - 1), edges[:, 1:].clamp(0, size - 1)
    number = torch.arange(1, sample_num + 1, dtype=start.dtype, device=start.device)
    position = first[..., None] + number * (bin_size / (sample_num + 1))[..., None]  # [R, bins, sample_num]
    weight = (position < last[..., None]).to(start.dtype) / sample_num
    taps = averaged(lerp(position.flatten(1), size).scaled(weight.flatten(1)[..., None]), sample_num)
    low, high = (e.long().clamp(0, size)[..., None] for e in (torch.floor(edges[:, :-1]), torch.ceil(edges[:, 1:])))
    return taps._replace(back=taps.weight * ((taps.index >= low) & (taps.index < high)))
