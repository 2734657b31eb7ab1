import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

RNG = np.random.default_rng(1)


def slow_smooth_l1(prediction, target, inside, outside, sigma, inside_in_gradient=True):
    total, grad = 0.0, np.zeros(prediction.shape)
    for index in np.ndindex(*prediction.shape):
        d = inside[index] * (prediction[index] - target[index])
        if abs(d) < 1 / sigma**2:
            value, slope = 0.5 * (sigma * d) ** 2, sigma**2 * d
        else:
            value, slope = abs(d) - 0.5 / sigma**2, math.copysign(1, d)
        total += outside[index] * value
        grad[index] = outside[index] * slope * (inside[index] if inside_in_gradient else 1)
    return total, grad


def compare(run_layer, settings, shape, used, divisor, sigma=1, **reference):
    prediction, target = RNG.standard_normal((2, *shape)).astype(np.float32) * 2
    weights = RNG.uniform(0, 2, (2, *shape)).astype(np.float32)
    weights[used:] = 1
    x, t = (torch.tensor(b, requires_grad=True) for b in (prediction, target))
    (loss,) = run_layer("SmoothL1Loss", settings, x, t, *weights[:used])
    loss.backward()
    total, gradient = slow_smooth_l1(prediction.astype(float), target, *weights, sigma, **reference)
    assert loss.item() == pytest.approx(total / divisor, rel=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), gradient / divisor, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(t.grad.numpy(), -gradient / divisor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sigma", [1, 3, 0.5])
@pytest.mark.parametrize("used", [0, 2])
@pytest.mark.parametrize("shape", [(4, 8), (2, 4, 3, 2)])
def test_smooth_l1(run_layer, sigma, used, shape):
    compare(run_layer, f"smooth_l1_loss_param {{ sigma: {sigma} }}", shape, used, shape[0], sigma)


@pytest.mark.parametrize(
    ("settings", "divisor"),
    [
        ("", 2),
        ("loss_param { normalization: VALID }", 12),
        ("loss_param { normalization: FULL }", 12),
        ("loss_param { normalize: false }", 2),
        ("loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 128 }", 128),
        ("loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 0.5 }", 1),
        ("loss_param { normalization: NONE }", 1),
    ],
)
def test_one_weight_is_the_inside_one(run_layer, settings, divisor):
    """The first Fast R-CNN, SSD and caffe-rfcn; it is left out of the gradient."""
    compare(run_layer, settings, (2, 4, 3, 2), 1, divisor, inside_in_gradient=False)


@pytest.mark.parametrize(("used", "abssum"), [(1, "false"), (2, "false"), (2, "true")])
def test_abssum_decides_over_the_inside_weight(run_layer, used, abssum):
    setting = f"smooth_l1_loss_param {{ abssum: {abssum} }}"
    compare(run_layer, setting, (4, 8), used, 4, inside_in_gradient=abssum == "false")


@pytest.mark.parametrize(("shape", "top"), [((3, 4), (3, 1, 1, 1)), ((2, 4, 3, 2), (2, 1, 3, 2))])
def test_the_loss_of_every_row(run_layer, shape, top):
    prediction, target, inside, outside = RNG.uniform(-2, 2, (4, *shape)).astype(np.float32)
    loss, each = run_layer("SmoothL1Loss", "", prediction, target, inside, outside, tops=2)
    assert each.shape == top
    for row, value in enumerate(each.sum((1, 2, 3)).tolist()):
        parts = (b[row : row + 1] for b in (prediction, target, inside, outside))
        assert value == pytest.approx(slow_smooth_l1(*parts, 1)[0], rel=1e-4)
    assert each.sum().item() / shape[0] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "bottoms", "message"),
    [
        ("SmoothL1Loss", [(2, 3), (2, 4)], "differ in size"),
        ("SmoothL1Loss", [(2, 3), (3, 2)], "differ in rows"),
        ("SmoothL1Loss", [(2, 3), (2, 3), (2, 3), (3, 3)], "differ in size"),
        ("EuclideanLoss", [(2, 3), (2, 4)], "differ in size"),
        ("EuclideanLoss", [(), ()], "differ in rows"),
        ("L1Loss", [(2, 3), (2, 4)], "differ in size"),
        ("L1Loss", [(2,)], "bottoms with channels"),
    ],
)
def test_sizes_that_do_not_fit(run_layer, kind, bottoms, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, "", *(np.zeros(shape) for shape in bottoms))


def test_sigma_is_not_zero(run_layer):
    with pytest.raises(PortError, match="sigma: must not be 0"):
        run_layer("SmoothL1Loss", "smooth_l1_loss_param { sigma: 0 }", np.zeros((2, 3)), np.zeros((2, 3)))


def test_euclidean(run_layer):
    x = torch.tensor([[1.0, 2], [3, 4]], requires_grad=True)
    (loss,) = run_layer("EuclideanLoss", "", x, [[0.0, 0], [3, 2]])
    loss.backward()
    assert loss.item() == (1 + 4 + 0 + 4) / 2 / 2
    assert x.grad.tolist() == [[0.5, 1], [0, 1]]


def test_euclidean_with_weights(run_layer):
    """caffe-windows: the weight squared in the loss, once in the gradient."""
    x, t = torch.tensor([[1.0, 2]], requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    (loss,) = run_layer("EuclideanLoss", "", x, t, [[3.0, 0.5]])
    loss.backward()
    assert loss.item() == (9 + 1) / 2
    assert (x.grad.tolist(), t.grad.tolist()) == ([[3, 1]], [[-3, -1]])


def test_l1(run_layer):
    x, t = torch.tensor([[1.0, -2], [3, 4]], requires_grad=True), torch.zeros(2, 2, requires_grad=True)
    (loss,) = run_layer("L1Loss", "", x, t + torch.tensor([[0.0, 0], [3, 0]]))
    loss.backward()
    assert loss.item() == (1 + 2 + 0 + 4) / 2
    assert x.grad.tolist() == [[0.5, -0.5], [0, 0.5]]
    assert t.grad.tolist() == [[-0.5, 0.5], [0, -0.5]]


def slow_flow_l1(d, l2=False, prescale=False, by_entries=False, epsilon=0.01, plateau=0.0):
    """Loss and gradient by the difference, [N, C, H, W], as FlowNet's layer computes them."""
    n, c, h, w = d.shape
    grad, total, entries = np.zeros(d.shape), 0.0, 0
    for i, y, x in np.ndindex(n, h, w):
        v = d[i, :, y, x]
        entries += (~np.isnan(v)).sum()
        there = ~np.isnan(v)
        v = np.where(there, v, 0)
        if l2:
            square = (v**2).sum() / (c if prescale else 1)
            flat = square < plateau**2
            root = math.sqrt((0 if flat else square) + epsilon)
            total += root
            if not flat:
                grad[i, :, y, x] = v / root / (c if prescale else 1)
        else:
            there &= np.abs(v) >= plateau
            total += np.abs(v[there]).sum()
            grad[i, :, y, x] = np.where(there, np.where(v > 0, 1, -1), 0)
    divisor = entries / c if by_entries else n
    return total / divisor, grad / divisor


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize(
    ("settings", "reference"),
    [
        ("", {}),
        ("plateau: 0.7", {"plateau": 0.7}),
        ("normalize_by_num_entries: true", {"by_entries": True}),
        ("l2_per_location: true", {"l2": True}),
        ("l2_per_location: true l2_prescale_by_channels: true epsilon: 1", {"l2": 1, "prescale": 1, "epsilon": 1}),
        ("l2_per_location: true plateau: 1.2 normalize_by_num_entries: true",
         {"l2": True, "plateau": 1.2, "by_entries": True}),
    ],
)  # fmt: skip
def test_l1_of_flownet(run_layer, settings, reference, single):
    d = RNG.standard_normal((2, 3, 2, 4)).astype(np.float32)
    d[0, 1, 1, 2], d[1, :, 0, 0], d[1, 0, 1, 1] = 0, np.nan, np.nan
    x = torch.tensor(d, requires_grad=True)
    bottoms = (x,) if single else (x, np.zeros(d.shape))
    (loss,) = run_layer("L1Loss", f"l1_loss_param {{ {settings} }}", *bottoms)
    loss.backward()
    expected, gradient = slow_flow_l1(d.astype(float), **reference)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), gradient, rtol=1e-5, atol=1e-6)
