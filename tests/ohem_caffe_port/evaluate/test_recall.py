"""Recall of proposals: by hand, against a slow reference, and crowds."""

import numpy as np
import pytest
import scipy.sparse

from ohem_caffe_port.evaluate import proposal_recall


def entry(proposals, objects, crowds=()):
    """An image of a roidb: objects of class 1, crowds with an overlap of -1 as COCO's."""
    boxes = np.array([*objects, *crowds, *proposals], np.float32).reshape(-1, 4)
    classes = np.array([1] * (len(objects) + len(crowds)) + [0] * len(proposals), np.int32)
    overlaps = np.zeros((len(boxes), 2), np.float32)
    overlaps[: len(objects), 1] = 1
    overlaps[len(objects) : len(objects) + len(crowds)] = -1
    areas = (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)
    return {
        "boxes": boxes,
        "gt_classes": classes,
        "gt_overlaps": scipy.sparse.csr_matrix(overlaps),
        "seg_areas": np.where(classes > 0, areas, 0).astype(np.float32),
    }


def test_each_proposal_serves_one_object():
    """Both objects are covered best by the first proposal; the second object gets what is left."""
    objects = [[0, 0, 9, 9], [0, 0, 9, 7]]
    proposals = [[0, 0, 9, 9], [0, 0, 9, 4]]
    found = proposal_recall([entry(proposals, objects)], thresholds=[0.5, 0.7])["all", None]
    assert found.gt_overlaps.tolist() == [5 / 8, 1]
    assert (found.objects, found.recalls.tolist(), found.average) == (2, [1, 0.5], 0.75)


def test_limits_and_areas():
    small, large = [0, 0, 9, 9], [0, 0, 99, 99]
    roidb = [entry([large, small], [small, large]), entry([], [small])]
    found = proposal_recall(roidb, thresholds=[1], areas=["all", "small", "large", "medium"], limits=[1, 9, None])
    recalls = {wish: recall.recalls[0] for wish, recall in found.items()}
    assert recalls["all", 1] == 1 / 3
    assert recalls["all", 9] == recalls["all", None] == 2 / 3
    assert (recalls["small", 1], recalls["small", None]) == (0, 1 / 2)
    assert recalls["large", 1] == recalls["large", None] == 1
    assert np.isnan(recalls["medium", None])
    assert {wish: recall.objects for wish, recall in found.items() if wish[1] == 1} == {
        ("all", 1): 3, ("small", 1): 2, ("large", 1): 1, ("medium", 1): 0,
    }  # fmt: skip


def test_crowds_are_no_objects():
    box = [0, 0, 9, 9]
    found = proposal_recall([entry([box], [box], crowds=[[20, 20, 90, 90]])])["all", None]
    assert (found.objects, found.average) == (1, 1)


def test_boxes_of_ones_own():
    roidb = [entry([[0, 0, 1, 1]], [[0, 0, 9, 9]])] * 2
    assert proposal_recall(roidb, [np.array([[0, 0, 9, 9]]), np.zeros((0, 4))])["all", None].average == 0.5


def slow_overlaps(proposals, objects):
    """The best free pair, one pair after the other."""
    pairs = []
    for p, (ax1, ay1, ax2, ay2) in enumerate(proposals):
        for o, (bx1, by1, bx2, by2) in enumerate(objects):
            w, h = min(ax2, bx2) - max(ax1, bx1) + 1, min(ay2, by2) - max(ay1, by1) + 1
            shared = max(w, 0) * max(h, 0)
            union = (ax2 - ax1 + 1) * (ay2 - ay1 + 1) + (bx2 - bx1 + 1) * (by2 - by1 + 1) - shared
            pairs.append((-shared / union, p, o))
    found, used = [], (set(), set())
    for negative, p, o in sorted(pairs):
        if p not in used[0] and o not in used[1]:
            found.append(-negative)
            used[0].add(p)
            used[1].add(o)
    return found


@pytest.mark.parametrize("seed", range(5))
def test_the_slow_reference(seed):
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.integers(0, 30, (n, 2))
        return np.hstack([corner, corner + rng.integers(0, 20, (n, 2))]).astype(float)

    images = [(boxes(rng.integers(0, 40)), boxes(rng.integers(0, 6))) for _ in range(10)]
    limit = int(rng.integers(1, 20))
    found = proposal_recall([entry(*image) for image in images], limits=[None, limit])
    for wish in (None, limit):
        expected = sorted(iou for proposals, objects in images for iou in slow_overlaps(proposals[:wish], objects))
        np.testing.assert_allclose(found["all", wish].gt_overlaps, expected, rtol=1e-12)
        total = sum(len(objects) for _, objects in images)
        by_hand = [sum(iou >= t for iou in expected) / total for t in found["all", wish].thresholds]
        np.testing.assert_allclose(found["all", wish].recalls, by_hand, atol=1e-12)
