"""Places and counts within groups, without a loop over the groups."""

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


def count_in_groups(marked: Tensor, groups: Tensor) -> Tensor:
    """How many marked examples the group of each example has: ``[R]`` int64.

    Args:
        marked: ``[R]`` bool.
        groups: ``[R]`` the group of each example, integers from 0 on.
    """
    ordered = torch.sort(torch.where(marked, groups, -1)).values
    return torch.searchsorted(ordered, groups, right=True) - torch.searchsorted(ordered, groups)
