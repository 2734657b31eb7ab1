"""The layers of region proposal networks. Their values are compared with real Caffe's by tests/test_golden.py."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError

MODULES = {
    "AnchorTargetLayer": "anchor_target_layer",
    "ProposalLayer": "proposal_layer",
    "ProposalLayer2": "proposal_layer",
    "ProposalTargetLayer": "proposal_target_layer",
}
TOPS = {"AnchorTargetLayer": 4, "ProposalLayer": 2, "ProposalLayer2": 5, "ProposalTargetLayer": 5}
IM_INFO = [[96, 128, 2]]
GT_BOXES = [[10, 10, 60, 50, 2], [70, 20, 110, 90, 5]]


def config(**train):
    cfg = Config()
    cfg.merge({"TRAIN": {"RPN_MIN_SIZE": 4, **train}, "TEST": {"RPN_POST_NMS_TOP_N": 7}}, source="test")
    return cfg


@pytest.fixture
def rpn_net(build, inputs_of):
    """``rpn_net("ProposalLayer", shapes, param_str)``: a net of one layer with inputs b0, b1 ..."""

    def make(name, shapes, param_str="'feat_stride': 8, 'scales': [2, 4]", phase="TRAIN", cfg=None, seed=3):
        bottoms = "".join(f'bottom: "b{i}" ' for i in range(len(shapes)))
        tops = "".join(f'top: "t{i}" ' for i in range(TOPS[name]))
        param_str = param_str if "\\n" in param_str else f"{{{param_str}}}"
        python = f'module: "rpn.{MODULES[name]}" layer: "{name}" param_str: "{param_str}"'
        text = inputs_of(**{f"b{i}": shape for i, shape in enumerate(shapes)})
        text += f'layer {{ name: "it" type: "Python" {bottoms} {tops} python_param {{ {python} }} }}'
        return build(text, phase, cfg=cfg or config(), rng=np.random.RandomState(seed))

    return make


def run(net, *bottoms):
    net(**{f"b{i}": np.asarray(b, np.float32) for i, b in enumerate(bottoms)})
    return [net.blobs[f"t{i}"] for i in range(len(net.layer_by_name["it"].param.top))]


def maps(seed=0):
    """Scores and deltas of 6 anchors on 12 x 16 cells."""
    rng = np.random.default_rng(seed)
    return rng.random((1, 12, 12, 16)).astype(np.float32), rng.normal(0, 0.2, (1, 24, 12, 16)).astype(np.float32)


SHAPES = {
    "AnchorTargetLayer": [(1, 12, 12, 16), (2, 5), (1, 3)],
    "ProposalLayer": [(1, 12, 12, 16), (1, 24, 12, 16), (1, 3)],
    "ProposalLayer2": [(1, 12, 12, 16), (1, 24, 12, 16), (1, 3), (2, 5)],
    "ProposalTargetLayer": [(40, 5), (2, 5)],
}


def test_the_phase_chooses_the_settings(rpn_net):
    cfg = config(RPN_POST_NMS_TOP_N=5)
    for phase, count in (("TRAIN", 5), ("TEST", 7)):
        net = rpn_net("ProposalLayer", SHAPES["ProposalLayer"], phase=phase, cfg=cfg)
        assert len(run(net, *maps(), IM_INFO)[0]) == count


def test_one_top_is_enough(rpn_net, monkeypatch):
    monkeypatch.setitem(TOPS, "ProposalLayer", 1)
    assert len(run(rpn_net("ProposalLayer", SHAPES["ProposalLayer"]), *maps(), IM_INFO)) == 1


def test_proposal_layer_2_is_both_layers(rpn_net):
    scores, deltas = maps()
    settings = "'feat_stride': 8, 'scales': [2, 4], 'num_classes': 6"
    rois, _ = run(rpn_net("ProposalLayer", SHAPES["ProposalLayer"]), scores, deltas, IM_INFO)
    expected = run(rpn_net("ProposalTargetLayer", SHAPES["ProposalTargetLayer"], settings), rois, GT_BOXES)
    found = run(rpn_net("ProposalLayer2", SHAPES["ProposalLayer2"], settings), scores, deltas, IM_INFO, GT_BOXES)
    assert len(found[0]) > 2
    for one, other in zip(expected, found, strict=True):
        assert torch.equal(one, other)


def test_ground_truth_with_four_axes(rpn_net):
    """py-R-FCN's data layer makes all blobs so."""
    tops = []
    for boxes in (GT_BOXES, np.reshape(GT_BOXES, (2, 5, 1, 1))):
        tops.append(run(rpn_net("AnchorTargetLayer", SHAPES["AnchorTargetLayer"]), maps()[0], boxes, IM_INFO))
    assert all(torch.equal(a, b) for a, b in zip(*tops, strict=True))


def test_maps_of_another_size_at_each_pass(rpn_net):
    net = rpn_net("AnchorTargetLayer", SHAPES["AnchorTargetLayer"])
    for height, width in ((12, 16), (10, 12), (14, 9)):
        labels, targets, *_ = run(net, np.zeros((1, 12, height, width)), GT_BOXES, [[8 * height, 8 * width, 1]])
        assert labels.shape == (1, 1, 6 * height, width)
        assert targets.shape == (1, 24, height, width)


def test_the_share_of_positive_anchors(rpn_net):
    cfg = config(RPN_POSITIVE_WEIGHT=0.25, RPN_BATCHSIZE=20)
    net = rpn_net("AnchorTargetLayer", SHAPES["AnchorTargetLayer"], cfg=cfg)
    labels, _, _, outside = run(net, maps()[0], GT_BOXES, IM_INFO)
    per_anchor = outside.view(6, 4, 12, 16)[:, 0].reshape(labels.shape)
    assert (labels >= 0).sum() == 20
    assert per_anchor[labels == 1].sum().item() == pytest.approx(0.25)
    assert per_anchor[labels == 0].sum().item() == pytest.approx(0.75)


@pytest.mark.parametrize(("stated", "agnostic"), [({}, True), ({"AGNOSTIC": False}, False)])
def test_two_classes_of_boxes_for_many(rpn_net, stated, agnostic):
    """A layer of num_classes 2 in a net for more is py-R-FCN's; for one class and background it makes no difference."""
    cfg = config(**stated)
    net = rpn_net("ProposalTargetLayer", SHAPES["ProposalTargetLayer"], "'num_classes': 2", cfg=cfg)
    assert agnostic == cfg.TRAIN.AGNOSTIC
    rois = np.hstack([np.zeros((2, 1)), np.array(GT_BOXES)[:, :4]])
    if agnostic:
        _, labels, _, inside, _ = run(net, rois, GT_BOXES)
        assert set(labels.flatten().tolist()) == {2, 5}
        assert inside[:, :, 0, 0].tolist() == [[0] * 4 + [1] * 4] * 4
    else:
        with pytest.raises(PortError, match="num_classes is 2, an object has class 5") as caught:
            run(net, rois, GT_BOXES)
        assert "AGNOSTIC" in caught.value.hint


def test_a_tuple_in_param_str(rpn_net):
    """The one Python object that these projects' files contain."""
    settings = "'feat_stride': 8 \\n'scales': !!python/tuple [2, 4]"
    assert len(rpn_net("ProposalLayer", SHAPES["ProposalLayer"], settings).layer_by_name["it"].anchors) == 6


def test_ratios(rpn_net):
    """PVANet's setting."""
    settings = "'feat_stride': 8, 'scales': [2, 4], 'ratios': [0.5, 1, 2]"
    nets = [rpn_net("ProposalLayer", SHAPES["ProposalLayer"], *more) for more in ((), (settings,))]
    np.testing.assert_array_equal(*(net.layer_by_name["it"].anchors for net in nets))


def test_no_gradient(build, inputs_of):
    """As pycaffe's layers whose backward does nothing: the boxes are inputs of what follows."""
    conv = "convolution_param {{ num_output: {} kernel_size: 1 weight_filler {{ type: 'xavier' }} }}"
    text = inputs_of(x=(1, 3, 12, 16), im_info=(1, 3)) + (
        f'layer {{ name: "s" type: "Convolution" bottom: "x" top: "s" {conv.format(12)} }}'
        f'layer {{ name: "d" type: "Convolution" bottom: "x" top: "d" {conv.format(24)} }}'
        'layer { name: "it" type: "Python" bottom: "s" bottom: "d" bottom: "im_info" top: "rois" python_param { '
        'module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{feat_stride: 8, scales: [2, 4]}" } }'
        'layer { name: "l" type: "Reduction" bottom: "rois" top: "l" loss_weight: 1 }'
    )
    net = build(text, cfg=config())
    net(x=np.random.default_rng(0).normal(0, 1, (1, 3, 12, 16)).astype(np.float32), im_info=IM_INFO)
    net.backward()
    assert all(p.grad is None for name in "sd" for p in net.params[name])


@pytest.mark.parametrize(
    ("name", "param_str", "message"),
    [
        ("ProposalLayer", "'scales': [2, 4]", "'feat_stride' is missing"),
        ("ProposalLayer", "'feat_stride': 0", "'feat_stride' must be positive"),
        ("ProposalLayer", "'feat_stride': 8, 'scales': ['a']", "'scales' must be positive numbers"),
        ("ProposalLayer", "'feat_stride': 8, 'ratios': []", "'ratios' must be positive numbers"),
        ("ProposalLayer", "'feat_stride': 8", "9 anchors need 18 channels; 'b0' has 12"),
        ("AnchorTargetLayer", "'feat_stride': 8, 'allowed_border': 'x'", "'allowed_border' must be of type int"),
        ("ProposalTargetLayer", "'classes': 7", "'num_classes' is missing"),
        ("ProposalLayer2", "'feat_stride': 8, 'scales': [2, 4]", "'num_classes' is missing"),
    ],
)
def test_settings_that_are_wrong(rpn_net, name, param_str, message):
    with pytest.raises(PortError, match=message) as caught:
        rpn_net(name, SHAPES[name], param_str)
    assert caught.value.layer == "it"


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_a_share_that_is_none(rpn_net, weight):
    with pytest.raises(PortError, match="RPN_POSITIVE_WEIGHT"):
        rpn_net("AnchorTargetLayer", SHAPES["AnchorTargetLayer"], cfg=config(RPN_POSITIVE_WEIGHT=weight))


@pytest.mark.parametrize(
    ("name", "bottoms", "message"),
    [
        ("AnchorTargetLayer", [np.zeros((2, 12, 12, 16)), GT_BOXES, IM_INFO], "'b0' has 2"),
        ("AnchorTargetLayer", [np.zeros((1, 12, 12, 16)), np.zeros((0, 5)), IM_INFO], "'b1' is empty"),
        ("AnchorTargetLayer", [np.zeros((1, 12, 12, 16)), GT_BOXES, [[10, 10, 1]]], "no anchor lies inside the image"),
        ("ProposalLayer", [np.zeros((2, 12, 12, 16)), np.zeros((2, 24, 12, 16)), IM_INFO], "'b0' has 2"),
        ("ProposalTargetLayer", [np.ones((4, 5)), GT_BOXES], "there are rois of others"),
        ("ProposalTargetLayer", [np.zeros((4, 5)), [[1, 1, 9, 9, 6]]], "num_classes is 6, an object has class 6"),
    ],
)
def test_bottoms_that_are_wrong(rpn_net, name, bottoms, message):
    net = rpn_net(name, SHAPES[name], "'feat_stride': 8, 'scales': [2, 4], 'num_classes': 6")
    with pytest.raises(PortError, match=message):
        run(net, *bottoms)


def test_no_proposal_is_large_enough(rpn_net):
    cfg = config(RPN_MIN_SIZE=1000)
    rois, scores = run(rpn_net("ProposalLayer", SHAPES["ProposalLayer"], cfg=cfg), *maps(), IM_INFO)
    assert (rois.shape, scores.shape) == ((0, 5), (0, 1))


def test_no_roi_is_drawn(rpn_net):
    cfg = config(FG_FRACTION=0.0, BG_THRESH_LO=0.4)
    net = rpn_net("ProposalTargetLayer", SHAPES["ProposalTargetLayer"], "'num_classes': 6", cfg=cfg)
    assert [tuple(top.shape) for top in run(net, np.zeros((0, 5)), GT_BOXES)] == [
        (0, width, 1, 1) for width in (5, 1, 24, 24, 24)
    ]
