"""Where the bins of RoIs lie on a feature map, by the rules of Caffe's ``ROIPooling`` layers."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .rois import image_index, round_half_away


class Settings(NamedTuple):
    """What :func:`~ohem_caffe_port.ops.roi_pool` is asked for; see there."""

    pooled_h: int
    pooled_w: int
    spatial_scale: float
    pad_ratio: float = 0.0
    gradient: str = "inside"


class Bins(NamedTuple):
    """Bins of R RoIs, in cells of their image: a bin is every cell of its rows and columns.

    ``image`` is ``[R]``; ``y`` is ``[R, pooled_h, 4]`` and ``x`` ``[R, pooled_w, 4]``: the first cell, the one past the
    end, and the same two for the cells that get a gradient when they are the maximum.
    """

    image: Tensor
    y: Tensor
    x: Tensor


def find_bins(rois: Tensor, shape, how: Settings) -> Bins:
    """The bins of ``rois`` ``[R, 5]`` on maps of ``shape`` ``[N, C, H, W]``, in single precision as in Caffe.

    Raises:
        ValueError: a RoI whose batch index is no image of the batch.
    """
    batch, _, height, width = shape
    image = image_index(rois, batch)
    corners = rois[:, 1:5].float()
    if how.pad_ratio:
        pad = (corners[:, 2:] - corners[:, :2] + 1) * how.pad_ratio
        corners = torch.cat([corners[:, :2] - pad, corners[:, 2:] + pad], 1)
    x1, y1, x2, y2 = round_half_away(corners * _single(how.spatial_scale, rois.device)).unbind(1)
    return Bins(image, _axis(y1, y2, how.pooled_h, height, how), _axis(x1, x2, how.pooled_w, width, how))


def _single(value: float, device) -> Tensor:
    """A tensor of one number. By a Python number a GPU divides less exactly."""
    return torch.full((), value, dtype=torch.float32, device=device)


def bin_edges(start: Tensor, end: Tensor, bins: int, size: int) -> tuple[Tensor, Tensor]:
    """First and past-the-end cell of every bin along one axis: two ``[R, bins]``, clipped to ``[0, size]``.

    Caffe's order of operations in single precision: an extent of 57, 114 or 121 cells in 7 bins ends one cell late.
    """
    extent = (end - start + 1).clamp(min=1)
    bin_size = (extent.float() / _single(bins, start.device))[:, None]
    steps = torch.arange(bins + 1, dtype=torch.float32, device=start.device)
    low = torch.floor(steps[:-1] * bin_size).long() + start[:, None]
    high = torch.ceil(steps[1:] * bin_size).long() + start[:, None]
    return low.clamp(0, size), high.clamp(0, size)


def _axis(start, end, bins, size, how) -> Tensor:
    low, high = bin_edges(start, end, bins, size)
    first, last = low, high
    if how.gradient == "inside":
        first, last = (edge.clamp(0, size)[:, None].expand_as(low) for edge in (start, end + 1))
    elif how.gradient == "mscnn":
        first, last = _mscnn_finds(start, end, bins, size, how.spatial_scale)
    return torch.stack([low, high, first, last], -1).int()


def last_cell(size: int, spatial_scale: float) -> int:
    """The cell at which MS-CNN's backward takes the map to end: it compares cells with pixels of the input image."""
    return math.floor(size / spatial_scale + 0.5) - 1


def _mscnn_finds(start, end, bins, size, spatial_scale) -> tuple[Tensor, Tensor]:
    """The cells from which MS-CNN's backward finds back to a bin, consecutive ones: two ``[R, bins]``. It looks for
    bins in the RoI as clipped to the image, where they are smaller than those that were pooled."""
    start = start.clamp(min=0)[:, None]
    end = end.clamp(max=last_cell(size, spatial_scale))[:, None]
    bin_size = (end - start + 1).clamp(min=1).float() / _single(bins, start.device)
    cell = torch.arange(size, device=start.device)
    offset = (cell - start).float()
    low, high = (torch.floor(offset / bin_size), torch.ceil((offset + 1) / bin_size))  # its bins: [R, size]
    index = torch.arange(bins, device=start.device)[:, None]
    found = (index >= low[:, None]) & (index < high[:, None]) & ((cell >= start) & (cell <= end))[:, None]
    return torch.where(found, cell, size).amin(-1), torch.where(found, cell + 1, 0).amax(-1)
