"""Focal losses of the Caffe forks against slow loops in double precision, fork by fork."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

RNG = np.random.default_rng(5)
SCORES = (RNG.standard_normal((3, 4, 5)) * 2).astype(np.float32)
LABELS = RNG.integers(0, 4, (3, 5)).astype(np.float32)
LABELS[0, 2] = 255
BINARY = RNG.integers(0, 2, SCORES.shape).astype(np.float32)
BINARY[1, :, 3] = -1
IGNORE = "loss_param { ignore_label: 255 normalization: NONE }"


def backward(run_layer, kind, settings, scores, labels, **options):
    x = torch.tensor(scores, requires_grad=True)
    tops = run_layer(kind, settings, x, labels, **options)
    tops[0].backward()
    return tops, x.grad.numpy()


def softmax(x, axis):
    e = np.exp(x.astype(np.float64) - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def slow_softmax(scores, labels, weight, gamma, ignore=255, base=1, sign=-1):
    """Sum of ``-weight[label] (base + sign p)^gamma log(p)`` over axis 1, and ``g (p - onehot)``."""
    prob, total, grad = softmax(scores, 1), 0.0, np.zeros(scores.shape)
    for n, s in np.ndindex(*labels.shape):
        label = int(labels[n, s])
        if label == ignore:
            continue
        p = prob[n, label, s]
        power = weight[label] * (base + sign * p) ** gamma
        total -= power * math.log(p)
        slope = power + sign * gamma * power / (1 + sign * p) * p * math.log(p)
        grad[n, :, s] = slope * prob[n, :, s]
        grad[n, label, s] -= slope
    return total, grad


@pytest.mark.parametrize(("kind", "settings", "alpha", "gamma"), [
    ("FocalLoss", "", 0.25, 2),
    ("FocalLoss", "focal_loss_param { type: ORIGIN alpha: 0.5 gamma: 1.5 beta: 3 }", 0.5, 1.5),  # zimenglan
    ("FocalLoss", "focal_loss_param { gama: 3 }", 0.75, 3),  # zimenglan, first day
    ("FocalLoss", "focal_loss_param { alpha: 2 gamma: 0 axis: 1 }", 2, 0),  # chuanqi305
    ("FocalLoss", "focal_loss_param { activate: SOFTMAX }", 0.25, 2),  # troyliu0105
    ("FocalLoss", "focal_loss_param { alpha_balance: false alpha: 7 }", 1, 2),  # owphoo
    ("SoftmaxFocalLoss", "focal_loss_param { gamma: 2 alpha: 0.3 }", 0.3, 2),
    ("SoftmaxWithFocalLoss", "focal_loss_param { gamma: 2.5 }", 1, 2.5),  # pietermessely
])  # fmt: skip
def test_softmax_forks(run_layer, kind, settings, alpha, gamma):
    tops, grad = backward(run_layer, kind, settings + IGNORE, SCORES, LABELS, tops=2)
    total, expected = slow_softmax(SCORES, LABELS, [alpha] * 4, gamma)
    assert tops[0].item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(grad, expected, atol=1e-5)
    np.testing.assert_allclose(tops[1], softmax(SCORES, 1), rtol=1e-5)


def test_a_weight_for_every_class(run_layer):
    text = "focal_loss_param { alpha_balance: true gamma: 2 alpha: 0.5 alpha: 1 alpha: 2 alpha: 0.1 }"
    (loss,), grad = backward(run_layer, "FocalLoss", text + IGNORE, SCORES, LABELS)
    total, expected = slow_softmax(SCORES, LABELS, [0.5, 1, 2, 0.1], 2)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(grad, expected, atol=1e-5)


@pytest.mark.parametrize(("alpha", "text"), [(1, ""), (0.5, "alpha: 0.5")])
def test_one_add_p(run_layer, alpha, text):
    """caffe-windows: alpha stands in the place of the 1, and its gradient is only for 1 the derivative."""
    settings = f"focal_loss_param {{ type: ONEADDP gamma: 2 {text} }}"
    (loss,), grad = backward(run_layer, "FocalLoss", settings + IGNORE, SCORES, LABELS)
    total, expected = slow_softmax(SCORES, LABELS, [1] * 4, 2, base=alpha, sign=1)
    assert loss.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(grad, expected, atol=1e-5)


@pytest.mark.parametrize("positions", [1, 5])
def test_softmax_with_focal_loss(run_layer, positions):
    """Its second term, and its question whether a class is the label, as the fork has them."""
    scores, labels = SCORES[:, :, :positions], LABELS[:, :positions]
    text = "softmax_focal_loss_param { alpha: 0.5 gamma: 3 }" + IGNORE
    (loss,), grad = backward(run_layer, "SoftmaxWithFocalLoss", text, scores, labels)
    prob, total, expected = softmax(scores, 1), 0.0, np.zeros(scores.shape)
    for n, s in np.ndindex(*labels.shape):
        label = int(labels[n, s])
        if label == 255:
            continue
        p = prob[n, label, s]
        scale, entropy = 0.5 * (1 - p) ** 3, -math.log(p)
        total += scale * entropy
        for c in range(4):
            q = prob[n, c, s]
            second = -scale * 3 * p if label == c * positions + s else 0.5 * 3 * (1 - q) ** 2 * p * q
            expected[n, c, s] = scale * (q - (c == label)) + second * entropy
    assert loss.item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(grad, expected, atol=1e-5)


def slow_sigmoid(scores, labels, positive_alpha, negative_alpha, gamma, ignore=-1):
    prob, total, grad = 1 / (1 + np.exp(-scores.astype(np.float64))), 0.0, np.zeros(scores.shape)
    for index in np.ndindex(*scores.shape):
        if labels[index] == ignore:
            continue
        sign = 1 if labels[index] else -1
        p = prob[index] if labels[index] else 1 - prob[index]
        weight = positive_alpha if labels[index] else negative_alpha
        total -= weight * (1 - p) ** gamma * math.log(p)
        grad[index] = sign * weight * (1 - p) ** gamma * (gamma * p * math.log(p) + p - 1)
    return total, grad


@pytest.mark.parametrize(("kind", "settings", "weights", "gamma"), [
    ("FocalLoss", "focal_loss_param { alpha: 0.25 gamma: 2 }", (0.25, 0.75), 2),  # GuohongWu
    ("FocalLoss", "focal_loss_param { activate: SIGMOID alpha: 0.4 }", (0.4, 0.6), 2),  # troyliu0105
    ("FocalLoss", "focal_loss_param { mode: FULL gamma: 1 }", (0.25, 0.75), 1),
    ("FocalLoss", "focal_loss_param { alpha_balance: true alpha: 0.25 alpha: 0.25 }", (0.25, 0.25), 2),  # sciencefans
    ("SigmoidFocalLoss", "focal_loss_param { }", (0.25, 0.75), 2),
    ("SigmoidFocalLoss", "SEGNET gamma: 1.5", (1, 1), 1.5),
    ("SigmoidFocalLoss", "SEGNET weight_by_label_freqs: true class_weighting: 0.5 class_weighting: 3", (3, 0.5), 2),
])  # fmt: skip
def test_sigmoid_forks(run_layer, kind, settings, weights, gamma):
    more = settings.removeprefix("SEGNET") if settings.startswith("SEGNET") else ""
    settings = "" if more else settings
    settings += f" loss_param {{ ignore_label: -1 normalization: NONE {more} }}"
    tops, grad = backward(run_layer, kind, settings, SCORES, BINARY, tops=2)
    total, expected = slow_sigmoid(SCORES, BINARY, *weights, gamma)
    assert tops[0].item() == pytest.approx(total, rel=1e-5)
    np.testing.assert_allclose(grad, expected, atol=1e-5)
    np.testing.assert_allclose(tops[1], 1 / (1 + np.exp(-SCORES)), rtol=1e-5)


@pytest.mark.parametrize("setting", ["mode: REDUCTION", "type: LINEAR"])
def test_star(run_layer, setting):
    text = f"focal_loss_param {{ {setting} gamma: 2 beta: 1 }} loss_param {{ ignore_label: -1 normalization: NONE }}"
    (loss,), grad = backward(run_layer, "FocalLoss", text, SCORES, BINARY)
    sign = np.where(BINARY > 0, 1, -1)
    right = 1 / (1 + np.exp(-(2 * SCORES.astype(np.float64) * sign + 1)))
    counted = BINARY != -1
    assert loss.item() == pytest.approx(-(np.log(right) / 2)[counted].sum(), rel=1e-5)
    np.testing.assert_allclose(grad, (right - 1) * sign * counted, atol=1e-6)


def test_tfzhous_gradient_of_negatives(run_layer):
    text = "loss_param { ignore_label: -1 normalization: NONE }"
    (loss,), grad = backward(run_layer, "SigmoidFocalLoss", text, SCORES, BINARY)
    assert loss.item() == pytest.approx(slow_sigmoid(SCORES, BINARY, 0.25, 0.75, 2)[0], rel=1e-5)
    p = 1 / (1 + np.exp(-SCORES.astype(np.float64)))
    wrong = np.where(BINARY > 0, 1 - p, p)
    np.testing.assert_allclose(grad, 0.25 * wrong**2 * (2 * p * np.log(p) + p - 1) * (BINARY != -1), atol=1e-6)


@pytest.mark.parametrize(("kind", "settings", "labels", "divisor"), [
    ("FocalLoss", "", LABELS, 14),
    ("FocalLoss", "loss_param { normalize: false ignore_label: 255 }", LABELS, 3),
    ("FocalLoss", "loss_param { normalization: FULL normalize: true ignore_label: 255 }", LABELS, 15),
    ("FocalLoss", "focal_loss_param { valid_is_positive: true }", LABELS, int((LABELS % 255 > 0).sum())),
    ("FocalLoss", "", BINARY, 3),
    ("FocalLoss", "focal_loss_param { activate: SIGMOID }", BINARY, int((BINARY >= 0).sum())),
    ("FocalLoss", "focal_loss_param { mode: FULL }", BINARY, 100),
    ("FocalLoss", "focal_loss_param { valid_is_positive: true } loss_param { normalization: VALID ignore_label: -1 }",
     BINARY, int((BINARY > 0).sum())),
    ("SigmoidFocalLoss", "focal_loss_param { }", BINARY, 3),
])  # fmt: skip
def test_normalization(run_layer, kind, settings, labels, divisor):
    ignore = 255 if labels is LABELS else -1
    if "loss_param { n" not in settings:
        settings += f" loss_param {{ ignore_label: {ignore} }}"
    (loss,), _ = backward(run_layer, kind, settings, SCORES, labels)
    slow = (
        slow_softmax(SCORES, labels, [0.25] * 4, 2) if labels is LABELS else slow_sigmoid(SCORES, labels, 0.25, 0.75, 2)
    )
    assert loss.item() == pytest.approx(slow[0] / divisor, rel=1e-5)


def test_one_score_a_row_is_a_sigmoid(run_layer):
    scores, labels = SCORES[:, :1, 0], BINARY[:, :1, 0]
    (loss,), _ = backward(run_layer, "FocalLoss", "focal_loss_param { alpha: 0.25 }", scores, labels)
    assert loss.item() == pytest.approx(slow_sigmoid(scores, labels, 0.25, 0.75, 2)[0] / 3, rel=1e-5)


@pytest.mark.parametrize("kind", ["FocalLoss", "SoftmaxFocalLoss", "SoftmaxWithFocalLoss"])
def test_no_rows(run_layer, kind):
    (loss,), grad = backward(run_layer, kind, "", SCORES[:0], LABELS[:0])
    assert loss == 0
    assert grad.shape == (0, 4, 5)


def test_warnings(build):
    text = """layer {{ name: "d" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 3 }} }} }}
        layer {{ name: "y" type: "Input" top: "y" input_param {{ shape {{ {dims} }} }} }}
        layer {{ name: "it" type: "{kind}" bottom: "x" bottom: "y" top: "l" {settings} }}"""
    for kind, dims, settings, word in (
        ("FocalLoss", "dim: 2", "focal_loss_param { type: LINEAR }", "type LINEAR changes nothing"),
        ("SoftmaxWithFocalLoss", "dim: 2", "", "its gradient is its fork's"),
        ("SigmoidFocalLoss", "dim: 2 dim: 3", "", "its gradient of negatives is its fork's"),
        ("FocalLoss", "dim: 2 dim: 3", "", "sciencefans' fork has alpha"),
    ):
        warnings = build(text.format(kind=kind, dims=dims, settings=settings)).warnings
        assert any(word in warning for warning in warnings), warnings


@pytest.mark.parametrize(("kind", "settings", "labels", "message", "field"), [
    ("FocalLoss", "focal_loss_param { gamma: -1 }", LABELS, "must be finite and not", "focal_loss_param.gamma"),
    ("FocalLoss", "focal_loss_param { gamma: nan }", LABELS, "must be finite and not", "focal_loss_param.gamma"),
    ("FocalLoss", "focal_loss_param { alpha: 0 }", LABELS, "must be positive", "focal_loss_param.alpha"),
    ("FocalLoss", "focal_loss_param { alpha: inf }", LABELS, "must be positive and finite", "focal_loss_param.alpha"),
    ("FocalLoss", "focal_loss_param { gamma: 1 gama: 2 }", LABELS, "gama 2 and gamma 1", "focal_loss_param.gamma"),
    ("FocalLoss", "focal_loss_param { alpha: 1 alpha: 2 }", LABELS, "2 given", "focal_loss_param.alpha"),
    ("FocalLoss", "focal_loss_param { alpha_balance: true alpha: 1 }", LABELS, "1 for 4 classes",
     "focal_loss_param.alpha"),
    ("FocalLoss", "focal_loss_param { axis: 3 }", LABELS, "axis 3 of a blob with 3 axes", None),
    ("FocalLoss", "focal_loss_param { axis: 1 } softmax_param { axis: 2 }", LABELS, "axis 1, but softmax_param.axis 2",
     "focal_loss_param.axis"),
    ("FocalLoss", "focal_loss_param { type: ONEADDP }", BINARY, "of softmax scores", "focal_loss_param.type"),
    ("FocalLoss", "focal_loss_param { mode: REDUCTION gamma: 0 }", BINARY, "positive for FL", "focal_loss_param.gamma"),
    ("FocalLoss", "", LABELS[:, :3], "9 labels for 15 predictions", None),
    ("FocalLoss", "focal_loss_param { activate: SIGMOID }", LABELS, "bottoms differ in size", None),
    ("FocalLoss", "", LABELS + 4, "label", None),
    ("SigmoidFocalLoss", "loss_param { weight_by_label_freqs: true }", BINARY, "0 weights for 2 classes",
     "loss_param.class_weighting"),
    ("SigmoidFocalLoss", "loss_param { gamma: -2 }", BINARY, "must be finite and not", "loss_param.gamma"),
])  # fmt: skip
def test_bad_input(run_layer, kind, settings, labels, message, field):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, settings, SCORES, labels)
    assert caught.value.layer == "it"
    assert field is None or caught.value.field == field


INPUTS = """layer { name: "in" type: "Input" top: "score" top: "label"
    input_param { shape { dim: 4 dim: 3 } shape { LABEL } } }
layer { name: "ip" type: "InnerProduct" bottom: "score" top: "x" inner_product_param { num_output: 3 } }
"""
# the layers that the forks' pages show, on blobs of these names
EXAMPLES = {
    "zimenglan": """layer { name: "loss_cls" type: "FocalLoss" bottom: "x" bottom: "label" propagate_down: 1
        propagate_down: 0 top: "loss_cls" include { phase: TRAIN } loss_weight: 1
        loss_param { ignore_label: -1 normalize: true } focal_loss_param { alpha: 0.25 gamma: 2 } }""",
    "zimenglan, earlier": """layer { name: "loss" type: "SoftmaxFocalLoss" bottom: "x" bottom: "label"
        loss_param { ignore_label: -1 normalize: true } focal_loss_param { alpha: 0.25 gamma: 2 } }""",
    "liaomingg": """layer { name: "focal_loss" type: "FocalLoss" bottom: "x" bottom: "label" top: "loss"
        include { phase: TRAIN } loss_param { ignore_label: 255 } focal_loss_param { alpha: 0.25 gamma: 2.00 } }""",
    "libcaffe": """layer { name: "focal_loss" type: "SoftmaxWithFocalLoss" bottom: "x" bottom: "label"
        top: "focal_loss" softmax_focal_loss_param { alpha: 1 gamma: 1 } }""",
    "owphoo": """layer { name: "loss" type: "FocalLoss" bottom: "x" bottom: "label" top: "loss" include { phase: TRAIN }
        focal_loss_param { alpha_balance: true gamma: 2 alpha: 0.5 #background
        alpha: 1 alpha: 1 } }""",
    "sciencefans": """layer { name: "loss_focal" type: "FocalLoss" bottom: "x" bottom: "label" top: "loss_focal"
        loss_weight: 10 loss_param{ normalize: true normalization: FULL } }""",
    "GHM_Loss-caffe": """layer { name: "ghmcloss" type: "GhmcLoss" bottom: "x" bottom: "label" top: "ghmcloss"
        loss_weight: 1 ghmc_loss_param { m: 30 alpha: 0.2 } }""",
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_published_examples(build, name):
    binary = name == "sciencefans"
    net = build(INPUTS.replace("LABEL", "dim: 4 dim: 3" if binary else "dim: 4") + EXAMPLES[name])
    labels = np.zeros((4, 3)) if binary else np.array([0, 2, 1, 0])
    net(score=RNG.standard_normal((4, 3)), label=labels)
    net.backward()
    assert net.loss > 0
    assert net.params["ip"][1].grad.abs().sum() > 0
