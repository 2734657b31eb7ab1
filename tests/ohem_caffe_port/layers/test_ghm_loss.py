"""The functions are judged in tests/ohem_caffe_port/mining/test_ghm.py; here, how the layers call them."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.mining import ghmc_loss, ghmr_loss

RNG = np.random.default_rng(3)
SCORES = (RNG.standard_normal((4, 3, 5)) * 2).astype(np.float32)
CLASSES = RNG.integers(-1, 4, (4, 5)).astype(np.float32)  # -1 ignored, 0 background
ONE_HOT = np.stack([c == CLASSES for c in (1, 2, 3)], 1).astype(np.float32)
COUNTED = np.repeat((CLASSES >= 0)[:, None], 3, 1)
PLAIN = "ghmc_loss_param { momentum: 0 bins: 10 }"


def test_class_labels_and_binary_ones_agree(run_layer):
    expected = ghmc_loss(torch.tensor(SCORES), torch.tensor(ONE_HOT), torch.tensor(COUNTED), bins=10)
    ignore = " loss_param { ignore_label: -1 }"
    binary = np.where(COUNTED, ONE_HOT, -1)
    for labels in (CLASSES, binary):
        (loss,) = run_layer("GHMCLoss", PLAIN + ignore, SCORES, labels)
        torch.testing.assert_close(loss, expected)
    (loss,) = run_layer("GHMCLoss", PLAIN, SCORES, ONE_HOT, COUNTED * 1.0)
    torch.testing.assert_close(loss, expected)


def test_weights_of_rows(run_layer):
    rows = np.array([1, 0, 2, 1])
    (loss,) = run_layer("GHMCLoss", PLAIN, SCORES, ONE_HOT, rows)
    torch.testing.assert_close(loss, run_layer("GHMCLoss", PLAIN, SCORES[[0, 2, 3]], ONE_HOT[[0, 2, 3]])[0])
    boxes, target = SCORES[..., 0], ONE_HOT[..., 0]
    (loss,) = run_layer("GHMRLoss", "ghmr_loss_param { momentum: 0 }", boxes, target, rows > 0)
    expected = ghmr_loss(torch.tensor(boxes), torch.tensor(target), torch.tensor(rows > 0)[:, None])
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("kind", ["GHMCLoss", "GHMRLoss"])
@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_the_average_is_a_blob(build, kind, phase):
    """That snapshots hold; in TEST it is not changed."""
    text = f"""layer {{ name: "x" type: "Input" top: "x" top: "y" input_param {{ shape {{ dim: 4 dim: 3 }} }} }}
        layer {{ name: "ip" type: "InnerProduct" bottom: "x" top: "ip" inner_product_param {{ num_output: 3
                 weight_filler {{ type: "xavier" }} }} }}
        layer {{ name: "it" type: "{kind}" bottom: "ip" bottom: "y" top: "loss" }}"""
    net = build(text, phase)
    (average,) = net.params["it"]
    bins, momentum, function = {"GHMCLoss": (30, 0.75, ghmc_loss), "GHMRLoss": (10, 0.7, ghmr_loss)}[kind]
    assert tuple(average.shape) == (bins,)
    assert not average.requires_grad
    assert not average.any()
    state = torch.zeros(bins)
    for seed in range(3):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        net(x=x, y=(x > 0).float())
        options = {"acc_sum": state.clone() if phase == "TEST" else state, "momentum": momentum}
        expected = function(net.blobs["ip"], (x > 0).float(), **options)
        torch.testing.assert_close(net.loss, expected)
        torch.testing.assert_close(average.detach(), state)
    assert average.any() == (phase == "TRAIN")


@pytest.mark.parametrize("alpha", [0, 0.5])
def test_the_softmax_fork(run_layer, alpha):
    scores, labels = SCORES[:, :, 0], np.array([0, 2, 1, 255])
    text = f"ghmc_loss_param {{ m: 6 alpha: {alpha} }} loss_param {{ ignore_label: 255 }}"
    x = torch.tensor(scores, requires_grad=True)
    tops = run_layer("GhmcLoss", text, x, labels, tops=2, params=[np.zeros(6)] if alpha else [])
    tops[0].backward()
    prob = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    slope = prob - np.eye(3)[labels % 255]
    counts = np.bincount((np.abs(slope[:3]) * 6).astype(int).ravel(), minlength=6)
    total, grad = 0.0, np.zeros((4, 3))
    for n in range(3):
        own = counts[int(abs(slope[n, labels[n]]) * 6)] * (1 - alpha)
        beta = 3 / (own * (counts > 0).sum())
        total -= beta * math.log(prob[n, labels[n]])
        grad[n] = beta * slope[n] / 3
    assert tops[0].item() == pytest.approx(total / 3, rel=1e-5)
    np.testing.assert_allclose(x.grad, grad, atol=1e-6)
    np.testing.assert_allclose(tops[1], prob, rtol=1e-5)


def test_the_box_fork(run_layer):
    """It reads mu from alpha."""
    boxes, target = SCORES[..., 0], ONE_HOT[..., 0]
    (loss,) = run_layer("GhmrLoss", "ghmr_loss_param { m: 5 alpha: 0.3 }", boxes, target, params=[np.zeros(5)])
    expected = ghmr_loss(
        torch.tensor(boxes), torch.tensor(target), mu=0.3, bins=5, momentum=0.3, acc_sum=torch.zeros(5)
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("kind", "settings", "bottoms", "message", "field"), [
    ("GHMCLoss", "ghmc_loss_param { bins: 0 }", (SCORES, ONE_HOT), "must be from 1 to", "ghmc_loss_param.bins"),
    ("GHMCLoss", "ghmc_loss_param { bins: 4000000000 }", (SCORES, ONE_HOT), "must be from 1", "ghmc_loss_param.bins"),
    ("GHMRLoss", "ghmr_loss_param { mu: inf }", (SCORES, ONE_HOT), "must be positive and fin", "ghmr_loss_param.mu"),
    ("GHMCLoss", "ghmc_loss_param { alpha: 1 }", (SCORES, ONE_HOT), "less than 1", "ghmc_loss_param.alpha"),
    ("GHMCLoss", "param { lr_mult: 1 }", (SCORES, ONE_HOT), "not learned", "param[0].lr_mult"),
    ("GHMCLoss", PLAIN, (SCORES, CLASSES + 5), "in a net of 4 classes", None),
    ("GHMCLoss", PLAIN, (SCORES, ONE_HOT, np.ones(7)), "7 weights", "bottom[2]"),
    ("GHMRLoss", "ghmr_loss_param { mu: 0 }", (SCORES, ONE_HOT), "must be positive", "ghmr_loss_param.mu"),
    ("GHMRLoss", "", (SCORES, CLASSES), "bottoms differ in size", None),
    ("GhmcLoss", "", (SCORES, CLASSES), r"takes scores \[N, C\]", "bottom[0]"),
    ("GhmrLoss", "", (SCORES, ONE_HOT), "must be positive", "ghmr_loss_param.alpha"),
])  # fmt: skip
def test_bad_input(run_layer, kind, settings, bottoms, message, field):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, settings, *bottoms)
    assert caught.value.layer == "it"
    assert field is None or caught.value.field == field
