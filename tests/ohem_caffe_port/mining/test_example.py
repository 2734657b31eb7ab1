"""The examples of docs/mining.md and docs/focal-ghm.md run: one by itself, with the gradient of the naive way, and one
for each method in a stand-in for torchvision's RoI heads, with the loss that the method defines."""

import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, smooth_l1_loss

from ohem_caffe_port.mining import (
    METHODS,
    Examples,
    easy_rois_zeroed,
    ghmc_loss,
    ghmr_loss,
    select_hard_rois,
    softmax_focal_loss,
)
from ohem_caffe_port.ops import roi_pool

DOCS = Path(__file__).resolve().parents[3] / "docs"


def blocks_of(page):
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


BLOCKS = blocks_of("mining.md")
USES = [block for block in BLOCKS if "use_mining(model" in block]
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
    (code,) = (block for block in BLOCKS if "def mined_loss" in block)
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


# ---- torchvision, which is not needed for this


class RoIHeads(nn.Module):
    """What torchvision's class of that name does in training, as far as the page's code touches it."""

    def __init__(self, module):
        super().__init__()
        self.module, self.fg_bg_sampler = module, SimpleNamespace(batch_size_per_image=512)
        self.score, self.boxes = nn.Linear(4, CLASSES), nn.Linear(4, 4 * CLASSES)

    def select_training_samples(self, proposals, targets):
        kept = [slice(self.fg_bg_sampler.batch_size_per_image) for _ in proposals]
        labels, deltas = zip(*targets, strict=True)
        chosen = [[values[keep] for values, keep in zip(each, kept, strict=True)] for each in (labels, deltas)]
        return [boxes[keep] for boxes, keep in zip(proposals, kept, strict=True)], kept, *chosen

    def forward(self, proposals, targets):
        proposals, _, labels, deltas = self.select_training_samples(proposals, targets)
        features = torch.cat(proposals) / 100
        return self.module.fastrcnn_loss(self.score(features), self.boxes(features), labels, deltas)


@pytest.fixture
def torchvision(monkeypatch):
    """A module of this name, whose detector is a stand-in."""
    names = ("torchvision", "torchvision.models", "torchvision.models.detection")
    modules = {name: ModuleType(name) for name in (*names, "torchvision.models.detection.roi_heads")}
    heads = modules["torchvision.models.detection.roi_heads"]
    modules[names[2]].roi_heads = heads
    modules[names[2]].fasterrcnn_resnet50_fpn = lambda num_classes: SimpleNamespace(roi_heads=RoIHeads(heads))
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_every_method_has_its_use():
    used = {re.search(r"use_mining\(model.roi_heads, (\w+)\(", block)[1] for block in USES}
    assert used == {kind.__name__ for kind in METHODS.values()}
    assert all(len(block.strip().splitlines()) <= 10 for block in USES)


@pytest.mark.parametrize("block", USES)
def test_in_torchvision(block, torchvision):
    names = {}
    (shared,) = (code for code in BLOCKS if "def use_mining" in code)
    exec(shared, names)
    exec(block, names)
    heads = names["model"].roi_heads
    corners = torch.randint(0, 60, (2, 300, 2)).float()
    proposals = list(torch.cat([corners, corners + torch.randint(20, 50, (2, 300, 2))], 2))
    labels = torch.where(torch.rand(2, 300) < 0.2, torch.randint(1, CLASSES, (2, 300)), 0)
    deltas = torch.randn(2, 300, 4)
    losses = heads(proposals, list(zip(labels, deltas, strict=True)))
    assert [loss.shape for loss in losses] == [(), ()]
    sum(losses).backward()

    # by hand, with a method of the same settings
    kind, settings = re.search(r"use_mining\(model.roi_heads, (\w+)\((.*)\)\)", block).groups()
    method = eval(f"{kind}({settings})", names)
    features, labels, deltas = torch.cat(proposals) / 100, labels.flatten(), deltas.flatten(0, 1)
    cls_loss = cross_entropy(heads.score(features), labels, reduction="none")
    own = heads.boxes(features).view(600, CLASSES, 4)[range(600), labels]
    loc_loss = smooth_l1_loss(own, deltas, beta=1 / 9, reduction="none").sum(1) * (labels > 0)
    inclusive = torch.cat([torch.cat(proposals)[:, :2], torch.cat(proposals)[:, 2:] - 1], 1)
    rois = torch.cat([torch.arange(2).repeat_interleave(300)[:, None], inclusive], 1)
    progress = 2 / 3 if kind == "SOHEM" else 0.0
    weights = method(Examples(cls_loss, labels, loc_loss, rois, progress=progress))
    torch.testing.assert_close(losses, ((weights.cls * cls_loss).sum(), (weights.loc * loc_loss).sum()))


@pytest.mark.parametrize("name", ["focal_fastrcnn_loss", "ghm_fastrcnn_loss", "class_loss"])
def test_focal_loss_and_ghm(name, torchvision):
    heads = sys.modules["torchvision.models.detection"].roi_heads
    heads.fastrcnn_loss = lambda *args: (torch.tensor(5.0), torch.tensor(7.0))
    (block,) = (block for block in blocks_of("focal-ghm.md") if f"def {name}" in block)
    names = {}
    exec(block, names)
    logits, boxes, targets = torch.randn(9, 4), torch.randn(9, 16), torch.randn(9, 4)
    labels = torch.tensor([0, 3, 0, 1, 2, 0, 0, 3, 0])
    if name == "class_loss":  # sigmoids, none of the background
        found = names[name](logits[:, 1:], labels)
        expected = ghmc_loss(logits[:, 1:], torch.eye(4)[labels, 1:], acc_sum=torch.zeros(30))
        return torch.testing.assert_close(found, expected)
    assert heads.fastrcnn_loss is names[name]
    found = heads.fastrcnn_loss(logits, boxes, labels.split((4, 5)), targets.split((4, 5)))
    if name == "focal_fastrcnn_loss":
        return torch.testing.assert_close(
            found, (softmax_focal_loss(logits, labels, alpha=0.25).sum() / 4, torch.tensor(7.0))
        )
    rows = labels.nonzero()[:, 0]
    own = torch.stack([boxes[i, 4 * labels[i] :][:4] for i in rows])
    expected = ghmr_loss(own, targets[rows], mu=0.2, acc_sum=torch.zeros(10))
    return torch.testing.assert_close(found, (torch.tensor(5.0), expected))
