"""The order in which C++'s ``std::sort`` leaves equal keys, where a layer's result depends on it."""

from __future__ import annotations

import torch
from torch import Tensor

_SMALL = 16  # ranges up to this length are left to the final insertion sort


def std_sort_descending(keys: Tensor) -> Tensor:
    """Indices that sort ``keys`` ``[N]`` in descending order as GNU's ``std::sort`` of their indices does: ``[N]``.

    Without equal keys there is one such order. With them it follows the algorithm (introsort): ranges of more than 16
    are split by quicksort around the median of three until what is left is nearly sorted, and an insertion sort, which
    is stable, ends it. That is done in a loop over the elements (a few ms for 2000 keys), and only when keys are equal.
    Inputs that send quicksort into its quadratic case, where the original turns to heapsort, are not followed further.
    """
    order = torch.sort(keys, descending=True, stable=True).indices
    ordered = keys[order]
    if len(keys) <= _SMALL or not bool((ordered[1:] == ordered[:-1]).any()):
        return order
    partitioned = torch.tensor(_partitioned(keys.tolist()), device=keys.device)
    return partitioned[torch.sort(keys[partitioned], descending=True, stable=True).indices]


def _partitioned(keys: list[float]) -> list[int]:
    """Indices of ``keys`` after the quicksort phase, for the order "greater first"."""
    index = list(range(len(keys)))
    ranges = [(0, len(keys), 2 * (len(keys).bit_length() - 1))]
    while ranges:
        first, last, depth = ranges.pop()
        while last - first > _SMALL and depth:
            depth -= 1
            _median_to_first(keys, index, first, first + 1, (first + last) // 2, last - 1)
            pivot, low, high = keys[index[first]], first + 1, last
            while True:
                while keys[index[low]] > pivot:
                    low += 1
                high -= 1
                while pivot > keys[index[high]]:
                    high -= 1
                if low >= high:
                    break
                index[low], index[high] = index[high], index[low]
                low += 1
            ranges.append((low, last, depth))
            last = low
    return index


def _median_to_first(keys: list[float], index: list[int], first: int, *places: int) -> None:
    """Swaps the median of three places' keys to the front; of equal ones, the place that the original's tests give."""
    a, b, c = places
    if keys[index[a]] > keys[index[b]]:
        chosen = b if keys[index[b]] > keys[index[c]] else c if keys[index[a]] > keys[index[c]] else a
    else:
        chosen = a if keys[index[a]] > keys[index[c]] else c if keys[index[b]] > keys[index[c]] else b
    index[first], index[chosen] = index[chosen], index[first]
