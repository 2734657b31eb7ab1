"""Anchors of region proposal networks: reference boxes laid out over a feature map.

Boxes are ``(x1, y1, x2, y2)`` in pixels of the scaled image, both ends inclusive.
"""

from __future__ import annotations

import numpy as np


def generate_anchors(base_size: int = 16, ratios=(0.5, 1, 2), scales=(8, 16, 32), rounded=np.round) -> np.ndarray:
    """The anchors of one cell: ``[len(ratios) * len(scales), 4]`` float64, scale fastest.

    A square of ``base_size`` pixels from 0 gets the aspect ratios (height / width) at about equal area, its sides
    rounded to whole pixels (half to even), and is then multiplied by the scales; all keep its centre. This is
    py-faster-rcnn's ``generate_anchors`` (Ren et al. 2015, section 3.1.1). C++ layers round halves up: ``rounded``.
    """
    ratios, scales = np.asarray(ratios, dtype=np.float64), np.asarray(scales, dtype=np.float64)
    widths = rounded(np.sqrt(base_size * base_size / ratios))
    heights = rounded(widths * ratios)
    sizes = np.stack((widths, heights), 1)[:, None] * scales[:, None]  # [ratio, scale, (w, h)]
    centre, half = 0.5 * (base_size - 1), 0.5 * (sizes.reshape(-1, 2) - 1)
    return np.hstack((centre - half, centre + half))


def shifted_anchors(anchors: np.ndarray, height: int, width: int, stride: float) -> np.ndarray:
    """``anchors`` ``[A, 4]`` at every cell of a ``height x width`` map: ``[height * width * A, 4]``, rows in the order
    y, x, anchor. Cell ``(x, y)`` moves them by ``stride * (x, y)`` pixels."""
    y, x = np.meshgrid(np.arange(height) * stride, np.arange(width) * stride, indexing="ij")
    shifts = np.stack((x, y, x, y), -1).reshape(-1, 1, 4)
    return (shifts + anchors).reshape(-1, 4)
