"""Focal loss against the paper's formulas in double precision, and torchvision's outputs."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from ohem_caffe_port.mining import (
    focal_loss_star,
    num_positives,
    prior_bias,
    sigmoid_focal_loss,
    softmax_focal_loss,
    softmax_prior_bias,
)

RNG = np.random.default_rng(0)
REFERENCE = np.load(Path(__file__).parents[2] / "data" / "focal_ghm.npz")


def slow_focal(p_t: float, alpha: float, gamma: float) -> float:
    return -alpha * (1 - p_t) ** gamma * math.log(p_t)


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2), (0.9, 0), (0.5, 0.5), (0.25, 5)])
def test_sigmoid_is_equation_5(alpha, gamma):
    x, y = RNG.standard_normal(50) * 4, RNG.integers(0, 2, 50)
    expected = [
        slow_focal(p if t else 1 - p, alpha if t else 1 - alpha, gamma)
        for p, t in zip(1 / (1 + np.exp(-x)), y, strict=True)
    ]
    logits = torch.tensor(x, requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor(y), alpha=alpha, gamma=gamma)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda z: sigmoid_focal_loss(z, torch.tensor(y), alpha=alpha, gamma=gamma), logits)


@pytest.mark.parametrize("i", range(4))
def test_sigmoid_is_torchvisions(i):
    alpha, gamma = REFERENCE[f"focal/{i}/settings"].tolist()
    logits = torch.tensor(REFERENCE["focal/x"], requires_grad=True)
    loss = sigmoid_focal_loss(logits, torch.tensor(REFERENCE["focal/t"]), alpha=alpha, gamma=gamma)
    loss.sum().backward()
    np.testing.assert_allclose(loss.detach(), REFERENCE[f"focal/{i}/loss"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(logits.grad, REFERENCE[f"focal/{i}/grad"], rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("gamma", [0, 0.5, 2])
@pytest.mark.parametrize("function", [sigmoid_focal_loss, focal_loss_star])
def test_far_logits_stay_finite(function, gamma):
    logits = torch.tensor([-200.0, -50, 0, 50, 200] * 2, requires_grad=True)
    if function is focal_loss_star and not gamma:
        pytest.skip("FL* divides by gamma")
    loss = function(logits, torch.arange(10) // 5, gamma=gamma)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()
    assert loss[0] < 1e-30
    assert loss[5] > 20


@pytest.mark.parametrize(("gamma", "beta"), [(2, 1), (4, 0)])
def test_star_is_the_appendix(gamma, beta):
    x, y = RNG.standard_normal(40) * 3, RNG.integers(0, 2, 40)
    expected = [math.log1p(math.exp(-(gamma * (z if t else -z) + beta))) / gamma for z, t in zip(x, y, strict=True)]
    logits = torch.tensor(x, requires_grad=True)
    loss = focal_loss_star(logits, torch.tensor(y), gamma=gamma, beta=beta)
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-9)
    assert torch.autograd.gradcheck(lambda z: focal_loss_star(z, torch.tensor(y), gamma=gamma, beta=beta), logits)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("gamma", [0, 1, 2.5])
def test_softmax(axis, gamma):
    scores, labels = RNG.standard_normal((3, 4, 4)) * 2, RNG.integers(0, 4, (3, 4))
    alpha = torch.tensor([0.1, 0.5, 1, 2], dtype=torch.float64)
    for weight in (0.25, alpha):
        leaf = torch.tensor(scores, requires_grad=True)
        options = {"alpha": weight, "gamma": gamma, "axis": axis}
        loss = softmax_focal_loss(leaf, torch.tensor(labels), **options)
        for index in np.ndindex(3, 4):
            row = scores[index[0], :, index[1]] if axis == 1 else scores[index]
            label = labels[index]
            p_t = np.exp(row[label]) / np.exp(row).sum()
            expected = slow_focal(p_t, float(weight if weight is not alpha else alpha[label]), gamma)
            assert loss[index].item() == pytest.approx(expected, rel=1e-9)
        assert torch.autograd.gradcheck(
            lambda z, options=options: softmax_focal_loss(z, torch.tensor(labels), **options), leaf
        )


@pytest.mark.parametrize("gamma", [0, 0.5, 2])
def test_sure_softmax_stays_finite(gamma):
    scores = torch.tensor([[200.0, 0, 0], [-200, 0, 0]], requires_grad=True)
    loss = softmax_focal_loss(scores, torch.zeros(2, dtype=torch.long), alpha=1.0, gamma=gamma)
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1].item() == pytest.approx(-math.log(torch.finfo(torch.float32).tiny))
    assert scores.grad.isfinite().all()
    assert scores.grad[1, 0] == pytest.approx(-1)


def test_prior():
    assert prior_bias() == pytest.approx(-4.59512, abs=1e-5)
    assert torch.sigmoid(torch.tensor(prior_bias(0.2))).item() == pytest.approx(0.2)
    scores = torch.tensor([softmax_prior_bias(0.05, 7), *[0.0] * 6])
    assert 1 - torch.softmax(scores, 0)[0].item() == pytest.approx(0.05, rel=1e-5)


def test_positives():
    assert num_positives(torch.tensor([0, 3, -1, 1])) == 2
    assert num_positives(torch.zeros(4)) == 1
