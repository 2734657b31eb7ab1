import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import nms, nms_padded
from ohem_caffe_port.ops.nms import _nms_on_device, first_survivors


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


@np.errstate(all="ignore")
def one_after_the_other(boxes, scores, thresh, groups=None, eligible=None, max_keep=None):
    """The best box left is compared with all others, in the order of operations of ``py_cpu_nms``."""
    order = np.argsort(scores, kind="stable")[::-1]
    order = order if eligible is None else order[eligible[order]]
    x1, y1, x2, y2 = boxes[order].T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    alive, keep = np.ones(len(order), dtype=bool), []
    for i in range(len(order)):
        if alive[i] and (max_keep is None or len(keep) < max_keep):
            keep.append(i)
            w = np.maximum(np.minimum(x2[i], x2) - np.maximum(x1[i], x1) + 1, 0)
            h = np.maximum(np.minimum(y2[i], y2) - np.maximum(y1[i], y1) + 1, 0)
            covered = w * h / (areas[i] + areas - w * h) > thresh
            alive &= ~covered if groups is None else ~covered | (groups[order] != groups[order[i]])
    return order[keep]


def scene(kind, number=700, dtype=np.float32):
    """Boxes around a few places, scores and groups; ``kind`` says what is unusual about them."""
    rng = np.random.default_rng(len(kind))
    corners = rng.uniform(0, 300, (12, 2))[rng.integers(0, 12, number)] + rng.normal(0, 12, (number, 2))
    boxes = np.hstack([corners, corners + rng.uniform(20, 90, (number, 2))]).astype(dtype)
    scores, groups = rng.random(number), rng.integers(-2, 40, number)
    odd = rng.random((number, 4)) < 0.1
    if kind == "tied":
        scores = rng.integers(0, 5, number).astype(float)
    elif kind == "integers":
        boxes = boxes.round()
    elif kind == "copies":
        boxes = boxes[rng.integers(0, 1 + number // 20, number)]
    elif kind == "not a number":
        boxes[odd], scores[odd[:, 0]] = np.nan, np.nan
    elif kind == "infinite":
        boxes[odd], scores[odd[:, 0]], scores[odd[:, 1]] = np.inf, np.inf, -np.inf
    elif kind == "degenerate":
        boxes[:, 2:] = np.where(odd[:, :2], boxes[:, :2] - rng.integers(0, 3, (number, 2)), boxes[:, 2:])
    elif kind == "one group":
        groups[:] = 0
    return boxes, scores, groups, rng.random(number) < 0.8


KINDS = ("plain", "tied", "integers", "copies", "not a number", "infinite", "degenerate", "one group")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_keep", [None, 0, 100, 300])
def test_blocks_find_what_one_after_the_other_does(kind, dtype, max_keep):
    boxes, scores, groups, eligible = scene(kind, dtype=dtype)
    for group in (None, groups):
        for among in (None, eligible):
            for thresh in (0.0, 0.3, 0.7):
                expected = one_after_the_other(boxes, scores, thresh, group, among, max_keep)
                found = nms(boxes, scores, thresh, groups=group, eligible=among, max_keep=max_keep)
                assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_keep", [None, 0, 20])
def test_padded(kind, max_keep):
    """On a GPU without Triton, too: that way is taken here on the CPU."""
    boxes, scores, groups, eligible = scene(kind, 150)
    wrapped = [torch.from_numpy(a) for a in (boxes, scores, groups, eligible)]
    for among in (0, 1):
        names = {"groups": groups, "eligible": eligible} if among else {}
        expected = one_after_the_other(boxes, scores, 0.5, **names, max_keep=max_keep).tolist()
        size = 150 if max_keep is None else max_keep
        expected += [150] * (size - len(expected))
        ways = {name: torch.from_numpy(a) for name, a in names.items()}
        assert nms_padded(*wrapped[:2], 0.5, **ways, max_keep=max_keep).tolist() == expected
        device = _nms_on_device(*wrapped[:2], 0.5, ways.get("groups"), ways.get("eligible"), size)
        assert device.tolist() == expected


def test_more_survivors_than_boxes_are_not_padded():
    boxes = torch.zeros(3, 4)
    assert nms_padded(boxes, torch.arange(3.0), 0.5, max_keep=9).tolist() == [2, 3, 3]


def check_kernel(device):
    """The Triton kernel finds what the loop finds."""
    from ohem_caffe_port.ops import nms_triton

    for kind in KINDS:
        for dtype in (np.float32, np.float64) if kind == "plain" else (np.float32,):
            boxes, _, groups, alive = (torch.tensor(a, device=device) for a in scene(kind, 20, dtype))
            for group, limit in ((None, 0), (None, 12), (groups, 20 if kind == "plain" else 6)):
                expected = first_survivors(boxes, group, alive, 0.4, limit)
                assert torch.equal(nms_triton.first_survivors(boxes, group, alive, 0.4, limit), expected)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton")
def test_kernel_in_the_interpreter():
    code = "import test_nms; test_nms.check_kernel('cpu')"
    environment = {"TRITON_INTERPRET": "1", "PYTHONPATH": ":".join(sys.path), "PATH": "", "HOME": "/tmp"}
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], check=True, cwd=__file__.rpartition("/")[0], env=environment
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu(kind):
    check_kernel("cuda")
    for number in (700, 5000):
        boxes, scores, groups, eligible = scene(kind, number)
        named = {"groups": groups, "eligible": eligible}
        expected = nms(boxes, scores, 0.5, **named, max_keep=128)
        cuda = {name: torch.tensor(a, device="cuda") for name, a in named.items()}
        found = nms(*(torch.tensor(a, device="cuda") for a in (boxes, scores)), 0.5, **cuda, max_keep=128)
        assert found.tolist() == expected.tolist()
