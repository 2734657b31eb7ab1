"""Box arithmetic of MS-CNN (Cai et al., ECCV 2016) and Cascade R-CNN (Cai and Vasconcelos, CVPR 2018).

A *field* is what others call an anchor: a box of a fixed size centred on each cell of a map. Cell ``(h, w)`` of a map
with ``stride`` pixels to a cell has its centre at ``((w + 0.5) stride, (h + 0.5) stride)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..boxes import namespace
from .nms import nms_ranked

_PAIRS = 1 << 23  # boxes compared at a time, at most


def overlap(boxes, others, mode="IOU", edges="pixels"):
    """Intersection of boxes as a share of what ``mode`` says: ``[..., 4], [..., 4] -> [...]``, by broadcasting.

    Args:
        boxes, others: ``(x1, y1, x2, y2)``, numpy arrays or tensors of one floating type.
        mode: "IOU" of the union, "IOMU" of the smaller box, "IOFU" of the first (``boxes``); anything else is "IOU".
        edges: what lies at ``x2`` and ``y2``. "open": nothing, the width is ``x2 - x1`` (MS-CNN's ``BoxIOU``).
            "pixels": the last pixel, the width is ``x2 - x1 + 1`` (cascade-rcnn's ``JaccardOverlap`` of x, y, width,
            height). "corners": likewise, but boxes that share a single row do not overlap (that of two ``BBox``).

    Boxes without an area overlap nothing.
    """
    x, y = (_common(boxes[..., axis::2], others[..., axis::2], edges, axis) for axis in (0, 1))
    return _share(x * y, _area(boxes, edges), _area(others, edges), mode)


def overlaps(boxes, others, mode="IOU", edges="pixels"):
    """:func:`overlap` of every box with every other: ``[N, 4], [K, 4] -> [N, K]``."""
    return overlap(boxes[:, None], others[None], mode, edges)


def grid_overlaps(columns, rows, others, mode="IOU", edges="pixels"):
    """:func:`overlap` of the boxes of a grid with every other: ``[W, 2], [H, 2], [K, 4] -> [K, H, W]``.

    Args:
        columns, rows: (x1, x2) and (y1, y2) of the boxes, of which each row has every column.
    """
    x, y = (_common(ends, others[:, None, axis::2], edges, axis) for axis, ends in enumerate((columns, rows)))
    area = _length(rows, edges)[:, None] * _length(columns, edges)
    return _share(y[:, :, None] * x[:, None], area, _area(others, edges)[:, None, None], mode)


def _common(first, second, edges, axis):
    """How long the intervals ``[..., 2]`` overlap, by broadcasting."""
    xp, pixel = namespace(first), edges != "open"
    length = xp.minimum(first[..., 1], second[..., 1]) - xp.maximum(first[..., 0], second[..., 0])
    touches = pixel and not (edges == "corners" and axis == 1)
    return xp.where((length >= 0) if touches else (length > 0), length + int(pixel), xp.zeros_like(length))


def _length(ends, edges):
    """Of intervals ``[..., 2]``; 0 for those that end before they start."""
    xp, length = namespace(ends), ends[..., 1] - ends[..., 0]
    least = {"open": length > 0, "pixels": length > -1, "corners": length >= 0}[edges]
    return xp.where(least, length + int(edges != "open"), xp.zeros_like(length))


def _area(boxes, edges):
    return _length(boxes[..., 0::2], edges) * _length(boxes[..., 1::2], edges)


def _share(inter, area, other_area, mode):
    xp = namespace(inter)
    if mode == "IOMU":
        whole = xp.minimum(area, other_area)
    elif mode == "IOFU":
        whole = area + xp.zeros_like(other_area)
    else:
        whole = area + other_area - inter
    valid = (area > 0) & (other_area > 0)
    return xp.where(valid, inter, xp.zeros_like(inter)) / xp.where(valid, whole, xp.ones_like(whole))


def descending(scores: Tensor) -> Tensor:
    """The order of ``[R]`` scores from the highest down; of equal ones the later goes first, as in C++'s pairs."""
    return len(scores) - 1 - scores.flip(0).argsort(descending=True, stable=True)


def greedy_nms(boxes: Tensor, valid: Tensor, thresh: float, mode="IOU", edges="pixels", max_keep=None) -> Tensor:
    """:func:`~ohem_caffe_port.ops.nms.nms_ranked` of boxes ``[G, K, 4]`` by :func:`overlap`: bool ``[G, K]``."""

    def pairs(worse, better):
        return overlap(better[:, None], worse[:, :, None], mode, edges)

    block = max(1, min(256, _PAIRS // max(1, valid.numel())))
    return nms_ranked(boxes, valid, thresh, overlap=pairs, max_keep=max_keep, block=block)


def _by_field(maps: Tensor, fields) -> tuple[Tensor, Tensor, Tensor]:
    """``[N * G, 4, H, W]`` as ``[N, G, 4, H, W]``, with the fields' widths and heights ``[G, 1, 1]``."""
    sizes = maps.new_tensor(fields)[:, :, None, None]
    return maps.view(-1, len(fields), *maps.shape[1:]), sizes[:, 0], sizes[:, 1]


def _centres(maps: Tensor, stride: float) -> tuple[Tensor, Tensor]:
    """x ``[W]`` and y ``[H, 1]`` of the cells' centres."""
    height, width = maps.shape[-2:]
    x = (torch.arange(width, dtype=maps.dtype, device=maps.device) + 0.5) * stride
    y = (torch.arange(height, dtype=maps.dtype, device=maps.device) + 0.5) * stride
    return x, y[:, None]


def per_coordinate(values, maps: Tensor) -> Tensor:
    """Four numbers, for x, y, width, height, in the form that ``[..., 4, H, W]`` maps combine with."""
    return maps.new_tensor(values)[:, None, None]


def bound_fields(deltas: Tensor, low, high) -> Tensor:
    """Regression outputs ``[..., 4, H, W]`` no further out than ``low`` and ``high``, four numbers each."""
    return torch.minimum(torch.maximum(deltas, per_coordinate(low, deltas)), per_coordinate(high, deltas))


def decode_fields(deltas: Tensor, fields, stride, means, stds, field_xyr, field_whr) -> Tensor:
    """The boxes that regression outputs make of the fields.

    Centres move by at most ``1 / field_xyr`` of the field's size, sizes change by at most a factor ``field_whr``.

    Args:
        deltas: ``[N * G, 4, H, W]`` (dx, dy, log dw, log dh), normalised with ``means`` and ``stds``.
        fields: G pairs (width, height).
        stride: pixels to a cell.

    Returns:
        ``[N * G, 4, H, W]`` (x1, y1, width, height).
    """
    xyr, whr = 1 / field_xyr, math.log(field_whr)
    deltas = deltas * per_coordinate(stds, deltas) + per_coordinate(means, deltas)
    deltas, widths, heights = _by_field(bound_fields(deltas, (-xyr, -xyr, -whr, -whr), (xyr, xyr, whr, whr)), fields)
    x, y = _centres(deltas, stride)
    w, h = widths * torch.exp(deltas[:, :, 2]), heights * torch.exp(deltas[:, :, 3])
    x1, y1 = deltas[:, :, 0] * widths + x - w / 2, deltas[:, :, 1] * heights + y - h / 2
    return torch.stack((x1, y1, w, h), 2).flatten(0, 1)


def encode_fields(boxes: Tensor, fields, stride, means, stds) -> Tensor:
    """Regression targets that move the fields onto boxes, the inverse of :func:`decode_fields`.

    Args:
        boxes: ``[N * G, 4, H, W]`` (centre x, centre y, width, height); sides count as at least 2 pixels.

    Returns:
        ``[N * G, 4, H, W]`` normalised (dx, dy, log dw, log dh).
    """
    boxes, widths, heights = _by_field(boxes, fields)
    x, y = _centres(boxes, stride)
    deltas = (
        (boxes[:, :, 0] - x) / widths,
        (boxes[:, :, 1] - y) / heights,
        torch.log(boxes[:, :, 2].clamp(min=2) / widths),
        torch.log(boxes[:, :, 3].clamp(min=2) / heights),
    )
    deltas = torch.stack(deltas, 2).flatten(0, 1)
    return (deltas - per_coordinate(means, deltas)) / per_coordinate(stds, deltas)
