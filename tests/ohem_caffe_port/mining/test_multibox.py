import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.mining import hard_examples, hardest, max_negatives, multibox_conf_loss, multibox_loc_loss
from ohem_caffe_port.ops.std_sort import std_sort_descending

RNG = np.random.default_rng(0)


def test_softmax_loss_of_each_prior():
    scores, labels = RNG.standard_normal((2, 5, 4)) * 5, RNG.integers(0, 4, (2, 5))
    prob = np.exp(scores) / np.exp(scores).sum(2, keepdims=True)
    expected = -np.log(np.take_along_axis(prob, labels[..., None], 2)[..., 0])
    loss = multibox_conf_loss(torch.tensor(scores, dtype=torch.float32), torch.tensor(labels))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert multibox_conf_loss(torch.tensor([[0.0, 500]]), torch.tensor([0])).item() == pytest.approx(87.33654)


def test_logistic_loss_of_each_prior():
    scores, labels = RNG.standard_normal((6, 3)) * 5, RNG.integers(0, 3, 6)
    expected = [
        sum(math.log1p(math.exp(-x if c == label else x)) for c, x in enumerate(row))
        for row, label in zip(scores, labels, strict=True)
    ]
    loss = multibox_conf_loss(torch.tensor(scores, dtype=torch.float32), torch.tensor(labels), "LOGISTIC")
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "expected"), [("SMOOTH_L1", 0.125 + 1.5 + 0 + 2.5), ("L2", 0.125 + 2 + 0 + 4.5)])
def test_loss_of_a_box(kind, expected):
    assert multibox_loc_loss(torch.tensor([[0.5, -2, 0, 3]]), kind).tolist() == [expected]


def test_three_negatives_for_every_match():
    loss = torch.tensor([[5.0, 1, 4, 3, 9, 2, 8, 7]] * 3)
    matches = torch.tensor([[0, -1, -1, -1, -1, -1, -1, -2], [0, 1, 2, -1, -1, -1, -1, -1], [-1] * 8])
    overlaps = torch.tensor([[0.9, 0, 0, 0, 0.6, 0, 0, 0]] * 3)
    chosen = max_negatives(loss, matches, overlaps, neg_pos_ratio=3, neg_overlap=0.5)
    assert [row.nonzero()[:, 0].tolist() for row in chosen] == [[2, 3, 6], [3, 5, 6, 7], []]
    easy = torch.tensor([[True, True, False, True, True, True, True, True]])
    assert max_negatives(loss[:1], matches[:1], overlaps[:1], eligible=easy)[0].nonzero()[:, 0].tolist() == [3, 5, 6]


def test_a_fraction_of_a_negative_is_none():
    loss, matches = torch.rand(1, 6), torch.tensor([[0, 0, 0, -1, -1, -1]])
    assert max_negatives(loss, matches, torch.zeros(1, 6), neg_pos_ratio=0.5).sum() == 1


def test_the_hardest_of_images_with_ground_truth():
    loss = torch.tensor([[3.0, 1, 2], [1, 2, 3]])
    chosen = hard_examples(loss, torch.tensor([[True] * 3, [False] * 3]), sample_size=2)
    assert chosen.tolist() == [[True, False, True], [False] * 3]


def test_among_equal_losses_the_cut_is_std_sort_s():
    everything = torch.ones(1, 10, dtype=torch.bool)
    assert hardest(torch.zeros(1, 10), everything, torch.tensor([3]))[0].nonzero()[:, 0].tolist() == [0, 1, 2]
    many, everything = torch.zeros(1, 20), torch.ones(1, 20, dtype=torch.bool)
    many[0, 3], everything[0, 7] = 1, False
    left = everything[0].nonzero()[:, 0]
    expected = left[std_sort_descending(many[0, left])[:5]]
    assert hardest(many, everything, torch.tensor([5]))[0].nonzero()[:, 0].tolist() == sorted(expected.tolist())


BOXES = torch.tensor([[0.0, 0, 0.5, 0.5], [0, 0, 0.5, 0.45], [0.6, 0.6, 1, 1], [0.1, 0.1, 0.102, 0.102]])


@pytest.mark.parametrize(
    ("top_k", "count", "expected"), [(-1, 4, [0, 2]), (-1, 1, [0]), (1, 4, [0]), (2, 4, [0]), (0, 4, [])]
)
def test_suppression_of_what_overlaps_a_harder_one(top_k, count, expected):
    loss, eligible = torch.tensor([[4.0, 3, 2, 5]]), torch.ones(1, 4, dtype=torch.bool)
    options = {"boxes": BOXES[None], "nms_threshold": 0.5, "top_k": top_k}
    if top_k > 0:  # the box that is too small enters the list all the same
        options["top_k"] = top_k + 1
    assert hardest(loss, eligible, torch.tensor([count]), **options)[0].nonzero()[:, 0].tolist() == expected
    if top_k == -1 and count == 4:
        assert hardest(loss, eligible, torch.tensor([4]), **options | {"nms_threshold": 0.0}).all()
