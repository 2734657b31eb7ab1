"""The hardest RoIs of every image, all of one batch: R-FCN's way of mining."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.std_sort import std_sort_descending
from .ranks import rank_in_groups


@torch.no_grad()
def hardest_per_image(loss: Tensor, image: Tensor, count: int, *, std_sort: bool = True) -> Tensor:
    """Marks the ``count`` largest losses of each image, without suppression: ``[R]`` bool.

    The choice of R-FCN (section 2.3, "online hard example mining"; ``BoxAnnotatorOHEMLayer``).

    Args:
        loss: ``[R]``, of any kind.
        image: ``[R]``, the image of each RoI; negative ones are never chosen.
        std_sort: of equal losses first comes the one that Caffe takes, by GNU's ``std::sort``. False: the first in the
            input; then a GPU's host need not look whether losses are equal.
    """
    rank = rank_in_groups(torch.sort(loss, descending=True, stable=True).indices, image)
    if std_sort and _tied_at(count, rank, loss, image):
        rank = rank_in_groups(std_sort_descending(loss), image)
    return (rank < count) & (image >= 0)


def _tied_at(count: int, rank: Tensor, loss: Tensor, image: Tensor) -> bool:
    """Whether in any image the last of ``count`` losses is equal to the next one."""
    by_image = rank.sort().indices
    by_image = by_image[image[by_image].sort(stable=True).indices]
    later, earlier = by_image[1:], by_image[:-1]
    return bool(((loss[later] == loss[earlier]) & (rank[later] == count) & (image[later] >= 0)).any())
