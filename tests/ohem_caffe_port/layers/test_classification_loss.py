import math

import numpy as np
import pytest
import torch

from converters.binaryproto import write_binaryproto
from ohem_caffe_port.errors import PortError

RNG = np.random.default_rng(2)


def backward(run_layer, kind, settings, *bottoms, tops=1):
    """The loss, and its gradient by the first bottom."""
    x = torch.tensor(np.asarray(bottoms[0], np.float32), requires_grad=True)
    loss = run_layer(kind, settings, x, *bottoms[1:], tops=tops)[0]
    loss.backward()
    return loss.item(), x.grad.numpy()


def test_multinomial_logistic(run_layer):
    """Its gradient does not vanish below the threshold."""
    loss, grad = backward(run_layer, "MultinomialLogisticLoss", "", [[0.25, 0.75], [0, 1], [-1, 0.5]], [0, 0, 1])
    assert loss == pytest.approx(-(math.log(0.25) + math.log(1e-20) + math.log(0.5)) / 3, rel=1e-6)
    np.testing.assert_allclose(grad, [[-4 / 3, 0], [-1e20 / 3, 0], [0, -2 / 3]], rtol=1e-5)


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge(run_layer, norm):
    scores, labels = RNG.uniform(-2, 2, (5, 2, 1, 3)).astype(np.float32), [0, 5, 2, 3, 1]
    scores[0, 1, 0, 0] = -1  # a margin of 0 has no slope
    loss, grad = backward(run_layer, "HingeLoss", f"hinge_loss_param {{ norm: {norm} }}", scores, labels)
    total, expected = 0.0, np.zeros((5, 6))
    for (i, j), score in np.ndenumerate(scores.reshape(5, 6).astype(float)):
        side = -1 if labels[i] == j else 1
        margin = max(0, 1 + side * score)
        total += margin if norm == "L1" else margin**2
        expected[i, j] = side * (float(margin > 0) if norm == "L1" else 2 * margin)
    assert loss == pytest.approx(total / 5, rel=1e-5)
    np.testing.assert_allclose(grad.reshape(5, 6), expected / 5, atol=1e-6)


def slow_infogain(scores, labels, matrix, ignore):
    """Sum and its gradient, classes on axis 1."""
    prob = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    total, grad = 0.0, np.zeros(scores.shape)
    for index in np.ndindex(*labels.shape):
        where, label = (index[0], slice(None), *index[1:]), int(labels[index])
        if label != ignore:
            total -= (matrix[label] * np.log(prob[where])).sum()
            grad[where] = prob[where] * matrix[label].sum() - matrix[label]
    return total, grad


@pytest.mark.parametrize("source", ["file", "bottom"])
@pytest.mark.parametrize(("mode", "divisor"), [("VALID", None), ("FULL", 8), ("BATCH_SIZE", 2), ("NONE", 1)])
def test_infogain(run_layer, tmp_path, source, mode, divisor):
    scores, labels = RNG.standard_normal((2, 3, 4)), RNG.integers(0, 3, (2, 4)) * 1.0
    matrix = RNG.uniform(0, 1, (3, 3)).astype(np.float32)
    settings, bottoms = f"loss_param {{ ignore_label: 1 normalization: {mode} }}", [matrix[None, None]]
    if source == "file":
        path = tmp_path / "h.binaryproto"
        write_binaryproto(path, matrix)
        settings, bottoms = settings + f' infogain_loss_param {{ source: "{path}" }}', []
    loss, grad = backward(run_layer, "InfogainLoss", settings, scores, labels, *bottoms, tops=2)
    total, expected = slow_infogain(scores, labels, matrix, 1)
    divisor = divisor or max(1, (labels != 1).sum())
    assert loss == pytest.approx(total / divisor, rel=1e-5)
    np.testing.assert_allclose(grad, expected / divisor, atol=1e-6)


def test_infogain_along_another_axis(run_layer):
    scores, labels = RNG.standard_normal((2, 4, 3)), RNG.integers(0, 3, (2, 4)) * 1.0
    bottoms = (labels, np.eye(3))
    loss, _ = backward(run_layer, "InfogainLoss", "infogain_loss_param { axis: -1 }", scores, *bottoms)
    assert loss == pytest.approx(slow_infogain(scores.transpose(0, 2, 1), labels, np.eye(3), None)[0] / 8, rel=1e-5)


@pytest.mark.parametrize(("setting", "mode"), [
    ("", "BATCH_SIZE"), ("normalize: true", "VALID"), ("normalize: false", "BATCH_SIZE"),
    *((f"normalization: {mode}", mode) for mode in ("FULL", "VALID", "BATCH_SIZE", "NONE")),
])  # fmt: skip
@pytest.mark.parametrize("ignore", [None, -1])
def test_sigmoid_cross_entropy(run_layer, setting, mode, ignore):
    scores, targets = RNG.standard_normal((4, 2, 3)) * 4, RNG.uniform(0, 1, (4, 2, 3)).round(1)
    scores[0, 0, :2] = 0, -200
    if ignore is not None:
        targets[1:3, :, 1] = ignore
        setting += f" ignore_label: {ignore}"
    counted = np.ones(targets.shape) if ignore is None else targets != ignore
    each = np.maximum(scores, 0) - scores * targets + np.log1p(np.exp(-np.abs(scores)))
    divisor = {"FULL": 24, "VALID": counted.sum(), "BATCH_SIZE": 4, "NONE": 1}[mode]
    loss, grad = backward(run_layer, "SigmoidCrossEntropyLoss", f"loss_param {{ {setting} }}", scores, targets)
    assert loss == pytest.approx((each * counted).sum() / divisor, rel=1e-5)
    np.testing.assert_allclose(grad, (1 / (1 + np.exp(-scores)) - targets) * counted / divisor, atol=1e-6)


@pytest.mark.parametrize("scale", [1, 0])
def test_sigmoid_cross_entropy_with_mncs_weights(run_layer, scale):
    scores, targets, weights = RNG.standard_normal((3, 2, 5))
    targets, weights = targets > 0, scale * np.abs(weights)
    loss, grad = backward(run_layer, "SigmoidCrossEntropyLoss", "", scores, targets * 1.0, weights)
    each = np.maximum(scores, 0) - scores * targets + np.log1p(np.exp(-np.abs(scores)))
    divisor = weights.sum() or 1
    assert loss == pytest.approx((each * weights).sum() / divisor, rel=1e-5)
    np.testing.assert_allclose(grad, (1 / (1 + np.exp(-scores)) - targets) * weights / divisor, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "message"),
    [
        ("MultinomialLogisticLoss", "", [(2, 3), (3,)], "differ in rows"),
        ("HingeLoss", "", [(2, 3), (2, 2)], "4 labels for 2 predictions"),
        ("InfogainLoss", "", [(2, 3), (2,)], "must be a file or the third bottom"),
        ("InfogainLoss", 'infogain_loss_param { source: "none" }', [(2, 3), (2,)], "none: there is no such file"),
        ("InfogainLoss", "", [(2, 3), (2,), (2, 2)], r"shape \(2, 2\) for 3 classes"),
        ("InfogainLoss", "loss_param { normalize: true }", [(2, 3), (2,), (3, 3)], "not supported by the InfogainLoss"),
        ("SigmoidCrossEntropyLoss", "", [(2, 3), (2, 4)], "differ in size"),
        ("SigmoidCrossEntropyLoss", "loss_param { normalization: NONE }", [(2,)] * 3, "divided by the sum"),
        ("SigmoidCrossEntropyLoss", "loss_param { normalization: PRE_FIXED }", [(2,)] * 2, "does not exist"),
    ],
)
def test_what_does_not_fit(run_layer, kind, settings, bottoms, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, *(np.zeros(shape) for shape in bottoms))


@pytest.mark.parametrize("kind", ["MultinomialLogisticLoss", "HingeLoss"])
def test_a_label_that_is_no_class(run_layer, kind):
    with pytest.raises(PortError, match="label 3 in a net of 3 classes"):
        run_layer(kind, "", np.zeros((2, 3)), [0, 3])


def test_targets_that_want_a_gradient(run_layer):
    with pytest.raises(PortError, match="cannot pass a gradient"):
        run_layer("SigmoidCrossEntropyLoss", "", torch.zeros(2, 3), torch.zeros(2, 3, requires_grad=True))
