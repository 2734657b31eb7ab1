"""S-OHEM against a plain loop over RoIs and strata."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.mining import Strata, select_hard_rois, select_stratified_rois
from ohem_caffe_port.mining.sohem import quotas

ROIS = 120


@pytest.fixture
def scene():
    """cls_loss, loc_loss, rois of two images, labels."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, ROIS)
    corners = rng.integers(0, 60, (ROIS, 2))
    rois = np.hstack([rng.integers(0, 2, (ROIS, 1)), corners, corners + rng.integers(20, 50, (ROIS, 2))])
    cls, loc = rng.exponential(1, ROIS), rng.exponential(1, ROIS) * (labels > 0)
    return [torch.tensor(a) for a in (cls, loc, rois.astype(float), labels)]


def iou(a, b):
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(w, 0) * max(h, 0)
    area = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return inter / (sum(area) - inter)


def plain(scene, batch_size, alpha, beta, bounds, shares, thresh):
    cls, loc, rois, labels = (a.tolist() for a in scene)
    loss = [alpha * c + beta * v for c, v in zip(cls, loc, strict=True)]
    survivors = []
    for i in sorted(range(ROIS), key=lambda i: -loss[i]):
        rivals = [j for j in survivors if labels[j] == labels[i] and rois[j][0] == rois[i][0]]
        if thresh is None or all(iou(rois[i][1:], rois[j][1:]) <= thresh for j in rivals):
            survivors.append(i)
    edges = np.round(np.cumsum(shares) / sum(shares) * batch_size).astype(int)
    quota = np.diff([0, *edges])
    chosen, rest = [], []
    for i in survivors:
        ratio = alpha * cls[i] / (beta * loc[i]) if loc[i] else np.inf
        stratum = sum(ratio >= bound for bound in bounds)
        if quota[stratum]:
            quota[stratum] -= 1
            chosen.append(i)
        else:
            rest.append(i)
    chosen += rest[: batch_size - len(chosen)]
    return sorted(chosen, key=lambda i: -loss[i])


@pytest.mark.parametrize("thresh", [None, 0.3])
@pytest.mark.parametrize("batch_size", [1, 10, 33, 500])
@pytest.mark.parametrize("progress", [0.0, 0.25, 1.0])
def test_against_a_loop(scene, progress, batch_size, thresh):
    strata = Strata(
        alpha=(2, 1, 0.5), beta=(0.5, 1, 1), bounds=((0.5, 1, 2), (1, 2, 4)), shares=((1, 1, 1, 7), (3, 3, 3, 1))
    )
    found = select_stratified_rois(*scene, batch_size, progress=progress, strata=strata, nms_thresh=thresh)
    at = {  # by hand: straight lines between the stages
        0.0: (2, 0.5, (0.5, 1, 2), (1, 1, 1, 7)),
        0.25: (1.5, 0.75, (0.625, 1.25, 2.5), (1.5, 1.5, 1.5, 5.5)),
        1.0: (0.5, 1, (1, 2, 4), (3, 3, 3, 1)),
    }[progress]
    assert found.tolist() == plain(scene, batch_size, *at, thresh)


def test_one_stratum_is_ohem(scene):
    """With equal weights, and without bounds, what is left is OHEM."""
    strata = Strata(alpha=(1,), beta=(1,), bounds=((),), shares=((1,),))
    cls, loc, rois, labels = scene
    found = select_stratified_rois(cls, loc, rois, labels, 20, strata=strata)
    assert torch.equal(found, select_hard_rois(cls + loc, rois, labels, 20))


def test_equal_losses_are_ordered_as_in_ohem(scene):
    _, _, rois, labels = scene
    same, none = torch.ones(ROIS), torch.zeros(ROIS)
    strata = Strata(alpha=(1,), beta=(1,), bounds=((),), shares=((1,),))
    found = select_stratified_rois(same, none, rois, labels, 20, strata=strata)
    assert torch.equal(found, select_hard_rois(same, rois, labels, 20))


def test_beyond_the_ends_of_training():
    strata = Strata()
    for far, end in ((-1, 0), (7, 1)):
        for a, b in zip(strata.at(far), strata.at(end), strict=True):
            np.testing.assert_array_equal(a, b)


def test_localisation_becomes_more_important():
    alpha, beta, _, shares = Strata().at(0)
    late_alpha, late_beta, _, late_shares = Strata().at(1)
    assert late_beta / late_alpha > beta / alpha
    assert late_shares[0] / late_shares.sum() > shares[0] / shares.sum()


@pytest.mark.parametrize("shares", [(1, 1, 1), (0.1, 0.1, 0.2, 0.6), (0, 0, 5), (1 / 3, 2 / 3)])
@pytest.mark.parametrize("batch_size", [1, 7, 64, 128])
def test_quotas_fill_the_batch(shares, batch_size):
    counts = quotas(np.array(shares), batch_size)
    assert counts.sum() == batch_size
    assert (abs(counts - np.array(shares) / sum(shares) * batch_size) < 1).all()


def test_no_rois():
    empty = torch.zeros(0)
    assert select_stratified_rois(empty, empty, torch.zeros(0, 5), empty.long(), 8).tolist() == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"alpha": ()}, "'alpha' must be a list of numbers"),
        ({"beta": 1.0}, "'beta' must be a list of numbers"),
        ({"alpha": (-1,)}, "none negative"),
        ({"alpha": ("x",)}, "'alpha' must be a list"),
        ({"bounds": (1, 2, 3)}, "'bounds' must be a list of stages"),
        ({"bounds": ((3, 2, 1),)}, "must ascend"),
        ({"shares": ((1, 2),)}, "3 bounds make one stratum more"),
        ({"shares": ((1, 2, 3, 4), (1, 2))}, "'shares' must be a list of stages"),
        ({"shares": ((0, 0, 0, 0),)}, "must not all be 0"),
        ({"shares": ((1, 1, 1, float("nan")),)}, "none negative"),
    ],
)
def test_errors(settings, words):
    with pytest.raises(ValueError, match=words):
        Strata(**settings)
