"""Box arithmetic of Fast R-CNN, for numpy arrays and torch tensors alike.

Boxes are ``(x1, y1, x2, y2)`` in pixels, both ends inclusive: the width is ``x2 - x1 + 1``. Results have the
inputs' kind, device and floating type, so the caller decides the precision. Data sets and evaluation use this without
torch, which takes seconds to import: only a tensor brings it in.
"""

from __future__ import annotations

import numpy as np


def namespace(array):
    """``torch`` or ``numpy``, whichever the array is of: what follows is written once for both."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def bbox_overlaps(boxes, query_boxes):
    """IoU of every box with every query box: ``[N, 4], [K, 4] -> [N, K]``.

    Integer inputs are computed in float64 (numpy) as the original's Cython routine does.
    """
    xp = namespace(boxes)
    if xp is np and boxes.dtype.kind != "f":
        boxes, query_boxes = boxes.astype(np.float64), query_boxes.astype(np.float64)
    area = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    query_area = (query_boxes[:, 2] - query_boxes[:, 0] + 1) * (query_boxes[:, 3] - query_boxes[:, 1] + 1)
    top_left = xp.maximum(boxes[:, None, :2], query_boxes[None, :, :2])
    bottom_right = xp.minimum(boxes[:, None, 2:4], query_boxes[None, :, 2:4])
    size = (bottom_right - top_left + 1).clip(min=0)
    inter = size[..., 0] * size[..., 1]
    return inter / (area[:, None] + query_area[None, :] - inter)


def _centre_size(boxes):
    widths = boxes[:, 2] - boxes[:, 0] + 1.0
    heights = boxes[:, 3] - boxes[:, 1] + 1.0
    return boxes[:, 0] + 0.5 * widths, boxes[:, 1] + 0.5 * heights, widths, heights


def bbox_transform(ex_rois, gt_rois):
    """Regression targets ``(dx, dy, dw, dh)`` that move ``ex_rois`` onto ``gt_rois``: ``[N, 4], [N, 4] -> [N, 4]``.

    R-CNN (Girshick et al. 2014), appendix C, equations 6 to 9, with inclusive widths.
    """
    xp = namespace(ex_rois)
    ex_x, ex_y, ex_w, ex_h = _centre_size(ex_rois)
    gt_x, gt_y, gt_w, gt_h = _centre_size(gt_rois)
    return xp.stack(((gt_x - ex_x) / ex_w, (gt_y - ex_y) / ex_h, xp.log(gt_w / ex_w), xp.log(gt_h / ex_h)), 1)


def bbox_transform_inv(boxes, deltas):
    """Applies regression outputs to boxes: ``[N, 4], [N, 4K] -> [N, 4K]``, computed in the type of ``deltas``.

    As in Fast R-CNN, the decoded ``x2, y2`` are ``centre + 0.5 * size``: one pixel more than an exact inverse.
    """
    xp = namespace(deltas)
    boxes = boxes.astype(deltas.dtype, copy=False) if xp is np else boxes.to(deltas.dtype)
    x, y, w, h = (v[:, None] for v in _centre_size(boxes))
    pred_x, pred_y = deltas[:, 0::4] * w + x, deltas[:, 1::4] * h + y
    pred_w, pred_h = xp.exp(deltas[:, 2::4]) * w, xp.exp(deltas[:, 3::4]) * h
    corners = (pred_x - 0.5 * pred_w, pred_y - 0.5 * pred_h, pred_x + 0.5 * pred_w, pred_y + 0.5 * pred_h)
    return xp.stack(corners, 2).reshape(deltas.shape)


def clip_boxes(boxes, im_shape):
    """Boxes ``[N, 4K]`` cut to an image of ``im_shape = (height, width, ...)``: a new array, coordinates in
    ``[0, width - 1]`` and ``[0, height - 1]``."""
    clipped = boxes.copy() if namespace(boxes) is np else boxes.clone()
    clipped[:, 0::2] = clipped[:, 0::2].clip(0, im_shape[1] - 1)
    clipped[:, 1::2] = clipped[:, 1::2].clip(0, im_shape[0] - 1)
    return clipped
