"""Places within groups, without a loop over the groups."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_in_groups(order: Tensor, groups: Tensor) -> Tensor:
    """The place of each example among those of its group, 0 for the first: ``[R]`` int64.

    Args:
        order: ``[R]`` indices of all examples, first one first.
        groups: ``[R]`` the group of each example, any integers.
    """
    by_group = order[torch.sort(groups[order], stable=True).indices]
    ordered = groups[by_group].contiguous()
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).scatter_(0, by_group, places - torch.searchsorted(ordered, ordered))
