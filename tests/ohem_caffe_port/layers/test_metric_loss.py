import math

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer
from ohem_caffe_port.net import Net

RNG = np.random.default_rng(3)


def leaves(*arrays):
    return [torch.tensor(np.asarray(a, np.float32), requires_grad=True) for a in arrays]


def slow_contrastive(a, b, similar, margin, legacy):
    total, grad = 0.0, np.zeros(a.shape)
    for i, d in enumerate(a - b):
        square = (d * d).sum()
        distance = math.sqrt(square)
        if similar[i]:
            total, grad[i] = total + square, d
        elif legacy and margin > square:
            total, grad[i] = total + margin - square, -d
        elif not legacy and margin > distance:
            total += (margin - distance) ** 2
            grad[i] = -(margin - distance) / (distance + 1e-4) * d
    return total / 2 / len(a), grad / len(a)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("marks", ["similarity", "labels"])
def test_contrastive(run_layer, legacy, marks):
    a, b = RNG.standard_normal((2, 8, 3))
    b[:2] = a[:2]  # a distance of 0
    similar = np.array([1, 0] * 4)
    x, y = leaves(a[..., None, None], b[..., None, None])
    labels = [similar] if marks == "similarity" else [similar * 3, np.full(8, 3)]  # caffe-windows: a label for each
    settings = f"contrastive_loss_param {{ margin: 2 legacy_version: {str(legacy).lower()} }}"
    (loss,) = run_layer("ContrastiveLoss", settings, x, y, *labels)
    loss.backward()
    expected, gradient = slow_contrastive(a, b, similar, 2, legacy)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    np.testing.assert_allclose(x.grad[..., 0, 0].numpy(), gradient, atol=1e-6)
    np.testing.assert_allclose(y.grad[..., 0, 0].numpy(), -gradient, atol=1e-6)


def test_triplet(run_layer):
    a, p, n = RNG.standard_normal((3, 6, 4))
    bottoms = leaves(a, p, n)
    (loss,) = run_layer("TripletLoss", "triplet_loss_param { margin: 0.5 }", *bottoms)
    loss.backward()
    gap = 0.5 + ((a - p) ** 2).sum(1) - ((a - n) ** 2).sum(1)
    active = (gap > 0)[:, None] / 6
    assert 0 < active.sum() < 1  # both kinds are there
    assert loss.item() == pytest.approx(np.maximum(gap, 0).mean() / 2, rel=1e-5)
    for bottom, gradient in zip(bottoms, ((n - p), (p - a), (a - n)), strict=True):
        np.testing.assert_allclose(bottom.grad.numpy(), gradient * active, atol=1e-6)


def center_layer(settings, x, labels, centers):
    text = (
        f'layer {{ name: "it" type: "CenterLoss" bottom: "a" bottom: "b" top: "t" center_loss_param {{ {settings} }} }}'
    )
    layer = create_layer(prototxt.parse_net(text).layer[0], Context())
    layer.setup([x.to("meta"), labels.to("meta")])
    assert layer.blob_shapes == [tuple(centers.shape)]
    layer.blobs[0] = torch.nn.Parameter(centers)
    (loss,) = layer([x, labels])
    (0.008 * loss).backward()
    return loss.item(), x.grad, layer.blobs[0].grad


@pytest.mark.parametrize("distance", [None, "L2", "L1"])
def test_center(distance):
    x, labels = torch.randn(5, 2, 1, 2, requires_grad=True), torch.tensor([0.0, 2, 2, 1, 2])
    centers = torch.randn(4, 4)
    settings = "num_output: 4" + (f' distance_type: "{distance}"' if distance else "")
    loss, grad, update = center_layer(settings, x, labels, centers)
    apart = x.detach().double().reshape(5, 4) - centers[labels.long()]
    each = apart.abs() if distance == "L1" else apart**2 / 2
    slope = apart.sign() if distance == "L1" else apart
    assert loss == pytest.approx(each.sum().item() / 5, rel=1e-5)
    torch.testing.assert_close(grad.reshape(5, 4).double(), slope * 0.008 / 5, atol=1e-7, rtol=1e-5)
    expected = torch.zeros(4, 4, dtype=torch.float64)
    for label, n in ((0, 1), (1, 1), (2, 3)):  # no one has class 3
        times = n if distance else 1  # caffe-windows adds it for each row
        expected[label] = -slope[labels == label].sum(0) / (1 + n) * times
    torch.testing.assert_close(update.double(), expected, atol=1e-6, rtol=1e-5)


CENTER_NET = """
    layer {{ name: "in" type: "Input" top: "x" top: "y"
             input_param {{ shape {{ dim: 2 dim: 3 }} shape {{ dim: 2 }} }} }}
    layer {{ name: "center" type: "CenterLoss" bottom: "x" bottom: "y" top: "loss" {}
             center_loss_param {{ num_output: 4 }} }}"""


@pytest.mark.parametrize(("weight", "losses"), [("", set()), ("loss_weight: 0.1", {"loss"})])
def test_center_is_a_loss_only_when_said(weight, losses):
    net = Net(prototxt.parse_net(CENTER_NET.format(weight)))
    net(x=np.ones((2, 3)), y=np.array([0, 3]))
    assert set(net.losses) == losses


def slow_distances(x, centers, kind):
    d = x[:, None] - centers[None]
    return np.abs(d).sum(-1) if kind == "L1" else (d**2).sum(-1)


@pytest.mark.parametrize("kind", ["L1", "L2"])
@pytest.mark.parametrize("normalize", [False, True])
def test_inner_distance(run_layer, kind, normalize):
    x, centers = RNG.standard_normal((5, 2, 2)), RNG.standard_normal((3, 4))
    settings = f'num_output: 3 distance_type: "{kind}" normalize: {str(normalize).lower()} bias_term: false'
    (out,) = run_layer("InnerDistance", f"inner_distance_param {{ {settings} }}", x, params=[centers])
    if normalize:
        centers /= np.sqrt((centers**2).sum(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(out.detach(), slow_distances(x.reshape(5, 4), centers, kind), rtol=1e-5)


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_inner_distance_to_a_bottom(run_layer, kind):
    """With update_center_only a row moves the centre of its own label alone."""
    x, centers = leaves(RNG.standard_normal((5, 4)), RNG.standard_normal((3, 4)))
    labels, weight = np.array([0, 2, 1, 1, 0]), torch.randn(5, 3)
    settings = f'inner_distance_param {{ distance_type: "{kind}" update_center_only: true }}'
    (out,) = run_layer("InnerDistance", settings, x, centers, labels)
    (out * weight).sum().backward()
    d = (x[:, None] - centers[None]).detach()
    slope = (d.sign() if kind == "L1" else 2 * d) * weight[..., None]
    own = torch.tensor(np.eye(3)[labels])[..., None]
    np.testing.assert_allclose(
        out.detach(), slow_distances(x.detach().numpy(), centers.detach().numpy(), kind), rtol=1e-5
    )
    torch.testing.assert_close(x.grad, slope.sum(1))
    torch.testing.assert_close(centers.grad, -(slope * own).sum(0).float())


@pytest.mark.parametrize(
    ("kind", "settings", "bottoms", "message"),
    [
        ("ContrastiveLoss", "", [(2, 3), (2, 4), (2,)], "of one shape"),
        ("ContrastiveLoss", "", [(2, 3, 2, 2)] * 2 + [(2,)], r"\[N, C\] features"),
        ("ContrastiveLoss", "", [(2, 3), (2, 3), (3,)], "3 marks of similarity for 2 pairs"),
        ("TripletLoss", "", [(2, 3), (3, 3), (2, 3)], "of one shape"),
        ("CenterLoss", "", [(2, 3), (2,)], "must be positive"),
        ("CenterLoss", 'center_loss_param { num_output: 2 distance_type: "L3" }', [(2, 3), (2,)], "not 'L3'"),
        ("CenterLoss", "center_loss_param { num_output: 2 axis: 2 }", [(2, 3, 4), (2,)], "one whole row"),
        ("CenterLoss", "center_loss_param { num_output: 2 }", [(2, 3), (3,)], "differ in rows"),
        ("InnerDistance", "", [(2, 3)], "must be positive"),
        (
            "InnerDistance",
            "inner_distance_param { num_output: 2 transpose: true }",
            [(2, 3)],
            "transpose: not supported",
        ),
        ("InnerDistance", "inner_distance_param { update_center_only: true }", [(2, 3), (4, 3)], "2 bottoms"),
        ("InnerDistance", "", [(2, 3), (4, 5)], "features of 3 numbers and centres of 5"),
    ],
)
def test_what_does_not_fit(run_layer, kind, settings, bottoms, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, *(np.zeros(shape) for shape in bottoms))
