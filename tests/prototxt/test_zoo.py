"""The shipped networks are what their generator writes, and each of them builds."""

import pytest

import prototxt.zoo.generate as zoo
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver

NETS = [(family, m) for family, settings in zoo.FAMILIES.items() for m in settings.get("methods", zoo.METHODS)]
EACH = pytest.mark.parametrize(("family", "method"), NETS)
FILES = ("cfg.yml", "solver.prototxt", "test.prototxt", "train.prototxt")


def config(family, method):
    cfg = Config()
    cfg.merge_file(zoo.ZOO / family / method / "cfg.yml")
    return cfg


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    zoo.generate(folder)
    return folder


def test_files_are_the_generators(generated):
    def content(folder):
        kinds = (".prototxt", ".yml", ".json")
        return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.suffix in kinds}

    assert content(generated) == content(zoo.ZOO)
    assert set(content(generated)) >= {f"{family}/{method}/{name}" for family, method in NETS for name in FILES}


@EACH
def test_trains(family, method):
    solver = Solver(zoo.ZOO / family / method / "solver.prototxt", cfg=config(family, method))
    net = solver.net
    assert net.warnings == solver.warnings == []
    assert list(net.loss_weights.values()) == [1, 1]
    assert sorted(v.name for v in net.values if not v.readers) == net.outputs
    classes = zoo.FAMILIES[family]["classes"]
    assert tuple(net.params["bbox_pred"][0].shape)[0] == 4 * classes
    for param in net.learnable_params:
        assert param.blob.requires_grad == (param.lr_mult > 0), param.owner


@EACH
def test_tests(family, method):
    folder = zoo.ZOO / family / method
    test = Net(folder / "test.prototxt", "TEST", cfg=config(family, method))
    assert test.inputs == ["data", "rois"]
    assert set(test.outputs) == {"cls_prob", "bbox_pred"}
    assert test.warnings == []
    train = Net(folder / "train.prototxt", cfg=config(family, method))
    for name, params in test.params.items():
        assert [p.shape for p in params] == [p.shape for p in train.params[name]]


@EACH
def test_configuration_fits(family, method):
    cfg = config(family, method)
    assert (method != "fast_rcnn") == cfg.TRAIN.USE_OHEM
    assert cfg.TRAIN.BATCH_SIZE % cfg.TRAIN.IMS_PER_BATCH == 0
    assert (0.1 if method == "fast_rcnn" else 0) == cfg.TRAIN.BG_THRESH_LO
