import math

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer
from ohem_caffe_port.net import Net

RNG = np.random.default_rng(0)
SHAPES = [(6, 5), (2, 5, 3, 4)]


def slow_softmax_loss(scores, labels, normalization="VALID", ignore=None, weights=None, factors=None, target=None):
    """Loss and gradient, with classes on axis 1, in double precision.

    ``factors`` multiply a class, ``target(prob, label)`` is the gradient of one position.
    """
    prob = np.exp(scores - scores.max(1, keepdims=True))
    prob /= prob.sum(1, keepdims=True)
    grad, total, valid = np.zeros_like(prob), 0.0, 0.0
    for index in np.ndindex(*labels.shape):
        label = int(labels[index])
        if label == ignore:
            continue
        where = (index[0], slice(None), *index[1:])
        weight = 1 if weights is None else weights[index]
        valid += weight
        weight *= 1 if factors is None else factors[label]
        total -= weight * math.log(max(prob[where][label], np.finfo(np.float32).tiny))
        slope = prob[where] - np.eye(prob.shape[1])[label] if target is None else target(prob[where], label)
        grad[where] = weight * slope
    counts = {"FULL": labels.size, "VALID": valid, "BATCH_SIZE": len(labels), "NONE": 1}
    n = max(1, counts[normalization])
    return total / n, grad / n


def scores_and_labels(shape):
    return RNG.standard_normal(shape).astype(np.float32) * 3, RNG.integers(0, 5, (shape[0], *shape[2:])) * 1.0


def compare(run_layer, settings, scores, labels, weights=None, **reference):
    x = torch.tensor(scores, requires_grad=True)
    bottoms = (labels,) if weights is None else (labels, weights)
    loss, prob = run_layer("SoftmaxWithLoss", settings, x, *bottoms, tops=2)
    loss.backward()
    expected, gradient = slow_softmax_loss(scores.astype(float), labels, weights=weights, **reference)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(x.grad.numpy(), gradient, atol=1e-6)
    torch.testing.assert_close(prob, torch.softmax(x, 1))


@pytest.mark.parametrize("normalization", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("ignore", [None, 2, -1])
def test_softmax_with_loss(run_layer, normalization, shape, ignore):
    scores, labels = scores_and_labels(shape)
    if ignore == -1:
        labels[0] = -1
    setting = f"normalization: {normalization} " + ("" if ignore is None else f"ignore_label: {ignore}")
    compare(run_layer, f"loss_param {{ {setting} }}", scores, labels, normalization=normalization, ignore=ignore)


@pytest.mark.parametrize("normalization", ["FULL", "VALID", "BATCH_SIZE", "NONE"])
@pytest.mark.parametrize("shape", SHAPES)
def test_weights_for_the_labels(run_layer, normalization, shape):
    """caffe-windows' third bottom; VALID divides by the sum of the weights."""
    scores, labels = scores_and_labels(shape)
    weights = RNG.uniform(0, 2, labels.shape).astype(np.float32)
    weights.flat[1] = 0
    setting = f"loss_param {{ ignore_label: 2 normalization: {normalization} }}"
    compare(run_layer, setting, scores, labels, weights, normalization=normalization, ignore=2)


def test_segnets_class_weighting(run_layer):
    scores, labels = scores_and_labels((2, 5, 3, 4))
    factors = [0.5, 2, 1, 0, 1.5]
    setting = "weight_by_label_freqs: true ignore_label: 1 " + "".join(f"class_weighting: {f} " for f in factors)
    compare(run_layer, f"loss_param {{ {setting} }}", scores, labels, ignore=1, factors=factors)


@pytest.mark.parametrize("shape", SHAPES)
def test_label_smoothing(run_layer, shape):
    """It changes the gradient alone: NVIDIA's layer, and Intel's where there are weights."""
    scores, labels = scores_and_labels(shape)
    row, s = math.prod(shape[1:]), 0.2

    def nvidia(prob, label):
        return prob - s / (row - 1) - (1 - s) * (np.arange(5) == label)

    def intel(prob, label):
        target = np.where(np.arange(5) == label, 1 - s, s / row)
        return prob * (1 - s + (row - 1) * s / row) - target

    setting = f"loss_param {{ label_smoothing: {s} ignore_label: 3 }}"
    compare(run_layer, setting, scores, labels, ignore=3, target=nvidia)
    compare(run_layer, setting, scores, labels, np.ones(labels.shape), ignore=3, target=intel)


def test_the_loss_of_every_position(run_layer):
    """The third top of caffe-rfcn and cascade-rcnn, in the labels' shape."""
    scores, labels = scores_and_labels((2, 5, 3, 4))
    loss, _, each = run_layer("SoftmaxWithLoss", "loss_param { ignore_label: 2 }", scores, labels[:, None], tops=3)
    assert each.shape == (2, 1, 3, 4)
    assert not each[torch.tensor(labels[:, None]) == 2].any()
    assert each.sum().item() / (labels != 2).sum() == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.parametrize(("setting", "meant"), [("normalize: true", "VALID"), ("normalize: false", "BATCH_SIZE")])
def test_the_older_normalize(run_layer, setting, meant):
    scores, labels = RNG.standard_normal((2, 3, 4)), RNG.integers(0, 3, (2, 4)).astype(np.float32)
    (loss,) = run_layer("SoftmaxWithLoss", f"loss_param {{ ignore_label: 0 {setting} }}", scores, labels)
    assert loss.item() == pytest.approx(slow_softmax_loss(scores, labels, meant, 0)[0], rel=1e-5)


def test_the_batch_is_all_axes_before_the_softmax_axis(run_layer):
    scores, labels = RNG.standard_normal((2, 3, 4)), RNG.integers(0, 4, (2, 3)).astype(np.float32)
    setting = "softmax_param { axis: 2 } loss_param { normalization: BATCH_SIZE }"
    (loss,) = run_layer("SoftmaxWithLoss", setting, scores, labels)
    expected, _ = slow_softmax_loss(scores.reshape(6, 4), labels.reshape(6), "BATCH_SIZE")
    assert loss.item() == pytest.approx(expected, rel=1e-5)


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


@pytest.mark.parametrize(
    ("settings", "bottoms", "message"),
    [
        ("", [(2, 3), (3,)], "differ in rows"),
        ("", [(2, 3, 2), (2, 3)], "6 labels for 4 predictions"),
        ("", [(2, 3), (2,), (3,)], "3 weights for 2 labels"),
        ("loss_param { normalization: PRE_FIXED }", [(2, 3), (2,)], "normalisation does not exist"),
        ("loss_param { weight_by_label_freqs: true class_weighting: 1 }", [(2, 3), (2,)], "1 weights for 3 classes"),
        ("softmax_param { axis: 2 }", [(2, 3), (2,)], "axis 2 of a blob with 2 axes"),
    ],
)
def test_what_does_not_fit(run_layer, settings, bottoms, message):
    with pytest.raises(PortError, match=message):
        run_layer("SoftmaxWithLoss", settings, *(np.zeros(shape) for shape in bottoms))


def test_labels_that_want_a_gradient(run_layer):
    with pytest.raises(PortError, match="cannot pass a gradient to its labels"):
        run_layer("SoftmaxWithLoss", "", torch.zeros(2, 3), torch.zeros(2, requires_grad=True))


@pytest.mark.parametrize(
    ("kind", "reached"),
    [
        ("SoftmaxWithLoss", "10"), ("MultinomialLogisticLoss", "10"), ("HingeLoss", "10"), ("InfogainLoss", "100"),
        ("SigmoidCrossEntropyLoss", "100"), ("ContrastiveLoss", "1100"), ("TripletLoss", "111"), ("CenterLoss", "10"),
        ("SmoothL1Loss", "1100"), ("EuclideanLoss", "110"), ("L1Loss", "11"), ("BatchReindex", "10"), ("Crop", "10"),
        ("Filter", "110"),
    ],
)  # fmt: skip
def test_bottoms_that_force_backward_reaches(kind, reached):
    bottoms = "".join(f'bottom: "{i}" ' for i in range(len(reached)))
    layer = create_layer(prototxt.parse_net(f'layer {{ name: "it" type: "{kind}" {bottoms} }}').layer[0], Context())
    assert "".join(str(int(layer.allow_force_backward(i))) for i in range(len(reached))) == reached


def test_force_backward_and_a_loss_beside_an_accuracy():
    net = Net(
        prototxt.parse_net("""
        force_backward: true
        layer { name: "in" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 } shape { dim: 2 } } }
        layer { name: "loss" type: "SoftmaxWithLoss" bottom: "x" bottom: "y" top: "loss" loss_weight: 3 }
        layer { name: "acc" type: "Accuracy" bottom: "x" bottom: "y" top: "acc" }""")
    )
    net(x=np.zeros((2, 3)), y=np.array([0, 2]))
    net.backward()
    assert net.loss.item() == pytest.approx(3 * math.log(3))
    np.testing.assert_allclose(net.blobs["x"].grad, (np.full((2, 3), 1 / 3) - np.eye(3)[[0, 2]]) * 1.5, rtol=1e-6)
    assert net.blobs["y"].grad is None


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax_axis(run_layer, axis):
    x = RNG.standard_normal((3, 4, 2))
    (out,) = run_layer("Softmax", f"softmax_param {{ axis: {axis} }}", x)
    torch.testing.assert_close(out.sum(axis), torch.ones_like(out.sum(axis)))
    (logarithm,) = run_layer("LogSoftmax", f"log_softmax_param {{ axis: {axis} }}", x)
    torch.testing.assert_close(logarithm.exp(), out)


def test_log_softmax_has_a_least_value(run_layer):
    (out,) = run_layer("LogSoftmax", "", [[0.0, 500.0]])
    assert out[0].tolist() == pytest.approx([math.log(2**-149), 0])


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "refused"),
    [
        ("Embed", "embed_param { num_output: 2 input_dim: 3 }", [(2,)], 0),
        ("BatchReindex", "", [(2, 3), (2,)], 1),
        ("Filter", "", [(2, 3), (2,)], 1),
        ("LSTMUnit", "", [(1, 2, 3), (1, 2, 12), (1, 2)], 2),
        ("ArgMax", "", [(2, 3)], 0),
        ("Threshold", "", [(2, 3)], 0),
        ("Accuracy", "", [(2, 3), (2,)], 0),
    ],
)
def test_bottoms_that_take_no_gradient(run_layer, kind, settings, bottoms, refused):
    """Where Caffe stops in backward."""
    values, tops = [torch.zeros(shape) for shape in bottoms], 1 + (kind == "LSTMUnit")
    run_layer(kind, settings, *values, tops=tops, nominal=True)
    values[refused].requires_grad_()
    with pytest.raises(PortError, match="propagate_down: cannot pass a gradient to its"):
        run_layer(kind, settings, *values, tops=tops, nominal=True)
    with torch.no_grad():
        run_layer(kind, settings, *values, tops=tops, nominal=True)
