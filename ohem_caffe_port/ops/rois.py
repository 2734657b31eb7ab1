"""What every operation on regions of interest needs of their rows ``(batch_index, x1, y1, x2, y2)``."""

from __future__ import annotations

import torch
from torch import Tensor


def image_index(rois: Tensor, batch: int) -> Tensor:
    """The images that RoIs ``[R, 5 or more]`` lie in, as ``[R]`` int64.

    Raises:
        ValueError: a RoI whose batch index is no image of the batch.
    """
    image = rois[:, 0].long()
    wrong = (image < 0) | (image >= batch)
    if bool(wrong.any()):
        raise ValueError(f"a RoI names image {image[wrong][0].item()} of a batch of {batch} images")
    return image


def round_half_away(x: Tensor) -> Tensor:
    """C's ``round``, as int64: halves go away from zero. Exact because it is done in double precision."""
    x = x.double()
    return torch.floor(x.abs() + 0.5).copysign(x).long()
