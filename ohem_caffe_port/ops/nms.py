"""Greedy non-maximum suppression."""

from __future__ import annotations

import numpy as np
import torch

_OVERLAPS_AT_A_TIME = 1 << 24  # of nms_ranked: 64 MiB in float32


def nms(boxes, scores, thresh, *, groups=None, max_keep=None):
    """Indices of the boxes that survive, in descending order of score.

    A box is removed when its IoU with a better survivor exceeds ``thresh`` (a box at exactly ``thresh`` stays);
    of equal scores the later one in the input goes first (the order of a reversed stable ascending sort).

    Args:
        boxes: ``[N, 4]`` (x1, y1, x2, y2), inclusive pixels, so an IoU counts ``x2 - x1 + 1``. The IoU is computed in
            the type of ``boxes``, in the order of operations of the original's ``py_cpu_nms``.
        scores: ``[N]``, any floating type.
        thresh: IoU threshold.
        groups: ``[N]`` or None; only boxes of one group suppress each other.
        max_keep: stop after this many survivors. What comes later cannot change them.

    Returns:
        int64 indices, a numpy array or a tensor on the device of ``boxes``, as the input was.
    """
    if isinstance(boxes, torch.Tensor):
        arrays = [None if a is None else a.detach().cpu().numpy() for a in (boxes, scores, groups)]
        keep = nms(arrays[0], arrays[1], thresh, groups=arrays[2], max_keep=max_keep)
        return torch.from_numpy(keep).to(boxes.device)

    order = np.argsort(scores, kind="stable")[::-1]
    x1, y1, x2, y2 = np.ascontiguousarray(boxes[order, :4].T)
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    group = None if groups is None else groups[order]
    alive = np.ones(len(order), dtype=bool)
    limit = len(order) if max_keep is None else max_keep
    keep, i = [], 0
    while len(keep) < limit:
        step = alive[i:].argmax() if i < len(alive) else 0
        if i >= len(alive) or not alive[i + step]:
            break
        i += step
        keep.append(i)
        rest = slice(i + 1, None)
        w = np.maximum(np.minimum(x2[i], x2[rest]) - np.maximum(x1[i], x1[rest]) + 1, 0)
        h = np.maximum(np.minimum(y2[i], y2[rest]) - np.maximum(y1[i], y1[rest]) + 1, 0)
        inter = w * h
        # `not >` rather than `<=`: a NaN box removes nothing
        stays = ~(inter / (areas[i] + areas[rest] - inter) > thresh)
        alive[rest] &= stays if group is None else stays | (group[rest] != group[i])
        i += 1
    return order[keep]


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
