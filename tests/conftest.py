"""What every test may use."""

from pathlib import Path
from types import SimpleNamespace

import cv2
import pytest
import torch

import prototxt.zoo.generate as zoo

GOLDEN = Path(__file__).resolve().parent / "data" / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """pytest-xdist runs as many tests at once as there are cores; threads that wait for each other only cost time."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@pytest.fixture(autouse=True)
def same_draws():
    """A test draws the same numbers in every run, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def golden_data():
    """What real Caffe computed, in the forms that ``tests/golden.py`` replays."""
    return GOLDEN


# ---- a small Faster R-CNN for images of 7 classes

RPN_DATA = """
layer { name: "data" type: "Python" top: "data" top: "im_info" top: "gt_boxes" python_param {
    module: "roi_data_layer.layer" layer: "RoIDataLayer" param_str: "'num_classes': 7" } }
"""
RPN_INPUT = """
layer { name: "data" type: "Input" top: "data" top: "im_info"
        input_param { shape { dim: 1 dim: 3 dim: 96 dim: 128 } shape { dim: 1 dim: 3 } } }
"""
RPN_HEAD = """
layer { name: "rpn_cls_score" type: "Convolution" bottom: "conv1" top: "rpn_cls_score"
        convolution_param { num_output: 18 kernel_size: 1 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "rpn_bbox_pred" type: "Convolution" bottom: "conv1" top: "rpn_bbox_pred"
        convolution_param { num_output: 36 kernel_size: 1 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "two" type: "Reshape" bottom: "rpn_cls_score" top: "rpn_cls_score_reshape"
        reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: "rpn_cls_prob" type: "Softmax" bottom: "rpn_cls_score_reshape" top: "rpn_cls_prob" }
layer { name: "back" type: "Reshape" bottom: "rpn_cls_prob" top: "rpn_cls_prob_reshape"
        reshape_param { shape { dim: 0 dim: 18 dim: -1 dim: 0 } } }
layer { name: "proposal" type: "Python" bottom: "rpn_cls_prob_reshape" bottom: "rpn_bbox_pred" bottom: "im_info"
        top: "%s" top: "scores" python_param {
            module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{feat_stride: 8, scales: [1, 2, 4]}" } }
"""
RPN_TARGETS = """
layer { name: "rpn-data" type: "Python" bottom: "rpn_cls_score" bottom: "gt_boxes" bottom: "im_info" bottom: "data"
        top: "rpn_labels" top: "rpn_bbox_targets" top: "rpn_bbox_inside_weights" top: "rpn_bbox_outside_weights"
        python_param { module: "rpn.anchor_target_layer" layer: "AnchorTargetLayer"
                       param_str: "{feat_stride: 8, scales: [1, 2, 4]}" } }
layer { name: "rpn_loss_cls" type: "SoftmaxWithLoss" bottom: "rpn_cls_score_reshape" bottom: "rpn_labels"
        top: "rpn_cls_loss" loss_param { ignore_label: -1 normalize: true } propagate_down: 1 propagate_down: 0 }
layer { name: "rpn_loss_bbox" type: "SmoothL1Loss" bottom: "rpn_bbox_pred" bottom: "rpn_bbox_targets"
        bottom: "rpn_bbox_inside_weights" bottom: "rpn_bbox_outside_weights" top: "rpn_loss_bbox"
        smooth_l1_loss_param { sigma: 3.0 } }
layer { name: "roi-data" type: "Python" bottom: "rpn_rois" bottom: "gt_boxes" top: "rois" top: "labels"
        top: "bbox_targets" top: "bbox_inside_weights" top: "bbox_outside_weights" python_param {
            module: "rpn.proposal_target_layer" layer: "ProposalTargetLayer" param_str: "'num_classes': 7" } }
layer { name: "no_scores" type: "Silence" bottom: "scores" }
"""
RPN_ROIS = """
layer { name: "pool" type: "ROIPooling" bottom: "conv1" bottom: "rois" top: "pool"
        roi_pooling_param { pooled_h: 3 pooled_w: 3 spatial_scale: 0.125 } }
layer { name: "cls_score" type: "InnerProduct" bottom: "pool" top: "cls_score"
        inner_product_param { num_output: 7 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "bbox_pred" type: "InnerProduct" bottom: "pool" top: "bbox_pred"
        inner_product_param { num_output: 28 weight_filler { type: "gaussian" std: 0.001 } } }
"""
RPN_LOSSES = """
layer { name: "loss_cls" type: "SoftmaxWithLoss" bottom: "cls_score" bottom: "labels" top: "loss_cls" }
layer { name: "loss_bbox" type: "SmoothL1Loss" bottom: "bbox_pred" bottom: "bbox_targets"
        bottom: "bbox_inside_weights" bottom: "bbox_outside_weights" top: "loss_bbox" }
"""


@pytest.fixture(scope="session")
def faster_rcnn():
    """Texts ``train``, ``test`` and ``rpn`` (proposals alone) of a tiny Faster R-CNN, wired as py-faster-rcnn's."""
    backbone = zoo.conv("conv1", "data", 8, 8, stride=8, params=zoo.FROZEN, init='type: "gaussian" std: 0.01')
    probability = 'layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }'
    return SimpleNamespace(
        train=RPN_DATA + backbone + RPN_HEAD % "rpn_rois" + RPN_TARGETS + RPN_ROIS + RPN_LOSSES,
        test=RPN_INPUT + backbone + RPN_HEAD % "rois" + RPN_ROIS + probability,
        rpn=RPN_INPUT + backbone + RPN_HEAD % "rois",
    )
