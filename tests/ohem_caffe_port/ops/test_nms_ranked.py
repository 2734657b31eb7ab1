import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import jaccard_overlap, nms_ranked

RNG = np.random.default_rng(0)


def groups_of_boxes(groups, length):
    corners = np.sort(RNG.uniform(0, 1, (groups, length, 2, 2)), axis=2)
    return torch.tensor(corners.reshape(groups, length, 4), dtype=torch.float32), torch.tensor(
        RNG.random((groups, length)) < 0.8
    )


def slow(boxes, valid, thresh, eta=1.0):
    keep = []
    for group, real in zip(boxes, valid, strict=True):
        kept, limit = [], thresh
        for i in range(len(group)):
            if real[i] and all(jaccard_overlap(group[i : i + 1], group[k : k + 1]).item() <= limit for k in kept):
                kept.append(i)
                if eta < 1 and limit > 0.5:
                    limit *= eta
        keep.append([i in kept for i in range(len(group))])
    return keep


@pytest.mark.parametrize("block", [None, 1, 7, 100])
@pytest.mark.parametrize("eta", [1.0, 0.8])
def test_every_group_by_itself(block, eta):
    boxes, valid = groups_of_boxes(5, 40)
    thresh = 0.6 if eta < 1 else 0.2
    keep = nms_ranked(boxes, valid, thresh, overlap=jaccard_overlap, eta=eta, block=block)
    assert keep.tolist() == slow(boxes, valid, thresh, eta)


def test_stops_when_there_are_enough():
    boxes, valid = groups_of_boxes(3, 300)
    everything = nms_ranked(boxes, valid, 0.9, overlap=jaccard_overlap)
    few = nms_ranked(boxes, valid, 0.9, overlap=jaccard_overlap, max_keep=torch.tensor([1, 2, 3]))
    first = everything.cumsum(1) <= 3
    assert torch.equal(few & first, everything & first)
    assert few.sum() < everything.sum()


def test_nothing_to_do():
    assert nms_ranked(torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.bool), 0.5, overlap=None).shape == (2, 0)
