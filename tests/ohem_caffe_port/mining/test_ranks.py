import torch

from ohem_caffe_port.mining.ranks import rank_in_groups


def test_rank_in_groups():
    order = torch.tensor([3, 0, 4, 1, 2])
    groups = torch.tensor([7, -1, 7, 7, -1])
    assert rank_in_groups(order, groups).tolist() == [1, 1, 2, 0, 0]


def test_no_examples():
    empty = torch.zeros(0, dtype=torch.long)
    assert rank_in_groups(empty, empty).tolist() == []
