import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.ops import box_area, crosses_boundary, decode_boxes, encode_boxes, jaccard_overlap, match_boxes

RNG = np.random.default_rng(0)
CODES = ["CORNER", "CENTER_SIZE", "CORNER_SIZE"]


def random_boxes(n, reach=0.0):
    corners = np.sort(RNG.uniform(-reach, 1 + reach, (n, 2, 2)), axis=1)
    return torch.tensor(corners.reshape(n, 4), dtype=torch.float32)


def slow_overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def test_overlap_of_all_pairs():
    boxes, others = random_boxes(7, 0.2), random_boxes(5)
    expected = [[slow_overlap(a, b) for b in others.tolist()] for a in boxes.tolist()]
    torch.testing.assert_close(jaccard_overlap(boxes, others), torch.tensor(expected), rtol=1e-5, atol=1e-7)
    batch = jaccard_overlap(torch.stack((boxes, boxes + 0.1)), others)
    torch.testing.assert_close(batch[0], jaccard_overlap(boxes, others))


@pytest.mark.parametrize("box", [[0.2, 0.2, 0.2, 0.2], [0.6, 0.1, 0.2, 0.5], [2.0, 2, 3, 3], [0.5, 0.5, 0.1, 0.1]])
def test_what_has_no_area_or_lies_apart_overlaps_nothing(box):
    boxes = torch.tensor([box])
    assert jaccard_overlap(boxes, torch.tensor([[0.0, 0, 1, 1], box])).tolist()[0][0] == 0
    if box[0] < 1:
        assert box_area(boxes).item() == 0
        assert jaccard_overlap(boxes, boxes).item() == 0


def slow_code(prior, box, code, variance):
    (px, py, pw, ph), (x, y, w, h) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (prior, box)
    )
    values = {
        "CENTER_SIZE": ((x - px) / pw, (y - py) / ph, math.log(w / pw), math.log(h / ph)),
        "CORNER": [b - p for b, p in zip(box, prior, strict=True)],
        "CORNER_SIZE": [(b - p) / size for b, p, size in zip(box, prior, (pw, ph) * 2, strict=True)],
    }[code]
    return [v / s for v, s in zip(values, variance, strict=True)]


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("variance", [None, [0.1, 0.2, 0.3, 0.4]])
def test_coding(code, variance):
    priors, boxes = random_boxes(6), random_boxes(6)
    expected = [
        slow_code(p, b, code, variance or [1] * 4) for p, b in zip(priors.tolist(), boxes.tolist(), strict=True)
    ]
    variances = None if variance is None else torch.tensor(variance).expand(6, 4)
    codes = encode_boxes(priors, boxes, code, variances)
    torch.testing.assert_close(codes, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decode_boxes(priors, codes, code, variances), boxes, rtol=1e-4, atol=1e-5)


def slow_match(boxes, targets, threshold, per_prediction, ignore):
    """SSD's greedy search, one pair at a time."""
    index, most, pairs = [-1] * len(boxes), [0.0] * len(boxes), {}
    for i, box in enumerate(boxes):
        if ignore and any(v < 0 or v > 1 for v in box):
            index[i] = -2
            continue
        for j, target in enumerate(targets):
            value = slow_overlap(box, target)
            if value > 1e-6:
                pairs[i, j], most[i] = value, max(most[i], value)
    free = set(range(len(targets)))
    while True:
        open_pairs = [(-v, i, j) for (i, j), v in pairs.items() if index[i] == -1 and j in free]
        if not open_pairs:
            break
        value, i, j = min(open_pairs)
        index[i], most[i] = j, -value
        free.remove(j)
    if per_prediction:
        for i in (i for i in range(len(boxes)) if index[i] == -1):
            best = min(((-pairs[i, j], j) for j in range(len(targets)) if (i, j) in pairs), default=(1, -1))
            if -best[0] >= threshold:
                index[i] = best[1]
    return index, most


@pytest.mark.parametrize("per_prediction", [True, False])
@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_matching(per_prediction, ignore, seed):
    RNG.bit_generator.state = np.random.default_rng(seed).bit_generator.state
    boxes, targets = random_boxes(60, 0.05), random_boxes(9)
    boxes[20:30], targets[5] = boxes[:10], targets[4]  # equal overlaps: the first box, then the first target
    boxes[50:], targets[8] = targets[7], torch.tensor([3.0, 3, 4, 4])  # a target that nothing touches
    index, most = match_boxes(
        boxes, targets, overlap_threshold=0.3, per_prediction=per_prediction, ignore_cross_boundary=ignore
    )
    expected, overlaps = slow_match(boxes.tolist(), targets.tolist(), 0.3, per_prediction, ignore)
    assert index.tolist() == expected
    torch.testing.assert_close(most, torch.tensor(overlaps), rtol=1e-5, atol=1e-6)
    assert (index == -2).any() == ignore


def test_matching_without_targets():
    index, most = match_boxes(random_boxes(3, 1), torch.zeros(0, 4), ignore_cross_boundary=True)
    assert index.tolist() == [-1] * 3
    assert not most.any()


def test_boundary():
    boxes = torch.tensor([[0.0, 0, 1, 1], [-0.1, 0, 1, 1], [0, 0, 1, 1.1]])
    assert crosses_boundary(boxes).tolist() == [False, True, True]
