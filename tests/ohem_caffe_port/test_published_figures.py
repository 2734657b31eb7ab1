"""The published figures are those of their sources, agree with themselves, and their recipes do what they say."""

import csv
from pathlib import Path

import pytest

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.factory import list_imdbs
from ohem_caffe_port.data.pascal_voc import VOC_CLASSES
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.published import PRETRAINED, RUNS, SOURCED, UNVERIFIED, find, read_figures
from prototxt import read_solver
from prototxt.zoo.generate import ZOO

SHARED = Path(__file__).resolve().parents[3] / "shared" / "published_voc_per_class.csv"
# mAP "paper" and "repo" of the README of abhi2610/ohem, read there
README = {
    "fast_rcnn-vgg16-07": 66.9, "fast_rcnn-vgg16-07-repo": 67.6, "ohem-vgg16-07": 69.9, "ohem-vgg16-07-repo": 71.5,
    "fast_rcnn_m_b-vgg16-07": 72.4, "ohem_m_b-vgg16-07": 75.1, "fast_rcnn-vgg16-07+12": 70.0, "ohem-vgg16-07+12": 74.6,
    "ohem-vgg16-07+12-repo": 75.5, "ohem_m_b-vgg16-07+12": 78.9, "fast_rcnn-vgg16-12": 65.7, "ohem-vgg16-12": 69.8,
    "ohem_m_b-vgg16-12": 72.9, "fast_rcnn-vgg16-07++12": 68.4, "ohem-vgg16-07++12": 71.9, "ohem_m_b-vgg16-07++12": 76.3,
    "ohem_m_b-vgg16-07++12+coco": 80.1, "ohem-vgg_cnn_m_1024-07": 62.0, "ohem-vgg_cnn_m_1024-07-repo": 62.8,
}  # fmt: skip
# Table 1 of the OHEM paper as it is remembered: nothing may depend on these numbers
TABLE1 = {
    "fast_rcnn-vgg_cnn_m_1024-07-table1": 59.6, "fast_rcnn-vgg16-07-table1": 67.2,
    "fast_rcnn_bg0-vgg_cnn_m_1024-07": 57.2, "fast_rcnn_bg0-vgg16-07": 67.5, "fast_rcnn_n1-vgg16-07": 66.3,
    "fast_rcnn_n1_bg0-vgg16-07": 66.3, "fast_rcnn_n1_b2048-vgg_cnn_m_1024-07": 57.7,
    "fast_rcnn_b2048-vgg_cnn_m_1024-07": 60.4, "fast_rcnn_n1_b2048-vgg16-07": 67.5, "fast_rcnn_b2048-vgg16-07": 68.7,
    "ohem_n1-vgg16-07": 69.7,
}  # fmt: skip


@pytest.mark.parametrize(("figures", "standing"), [(README, SOURCED), (TABLE1, UNVERIFIED)])
def test_the_tables_of_ohem(figures, standing):
    for name, value in figures.items():
        assert (find(name).value, find(name).standing) == (value, standing)
        assert find(name).parts_standing in ("", UNVERIFIED) or "ohem" not in name


def test_figures_are_well_formed():
    for name, figure in read_figures().items():
        assert figure.name == name
        assert 0 < figure.value < 100
        assert figure.source
        assert figure.standing in (SOURCED, UNVERIFIED)
        assert figure.parts_standing in ((SOURCED, UNVERIFIED) if figure.parts else ("",))
        if figure.metric == "mAP":
            assert tuple(figure.parts) in ((), VOC_CLASSES[1:])


def test_classes_have_the_mean_that_is_published():
    """All are printed with one decimal: the mean of the classes is within 0.05 of the mean before rounding."""
    for figure in read_figures().values():
        if figure.metric == "mAP" and figure.parts:
            assert sum(figure.parts.values()) / 20 == pytest.approx(figure.value, abs=0.1), figure.name


def test_per_class_figures_are_those_of_the_source():
    if not SHARED.is_file():
        pytest.skip(f"needs {SHARED}")
    ours = {}
    for figure in read_figures().values():
        if figure.parts and figure.metric == "mAP":
            key = figure.backbone, figure.train.replace(" without difficult", " \\ diff"), figure.test
            ours[(*key, *figure.parts.values())] = figure
    with SHARED.open(encoding="utf-8", newline="") as stream:
        _, *rows = csv.reader(stream)
    assert len(rows) == len(ours)
    for _, backbone, train, test, value, _, *classes, status, _ in rows:
        figure = ours[(backbone, train, test, *map(float, classes))]
        assert figure.value == float(value)
        assert figure.parts_standing == (SOURCED if status == "sourced" else UNVERIFIED)
        assert figure.standing == SOURCED or status != "sourced"


def test_unknown_names_have_a_suggestion():
    with pytest.raises(PortError, match=r"Did you mean ohem-vgg16-07\+12\?"):
        find("ohem-vgg16-0712")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_what_was_published(name):
    run, figure = RUNS[name], find(name)
    cfg, solver = Config(), read_solver(ZOO / run.backbone / run.recipe / "solver.prototxt")
    cfg.merge_file(ZOO / run.backbone / run.recipe / "cfg.yml")
    cfg.merge_list(list(run.settings))
    assert {*run.train_imdb.split("+"), *run.test_imdb.split("+")} <= set(list_imdbs())
    assert run.backbone in PRETRAINED
    assert ("OHEM" in figure.method) == cfg.TRAIN.USE_OHEM
    assert (len(cfg.TRAIN.SCALES) == 5) == ("+M" in figure.method)
    assert (cfg.TEST.BBOX_ITERS == 2 and cfg.TEST.BBOX_VOTE) == ("+B" in figure.method)
    assert ("--num_dets" in run.test_options) == ("OHEM" in figure.method)
    assert ("1504.08083" in figure.source and "without difficult" not in figure.train) == cfg.TRAIN.USE_DIFF
    last = run.iterations or solver.max_iter
    assert last % 10000 == 0
    assert solver.stepsize < last
    if run.recipe not in (
        "ohem",
        "fast_rcnn_coco",
        "ohem_coco",
        "ohem_m_coco",
    ):  # whose test or training set is another
        assert run.train_imdb == cfg.TRAIN.IMDB
        assert run.test_imdb in (cfg.TEST.IMDB, "voc_2010_test")


def test_every_backbone_that_starts_from_weights_names_them():
    """Else a folder given with --weights is passed over, and a frozen backbone stays as it was initialised."""
    backbones = {path.parents[1].name for path in ZOO.glob("*/*/solver.prototxt")}
    assert backbones - {"shapes", "a_fast_rcnn"} == set(PRETRAINED)
