import itertools

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops.std_sort import std_sort_descending


@pytest.mark.parametrize("number", [0, 1, 2, 16, 17, 100, 2000])
@pytest.mark.parametrize("values", [1, 3, 50, 10**9])
def test_sorts(number, values):
    keys = torch.tensor(np.random.default_rng(number).integers(0, values, number), dtype=torch.float32)
    order = std_sort_descending(keys)
    assert sorted(order.tolist()) == list(range(number))
    assert torch.equal(keys[order], keys.sort(descending=True).values)


def test_few_equal_keys_stay_in_their_order():
    """Up to 16 elements the algorithm is an insertion sort."""
    assert std_sort_descending(torch.tensor([1.0, 2, 1, 2, 1])).tolist() == [1, 3, 0, 2, 4]


def test_an_order_worked_out_by_hand():
    """17 equal keys: the median of three swaps 0 and 8; then the scans from both ends stop at every element and swap
    all pairs but the first, until they meet; what is left is shorter than 17, and the insertion sort is stable."""
    assert std_sort_descending(torch.ones(17)).tolist() == [8, *range(16, 8, -1), 0, *range(7, 0, -1)]


@pytest.mark.parametrize("number", [17, 200])
def test_not_a_number_does_no_harm(number):
    keys = torch.tensor([1.0, float("nan"), 2.0, 2.0]).repeat(number)[:number]
    assert sorted(std_sort_descending(keys).tolist()) == list(range(number))


def test_adverse_inputs_end():
    for pattern in itertools.product((0.0, 1.0, 2.0), repeat=3):
        keys = torch.tensor(pattern).repeat(20)
        assert torch.equal(keys[std_sort_descending(keys)], keys.sort(descending=True).values)
