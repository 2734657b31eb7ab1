"""Losses over all priors, by hand: one match in each of two images, everything else background."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.mining import ghmc_loss, ghmr_loss
from ohem_caffe_port.ops import encode_boxes

PRIORS = torch.tensor(
    [[x, y, x + 0.25, y + 0.25] for y in (0, 0.25, 0.5, 0.75) for x in (0, 0.25, 0.5, 0.75)], dtype=torch.float32
)
VARIANCE = torch.tensor([0.1, 0.1, 0.2, 0.2])
P, C = len(PRIORS), 3
PRIOR_BLOB = torch.stack((PRIORS.flatten(), VARIANCE.repeat(P)))[None]
# image 0: class 2 at prior 0, overlapping prior 1 by a little; image 1: class 1 at prior 10
TRUTH = torch.tensor([[[[0, 2, 0, 0.02, 0.0, 0.27, 0.25, 0], [1, 1, 0, 0.5, 0.5, 0.75, 0.75, 0.0]]]])
MATCHES = {(0, 0): 2, (1, 10): 1}
SIGMOID = "conf_loss_type: LOGISTIC mining_type: NONE"


def blobs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    loc = torch.randn(2, P * 4, generator=generator) * 0.3
    return loc.requires_grad_(), torch.randn(2, P * C, generator=generator).requires_grad_()


def run(run_layer, kind, text, loc, conf, *more, **options):
    text = f"multibox_loss_param {{ num_classes: {C} code_type: CENTER_SIZE {text} }} {' '.join(more)}"
    (loss,) = run_layer(kind, text, loc, conf, PRIOR_BLOB, TRUTH, **options)
    return loss


def box_differences(loc):
    """Of the two matches, ``[2, 4]``."""
    found = []
    for image, prior in MATCHES:
        target = encode_boxes(PRIORS[prior], TRUTH[0, 0, image, 3:7], "CENTER_SIZE", VARIANCE)
        found.append(loc[image].view(P, 4)[prior] - target)
    return torch.stack(found)


def smooth_l1(loc):
    d = box_differences(loc)
    return torch.nn.functional.smooth_l1_loss(d, torch.zeros(2, 4), reduction="sum")


def test_softmax_focal(run_layer):
    """As the forks: every prior, background with the same alpha, divided by the matches."""
    loc, conf = blobs()
    more = "focal_loss_param { alpha: 0.3 gamma: 1.5 }"
    loss = run(run_layer, "MultiBoxFocalLoss", "mining_type: NONE", loc, conf, more)
    loss.backward()
    other = conf.detach().double().requires_grad_()
    prob = torch.softmax(other.view(2, P, C), 2)
    total = 0.0
    for image, prior in np.ndindex(2, P):
        p = prob[image, prior, MATCHES.get((image, prior), 0)]
        total = total - 0.3 * (1 - p) ** 1.5 * torch.log(p)
    total.backward()
    expected = (total + smooth_l1(loc.detach())) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(conf.grad.double(), other.grad / 2, rtol=1e-4, atol=1e-6)
    assert (loc.grad.view(2, P, 4).any(2).nonzero() == torch.tensor(list(MATCHES))).all()


@pytest.mark.parametrize("neg_overlap", [0.5, 0.04])
def test_sigmoid_focal(run_layer, neg_overlap):
    """RetinaNet's: no column for the background, 1 - alpha for negatives, near misses left out."""
    loc, conf = blobs()
    text = f"{SIGMOID} neg_overlap: {neg_overlap}"
    loss = run(run_layer, "MultiBoxFocalLoss", text, loc, conf, "focal_loss_param { activate: SIGMOID }")
    loss.backward()
    total, near = 0.0, {(0, 1)} if neg_overlap == 0.04 else set()  # prior 1 overlaps the object by 0.02 / 0.48
    for image, prior, c in np.ndindex(2, P, C):
        if c == 0 or (image, prior) in near:
            assert conf.grad.view(2, P, C)[image, prior, c] == 0
            continue
        p = 1 / (1 + math.exp(-conf[image].view(P, C)[prior, c].item()))
        right = p if MATCHES.get((image, prior)) == c else 1 - p
        total -= (0.25 if right == p else 0.75) * (1 - right) ** 2 * math.log(right)
    assert loss.item() == pytest.approx((total + smooth_l1(loc.detach()).item()) / 2, rel=1e-5)


def test_logistic_without_activate_has_no_focal_term(run_layer):
    loc, conf = blobs()
    focal = run(run_layer, "MultiBoxFocalLoss", SIGMOID, loc, conf, "focal_loss_param { gamma: 5 }")
    torch.testing.assert_close(focal, run(run_layer, "MultiBoxLoss", SIGMOID, loc, conf))


def test_gamma_0_is_multibox_loss(run_layer):
    loc, conf = blobs()
    for mining in ("NONE", "MAX_NEGATIVE neg_overlap: 0.2", "HARD_EXAMPLE sample_size: 4"):
        text = f"mining_type: {mining}"
        focal = run(run_layer, "MultiBoxFocalLoss", text, loc, conf, "focal_loss_param { alpha: 1 gamma: 0 }")
        torch.testing.assert_close(focal, run(run_layer, "MultiBoxLoss", text, loc, conf), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("momentum", [0, 0.5])
def test_ghm(run_layer, momentum):
    loc, conf = blobs()
    more = [f"ghm{k}_loss_param {{ bins: {b} momentum: {momentum} }}" for k, b in (("c", 8), ("r", 4))]
    params = [np.zeros(8), np.zeros(4)] if momentum else []
    loss = run(run_layer, "MultiBoxGHMLoss", f"{SIGMOID} loc_weight: 10", loc, conf, *more, params=params)
    loss.backward()
    scores, boxes = conf.detach().clone().requires_grad_(), loc.detach().clone().requires_grad_()
    target = torch.zeros(2, P, C)
    for (image, prior), label in MATCHES.items():
        target[image, prior, label] = 1
    state = [torch.zeros(n) if momentum else None for n in (8, 4)]
    expected = ghmc_loss(scores.view(2, P, C)[..., 1:], target[..., 1:], bins=8, momentum=momentum, acc_sum=state[0])
    differences = box_differences(boxes)
    options = {"bins": 4, "momentum": momentum, "acc_sum": state[1]}
    expected = expected + 10 * ghmr_loss(differences, torch.zeros(2, 4), **options)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(conf.grad, scores.grad, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(loc.grad, boxes.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", ["MultiBoxFocalLoss", "MultiBoxGHMLoss"])
def test_no_objects(run_layer, kind):
    loc, conf = blobs()
    more = "focal_loss_param { activate: SIGMOID }" if kind == "MultiBoxFocalLoss" else ""
    params = [np.zeros(30), np.zeros(10)] if not more else []
    text = f"multibox_loss_param {{ num_classes: {C} {SIGMOID} }} {more}"
    empty = torch.full((1, 1, 1, 8), -1.0)
    (loss,) = run_layer(kind, text, loc, conf, PRIOR_BLOB, empty, params=params)
    loss.backward()
    assert loss > 0
    assert not loc.grad.any()
    assert conf.grad.view(2, P, C)[..., 1:].all()


@pytest.mark.parametrize(("kind", "text", "more", "message", "field"), [
    ("MultiBoxFocalLoss", "", "focal_loss_param { activate: SIGMOID }", "takes sigmoids",
     "multibox_loss_param.conf_loss_type"),
    ("MultiBoxFocalLoss", "", "focal_loss_param { gamma: -1 }", "must be finite and not", "focal_loss_param.gamma"),
    ("MultiBoxGHMLoss", "mining_type: NONE", "", "takes sigmoids", "multibox_loss_param.conf_loss_type"),
    ("MultiBoxGHMLoss", "conf_loss_type: LOGISTIC", "", "weighs all priors", "multibox_loss_param.mining_type"),
    ("MultiBoxGHMLoss", SIGMOID, "ghmr_loss_param { mu: 0 }", "must be positive", "ghmr_loss_param.mu"),
    ("MultiBoxGHMLoss", SIGMOID, "ghmc_loss_param { m: 0 }", "must be from 1 to", "ghmc_loss_param.m"),
])  # fmt: skip
def test_bad_settings(run_layer, kind, text, more, message, field):
    with pytest.raises(PortError, match=message) as caught:
        run(run_layer, kind, text, *blobs(), more)
    assert (caught.value.layer, caught.value.field) == ("it", field)
