"""adversarial-frcnn's ratio, beside the golden cases: against plain loops, and what ``corrected`` mends."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.mining import select_hard_rois, select_rois_by_ratio

ROIS, BATCH = 60, 16


@pytest.fixture
def examples():
    """``loss, rois, labels`` of two images; a third of the RoIs is foreground."""
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, (ROIS, 2))
    rois = np.hstack([rng.integers(0, 2, (ROIS, 1)), corners, corners + rng.integers(5, 50, (ROIS, 2))])
    labels = rng.integers(0, 4, ROIS) * (rng.random(ROIS) < 0.4)
    return [torch.tensor(a, dtype=torch.float32) for a in (rng.random(ROIS), rois, labels)]


def iou(a, b):
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + 1 for i in (0, 1))
    inter = max(w, 0) * max(h, 0)
    return inter / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - inter)


def slow(loss, rois, labels, ratio, hard_negative, thresh, rng):
    """In the words of the docstring, with lists."""
    loss, rois, labels = (x.numpy() for x in (loss, rois, labels))
    inds = sorted(range(len(loss)), key=lambda i: (rois[i, 0], labels[i], i))
    positive, negative = [i for i in inds if labels[i] > 0], [i for i in inds if labels[i] == 0]
    wanted = int(BATCH * ratio)
    drawn = [positive[k] for k in rng.permutation(len(positive))[:wanted]]
    if not hard_negative:
        return drawn + [negative[k] for k in rng.permutation(len(negative))[: BATCH - wanted]]
    kept = []
    for i in sorted(negative, key=lambda i: -loss[i]):
        if all(rois[i, 0] != rois[k, 0] or iou(rois[i, 1:], rois[k, 1:]) <= thresh for k in kept):
            kept.append(i)
    return kept[: BATCH - wanted] + drawn


@pytest.mark.parametrize("hard_negative", [True, False])
@pytest.mark.parametrize(("ratio", "thresh"), [(0.25, 0.7), (0.5, 0.3), (0.95, 0.7)])
def test_against_loops(examples, ratio, hard_negative, thresh):
    streams = [np.random.RandomState(4) for _ in range(2)]
    chosen = select_rois_by_ratio(
        *examples, BATCH, ratio=ratio, hard_negative=hard_negative, nms_thresh=thresh, rng=streams[0]
    )
    assert chosen.tolist() == slow(*examples, ratio, hard_negative, thresh, streams[1])
    assert streams[0].randint(1 << 30) == streams[1].randint(1 << 30)


def test_without_suppression(examples):
    chosen = select_rois_by_ratio(*examples, BATCH, nms_thresh=None, rng=np.random.RandomState(0))
    assert torch.equal(chosen, select_hard_rois(*examples, BATCH, nms_thresh=None))
    loss, _, labels = examples
    chosen = select_rois_by_ratio(*examples, BATCH, nms_thresh=None, rng=np.random.RandomState(0), corrected=True)
    assert (labels[chosen] > 0).sum() == BATCH // 4
    background = loss[labels == 0].sort(descending=True).values
    assert torch.equal(loss[chosen[: BATCH * 3 // 4]], background[: BATCH * 3 // 4])


@pytest.mark.parametrize(("corrected", "background"), [(False, 1), (True, 0)])
def test_nothing_but_foreground(examples, corrected, background):
    chosen = select_rois_by_ratio(*examples, BATCH, ratio=1.0, rng=np.random.RandomState(0), corrected=corrected)
    assert (examples[2][chosen] == 0).sum() == background


@pytest.mark.parametrize("hard_negative", [True, False])
def test_no_rois(hard_negative):
    empty = torch.zeros(0), torch.zeros(0, 5), torch.zeros(0)
    rng = np.random.RandomState(0)
    assert len(select_rois_by_ratio(*empty, BATCH, hard_negative=hard_negative, rng=rng)) == 0
