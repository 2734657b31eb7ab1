"""RoI align: features at points between the cells, with no corner of a RoI rounded. Forks differ in which points."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .bilinear import Taps, averaged, lerp, sample, weighted_sum
from .rois import image_index


def roi_align(
    features: Tensor,
    rois: Tensor,
    pooled_h: int,
    pooled_w: int,
    spatial_scale: float,
    sampling_ratio: int = 0,
    *,
    group: int = 1,
) -> Tensor:
    """Mean over ``sampling_ratio^2`` points of each bin, ``[N, C, H, W], [R, 5] -> [R, C, ph, pw]``.

    The RoI align of Mask R-CNN (He et al. 2017, section 3) as Caffe2 and the Caffe layers made after it compute it: no
    half-cell offset, RoIs at least one cell wide, points further than one cell outside the map count as 0.

    Args:
        features: ``[N, C, H, W]``.
        rois: ``[R, 5]`` rows ``(batch_index, x1, y1, x2, y2)`` in pixels of the network's input image.
        sampling_ratio: points per bin along one axis; 0 takes as many as a bin has cells, rounded up.
        group: above 1, maps are position-sensitive, ``C = D * group^2`` as in :func:`ps_roi_pool`, the bins
            ``group x group`` and the result ``[R, D, group, group]``.
    """
    if features.is_meta:
        return features.new_empty((len(rois), features.shape[1] // group**2, pooled_h, pooled_w))
    image = image_index(rois, len(features))
    corners = rois[:, 1:5] * spatial_scale
    y = _mean_taps(corners[:, 1], corners[:, 3], pooled_h, features.shape[2], sampling_ratio)
    x = _mean_taps(corners[:, 0], corners[:, 2], pooled_w, features.shape[3], sampling_ratio)
    return sample(features, image, y, x, group)


def _mean_taps(start: Tensor, end: Tensor, bins: int, size: int, sampling_ratio: int) -> Taps:
    bin_size = ((end - start).clamp(min=1) / bins)[:, None, None]
    number, most = torch.full_like(bin_size, sampling_ratio), sampling_ratio
    if sampling_ratio <= 0:
        number = torch.ceil(bin_size)
        most = int(number.max()) if len(start) else 1
    steps = torch.arange(bins, dtype=start.dtype, device=start.device)[:, None]
    points = torch.arange(most, dtype=start.dtype, device=start.device)
    position = start[:, None, None] + steps * bin_size + (points + 0.5) * bin_size / number  # [R, bins, most]
    weight = ((points < number) / number).expand_as(position)
    taps = lerp(position.flatten(1), size, reach=1)
    return averaged(taps.scaled(weight.flatten(1)[..., None]), most)


def roi_align_grid(
    features: Tensor, rois: Tensor, pooled_h: int, pooled_w: int, spatial_scale: float, pad_ratio: float = 0.0
) -> Tensor:
    """The corners of the bins, one point each: ``[N, C, H, W], [R, 5] -> [R, C, ph + 1, pw + 1]``.

    ``ROIAlignLayer`` of cascade-rcnn and MS-CNN; their nets average 2 x 2 neighbours afterwards. Cell centres lie half
    a cell inside (a RoI that starts at pixel 0 starts at -0.5), points outside the map and malformed RoIs give 0.

    Args:
        pad_ratio: this part of its width and height is added to a RoI on every side.
    """
    if features.is_meta:
        return features.new_empty((len(rois), features.shape[1], pooled_h + 1, pooled_w + 1))
    image = image_index(rois, len(features))
    start, end = _padded(rois, pad_ratio, spatial_scale)
    start, end = start - 0.5, end - 0.5
    extent = end - start
    well_formed = (extent > 0).all(1)[:, None, None]
    taps = []
    for axis, bins, size in ((1, pooled_h, features.shape[2]), (0, pooled_w, features.shape[3])):
        steps = torch.arange(bins + 1, dtype=rois.dtype, device=rois.device)
        position = start[:, axis, None] + steps * (extent[:, axis] / bins)[:, None]
        taps.append(lerp(position, size, reach=0.5).scaled(well_formed))
    return sample(features, image, *taps)


def roi_align_max(
    features: Tensor,
    rois: Tensor,
    pooled_h: int,
    pooled_w: int,
    spatial_scale: float,
    pad_ratio: float = 0.0,
    *,
    cubic: bool = False,
    multiple: bool = True,
) -> Tensor:
    """The largest of four points of each bin, ``[N, C, H, W], [R, 5] -> [R, C, ph, pw]``.

    ``ROIAlignLayer`` with ``bi_type`` and ``is_multi_interpolate`` of the Caffe layers that Focal-Loss ports carry. Its
    interpolation weighs with the distances to the cells below and above; on the map's last row or column, where these
    are one cell, it gives 0 (not so the cubic one).

    Args:
        cubic: 4 x 4 cells instead of 2 x 2, by the cubic convolution with a = -1.
        multiple: four points at a quarter and three quarters of the bin; otherwise its centre alone.
    """
    if features.is_meta:
        return features.new_empty((len(rois), features.shape[1], pooled_h, pooled_w))
    image = image_index(rois, len(features))
    start, end = _padded(rois, pad_ratio, spatial_scale)
    offsets = torch.tensor([0.25, 0.75] if multiple else [0.5], dtype=rois.dtype, device=rois.device)
    taps = []
    for axis, bins, size in ((1, pooled_h, features.shape[2]), (0, pooled_w, features.shape[3])):
        first = start[:, axis].clamp(min=0)
        last = end[:, axis].clamp(max=math.floor(size / spatial_scale + 0.5) - 1)
        bin_size = ((last - first + 1).clamp(min=1) / bins)[:, None]
        steps = (torch.arange(bins, dtype=rois.dtype, device=rois.device)[:, None] + offsets).flatten()
        position = (steps * bin_size + first[:, None]).clamp(0, size - 1)
        taps.append(_cubic_taps(position, size) if cubic else _distance_taps(position, size))
    values = sample(features, image, *taps)
    return max_pool2d(values, len(offsets))


def _distance_taps(position: Tensor, size: int) -> Taps:
    low = torch.floor(position).long().clamp(0, size - 1)
    high = (low + 1).clamp(max=size - 1)
    return Taps(torch.stack([low, high], -1), torch.stack([high - position, position - low], -1))


def _cubic_taps(position: Tensor, size: int) -> Taps:
    low = torch.floor(position).long().clamp(0, size - 1)
    part = (position - low)[..., None]
    offsets = torch.arange(-1, 3, device=position.device)
    d = (part - offsets).abs()
    near, far = 1 - 2 * d**2 + d**3, 4 - 8 * d + 5 * d**2 - d**3
    weight = torch.where(d < 1, near, torch.where(d < 2, far, 0))
    return Taps((low[..., None] + offsets).clamp(0, size - 1), weight)


def _padded(rois: Tensor, pad_ratio: float, spatial_scale: float) -> tuple[Tensor, Tensor]:
    """First and last corner ``(x, y)``, ``[R, 2]`` each, in cells, after padding by a part of the RoI's size."""
    first, last = rois[:, 1:3], rois[:, 3:5]
    pad = (last - first + 1) * pad_ratio
    return (first - pad) * spatial_scale, (last + pad) * spatial_scale


def roi_align_window(features: Tensor, rois: Tensor, pooled_h: int, pooled_w: int, spatial_scale: float) -> Tensor:
    """The largest of four samples of each bin's first four cells, ``[N, C, H, W], [R, 5] -> [R, C, ph, pw]``.

    ``ROIAlignLayer`` of synopsys-caffe (from a Mask R-CNN port), as it is: the samples lie at a quarter and three
    quarters of the whole RoI, not of the bin; a cell counts by its distance to the sample over half the RoI's size; of
    a bin's cells only the first four in row-major order are looked at; a bin that ends at the map's edge reads one
    cell past it, the next row's or the next channel's first (behind the last map, where the original reads foreign
    memory, we read 0). The gradient goes, as in its CUDA version, to those cells of the largest sample that lie inside
    the RoI and on this channel.
    """
    batch, channels, height, width = features.shape
    if features.is_meta:
        return features.new_empty((len(rois), channels, pooled_h, pooled_w))
    image = image_index(rois, batch)
    x1, y1, x2, y2 = (rois[:, 1:5] * spatial_scale).unbind(1)
    first_y, rows, empty_y = _window(y1, y2, pooled_h, height)
    first_x, columns, empty_x = _window(x1, x2, pooled_w, width)
    rows, columns = rows[:, :, None, None], columns[:, None, :, None]  # [R, ph, pw, 4 cells]
    cell = torch.arange(4, device=rois.device)
    dy, dx = cell // columns.clamp(min=1), cell % columns.clamp(min=1)
    y, x = first_y[:, :, None, None] + dy, first_x[:, None, :, None] + dx
    there = (dy < rows) & (columns > 0)
    reached = height * width + width + 1  # cells from a map's first that a bin can read
    index = torch.where(there, y * width + x, 0).clamp(0, reached - 1)
    inside = (index < height * width) & _between(index // width, y1, y2) & _between(index % width, x1, x2)
    near_y, near_x = _nearness(y, y1, y2), _nearness(x, x1, x2)
    behind = torch.cat([features.flatten(), features.new_zeros(width + 1)])
    cells = behind.as_strided((batch, reached, channels), (channels * height * width, 1, height * width))
    cells = cells.reshape(-1, channels)
    index = (image[:, None, None, None] * reached + index).flatten(0, 2)
    best = None
    for sample_x in (0, 1):
        for sample_y in (0, 1):
            weight = torch.where(there, near_x[sample_x] * near_y[sample_y], 0)
            back = (weight * inside).flatten(0, 2)
            value = weighted_sum(cells, index, weight.flatten(0, 2), back)
            best = value if best is None else torch.where(value > best, value, best)
    best = best.view(len(rois), pooled_h, pooled_w, channels).permute(0, 3, 1, 2)
    empty = empty_y[:, None, :, None] | empty_x[:, None, None, :]
    return torch.where(empty & ~(best > 0), 0, best)


def _window(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """First cell, number of cells (the one past the map included), and emptiness of every bin: ``[R, bins]`` each."""
    bin_size = ((end - start + 1).clamp(min=1) / bins)[:, None]
    steps = torch.arange(bins + 1, dtype=start.dtype, device=start.device)
    edges = steps * bin_size + start[:, None]
    low, high = edges[:, :-1].clamp(0, size), edges[:, 1:].clamp(0, size)
    first = torch.ceil(low).long()
    return first, (torch.floor(high).long() - first + 1).clamp(min=0), high <= low


def _nearness(cell: Tensor, start: Tensor, end: Tensor) -> list[Tensor]:
    """How much a cell counts for the two samples at -0.5 and 0.5 of an axis on which the RoI is [-1, 1]."""
    start, extent = start[:, None, None, None], (end - start)[:, None, None, None]
    place = torch.where(extent == 0, 0, 2 * (cell - start) / extent - 1).clamp(-1, 1)
    return [(1 - (at - place).abs()).clamp(min=0) for at in (-0.5, 0.5)]


def _between(cell: Tensor, start: Tensor, end: Tensor) -> Tensor:
    return (cell >= torch.ceil(start)[:, None, None, None]) & (cell <= torch.floor(end)[:, None, None, None])
