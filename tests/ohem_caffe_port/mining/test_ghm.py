"""Gradient harmonising against the paper's formulas in double precision, and the outputs of mmdetection's code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ohem_caffe_port.mining import asl1_loss, ghm_weights, ghmc_loss, ghmr_loss, gradient_density

RNG = np.random.default_rng(1)
REFERENCE = np.load(Path(__file__).parents[2] / "data" / "focal_ghm.npz")


def slow_weights(length, valid, total, bins, momentum, average, rule) -> np.ndarray:
    """Bin by bin; ``average`` (a list, or None) is brought up to date."""
    place = np.minimum((length * bins).astype(int), bins - 1)
    counts = [int(((place == b) & valid).sum()) for b in range(bins)]
    for b, count in enumerate(counts if average is not None else ()):
        if count or rule == "paper":
            average[b] = momentum * average[b] + (1 - momentum) * count
    regions = bins if rule == "paper" else sum(count > 0 for count in counts)
    density = counts if average is None else average
    weights = np.zeros(length.shape)
    for index in np.ndindex(*length.shape):
        if valid[index]:
            weights[index] = total / density[place[index]] / regions
    return weights


@pytest.mark.parametrize("rule", ["code", "paper"])
@pytest.mark.parametrize("momentum", [None, 0.75])
def test_weights(rule, momentum):
    acc_sum = None if momentum is None else torch.zeros(10, dtype=torch.float64)
    average = None if momentum is None else [0.0] * 10
    for upper in (0.5, 1, 0.3):  # bins fill and empty
        length, valid = RNG.uniform(0, upper, (40, 3)), RNG.random((40, 3)) < 0.8
        options = {"bins": 10, "momentum": momentum or 0.0, "rule": rule}
        expected = slow_weights(length, valid, 97, average=average, **options)
        found = ghm_weights(torch.tensor(length), torch.tensor(valid), 97, acc_sum=acc_sum, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        if average:
            np.testing.assert_allclose(acc_sum, average, rtol=1e-6)


def test_first_weights_with_momentum_are_larger():
    """``acc_sum`` starts at 0, as in the code."""
    length, valid = torch.rand(50), torch.ones(50, dtype=torch.bool)
    plain = ghm_weights(length, valid, 50, bins=5)
    averaged = ghm_weights(length, valid, 50, bins=5, momentum=0.75, acc_sum=torch.zeros(5))
    torch.testing.assert_close(averaged, 4 * plain)


@pytest.mark.parametrize("case", [0, 1])
def test_mmdetections_outputs(case):
    """Three calls in a row, with the paper's momentum and without."""
    bins, momentum = ((30, (0.75, 0.7)), (10, (0, 0)))[case]
    box_bins = bins // 3 or 10
    states = [torch.zeros(n) if m else None for n, m in zip((bins, box_bins), momentum, strict=True)]
    for step in range(3):
        part = {k: torch.tensor(REFERENCE[f"{case}/{step}/{k}"]) for k in "xtwpqv"}
        scores, boxes = part["x"].requires_grad_(), part["p"].requires_grad_()
        options = {"bins": bins, "momentum": momentum[0], "acc_sum": states[0]}
        found = {"ghmc": ghmc_loss(scores, part["t"], part["w"], **options)}
        options = {"bins": box_bins, "momentum": momentum[1], "acc_sum": states[1]}
        found["ghmr"] = ghmr_loss(boxes, part["q"], part["v"], mu=0.02, **options)
        for name, leaf in (("ghmc", scores), ("ghmr", boxes)):
            found[name].backward()
            assert found[name].item() == pytest.approx(float(REFERENCE[f"{case}/{step}/{name}"]), rel=1e-5)
            np.testing.assert_allclose(leaf.grad, REFERENCE[f"{case}/{step}/{name}_grad"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    """As in single precision; N alone is more than a half can hold."""
    x = (torch.randn(70000, 2, generator=torch.Generator().manual_seed(0)) * 2).to(dtype)
    target = (x < 0).float()
    for loss in (ghmc_loss, ghmr_loss):
        torch.testing.assert_close(loss(x, target).float(), loss(x.float(), target), rtol=1e-3, atol=0)


def test_nothing_valid():
    zeros = torch.zeros(3, 4, requires_grad=True)
    for loss in (ghmc_loss, ghmr_loss):
        value = loss(zeros, torch.ones(3, 4), torch.zeros(3, 4))
        value.backward()
        assert value == 0
        assert not zeros.grad.any()


@pytest.mark.parametrize("mu", [0.02, 1])
def test_asl1(mu):
    d = torch.tensor(RNG.standard_normal(20), requires_grad=True)
    np.testing.assert_allclose(asl1_loss(d, mu).detach(), np.sqrt(d.detach().numpy() ** 2 + mu**2) - mu)
    assert torch.autograd.gradcheck(lambda z: asl1_loss(z, mu), d)


@pytest.mark.parametrize("loss", [ghmc_loss, ghmr_loss])
def test_gradients_with_the_weights_held(loss):
    """Weights are constants of an iteration; away from a bin's edge finite differences see the same."""
    x, target = torch.tensor(RNG.standard_normal((6, 3))), torch.tensor(RNG.integers(0, 2, (6, 3)) * 1.0)
    x.requires_grad_()
    loss(x, target).backward()
    for i in range(x.numel()):
        ends = []
        for step in (1e-6, -1e-6):
            moved = x.detach().clone()
            moved.view(-1)[i] += step
            ends.append(loss(moved, target).item())
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(x.grad.view(-1)[i].item(), rel=1e-4, abs=1e-7)


def test_exact_density():
    length, epsilon = RNG.random(60), 0.1
    expected = []
    for g in length:
        count = ((length >= g - epsilon / 2) & (length < g + epsilon / 2)).sum()
        expected.append(count / (min(g + epsilon / 2, 1) - max(g - epsilon / 2, 0)))
    np.testing.assert_allclose(gradient_density(torch.tensor(length), epsilon), expected, rtol=1e-9)


def test_bins_approximate_the_density():
    """Equation 11: ``beta = N / (R M)`` is near the exact ``N / GD`` where lengths are spread evenly."""
    length = torch.rand(20000, generator=torch.Generator().manual_seed(0))
    exact = len(length) / gradient_density(length, 0.1)
    weights = ghm_weights(length, torch.ones_like(length, dtype=torch.bool), len(length), bins=10, rule="paper")
    assert (weights / exact - 1).abs().max() < 0.1


def test_unknown_rule():
    with pytest.raises(ValueError, match="'code' or 'paper', not 'mine'"):
        ghm_weights(torch.rand(3), torch.ones(3, dtype=torch.bool), 3, bins=2, rule="mine")
