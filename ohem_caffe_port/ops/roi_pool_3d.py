"""RoI max pooling with a third spatial axis."""

from __future__ import annotations

import torch
from torch import Tensor

from .roi_bins import bin_edges
from .roi_pool import max_of_boxes
from .rois import image_index, round_half_away


def roi_pool_3d(
    features: Tensor, rois: Tensor, pooled_d: int, pooled_h: int, pooled_w: int, spatial_scale: float
) -> Tensor:
    """Max over each bin of each RoI: ``[N, C, D, H, W], [R, 7] -> [R, C, pd, ph, pw]``.

    ``ROIPoolingLayer`` of Intel's fork for blobs of five axes: :func:`roi_pool`'s rounding on every axis, and a
    gradient for every maximum (of equal ones the first in row-major order).

    Args:
        rois: rows ``(batch_index, z1, x1, y1, z2, x2, y2)``, inclusive; ``spatial_scale`` makes them cells.

    Raises:
        ValueError: a RoI whose batch index is no image of the batch.
    """
    if features.is_meta:
        return features.new_empty((len(rois), features.shape[1], pooled_d, pooled_h, pooled_w))
    scale = torch.tensor(spatial_scale, dtype=rois.dtype, device=rois.device)
    ends = round_half_away(rois[:, [1, 4, 3, 6, 2, 5]] * scale).unbind(1)  # of z, y, x
    edges = [
        torch.stack(bin_edges(*ends[2 * axis : 2 * axis + 2], bins, features.shape[2 + axis]), -1)
        for axis, bins in enumerate((pooled_d, pooled_h, pooled_w))
    ]
    cells = features.permute(0, 2, 3, 4, 1).contiguous()
    best, _ = max_of_boxes(cells, image_index(rois, len(features)), edges)
    return best.permute(0, 4, 1, 2, 3).contiguous()
