"""The example of docs/mining.md runs, and its gradient is that of the naive way."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ohem_caffe_port.mining import easy_rois_zeroed, select_hard_rois
from ohem_caffe_port.ops import roi_pool

PAGE = Path(__file__).resolve().parents[3] / "docs" / "mining.md"
CLASSES, ROIS, BATCH = 5, 80, 16


class Head(nn.Module):
    """A small RoI head as any detector has one."""

    def __init__(self):
        super().__init__()
        self.score = nn.Linear(8 * 3 * 3, CLASSES)

    def forward(self, features, rois):
        self.seen = len(rois)
        return self.score(roi_pool(features, rois, 3, 3, 0.25).flatten(1))


@pytest.fixture(scope="module")
def mined_loss():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(code.strip().splitlines()) <= 10
    names = {}
    exec(code, names)
    return names["mined_loss"]


@pytest.fixture
def detector():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, (ROIS, 2))
    rois = np.hstack([rng.integers(0, 2, (ROIS, 1)), corners, corners + rng.integers(8, 50, (ROIS, 2))])
    features = torch.randn(2, 8, 28, 28, requires_grad=True)
    return Head(), features, torch.tensor(rois, dtype=torch.float32), torch.tensor(rng.integers(0, CLASSES, ROIS))


def test_gradients_are_those_of_the_naive_way(mined_loss, detector):
    head, features, rois, labels = detector
    loss = mined_loss(head, features, rois, labels, batch_size=BATCH)
    assert head.seen == BATCH
    grads = torch.autograd.grad(loss, [features, *head.parameters()])

    scores = head(features, rois)
    every = cross_entropy(scores, labels, reduction="none").detach()
    hard = select_hard_rois(every, rois, labels, BATCH)
    no_boxes = torch.zeros(ROIS, 4 * CLASSES)
    masked, _, _ = easy_rois_zeroed(hard, labels, no_boxes, no_boxes)
    naive = cross_entropy(scores, masked, ignore_index=-1)
    torch.testing.assert_close(loss, naive)
    for ours, theirs in zip(grads, torch.autograd.grad(naive, [features, *head.parameters()]), strict=True):
        torch.testing.assert_close(ours, theirs)
