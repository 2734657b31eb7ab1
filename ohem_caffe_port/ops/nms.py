"""Greedy non-maximum suppression."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor

_BLOCK = 192  # boxes that are compared with each other at a time
_OVERLAPS_AT_A_TIME = 1 << 24  # of nms_ranked: 64 MiB in float32


def nms(boxes, scores, thresh, *, groups=None, eligible=None, max_keep=None):
    """Indices of the boxes that survive, in descending order of score.

    A box is removed when its IoU with a better survivor exceeds ``thresh`` (a box at exactly ``thresh`` stays);
    of equal scores the later one in the input goes first (the order of a reversed stable ascending sort).

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), inclusive pixels, so an IoU counts ``x2 - x1 + 1``. The IoU is computed in
            the type of ``boxes``, in the order of operations of the original's ``py_cpu_nms``. One that is not a
            number, or of boxes without an area, exceeds nothing.
        scores: ``[N]``, any floating type.
        thresh: IoU threshold.
        groups: ``[N]`` or None; only boxes of one group suppress each other.
        eligible: ``[N]`` bool or None; other boxes neither survive nor suppress.
        max_keep: stop after this many survivors. What comes later cannot change them.

    Returns:
        int64 indices, a numpy array or a tensor on the device of ``boxes``, as the input was. For their number a GPU's
        host has to wait; :func:`nms_padded` spares it that.
    """
    if not isinstance(boxes, Tensor):
        among = np.arange(len(scores)) if eligible is None else np.flatnonzero(eligible)
        order = among[np.argsort(scores[among], kind="stable")[::-1]]
        limit = len(order) if max_keep is None else max_keep
        return order[_survivors_in_blocks(boxes[order], None if groups is None else groups[order], thresh, limit)]
    if boxes.is_cuda and _kernel(boxes.dtype) is not None:
        keep = nms_padded(boxes, scores, thresh, groups=groups, eligible=eligible, max_keep=max_keep)
        return keep[keep < len(boxes)]
    arrays = [None if a is None else a.detach().cpu().numpy() for a in (boxes, scores, groups, eligible)]
    keep = nms(arrays[0], arrays[1], thresh, groups=arrays[2], eligible=arrays[3], max_keep=max_keep)
    return torch.from_numpy(keep).to(boxes.device)


def nms_padded(
    boxes: Tensor,
    scores: Tensor,
    thresh: float,
    *,
    groups: Tensor | None = None,
    eligible: Tensor | None = None,
    max_keep: int | None = None,
) -> Tensor:
    """:func:`nms` with a result whose size is known beforehand, so that a GPU's host waits for nothing:
    ``[min(max_keep, N)]``, the survivors' indices and then ``N`` where there are no more.

    On a GPU one Triton kernel finds them. Where Triton is missing :func:`first_survivors` does, which is as exact, but
    starts a dozen kernels for each survivor.

    Args:
        boxes, scores, thresh, groups, eligible, max_keep: as in :func:`nms`, tensors.
    """
    total = len(boxes)
    limit = total if max_keep is None else min(max_keep, total)
    if boxes.is_cpu:
        keep = nms(boxes, scores, thresh, groups=groups, eligible=eligible, max_keep=limit)
        return torch.cat((keep, keep.new_full((limit - len(keep),), total)))
    return _nms_on_device(boxes, scores, thresh, groups, eligible, limit)


def _nms_on_device(boxes, scores, thresh, groups, eligible, limit) -> Tensor:
    order = torch.sort(scores, stable=True).indices.flip(0)
    group = None if groups is None else groups[order]
    alive = torch.ones_like(order, dtype=torch.bool) if eligible is None else eligible[order]
    kernel = (_kernel(boxes.dtype) if boxes.is_cuda else None) or first_survivors
    places = kernel(boxes.detach()[order, :4], group, alive, thresh, limit)
    return torch.cat((order, order.new_full((1,), len(order))))[places]


@functools.cache
def _kernel(dtype: torch.dtype):
    """:func:`first_survivors` as a Triton kernel; None for types that it does not know, and where Triton, which comes
    with torch for CUDA, is missing."""
    if dtype not in (torch.float32, torch.float64):
        return None
    try:
        from .nms_triton import first_survivors
    except ImportError:
        return None
    return first_survivors


def first_survivors(boxes: Tensor, groups: Tensor | None, alive: Tensor, thresh: float, limit: int) -> Tensor:
    """Places of the first ``limit`` survivors, ``[limit]`` int64; ``N`` where there are no more.

    Each step takes the best box that is still alive and removes what it covers. Every step is taken whatever the values
    are, so nothing has to be known of them.

    Args:
        boxes: ``[N, 4]``, the best first; groups: ``[N]`` or None; alive: ``[N]`` bool.
    """
    place, total = torch.arange(len(boxes), device=boxes.device), len(boxes)
    sizes = boxes[:, 2:] - boxes[:, :2] + 1
    areas = sizes[:, 0] * sizes[:, 1]
    keep = place.new_full((limit,), total)
    for k in range(limit):
        best = torch.where(alive, place, total).amin()
        keep[k] = best
        at = best.clamp(max=total - 1).view(1)  # any box will do where none is alive
        box = boxes.index_select(0, at)
        sides = torch.minimum(boxes[:, 2:], box[:, 2:]) - torch.maximum(boxes[:, :2], box[:, :2]) + 1
        sides = sides.clamp(min=0)
        inter = sides[:, 0] * sides[:, 1]
        covered = inter / (areas.index_select(0, at) + areas - inter) > thresh
        if groups is not None:
            covered &= groups == groups.index_select(0, at)
        alive = alive & ~covered & (place > best)
    return keep


@np.errstate(all="ignore")
def _survivors_in_blocks(boxes, groups, thresh, limit) -> np.ndarray:
    """What :func:`first_survivors` finds, in numpy and without the places of those that there are not.

    Block by block: first go the boxes that an earlier survivor covers, then the rest is compared with itself. Rows of
    that comparison are bits of integers, so that one step of the greedy choice is one ``or``.
    """
    total, by_group = len(boxes), groups is not None and limit >= len(boxes)
    if by_group:  # nothing ends early, so groups come one after the other, and few boxes of others are compared
        order = np.argsort(groups, kind="stable")
        boxes, groups = boxes[order], groups[order]
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[:, :4].T)
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)

    def covers(rows, columns):
        rows = rows[:, None]
        w = np.maximum(np.minimum(x2[rows], x2[columns]) - np.maximum(x1[rows], x1[columns]) + 1, 0)
        h = np.maximum(np.minimum(y2[rows], y2[columns]) - np.maximum(y1[rows], y1[columns]) + 1, 0)
        inter = w * h
        over = inter / (areas[rows] + areas[columns] - inter) > thresh
        return over if groups is None else over & (groups[rows] == groups[columns])

    keep = np.zeros(0, dtype=np.int64)
    for start in range(0, total, _BLOCK):
        if len(keep) >= limit:
            break
        block = np.arange(start, min(start + _BLOCK, total))
        rivals = keep[np.searchsorted(groups[keep], groups[start]) :] if by_group else keep
        block = block[~covers(rivals, block).any(0)]
        chosen, removed = [], 0
        for i, row in enumerate(np.packbits(covers(block, block), axis=1, bitorder="little")):
            if not removed >> i & 1:
                chosen.append(i)
                removed |= int.from_bytes(row.tobytes(), "little")
        keep = np.concatenate((keep, block[chosen]))
    return np.sort(order[keep]) if by_group else keep[:limit]


def nms_ranked(boxes, valid, thresh, *, overlap, eta=1.0, max_keep=None, block=None):
    """Greedy suppression in many groups at once, as a mask: for the hundreds of short lists (images times classes) of
    a detector, where :func:`nms` would need a Python loop over all survivors of all of them.

    Args:
        boxes: ``[G, K, 4]`` tensor, in every group the best first.
        valid: ``[G, K]`` bool; other boxes neither survive nor suppress.
        thresh: a box is removed when it overlaps a better survivor by more.
        overlap: ``overlap([G, B, 4], [G, K, 4]) -> [G, B, K]``.
        eta: below 1, every survivor multiplies its group's threshold by it while that is above 0.5.
        max_keep: ``[G]`` or a number; when all groups have as many survivors the rest is not looked at.
        block: so many boxes of a group are compared with those before them at a time.

    Returns:
        ``[G, K]`` bool, on the device of ``boxes``.
    """
    groups, length = valid.shape
    keep = torch.zeros_like(valid)
    limit = torch.full((groups, 1, 1), thresh, dtype=boxes.dtype, device=boxes.device)
    block = 1 if eta < 1 else block or max(1, min(64, _OVERLAPS_AT_A_TIME // max(1, groups * length)))
    for start in range(0, length, block):
        if max_keep is not None and bool((keep.sum(1) >= max_keep).all()):
            break
        stop = min(start + block, length)
        blocks = overlap(boxes[:, start:stop], boxes[:, :stop]) > limit  # [G, B, stop]
        alive = valid[:, start:stop] & ~(blocks[..., :start] & keep[:, None, :start]).any(2)
        for i in range(start, stop):  # the better ones of its own block
            blocked = (blocks[:, i - start, start:i] & keep[:, start:i]).any(1)
            keep[:, i] = alive[:, i - start] & ~blocked
        if eta < 1:
            limit = torch.where(keep[:, start:stop, None] & (limit > 0.5), limit * eta, limit)
    return keep
