"""Boxes as YOLO has them: ``(x, y, w, h)``, the centre and the size in units of the image."""

from __future__ import annotations

import torch
from torch import Tensor


def centre_overlap(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of every box with every other: ``[..., N, 4], [..., K, 4] -> [..., N, K]`` (darknet's ``box_iou``)."""
    boxes, others = boxes.unsqueeze(-2), others.unsqueeze(-3)
    low = torch.maximum(boxes[..., :2] - boxes[..., 2:] / 2, others[..., :2] - others[..., 2:] / 2)
    high = torch.minimum(boxes[..., :2] + boxes[..., 2:] / 2, others[..., :2] + others[..., 2:] / 2)
    size = (high - low).clamp(min=0)
    inter = size[..., 0] * size[..., 1]
    union = boxes[..., 2] * boxes[..., 3] + others[..., 2] * others[..., 3] - inter
    return torch.where(inter > 0, inter / union, 0)


def cell_boxes(centres: Tensor, sizes: Tensor, anchors: Tensor, scale: tuple[float, float]) -> Tensor:
    """The boxes that a head predicts, ``[B, n, 4, H, W]``.

    YOLO9000 (Redmon and Farhadi, CVPR 2017), section 2: the centre is ``(cell + offset) / cells``, the size
    ``anchor * exp(prediction)`` over ``scale``.

    Args:
        centres: ``[B, n, 2, H, W]`` offsets within the cell, x and y, 0 to 1.
        sizes: ``[B, n, 2, H, W]`` predictions of width and height.
        anchors: ``[n, 2]`` widths and heights, in the unit of ``scale``.
        scale: the image's (width, height).
    """
    height, width = centres.shape[-2:]
    x = (centres[:, :, 0] + torch.arange(width, device=centres.device)) / width
    y = (centres[:, :, 1] + torch.arange(height, device=centres.device)[:, None]) / height
    w = torch.exp(sizes[:, :, 0]) * anchors[:, 0, None, None] / scale[0]
    h = torch.exp(sizes[:, :, 1]) * anchors[:, 1, None, None] / scale[1]
    return torch.stack((x, y, w, h), 2)
