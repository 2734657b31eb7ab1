"""Mining against a slow reference, written from the description of the released code."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.mining import easy_rois_zeroed, ohem_roi_loss, select_hard_rois


def slow_loss(cls_prob, labels, bbox_pred, bbox_targets, inside, outside) -> np.ndarray:
    eps = np.finfo(np.float64).eps
    losses = []
    for r, label in enumerate(labels.astype(int)):
        prob = cls_prob[r, label]
        loss = -math.log(eps) if float(prob) <= eps else -float(np.log(prob))
        if label > 0:
            for c in np.flatnonzero(inside[r]):
                x = abs(float(inside[r, c] * (bbox_pred[r, c] - bbox_targets[r, c])))
                loss += float(outside[r, c]) * (0.5 * x * x if x < 1 else x - 0.5)
        losses.append(loss)
    return np.array(losses)


def slow_iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(w, 0) * max(h, 0)
    areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return inter / (areas[0] + areas[1] - inter)


def slow_selection(loss, rois, labels, batch_size, thresh) -> list[int]:
    """NMS within every image and label, then the hardest of all that is left."""
    kept = []
    for image in np.unique(rois[:, 0]):
        for label in np.unique(labels):
            left = [i for i in range(len(loss)) if rois[i, 0] == image and labels[i] == label]
            left.sort(key=lambda i: loss[i], reverse=True)
            while left:
                best = left.pop(0)
                kept.append(best)
                left = [i for i in left if thresh is None or slow_iou(rois[best, 1:], rois[i, 1:]) <= thresh]
    return sorted(kept, key=lambda i: loss[i], reverse=True)[:batch_size]


def random_rois(rng, number=120, classes=4, images=2):
    """A batch as the data layer makes it: box weights only for the label's four columns of foreground RoIs."""
    corners = rng.integers(0, 60, (number, 2))
    rois = np.hstack([rng.integers(0, images, (number, 1)), corners, corners + rng.integers(5, 50, (number, 2))])
    labels = rng.integers(0, classes, number) * rng.integers(0, 2, number)
    scores = np.exp(rng.standard_normal((number, classes)) * 2)
    pred, targets = rng.standard_normal((2, number, 4 * classes)) * 1.5
    inside = np.zeros((number, 4 * classes))
    for r in np.flatnonzero(labels):
        inside[r, 4 * labels[r] : 4 * labels[r] + 4] = (1, 0.5, 2, 0)  # a zero weight counts as absent
    outside = (inside > 0) * 0.7
    arrays = (scores / scores.sum(1, keepdims=True), labels, pred, targets, inside, outside)
    return rois.astype(np.float32), [a.astype(np.float32) for a in arrays]


def tensors(arrays):
    return [torch.tensor(a) for a in arrays]


@pytest.mark.parametrize("seed", range(3))
def test_loss(seed):
    _, arrays = random_rois(np.random.default_rng(seed))
    arrays[0][:3] = 0  # a probability of 0 is clamped
    loss = ohem_roi_loss(*tensors(arrays))
    assert loss.dtype == torch.float64
    np.testing.assert_allclose(loss.numpy(), slow_loss(*arrays), rtol=1e-12)
    assert loss[0] >= -math.log(np.finfo(np.float64).eps)


def test_loss_by_hand():
    """Background, foreground within and beyond the quadratic part."""
    cls_prob = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.0, 1.0]])
    labels = torch.tensor([0.0, 1.0, 1.0])
    pred, targets, inside = torch.zeros(3, 8), torch.zeros(3, 8), torch.zeros(3, 8)
    inside[:, 4:] = 1
    pred[0, 4:] = 9  # of no account: background
    pred[1, 4:6] = torch.tensor([0.5, -3.0])
    expected = [math.log(2), math.log(4) + 0.5 * 0.25 + 2.5, 0]
    assert ohem_roi_loss(cls_prob, labels, pred, targets, inside, inside).tolist() == pytest.approx(expected, rel=1e-7)


def test_loss_by_classification_alone():
    _, arrays = random_rois(np.random.default_rng(0))
    arrays[4][:] = 0
    assert torch.equal(ohem_roi_loss(*tensors(arrays[:2])), ohem_roi_loss(*tensors(arrays)))


@pytest.mark.parametrize("thresh", [0.7, 0.3, 0.0, 1.0, None])
@pytest.mark.parametrize("batch_size", [16, 1, 1000])
@pytest.mark.parametrize("images", [1, 3])
def test_selection(thresh, batch_size, images):
    rois, arrays = random_rois(np.random.default_rng(4), images=images)
    loss = slow_loss(*arrays)
    hard = select_hard_rois(
        torch.tensor(loss), torch.tensor(rois), torch.tensor(arrays[1]), batch_size, nms_thresh=thresh
    )
    assert hard.dtype == torch.int64
    assert hard.tolist() == slow_selection(loss, rois, arrays[1], batch_size, thresh)


@pytest.mark.parametrize("other", [{"label": 1.0}, {"image": 1.0}])
def test_other_labels_and_images_never_suppress(other):
    rois = torch.tensor([[0, 0.0, 0, 9, 9], [other.get("image", 0.0), 0, 0, 9, 9]])
    labels = torch.tensor([0.0, other.get("label", 0.0)])
    loss = torch.tensor([1.0, 2.0])
    assert select_hard_rois(loss, rois, labels, 2).tolist() == [1, 0]
    assert select_hard_rois(loss, rois[:1].repeat(2, 1), torch.zeros(2), 2).tolist() == [1]


@pytest.mark.parametrize("thresh", [0.7, None])
def test_of_equal_losses_the_last_wins(thresh):
    rois = torch.tensor([[0, 20.0 * i, 0, 20.0 * i + 9, 9] for i in range(5)])
    hard = select_hard_rois(torch.ones(5), rois, torch.zeros(5), 3, nms_thresh=thresh)
    assert hard.tolist() == [4, 3, 2]


@pytest.mark.parametrize("thresh", [0.7, None])
def test_no_rois(thresh):
    assert len(select_hard_rois(torch.zeros(0), torch.zeros(0, 5), torch.zeros(0), 8, nms_thresh=thresh)) == 0


def test_predictions_that_carry_a_graph():
    """A detector of one's own need not detach what it hands over."""
    _, arrays = random_rois(np.random.default_rng(0))
    cls_prob, labels, pred, *rest = tensors(arrays)
    loss = ohem_roi_loss(cls_prob.requires_grad_(), labels, pred.requires_grad_(), *rest)
    assert not loss.requires_grad
    assert loss.tolist() == pytest.approx(slow_loss(*arrays), rel=1e-9)


def test_easy_rois_zeroed():
    labels, weights = torch.tensor([2.0, 0.0, 1.0, 0.0]), torch.arange(1.0, 9.0).view(4, 2)
    masked, inside, outside = easy_rois_zeroed(torch.tensor([3, 0]), labels, weights, weights)
    assert masked.tolist() == [2, -1, -1, 0]
    assert inside.tolist() == [[1, 2], [0, 0], [0, 0], [7, 8]]
    assert outside.tolist() == [[2, 4], [0, 0], [0, 0], [14, 16]]  # 4 rows, 2 of them hard
    assert labels.tolist() == [2, 0, 1, 0], "the argument must stay as it is"
