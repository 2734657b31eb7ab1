import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

RNG = np.random.default_rng(0)


def slow_softmax_loss(scores, labels, normalization="VALID", ignore=None):
    """Loss and gradient, with classes on axis 1, in double precision."""
    prob = np.exp(scores - scores.max(1, keepdims=True))
    prob /= prob.sum(1, keepdims=True)
    grad, total, valid = np.zeros_like(prob), 0.0, 0
    for index in np.ndindex(*labels.shape):
        label = int(labels[index])
        if label == ignore:
            continue
        where = (index[0], slice(None), *index[1:])
        valid += 1
        total -= math.log(max(prob[where][label], np.finfo(np.float32).tiny))
        grad[where] = prob[where]
        grad[where][label] -= 1
    counts = {"FULL": labels.size, "VALID": valid, "BATCH_SIZE": len(labels), "NONE": 1}
    n = max(1, counts[normalization])
    return total / n, grad / n


@pytest.mark.parametrize("normalization", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3, 4)])
@pytest.mark.parametrize("ignore", [None, 2, -1])
def test_softmax_with_loss(run_layer, normalization, shape, ignore):
    scores = RNG.standard_normal(shape).astype(np.float32) * 3
    labels = RNG.integers(0, 5, (shape[0], *shape[2:])).astype(np.float32)
    if ignore == -1:
        labels[0] = -1
    setting = f"normalization: {normalization} " + ("" if ignore is None else f"ignore_label: {ignore}")
    x = torch.tensor(scores, requires_grad=True)
    loss, prob = run_layer("SoftmaxWithLoss", f"loss_param {{ {setting} }}", x, labels, tops=2)
    expected, gradient = slow_softmax_loss(scores.astype(np.float64), labels, normalization, ignore)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), gradient, atol=1e-6)
    torch.testing.assert_close(prob, torch.softmax(x, 1))


@pytest.mark.parametrize(("setting", "meant"), [("normalize: true", "VALID"), ("normalize: false", "BATCH_SIZE")])
def test_the_older_normalize(run_layer, setting, meant):
    scores, labels = RNG.standard_normal((2, 3, 4)), RNG.integers(0, 3, (2, 4)).astype(np.float32)
    (loss,) = run_layer("SoftmaxWithLoss", f"loss_param {{ ignore_label: 0 {setting} }}", scores, labels)
    assert loss.item() == pytest.approx(slow_softmax_loss(scores, labels, meant, 0)[0], rel=1e-5)


def test_all_labels_ignored(run_layer):
    x = torch.randn(3, 2, requires_grad=True)
    (loss,) = run_layer("SoftmaxWithLoss", "loss_param { ignore_label: 1 }", x, [1, 1, 1])
    loss.backward()
    assert loss.item() == 0
    assert not x.grad.any()


def test_a_probability_of_zero_is_clamped(run_layer):
    (loss,) = run_layer("SoftmaxWithLoss", "", [[0.0, 1000.0]], [0])
    assert loss.item() == pytest.approx(-math.log(np.finfo(np.float32).tiny), rel=1e-6)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_that_is_no_class(run_layer, label):
    with pytest.raises(PortError, match=f"label {label} in a net of 3 classes"):
        run_layer("SoftmaxWithLoss", "", np.zeros((2, 3)), [0, label])


def test_as_many_labels_as_predictions(run_layer):
    with pytest.raises(PortError, match="3 labels for 2 predictions"):
        run_layer("SoftmaxWithLoss", "", np.zeros((2, 3)), [0, 1, 2])


def slow_smooth_l1(prediction, target, inside, outside, sigma):
    total, grad = 0.0, np.zeros(prediction.shape)
    for index in np.ndindex(*prediction.shape):
        d = inside[index] * (prediction[index] - target[index])
        if abs(d) < 1 / sigma**2:
            value, slope = 0.5 * (sigma * d) ** 2, sigma**2 * d
        else:
            value, slope = abs(d) - 0.5 / sigma**2, math.copysign(1, d)
        total += outside[index] * value
        grad[index] = outside[index] * slope * inside[index]
    return total / len(prediction), grad / len(prediction)


@pytest.mark.parametrize("sigma", [1, 3, 0.5])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("shape", [(4, 8), (2, 4, 3, 2)])
def test_smooth_l1(run_layer, sigma, weighted, shape):
    prediction, target = RNG.standard_normal((2, *shape)).astype(np.float32) * 2
    weights = RNG.uniform(0, 2, (2, *shape)).astype(np.float32) if weighted else np.ones((2, *shape), np.float32)
    x = torch.tensor(prediction, requires_grad=True)
    bottoms = (target, *weights) if weighted else (target,)
    (loss,) = run_layer("SmoothL1Loss", f"smooth_l1_loss_param {{ sigma: {sigma} }}", x, *bottoms)
    loss.backward()
    expected, gradient = slow_smooth_l1(prediction.astype(float), target, *weights, sigma)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "bottoms", "message"),
    [
        ("SmoothL1Loss", [(2, 3)] * 3, "it has 3"),
        ("SmoothL1Loss", [(2, 3), (2, 4)], "differ in size"),
        ("SmoothL1Loss", [(2, 3), (2, 3), (2, 3), (3, 3)], "differ in size"),
        ("EuclideanLoss", [(2, 3), (2, 4)], "differ in size"),
    ],
)
def test_sizes_that_do_not_fit(run_layer, kind, bottoms, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, "", *(np.zeros(shape) for shape in bottoms))


def test_euclidean(run_layer):
    x = torch.tensor([[1.0, 2], [3, 4]], requires_grad=True)
    (loss,) = run_layer("EuclideanLoss", "", x, [[0.0, 0], [3, 2]])
    loss.backward()
    assert loss.item() == (1 + 4 + 0 + 4) / 2 / 2
    assert x.grad.tolist() == [[0.5, 1], [0, 1]]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_axis(run_layer, axis):
    (out,) = run_layer("Softmax", f"softmax_param {{ axis: {axis} }}", RNG.standard_normal((3, 4, 2)))
    torch.testing.assert_close(out.sum(axis), torch.ones_like(out.sum(axis)))
