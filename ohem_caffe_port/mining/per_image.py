"""The hardest RoIs of every image, all of one batch: R-FCN's way of mining."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.std_sort import std_sort_descending
from .ranks import rank_in_groups


@torch.no_grad()
def hardest_per_image(loss: Tensor, image: Tensor, count: int) -> Tensor:
    """Marks the ``count`` largest losses of each image, without suppression: ``[R]`` bool.

    The choice of R-FCN (section 2.3, "online hard example mining"; ``BoxAnnotatorOHEMLayer``). Which of equal losses
    comes first is decided as GNU's ``std::sort`` does.

    Args:
        loss: ``[R]``, of any kind.
        image: ``[R]``, the image of each RoI; negative ones are never chosen.
    """
    rank = rank_in_groups(std_sort_descending(loss), image)
    return (rank < count) & (image >= 0)
