import numpy as np
import pytest
import torch

import prototxt
import prototxt.zoo.detectors as zoo
from ohem_caffe_port.config import Config
from ohem_caffe_port.data.roidb import get_training_roidb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Clock, Context, create_layer
from ohem_caffe_port.mining import METHODS, Strata, ohem_roi_loss, select_stratified_rois
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.train import Trainer

CLASSES, ROIS = 4, 50
OURS = "ohem_caffe_port.python_layers"


def make_layer(kind, bottoms, settings="", clock=None, **train):
    cfg = Config()
    cfg.merge({"TRAIN": {"BATCH_SIZE": 8, "USE_OHEM": True, "IMS_PER_BATCH": 2, **train}}, source="test")
    tops = {"SOHEMDataLayer": 5, "MiningWeightsLayer": 3}[kind]
    names = "".join(f'bottom: "b{i}" ' for i in range(7)) + "".join(f'top: "t{i}" ' for i in range(tops))
    text = f"{{'num_classes': {CLASSES}{settings}}}"
    python = f"python_param {{ module: '{OURS}' layer: '{kind}' param_str: \"{text}\" }}"
    param = prototxt.parse_net(f'layer {{ name: "mining" type: "Python" {names} {python} }}').layer[0]
    layer = create_layer(param, Context("TRAIN", cfg, clock=clock or Clock(0, 100)))
    layer.setup(bottoms)
    return layer


@pytest.mark.parametrize(
    ("iteration", "settings", "progress"), [(0, "", 0), (50, "", 0.5), (50, ", iterations: 50", 1)]
)
def test_sohem_chooses_as_the_function(bottoms, iteration, settings, progress):
    layer = make_layer("SOHEMDataLayer", bottoms, f", alpha: [2, 0.5]{settings}", Clock(iteration, 100))
    prob, pred, rois, labels, *boxes = bottoms
    cls = ohem_roi_loss(prob, labels)
    loc = ohem_roi_loss(prob, labels, pred, *boxes) - cls
    hard = select_stratified_rois(cls, loc, rois, labels, 8, progress=progress, strata=Strata(alpha=(2, 0.5)))
    for top, bottom in zip(layer(bottoms), bottoms[2:], strict=True):
        assert torch.equal(top, bottom[hard])
    assert torch.equal(layer.hard_inds, hard)


NET = """
force_backward: true
layer {{ name: "in" type: "Input" top: "score" top: "pred" top: "rois" top: "labels" top: "targets" top: "inside"
  top: "outside" input_param {{ shape {{ dim: {n} dim: {c} }} shape {{ dim: {n} dim: {b} }} shape {{ dim: {n} dim: 5 }}
  shape {{ dim: {n} }} shape {{ dim: {n} dim: {b} }} shape {{ dim: {n} dim: {b} }} shape {{ dim: {n} dim: {b} }} }} }}
layer {{ name: "prob" type: "Softmax" bottom: "score" top: "prob" }}
layer {{ name: "hard_roi_mining" type: "Python" bottom: "prob" bottom: "pred" bottom: "rois" bottom: "labels"
  bottom: "targets" bottom: "inside" bottom: "outside" {tops} python_param {{ module: "{module}" layer: "{kind}"
  param_str: "{{'num_classes': {c}{settings}}}" }} {cut} }}
"""


@pytest.mark.parametrize("use_nms", [True, False])
def test_weights_of_ohem_are_the_naive_way(bottoms, use_nms):
    """The same losses and gradients as OHEMMaskLayer, whose case it is."""
    cfg = Config()
    cfg.merge({"TRAIN": {"BATCH_SIZE": 8, "USE_OHEM": True, "OHEM_USE_NMS": use_nms}}, source="test")
    scores = torch.randn(ROIS, CLASSES)
    found = []
    for kind, settings, tops in (
        ("OHEMMaskLayer", "", ["labels_out", "inside_out", "outside_out"]),
        ("MiningWeightsLayer", ", 'method': 'ohem'", ["labels_out", "weights", "outside_out"]),
    ):
        naive = kind == "OHEMMaskLayer"
        text = NET.format(
            n=ROIS, c=CLASSES, b=4 * CLASSES, kind=kind, module=OURS, settings=settings,
            cut="propagate_down: false " * 7, tops=" ".join(f'top: "{top}"' for top in tops),
        )  # fmt: skip
        labels = "labels_out" if naive else ["labels_out", "weights"]
        boxes = ["targets", "inside_out" if naive else "inside", "outside_out"]
        extra = "ignore_label: -1" if naive else "ignore_label: -1 normalization: NONE"
        text += zoo.losses(labels, boxes, extra).replace('"cls_score"', '"score"').replace('"bbox_pred"', '"pred"')
        net = Net(prototxt.parse_net(text), cfg=cfg)
        names = ("score", "pred", "rois", "labels", "targets", "inside", "outside")
        net(**dict(zip(names, (scores, *bottoms[1:]), strict=True)))
        net.backward()
        found.append([*net.losses.values(), net.blobs["score"].grad, net.blobs["pred"].grad])
    for ours, naive in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, naive)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_in_the_layer(bottoms, name):
    layer = make_layer("MiningWeightsLayer", bottoms, f", method: {name}")
    for inferred, top in zip(layer.infer(bottoms), layer(bottoms), strict=True):
        assert inferred.shape == top.shape
    labels, weights, outside = layer(bottoms)
    assert torch.equal(labels == -1, weights == 0)
    assert torch.equal(labels[weights > 0], bottoms[3][weights > 0])
    assert ((outside > 0) <= (bottoms[6] > 0)).all()


def test_settings_come_from_the_configuration_unless_stated(bottoms):
    def settings(text, **train):
        return make_layer("MiningWeightsLayer", bottoms, text, **train).method

    assert settings(", method: ohem") == METHODS["ohem"](batch_size=8, nms_thresh=0.7)
    assert settings(", method: ohem", OHEM_USE_NMS=False) == METHODS["ohem"](batch_size=8, nms_thresh=None)
    assert settings(", method: ohem, batch_size: 5, nms_thresh: 0.3") == METHODS["ohem"](batch_size=5, nms_thresh=0.3)
    assert settings(", method: rfcn") == METHODS["rfcn"](rois_per_image=4)
    assert settings(", method: focal, gamma: 1.5") == METHODS["focal"](gamma=1.5)


@pytest.mark.parametrize(
    ("kind", "settings", "train", "words"),
    [
        ("SOHEMDataLayer", ", alfa: [1]", {}, "unknown setting 'alfa'; did you mean 'alpha'"),
        ("SOHEMDataLayer", ", alpha: 3", {}, "'alpha' must be a list of numbers"),
        ("SOHEMDataLayer", ", bounds: [[1]]", {}, "'shares' has other numbers"),
        ("MiningWeightsLayer", "", {}, "'method' is missing"),
        ("MiningWeightsLayer", ", method: fokal", {}, "unknown method 'fokal'; did you mean 'focal'"),
        ("MiningWeightsLayer", ", method: focal, batch_size: 3", {}, "unknown setting 'batch_size'"),
        ("MiningWeightsLayer", ", method: focal, gamma: -1", {}, "'gamma' must not be negative"),
        ("MiningWeightsLayer", ", method: focal, gamma: x", {}, "'gamma' must be of type float, not 'x'"),
        ("MiningWeightsLayer", ", method: focal, gamma: .inf", {}, "'gamma' must be of type float, not inf"),
        ("MiningWeightsLayer", ", method: focal, gamma: null", {}, "'gamma' must be of type float, not None"),
        ("MiningWeightsLayer", ", method: ohem, batch_size: 1.5", {}, "'batch_size' must be of type int, not 1.5"),
        ("MiningWeightsLayer", ", method: ohem, batch_size: true", {}, "'batch_size' must be of type int, not True"),
        ("MiningWeightsLayer", ", method: ohem, nms_thresh: x", {}, "'nms_thresh' must be of type float, not 'x'"),
        ("MiningWeightsLayer", ", method: ohem, nms_thresh: 7", {}, "'nms_thresh' must lie between 0 and 1, not 7"),
        ("MiningWeightsLayer", ", method: ratio, hard_negative: 3", {}, "'hard_negative' must be of type bool, not 3"),
        ("MiningWeightsLayer", ", method: ghm, rule: mine", {}, "'rule' be 'code' or 'paper'"),
        ("SOHEMDataLayer", ", alpha: [.inf]", {}, "'alpha' must be a list of numbers, finite"),
        ("MiningWeightsLayer", ", method: ohem", {"BBOX_REG": False}, "needs TRAIN.BBOX_REG"),
    ],
)
def test_errors(bottoms, kind, settings, train, words):
    with pytest.raises(PortError, match=words) as caught:
        make_layer(kind, bottoms, settings, **train)
    assert caught.value.layer == "mining"


@pytest.mark.parametrize("short", [0, 2, 3, 6])
def test_a_row_for_each_roi(bottoms, short):
    layer = make_layer("MiningWeightsLayer", bottoms, ", method: ohem")
    with pytest.raises(PortError, match=f"needs one row for each RoI, but .*'b{short}' has {ROIS - 1}") as caught:
        layer([b[: ROIS - (i == short)] for i, b in enumerate(bottoms)])
    assert caught.value.layer == "mining"


def test_nothing_is_suppressed_without_a_threshold(bottoms):
    assert make_layer("MiningWeightsLayer", bottoms, ", method: ohem, nms_thresh: null").method.nms_thresh is None


@pytest.mark.parametrize("name", ["ghm", "ratio", "fast_rcnn", "ohem"])
def test_what_a_method_remembers_can_be_kept(bottoms, name):
    """Three calls, or one, and two by another layer that goes on from there."""
    settings = f", method: {name}"
    whole, first, second = (make_layer("MiningWeightsLayer", bottoms, settings) for _ in range(3))
    expected = [whole(bottoms) for _ in range(3)]
    first(bottoms)
    kept = first.remembered()
    assert bool(kept) == (name != "ohem")
    assert all(isinstance(value, np.ndarray) for value in kept.values())
    second.remember(kept)
    for tops in expected[1:]:
        for ours, theirs in zip(second(bottoms), tops, strict=True):
            assert torch.equal(ours, theirs)


def test_an_average_of_other_bins(bottoms):
    layer = make_layer("MiningWeightsLayer", bottoms, ", method: ghm, bins: 5")
    with pytest.raises(ValueError, match="the average of 6 bins, not of 5"):
        layer.remember({"acc_sum": np.zeros(6, np.float32)})


def test_a_schedule_needs_an_end(bottoms):
    layer = make_layer("SOHEMDataLayer", bottoms, clock=Clock(3, 0))
    with pytest.raises(PortError, match="how many iterations there will be is not known") as caught:
        layer(bottoms)
    assert "max_iter" in caught.value.hint


def test_the_layer_sees_the_solvers_iteration_and_after_a_resume_too(tmp_path, detector, shapes_cfg, shapes_imdb):
    def trainer(folder):
        cfg = shapes_cfg("sohem")
        torch.manual_seed(0)
        net = Net(prototxt.parse_net(detector("sohem").train), cfg=cfg)
        param = prototxt.parse_solver("base_lr: 0.001 lr_policy: 'fixed' max_iter: 4 iter_size: 2")
        made = Trainer(Solver(param, net), get_training_roidb(shapes_imdb("train"), cfg), cfg, tmp_path / folder)
        seen, layer = [], net.layer_by_name["hard_roi_mining"]
        choose = layer.choose
        layer.choose = lambda examples: (seen.append(layer.progress()), choose(examples))[1]
        return made, seen

    whole, seen = trainer("whole")
    whole.run(4)
    assert seen == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]
    first, _ = trainer("parts")
    model = first.run(2)[-1]
    second, seen = trainer("parts")
    second.resume(model.with_suffix(".solverstate"))
    second.run(4)
    assert seen == [0.5, 0.5, 0.75, 0.75]
    for name, blobs in whole.net.params.items():
        for ours, theirs in zip(second.net.params[name], blobs, strict=True):
            assert torch.equal(ours, theirs)
