"""Greedy non-maximum suppression."""

from __future__ import annotations

import numpy as np
import torch


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
