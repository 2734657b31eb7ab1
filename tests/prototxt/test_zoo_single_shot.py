"""The single-shot nets that are shipped: each builds, its test net fits, and its heads start where they should."""

import numpy as np
import pytest
import torch

import prototxt.zoo.single_shot as zoo
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.single_shot import detection_layer
from ohem_caffe_port.solver import Solver
from prototxt.zoo.generate import ZOO

EACH = pytest.mark.parametrize("method", zoo.METHODS)


def config(method):
    cfg = Config()
    cfg.merge_file(ZOO / "shapes" / method / "cfg.yml")
    return cfg


def feed(net, layer_type="Python"):
    """Gives the net's data layer one batch of its own making: an object in each image."""
    rows = [[i, 1 + i % 6, 0, 0.2, 0.2, 0.5, 0.6, 0] for i in range(2)]
    data = torch.randn(2, 3, 200, 250, generator=torch.Generator().manual_seed(0)) * 30
    (layer,) = [layer for layer in net.layers if layer.type == layer_type]
    layer.forward = lambda bottoms: [data, torch.tensor(rows)[None, None]]


@EACH
def test_trains(method):
    torch.manual_seed(0)
    solver = Solver(ZOO / "shapes" / method / "solver.prototxt", cfg=config(method))
    net = solver.net
    assert net.warnings == solver.warnings == []
    feed(net)
    losses = []
    for _ in range(4):
        solver.step()
        losses.append(solver.loss)
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


@EACH
def test_test_net_fits(method):
    folder = ZOO / "shapes" / method
    test = Net(folder / "test.prototxt", "TEST", cfg=config(method))
    train = Net(folder / "train.prototxt", cfg=config(method))
    assert test.inputs == ["data"]
    assert test.warnings == []
    assert detection_layer(test).param.detection_output_param.num_classes == zoo.CLASSES
    for name, params in test.params.items():
        assert [p.shape for p in params] == [p.shape for p in train.params[name]]


def test_the_levels_share_their_heads():
    net = Net(ZOO / "shapes/retinanet/train.prototxt", cfg=config("retinanet"))
    for kind in ("loc", "loc_hidden", "conf", "conf_hidden"):
        first, *others = (net.params[f"{level}_{kind}"] for level in zoo.LEVELS)
        assert all(mine is its for other in others for mine, its in zip(first, other, strict=True))


@pytest.mark.parametrize("method", ["retinanet", "ghm"])
def test_sigmoids_start_at_the_prior(method):
    torch.manual_seed(1)
    net = Net(ZOO / "shapes" / method / "test.prototxt", "TEST", cfg=config(method))
    with torch.no_grad():
        net(data=torch.randn(1, 3, 200, 250) * 30)
    prob = net.blobs["prob"].flatten()
    assert prob.median().item() == pytest.approx(zoo.PRIOR, rel=0.3)
    assert len(prob) == 9 * zoo.CLASSES * (25 * 31 + 13 * 16 + 7 * 8)
