"""Rotation of feature maps, block of channels by block."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


def rotate_blocks(features: Tensor, degrees: Tensor) -> Tensor:
    """Feature maps turned about their centre, every block of channels by an angle of its own: ``[N, C, H, W]``.

    The spatial transformer of Jaderberg et al. (2015), restricted to rotation: a cell takes the bilinear sample at its
    position turned back, zero outside the map. Differentiable in both arguments.

    Args:
        features: ``[N, C, H, W]``.
        degrees: ``[N, B]``, counter-clockwise as the map is seen (y down); 90 is ``torch.rot90(features, 1, (2, 3))``
            of a square map. Block ``b`` is channels ``b * C / B`` to ``(b + 1) * C / B``; ``B`` divides ``C``.
    """
    rows, channels, height, width = features.shape
    blocks = degrees.shape[1]
    if not features.numel():
        return features.clone()
    angle = torch.deg2rad(degrees.reshape(-1))
    cos, sin, none = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # in affine_grid's coordinates the map is 2 wide and 2 high, whatever its sides
    theta = torch.stack((cos, -sin * height / width, none, sin * width / height, cos, none), 1).view(-1, 2, 3)
    maps = features.reshape(rows * blocks, channels // blocks, height, width)
    turned = grid_sample(maps, affine_grid(theta, list(maps.shape), align_corners=False), align_corners=False)
    return turned.view(rows, channels, height, width)
