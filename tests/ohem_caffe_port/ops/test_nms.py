import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import nms


def iou(a, b):
    """Inclusive pixels, in the type of the boxes."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(w, 0) * max(h, 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return inter / (areas[0] + areas[1] - inter)


def slow_nms(boxes, scores, thresh, groups=None, max_keep=None):
    """Take the best that is left, drop what it covers; of equal scores the later one in the input is better."""
    left = sorted(range(len(boxes)), key=lambda i: (scores[i], i), reverse=True)
    keep = []
    while left and (max_keep is None or len(keep) < max_keep):
        best = left.pop(0)
        keep.append(best)
        alone = [i for i in left if groups is not None and groups[i] != groups[best]]
        left = [i for i in left if i in alone or not iou(boxes[best], boxes[i]) > thresh]
    return keep


def random_boxes(rng, number, dtype=np.float32):
    corners = rng.integers(0, 40, (number, 2))
    return np.hstack([corners, corners + rng.integers(3, 30, (number, 2))]).astype(dtype)


@pytest.mark.parametrize("thresh", [0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("max_keep", [None, 5, 1, 0])
def test_against_a_slow_loop(thresh, grouped, max_keep):
    rng = np.random.default_rng(0)
    for ties in (False, True):
        boxes = random_boxes(rng, 60)
        scores = rng.integers(0, 4, 60).astype(np.float64) if ties else rng.random(60)
        groups = rng.integers(0, 3, 60) if grouped else None
        expected = slow_nms(boxes, scores, thresh, groups, max_keep)
        for wrap in (np.asarray, torch.as_tensor):
            wrapped = None if groups is None else wrap(groups)
            keep = nms(wrap(boxes), wrap(scores), thresh, groups=wrapped, max_keep=max_keep)
            assert keep.tolist() == expected
            assert type(keep) is type(wrap(boxes))
            assert keep.dtype in (np.int64, torch.int64)


def test_a_box_at_exactly_the_threshold_stays():
    boxes = np.array([[0, 0, 9, 9], [0, 0, 4, 9]], dtype=np.float64)  # 50 of 100 pixels
    scores = np.array([2.0, 1.0])
    assert nms(boxes, scores, 0.5).tolist() == [0, 1]
    assert nms(boxes, scores, np.nextafter(0.5, 0)).tolist() == [0]


def test_pixels_at_both_ends_count():
    """IoU 1/3 with inclusive ends; without them these boxes would only touch."""
    boxes = np.array([[0, 0, 1, 0], [1, 0, 2, 0]], dtype=np.float32)
    assert nms(boxes, np.array([2.0, 1.0]), 0.33).tolist() == [0]
    assert nms(boxes, np.array([2.0, 1.0]), 0.34).tolist() == [0, 1]


def test_of_equal_scores_the_later_goes_first():
    boxes = np.tile(np.array([[0, 0, 9, 9]], dtype=np.float32), (3, 1))
    assert nms(boxes, np.ones(3), 0.5).tolist() == [2]
    assert nms(boxes, np.ones(3), 1.0).tolist() == [2, 1, 0]


def test_a_box_of_nans_removes_nothing():
    boxes = np.array([[np.nan] * 4, [0, 0, 9, 9], [50, 50, 59, 59]], dtype=np.float32)
    assert nms(boxes, np.array([3.0, 2.0, 1.0]), 0.5).tolist() == [0, 1, 2]


@pytest.mark.parametrize("wrap", [np.asarray, torch.as_tensor])
def test_no_boxes(wrap):
    assert len(nms(wrap(np.zeros((0, 4), np.float32)), wrap(np.zeros(0, np.float32)), 0.5)) == 0
