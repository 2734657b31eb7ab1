import math

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net

RNG = np.random.default_rng(0)


def test_losses_of_every_roi(run_layer):
    scores = RNG.standard_normal((5, 3)).astype(np.float32)
    labels = np.array([0, 2, -1, 1, 1], np.float32)
    setting = "loss_weight: [1, 0, 0] loss_param { ignore_label: -1 }"
    x = torch.tensor(scores, requires_grad=True)
    loss, prob, losses = run_layer("SoftmaxWithLossOHEM", setting, x, labels, tops=3)
    expected = [-math.log(p[int(label)]) if label >= 0 else 0 for p, label in zip(prob.tolist(), labels, strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert loss.item() == pytest.approx(sum(expected) / 4, rel=1e-6)
    assert not losses.requires_grad
    loss.backward()
    onehot = np.eye(3)[labels.astype(int)] * (labels >= 0)[:, None]
    slopes = prob.detach().numpy() * (labels >= 0)[:, None] - onehot
    np.testing.assert_allclose(x.grad, slopes / 4, atol=1e-6)


def test_pre_fixed_softmax(run_layer):
    """Intel's fork."""
    setting = "loss_param { normalization: PRE_FIXED pre_fixed_normalizer: 8 }"
    (loss,) = run_layer("SoftmaxWithLossOHEM", setting, np.zeros((4, 2)), np.zeros(4))
    assert loss.item() == pytest.approx(4 * math.log(2) / 8, rel=1e-6)


def test_loss_weights_have_to_be_given(run_layer):
    with pytest.raises(PortError, match="once for each of its 3 tops") as caught:
        run_layer("SoftmaxWithLossOHEM", "", np.zeros((4, 2)), np.zeros(4), tops=3)
    assert caught.value.field == "loss_weight"


def slow_smooth_l1(prediction, target, weights):
    """Loss of every value, and the gradient that leaves the weights out."""
    d = weights * (prediction - target)
    return np.where(np.abs(d) < 1, 0.5 * d * d, np.abs(d) - 0.5), np.clip(d, -1, 1)


@pytest.mark.parametrize(
    ("setting", "normalizer"),
    [
        ("", 12),
        ("normalization: VALID", 12),
        ("normalization: FULL", 12),
        ("normalization: BATCH_SIZE", 3),
        ("normalize: false", 3),
        ("normalization: NONE", 1),
        ("normalization: PRE_FIXED pre_fixed_normalizer: 24", 24),
        ("normalization: PRE_FIXED pre_fixed_normalizer: 0.5", 1),
    ],
)
@pytest.mark.parametrize("weighted", [False, True])
def test_smooth_l1(run_layer, setting, normalizer, weighted):
    prediction, target = RNG.standard_normal((2, 3, 8, 2, 2)) * 2
    weights = RNG.uniform(0, 2, (3, 8, 2, 2)) if weighted else np.ones((3, 8, 2, 2))
    x, t = (torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (prediction, target))
    setting = f"loss_weight: [1, 0] loss_param {{ {setting} }}"
    loss, each = run_layer("SmoothL1LossOHEM", setting, x, t, *([weights] if weighted else []), tops=2)
    values, slopes = slow_smooth_l1(prediction, target, weights)
    assert loss.item() == pytest.approx(values.sum() / normalizer, rel=1e-5)
    np.testing.assert_allclose(each, values.sum(1, keepdims=True), rtol=1e-5)
    loss.backward()
    np.testing.assert_allclose(x.grad, slopes / normalizer, atol=1e-6)
    np.testing.assert_allclose(t.grad, -slopes / normalizer, atol=1e-6)


def test_losses_of_rows_have_four_axes(run_layer):
    _, each = run_layer("SmoothL1LossOHEM", "", np.ones((5, 4)), np.zeros((5, 4)), tops=2)
    assert each.shape == (5, 1, 1, 1)
    assert each.flatten().tolist() == [2] * 5


def test_sizes_that_do_not_fit(run_layer):
    with pytest.raises(PortError, match="differ in size"):
        run_layer("SmoothL1LossOHEM", "", np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(PortError, match="at most four axes"):
        run_layer("SmoothL1LossOHEM", "", np.zeros((2, 3, 1, 1, 1)), np.zeros((2, 3, 1, 1, 1)))


@pytest.mark.parametrize(("weight", "total"), [("", 0), ("loss_weight: 3", 1.5)])
def test_no_loss_without_a_weight(weight, total):
    layers = 'layer { name: "d" type: "Input" top: "x" top: "t" input_param { shape { dim: 2 dim: 1 } } }'
    layers += f'layer {{ name: "l" type: "SmoothL1LossOHEM" bottom: "x" bottom: "t" top: "loss" {weight} }}'
    net = Net(prototxt.parse_net("force_backward: true " + layers))
    net(x=np.ones((2, 1)), t=np.zeros((2, 1)))
    assert net.loss.item() == total
    assert net.blobs["loss"].item() == 0.5


def annotate(run_layer, rois, loss, labels, weights, setting):
    return run_layer(
        "BoxAnnotatorOHEM", f"box_annotator_ohem_param {{ {setting} }}", rois, loss, labels, weights, tops=2
    )


@pytest.mark.parametrize("shape", [(), (1, 1)])
def test_annotator(run_layer, shape):
    image = np.array([0, 0, 0, 1, 1, 0])
    loss = np.array([5, 1, 3, 2, 4, 6])
    labels = np.array([1, 2, 3, 4, 0, 6])
    rois = np.hstack([image[:, None], np.zeros((6, 4))]).reshape(6, 5, *shape)
    weights = RNG.uniform(1, 2, (6, 8, *shape))
    columns = (loss.reshape(6, 1, *shape), labels.reshape(6, 1, *shape))
    hard_labels, hard_weights = annotate(run_layer, rois, *columns, weights, "roi_per_img: 2")
    assert hard_labels.shape == (6, 1, 1, 1)
    assert hard_labels.flatten().tolist() == [1, -1, -1, 4, 0, 6]
    kept = np.array([1, 0, 0, 1, 1, 1])[:, None]
    np.testing.assert_allclose(hard_weights.flatten(1), weights.reshape(6, 8) * kept, rtol=1e-6)


def test_annotator_on_maps(run_layer):
    """Every place is a RoI of its own."""
    loss = np.arange(8.0).reshape(2, 1, 2, 2)
    rois = np.zeros((2, 5, 2, 2))
    rois[1, 0] = 1
    labels, weights = annotate(run_layer, rois, loss, loss, np.ones((2, 3, 2, 2)), "roi_per_img: 1 ignore_label: 255")
    assert labels.flatten().tolist() == [255, 255, 255, 3, 255, 255, 255, 7]
    assert weights.sum((1, 2, 3)).tolist() == [3, 3]


@pytest.mark.parametrize(
    ("shapes", "setting", "message"),
    [
        ([(4, 5), (4, 1), (4, 1), (3, 8)], "roi_per_img: 1", "takes rois"),
        ([(4, 4), (4, 1), (4, 1), (4, 8)], "roi_per_img: 1", "takes rois"),
        ([(4, 5), (4, 2), (4, 1), (4, 8)], "roi_per_img: 1", "takes rois"),
        ([(4, 5), (4, 1), (4, 1), (4, 8)], "roi_per_img: 0", "must be positive"),
        ([(0, 5), (0, 1), (0, 1), (0, 8)], "roi_per_img: 1", "no RoI names an image"),
    ],
)
def test_annotator_with_bad_input(run_layer, shapes, setting, message):
    with pytest.raises(PortError, match=message):
        annotate(run_layer, *(np.zeros(shape) for shape in shapes), setting)
