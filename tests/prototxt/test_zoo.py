"""The shipped networks are what their generator writes, and each of them builds."""

from pathlib import Path

import pytest

from converters.formats import read
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver, find_net
from ohem_caffe_port.weights import check
from prototxt import read_solver
from prototxt.zoo.generate import FAMILIES, METHODS, ZOO, generate

WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "weights"
RECIPES = [(family, name) for family, settings in FAMILIES.items() for name in settings.recipes]
NETS = [(family, name) for family, name in RECIPES if FAMILIES[family].recipes[name].folder == name]
EACH_NET = pytest.mark.parametrize(("family", "name"), NETS)
EACH = pytest.mark.parametrize(("family", "name"), RECIPES)


def config(family, name):
    cfg = Config()
    cfg.merge_file(ZOO / family / name / "cfg.yml")
    return cfg


def net(family, name, phase="TRAIN"):
    """Without values: enough to look at it."""
    path = ZOO / family / name / ("train.prototxt" if phase == "TRAIN" else "test.prototxt")
    return Net(path, phase, cfg=config(family, name), initialize=False)


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    generate(folder)
    return folder


def test_files_are_the_generators(generated):
    def content(folder):
        kinds = (".prototxt", ".yml", ".json")
        return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.suffix in kinds}

    assert content(generated) == content(ZOO)
    files = set(content(generated))
    assert files >= {f"{family}/{name}/{file}" for family, name in RECIPES for file in ("cfg.yml", "solver.prototxt")}
    assert files >= {f"{family}/{name}/{phase}.prototxt" for family, name in NETS for phase in ("train", "test")}


def test_every_family_has_the_three_methods():
    for family in FAMILIES:
        assert {name for f, name in NETS if f == family} >= set(METHODS)


@EACH_NET
def test_trains(family, name):
    train = net(family, name)
    solver = Solver(ZOO / family / name / "solver.prototxt", net=train)
    assert train.warnings == solver.warnings == []
    assert list(train.loss_weights.values()) == [1, 1]
    assert sorted(v.name for v in train.values if not v.readers) == train.outputs
    classes = FAMILIES[family].recipes[name].classes
    assert tuple(train.params["bbox_pred"][0].shape)[0] == 4 * classes
    for param in train.learnable_params:
        assert param.blob.requires_grad == (param.lr_mult > 0), param.owner


@EACH_NET
def test_tests(family, name):
    test, train = net(family, name, "TEST"), net(family, name)
    assert test.inputs == ["data", "rois"]
    assert set(test.outputs) == {"cls_prob", "bbox_pred"}
    assert test.warnings == []
    for layer, params in test.params.items():
        assert [p.shape for p in params] == [p.shape for p in train.params[layer]]


@EACH
def test_solver_and_configuration_fit(family, name):
    recipe, path = FAMILIES[family].recipes[name], ZOO / family / name / "solver.prototxt"
    found = find_net(read_solver(path).train_net, path)
    assert found.resolve() == ZOO / family / recipe.folder / "train.prototxt"
    cfg = config(family, name)
    assert (recipe.method != "fast_rcnn") == cfg.TRAIN.USE_OHEM
    assert cfg.TRAIN.BATCH_SIZE % cfg.TRAIN.IMS_PER_BATCH == 0
    assert not (cfg.TRAIN.USE_OHEM and cfg.TRAIN.BG_THRESH_LO)


@pytest.mark.parametrize(
    ("family", "published"), [("squeezenet_v1.1", "squeezenet_v1.1"), ("googlenet", "bvlc_googlenet")]
)
def test_published_weights_load(family, published):
    path = WEIGHTS / published / f"{published}.caffemodel"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    assert FAMILIES[family].weights == path.name
    train = net(family, "fast_rcnn")
    report = check(train, read(path))
    assert set(train.params) - set(report.loaded) == {"fc6", "cls_score", "bbox_pred"}
    assert not report.misfits
    assert len([1 for _, _, verdict in report.rows if verdict == "not in the net"]) == 1  # the classifier
