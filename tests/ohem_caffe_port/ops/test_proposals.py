import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import nms
from ohem_caffe_port.ops.proposals import best_proposals, by_anchor, decode_proposals, large_boxes


def test_rows_of_a_map():
    """Channel ``a * size + k`` is value k of anchor a; rows go y, x, anchor."""
    values = torch.arange(2 * 3 * 2 * 2).view(6, 2, 2)
    rows = by_anchor(values, 3)
    assert rows[0].tolist() == [0, 4, 8]  # first cell, first anchor
    assert rows[1].tolist() == [12, 16, 20]  # the second anchor of that cell
    assert rows[2].tolist() == [1, 5, 9]  # the next cell to the right


def test_decoding_and_clipping():
    anchors = torch.tensor([[0.0, 0, 9, 9], [10, 10, 29, 19]])
    deltas = torch.zeros(8, 1, 1)
    deltas[4:, 0, 0] = torch.tensor([0.5, 0.0, np.log(2), 0.0])  # half a width to the right, twice as wide
    boxes = decode_proposals(anchors, deltas, (18, 40))
    np.testing.assert_allclose(boxes, [[0, 0, 10, 10], [10, 10, 39, 17]], rtol=1e-6)


@pytest.mark.parametrize(("pre", "post"), [(0, 0), (-1, -1), (8, 0), (0, 3), (8, 3), (100, 100)])
def test_best_proposals(pre, post):
    rng = np.random.default_rng(1)
    corners = rng.integers(0, 30, (20, 2))
    boxes = torch.tensor(np.hstack([corners, corners + rng.integers(5, 30, (20, 2))]), dtype=torch.float32)
    scores = torch.tensor(rng.integers(0, 5, 20), dtype=torch.float32)  # with ties
    order = sorted(range(20), key=lambda i: (scores[i].item(), i), reverse=True)[: pre if pre > 0 else None]
    expected = [order[i] for i in nms(boxes[order], -torch.arange(len(order), dtype=torch.float32), 0.4)]
    keep = best_proposals(boxes, scores, pre_nms=pre, post_nms=post, nms_thresh=0.4)
    assert keep.tolist() == expected[: post if post > 0 else None]


def test_no_proposals():
    keep = best_proposals(torch.zeros(0, 4), torch.zeros(0), pre_nms=5, post_nms=5, nms_thresh=0.7)
    assert keep.shape == (0,)


def test_large_boxes():
    boxes = torch.tensor([[0.0, 0, 9, 4], [0, 0, 8, 9], [0, 0, 9, 3.5]])
    assert large_boxes(boxes, 10, 5).tolist() == [True, False, False]
