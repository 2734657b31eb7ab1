"""Values of feature maps at points between their cells: what RoI align, RoI warping and their kin have in common.

The points of a RoI form a grid, so each of its rows and columns has :class:`Taps` of its own, and a point is the sum of
the few cells that its row and its column name, each times the product of its two weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

_CHUNK_TAPS = 1 << 22  # cells looked up at a time: bounds the memory of their indices


class Taps(NamedTuple):
    """The cells that the points of a grid read along one axis.

    ``back`` holds other weights for the gradient, for layers whose backward is not the derivative of their forward.
    """

    index: Tensor  # [R, points, taps], in [0, size)
    weight: Tensor  # [R, points, taps]
    back: Tensor | None = None

    def scaled(self, factor: Tensor) -> Taps:
        """All weights times ``factor``, which broadcasts to ``[R, points, taps]``."""
        return Taps(self.index, self.weight * factor, None if self.back is None else self.back * factor)


def lerp(position: Tensor, size: int, reach: float | None = None) -> Taps:
    """Linear interpolation at ``position`` ``[R, points]`` between the cells ``0 .. size - 1``.

    Positions before the first or behind the last cell take its value; those further away than ``reach`` give 0.
    """
    inside = position.clamp(0, size - 1)
    low = torch.floor(inside)
    part = inside - low
    low = low.long().clamp(0, size - 1)  # a NaN stays in the weights
    weight = torch.stack([1 - part, part], -1)
    if reach is not None:
        weight = weight * ((position >= -reach) & (position <= size - 1 + reach))[..., None]
    return Taps(torch.stack([low, (low + 1).clamp(max=size - 1)], -1), weight)


def averaged(taps: Taps, samples: int) -> Taps:
    """The sum over every ``samples`` neighbouring points as one point: ``[R, points / samples, taps * samples]``."""
    rois, points, number = taps.index.shape
    shape = rois, points // samples, samples * number
    return Taps(*(t if t is None else t.reshape(shape) for t in taps))


def sample(features: Tensor, image: Tensor, y: Taps, x: Taps, group: int = 1) -> Tensor:
    """The grids' values: ``[N, C, H, W] -> [R, C / group^2, points of y, points of x]``.

    With ``group`` > 1 the maps are position-sensitive: point ``(i, j)`` of output ``d`` reads channel
    ``(d * group + i) * group + j``.

    Args:
        image: ``[R]``, the image that a RoI lies in.
    """
    batch, channels, height, width = features.shape
    depth = channels // group**2
    maps = features.reshape(batch, depth, group, group, height, width)
    rows = maps.permute(0, 2, 3, 4, 5, 1).reshape(-1, depth)
    rois, ny, taps_y = y.index.shape
    nx, taps_x = x.index.shape[1:]
    plane = image[:, None, None].expand(rois, ny, nx)
    if group > 1:
        cell = torch.arange(group, device=image.device)
        plane = (plane * group + cell[:, None]) * group + cell
    chunk = max(1, _CHUNK_TAPS // (ny * nx * taps_y * taps_x))
    parts = [
        _weighted_rows(rows, plane[i : i + chunk], _rows_of(y, i, chunk), _rows_of(x, i, chunk), height, width)
        for i in range(0, max(rois, 1), chunk)
    ]
    return torch.cat(parts).view(rois, ny, nx, depth).permute(0, 3, 1, 2)


def _rows_of(taps: Taps, first: int, number: int) -> Taps:
    return Taps(*(t if t is None else t[first : first + number] for t in taps))


def _weighted_rows(rows: Tensor, plane: Tensor, y: Taps, x: Taps, height: int, width: int) -> Tensor:
    row = plane[..., None] * height + y.index[:, :, None]  # [R, ny, nx, taps of y]
    index = (row[..., None] * width + x.index[:, None, :, None]).flatten(0, 2).flatten(1)
    weight = _products(y.weight, x.weight, rows)
    if (y.back is None and x.back is None) or not (rows.requires_grad and torch.is_grad_enabled()):
        return weighted_sum(rows, index, weight)
    back = _products(y.weight if y.back is None else y.back, x.weight if x.back is None else x.back, rows)
    return weighted_sum(rows, index, weight, back)


def _products(y: Tensor, x: Tensor, like: Tensor) -> Tensor:
    return (y[:, :, None, :, None] * x[:, None, :, None, :]).flatten(0, 2).flatten(1).to(like.dtype)


def weighted_sum(rows: Tensor, index: Tensor, weight: Tensor, back: Tensor | None = None) -> Tensor:
    """``sum over t of weight[p, t] * rows[index[p, t]]``: ``[cells, C], [P, T] -> [P, C]``.

    The weights, and so the RoIs, get no gradient. With ``back`` that of ``rows`` is the one of a sum with these weights
    instead.
    """
    if not len(index):
        return rows[:0]  # still part of the graph
    weight = weight.detach()
    if back is None:
        return embedding_bag(index, rows, mode="sum", per_sample_weights=weight)
    back = back.detach()
    gradient = embedding_bag(index, rows, mode="sum", per_sample_weights=back)
    return gradient + embedding_bag(index, rows.detach(), mode="sum", per_sample_weights=weight - back)
