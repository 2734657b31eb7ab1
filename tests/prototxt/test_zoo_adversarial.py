"""A-Fast-RCNN's networks as they are shipped: each builds, and fits its configuration and its first weights."""

import json

import pytest

from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver
from prototxt.zoo import adversarial
from prototxt.zoo.generate import ZOO

FOLDER = ZOO / "a_fast_rcnn"
EACH = pytest.mark.parametrize("method", adversarial.METHODS)
DETECTORS = tuple(method for method in adversarial.METHODS if method != "asdn_pretrain")


def config(method):
    cfg = Config()
    cfg.merge_file(FOLDER / method / "cfg.yml")
    return cfg


@EACH
def test_trains(method):
    solver = Solver(FOLDER / method / "solver.prototxt", cfg=config(method))
    assert solver.net.warnings == solver.warnings == []
    assert solver.param.max_iter == adversarial.SCHEDULES[method][0]
    weights = [1] if method == "asdn_pretrain" else [1, 1]
    weights += [pytest.approx(0.0025)] if method.startswith("asdn_a") or method == "asdn" else []
    assert list(solver.net.loss_weights.values()) == weights
    for layer in solver.net.layers:
        assert getattr(layer, "iter_size", solver.param.iter_size) == solver.param.iter_size
    assert config(method).TRAIN.BG_THRESH_LO == 0


@pytest.mark.parametrize("method", DETECTORS)
def test_tests(method):
    test = Net(FOLDER / method / "test.prototxt", "TEST", cfg=config(method))
    train = Net(FOLDER / method / "train.prototxt", cfg=config(method))
    assert set(test.outputs) == {"cls_prob", "bbox_pred"}
    for name, params in test.params.items():
        assert [p.shape for p in params] == [p.shape for p in train.params[name]]


@pytest.mark.parametrize("method", DETECTORS[1:])
def test_first_weights(method):
    """Every layer of the list is in the net that it is taken from and the net that it is for, with equal shapes."""
    nets = {name: Net(FOLDER / name / "train.prototxt", cfg=config(name)) for name in adversarial.METHODS}
    given = set()
    for entry in json.loads((FOLDER / method / "init_weights.json").read_text()):
        (source,) = (name for name in nets if adversarial.snapshot_of(name) == entry["model"])
        copied = entry["copy_ops"]
        assert set(copied["reshape"]) == {0}
        for a, b in zip(copied["source"], copied["dest"], strict=True):
            assert [p.shape for p in nets[source].params[a]] == [p.shape for p in nets[method].params[b]]
        given |= set(copied["dest"])
    owners = {p.owner.split("[")[0].replace("_readonly", "") for p in nets[method].learnable_params}
    assert owners - given == {"bbox_pred"} | ({"angles"} if method.endswith("astn") else set())
