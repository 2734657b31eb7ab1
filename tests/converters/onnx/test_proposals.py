import json

import numpy as np
import pytest

import prototxt
from converters import WeightsError
from ohem_caffe_port import python_layers  # noqa: F401  registers them
from ohem_caffe_port.config import Config
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

PVANET = """proposal_param { feat_stride: 8 base_size: 8 min_size: 6 ratio: 0.5 ratio: 1 ratio: 2 scale: 2 scale: 4
            pre_nms_topn: 60 post_nms_topn: 12 nms_thresh: 0.6 }"""
SYNOPSYS = "proposal_param { feat_stride: 16 max_rois: 10 rpn_min_size: 20 rpn_nms_thresh: 0.5 pre_nms_topn: 100 }"
NORM = "bbox_reg_param { " + "".join(f"bbox_mean: {m} bbox_std: 0.2 " for m in (0, 0.1, 0, -0.1)) + "}"


def python_layer(module="rpn.proposal_layer", tops=2):
    names = " ".join(f'top: "y{i}"' for i in range(tops))
    bottoms = " ".join(f'bottom: "x{i}"' for i in range(3))
    return (
        f'layer {{ name: "it" type: "Python" {bottoms} {names} python_param {{ module: "{module}" '
        'layer: "ProposalLayer" param_str: "\'feat_stride\': 16" } }'
    )


@pytest.mark.parametrize("case", ["minsize", "tied_scores", "test_notop", "scales"])
def test_golden(golden_data, check, run_onnx, case):
    """py-faster-rcnn's layer. numpy's unstable sort decided between tied scores, so these are compared with the Net's
    alone, and so is a case of the TRAIN phase."""
    base = golden_data / "rpn" / f"Proposal__{case}"
    entry, arrays = json.loads((golden_data / "rpn/index.json").read_text())[base.name], np.load(f"{base}.npz")
    cfg = Config()
    cfg.merge({"TEST": entry["cfg_overrides"]}, source=case)
    net = Net(f"{base}.prototxt", "TEST", cfg=cfg)
    inputs = {name: arrays[f"in/{name}"] for name in net.inputs}
    for model in check(net, inputs, static=True, tolerance=1e-6, repeats=True).values():
        if case not in ("tied_scores", "scales"):
            for name, value in run_onnx(model, inputs).items():
                reference = arrays[f"out/{name}"]
                np.testing.assert_allclose(value[: len(reference)], reference, rtol=2e-6, atol=2e-4)


def maps(anchors, size, images=1, columns=3):
    """Shapes and inputs of scores, deltas and im_info."""

    def inputs(shapes, rng):
        image = [size[0] * 16 - 5, size[1] * 16 - 9, 1.6, 1.4, 1, 1][:columns]
        return {
            "x0": rng.uniform(0, 1, shapes["x0"]),
            "x1": rng.standard_normal(shapes["x1"]) * 0.4,
            "x2": np.tile(image, (shapes["x2"][0], 1)),
        }

    return ((images, 2 * anchors, *size), (images, 4 * anchors, *size), (images, columns)), inputs


@pytest.mark.parametrize("module", ["rpn.proposal_layer", "pylayer.proposal_layer"])
@pytest.mark.parametrize("tops", [1, 2])
def test_python_layers(check, inputs_of, module, tops):
    shapes, inputs = maps(9, (7, 9))
    text = inputs_of(**{f"x{i}": shape for i, shape in enumerate(shapes)}) + python_layer(module, tops)
    check(text, inputs, static=True, repeats=True)


def test_layers_behind_proposals(check, inputs_of):
    """OpenCV 5 plans them in its first run: every one must have as many rows."""
    shapes, inputs = maps(9, (7, 9))
    head = """
        layer { name: "pool" type: "ROIPooling" bottom: "x3" bottom: "y0" top: "pool"
                roi_pooling_param { pooled_w: 3 pooled_h: 2 spatial_scale: 0.0625 } }
        layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 7 } }
        layer { name: "sum" type: "Eltwise" bottom: "fc" bottom: "fc" top: "sum" }
        layer { name: "prob" type: "Softmax" bottom: "sum" top: "prob" }"""
    names = {f"x{i}": shape for i, shape in enumerate([*shapes, (1, 4, 7, 9)])}
    net = Net(prototxt.parse_net(inputs_of(**names) + python_layer(tops=1) + head), "TEST")
    check(net, inputs, static=True, repeats=True)
    notes = []
    to_onnx(net, target="opencv", notes=notes)
    assert "layer 'it' gives as many rows as it may find at most" in notes[-1]


def test_no_proposal(check, inputs_of):
    """No rows, which OpenCV 5 cannot run."""
    cfg = Config()
    cfg.merge({"TEST": {"RPN_MIN_SIZE": 5000}}, source="test")
    shapes, inputs = maps(9, (4, 5))
    text = inputs_of(**{f"x{i}": shape for i, shape in enumerate(shapes)}) + python_layer()
    check(Net(prototxt.parse_net(text), "TEST", cfg=cfg), inputs, static=True, targets=("onnxruntime",))


@pytest.mark.parametrize("columns", [3, 6])
def test_pvanet(check_layer, columns):
    """Several images; boxes that are too small have a score of 0, which many share."""
    shapes, inputs = maps(6, (5, 6), 2, columns)
    check_layer("Proposal", PVANET, *shapes, tops=2, inputs=inputs, repeats=True)


def test_one_size_for_all_images(check_layer):
    shapes, inputs = maps(6, (5, 6), 2)
    check_layer("Proposal", PVANET, *shapes[:2], (1, 3), inputs=inputs, repeats=True)


@pytest.mark.parametrize("min_size", [20, 5000])
def test_synopsys(check_layer, min_size):
    """The last box stays, however small."""
    shapes, inputs = maps(9, (5, 6))
    settings = SYNOPSYS.replace("20", str(min_size))
    check_layer("Proposal", settings, *shapes, tops=2, inputs=inputs, static=True, repeats=True)


BOUNDS = "field_whr: 2 field_xyr: 4"
FIELDS = "field_w: 20 field_w: 40 field_h: 24 field_h: 30 downsample_rate: 8 downsample_rate: 16"


@pytest.mark.parametrize("limits", ["fg_thr: -0.5 max_nms_num: 25 max_post_nms_num: 7", "fg_thr: 1", "fg_thr: 9"])
@pytest.mark.parametrize("norm", ["", NORM])
def test_box_output(check_layer, limits, norm):
    """With fg_thr 9 there is nothing but Caffe's stand-in."""
    settings = f"box_output_param {{ iou_thr: 0.4 min_size: 14 {FIELDS} {limits} {BOUNDS} }} {norm}"
    check_layer("BoxOutput", settings, (2, 7, 6, 8), (2, 7, 3, 4), tops=2, repeats=True)


@pytest.mark.parametrize("limits", ["max_nms_num: 40 max_post_nms_num: 9", ""])
def test_box_group_output(check_layer, limits):
    groups = (
        "box_group_param { field_w: 20 field_h: 24 field_w: 30 field_h: 12 stride: 8 } "
        "box_group_param { field_w: 40 field_h: 30 stride: 16 }"
    )
    settings = f"box_group_output_param {{ {groups} fg_thr: 0.3 iou_thr: 0.5 min_size: 13 {limits} {BOUNDS} }}"
    shapes = (4, 3, 5, 6), (4, 4, 5, 6), (2, 3, 3, 3), (2, 4, 3, 3)  # of 2 images, and then of 5
    check_layer(
        "BoxGroupOutput", settings, *shapes, tops=2, batch=10, repeats=True,
        inputs=lambda shapes, rng: {name: rng.uniform(0, 1, shapes[name]) for name in ("x0", "x2")},
    )  # fmt: skip


def test_refused(layer_net):
    settings = f"box_output_param {{ {FIELDS} nms_type: 'IOFU' }}"
    with pytest.raises(WeightsError, match="layer 'it': BoxOutput: nms_type IOFU"):
        to_onnx(Net(prototxt.parse_net(layer_net("BoxOutput", settings, (2, 7, 6, 8), (2, 7, 3, 4))), "TEST"))
