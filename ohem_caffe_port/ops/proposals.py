"""From the output of a region proposal network to boxes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..boxes import bbox_transform_inv, clip_boxes
from .nms import nms


@torch.no_grad()
def decode_proposals(anchors: Tensor, deltas: Tensor, im_shape) -> Tensor:
    """``anchors`` ``[H * W * A, 4]`` (rows in the order y, x, anchor), moved by a map of deltas ``[4A, H, W]`` and
    clipped to an image of ``im_shape = (height, width)``: ``[H * W * A, 4]`` in the type of ``deltas``."""
    return clip_boxes(bbox_transform_inv(anchors, by_anchor(deltas, 4)), im_shape)


def by_anchor(values: Tensor, size: int) -> Tensor:
    """A map ``[size * A, H, W]`` as rows ``[H * W * A, size]`` in the order y, x, anchor."""
    return values.permute(1, 2, 0).reshape(-1, size)


@torch.no_grad()
def best_proposals(boxes: Tensor, scores: Tensor, *, pre_nms: int, post_nms: int, nms_thresh: float) -> Tensor:
    """Indices of the proposals that a region proposal network hands on, best first.

    The ``pre_nms`` best scores (Ren et al. 2015, section 3.3), non-maximum suppression at ``nms_thresh``, the first
    ``post_nms`` survivors. 0 or less keeps all. Of equal scores the later row goes first, a reversed ascending sort.

    Args:
        boxes: ``[N, 4]``; scores: ``[N]``.
    """
    order = scores.argsort(stable=True)  # ascending, as nms breaks ties in favour of the later row
    if pre_nms > 0:
        order = order[-pre_nms:]
    keep = nms(boxes[order], scores[order], nms_thresh, max_keep=post_nms if post_nms > 0 else None)
    return order[keep]


def large_boxes(boxes: Tensor, min_width: float, min_height: float) -> Tensor:
    """Which boxes ``[N, 4]`` are at least so wide and so high (inclusive pixels): ``[N]`` bool."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    return (size[:, 0] >= min_width) & (size[:, 1] >= min_height)
