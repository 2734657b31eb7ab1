"""A-Fast-RCNN's networks of prototxt/zoo/adversarial.py: who learns what, from which loss, and in which pass."""

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.net import Net
from prototxt.zoo import adversarial
from prototxt.zoo.layers import conv

BOXES = 28
LOCALISATION = ("fc6_loc", "fc7_loc", "angles")


def backbone():
    return conv("conv1", "data", 8, 8, stride=8, init='type: "gaussian" std: 0.01'), "conv1", 8


@pytest.fixture
def stage(inputs_of):
    """``stage(method)``: a tiny net of this method, its data layer replaced by inputs."""

    def make(method, change=lambda net: net):
        text = adversarial.train_net(method, method, backbone, 7, pooled=6, hidden=(16, 16), channels=4)
        net = prototxt.parse_net(text)
        inputs = inputs_of(data=(1, 3, 96, 128), rois=(1, 5), labels=(1,), bbox_targets=(1, BOXES),
                           bbox_inside_weights=(1, BOXES), bbox_outside_weights=(1, BOXES))  # fmt: skip
        layers = [*prototxt.parse_net(inputs).layer, *list(net.layer)[1:]]
        del net.layer[:]
        net.layer.extend(layers)
        torch.manual_seed(1)
        return Net(change(net), rng=np.random.RandomState(0))

    return make


@pytest.fixture
def minibatch():
    """10 RoIs, half of them background."""
    torch.manual_seed(2)
    corners = torch.rand(10, 2) * 50
    labels = torch.tensor([1.0, 4, 2, 6, 3] + [0] * 5)
    inside = torch.zeros(10, 7, 4)
    inside[range(10), labels.long()] = (labels > 0).float()[:, None]
    inside = inside.flatten(1)
    return {
        "data": torch.randn(1, 3, 96, 128) * 50, "rois": torch.cat((torch.zeros(10, 1), corners, corners + 40), 1),
        "labels": labels, "bbox_targets": torch.randn(10, BOXES), "bbox_inside_weights": inside,
        "bbox_outside_weights": inside,
    }  # fmt: skip


def gradients(net, minibatch, loss=None):
    """``{layer: gradient of its weight}``, of one loss alone or of the net's."""
    net.zero_grad()
    net(**minibatch)
    (net.loss if loss is None else net.blobs[loss].sum()).backward()
    return {name: torch.zeros_like(w) if w.grad is None else w.grad.clone() for name, (w, *_) in net.params.items()}


def learn(gradient):
    return {name for name, values in gradient.items() if values.any()}


def test_pretraining_trains_the_masks_alone(stage, minibatch):
    net = stage("asdn_pretrain", adversarial.frozen)
    assert learn(gradients(net, minibatch)) == set(adversarial.MASKS)
    assert {p.owner.split("[")[0] for p in net.learnable_params if p.lr_mult} == set(adversarial.MASKS)
    assert net.blobs["conv_feat_pos"].shape == (5, 8, 6, 6)
    assert net.blobs["conv_feat_rep"].shape == (45, 8, 6, 6)


@pytest.mark.parametrize("method", ["asdn", "asdn_astn"])
def test_masks_and_detector(stage, minibatch, method):
    """In the masked pass some cells of foreground are dropped, in the clean one none; the detector learns in both."""
    net = stage(method)
    detector = {"conv1", "fc6", "fc7", "cls_score", "bbox_pred"}
    for dropped in (11, 0):
        found = learn(gradients(net, minibatch))
        assert detector <= found
        masks = net.blobs["mask_thres"].flatten(1)
        assert masks.sum(1).tolist() == [dropped] * 5 + [0] * 5
        kept = net.blobs["roi_pool"] * (1 - net.blobs["mask_thres"])
        assert torch.equal(net.blobs["masked"], kept)


def test_masks_learn_from_harm(stage, minibatch):
    """With a threshold below every change of probability all foreground counts."""

    def eager(net):
        net.layer[-1].python_param.param_str = net.layer[-1].python_param.param_str.replace("0.1", "-1")
        return net

    net = stage("asdn", eager)
    assert set(adversarial.MASKS) == learn(gradients(net, minibatch, "loss_asdn"))
    assert not set(adversarial.MASKS) & learn(gradients(net, minibatch)), "a clean pass"


@pytest.mark.parametrize("method", ["astn", "asdn_astn"])
def test_localisation_maximises_the_classification_loss(stage, minibatch, method):
    net = stage(method)
    torch.nn.init.normal_(net.params["angles"][0], std=0.3)
    found = gradients(net, minibatch, "loss_cls")
    assert set(LOCALISATION) <= learn(found)
    before = net.blobs["loss_cls"].item()
    with torch.no_grad():
        for name in LOCALISATION:
            net.params[name][0] -= 1e-3 * found[name] / found[name].norm()
    net.rng.seed(0)
    for layer in net.layers:
        layer.passes = 0
    net(**minibatch)
    assert net.blobs["loss_cls"].item() > before
    assert not set(LOCALISATION) & learn(gradients(net, minibatch, "loss_bbox"))


def test_both_branches_see_the_same(stage, minibatch):
    """The copy of the head that the boxes come from computes what the other one does."""
    net = stage("astn")
    net(**minibatch)
    assert torch.equal(net.blobs["turned"], net.blobs["turned_box"])
    assert torch.equal(net.blobs["fc7"], net.blobs["fc7_box"])
    assert not torch.equal(net.blobs["turned"], net.blobs["roi_pool"])
