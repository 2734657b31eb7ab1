"""Which examples a detector learns from, and how much: plain functions on tensors, usable from any PyTorch detector.

:mod:`.examples` is the one idea behind them, ``METHODS`` has them by name.
"""

from .examples import Examples, Method, Weights
from .focal import (
    focal_loss_star,
    num_positives,
    prior_bias,
    sigmoid_focal_loss,
    softmax_focal_loss,
    softmax_prior_bias,
)
from .ghm import asl1_loss, ghm_weights, ghmc_loss, ghmr_loss, gradient_density
from .methods import METHODS
from .multibox import hard_examples, hardest, max_negatives, multibox_conf_loss, multibox_loc_loss
from .ohem import easy_rois_zeroed, ohem_roi_loss, roi_cls_loss, roi_loc_loss, select_hard_rois
from .per_image import hardest_per_image
from .ratio import select_rois_by_ratio
from .sohem import Strata, select_stratified_rois

__all__ = [
    "METHODS",
    "Examples",
    "Method",
    "Strata",
    "Weights",
    "asl1_loss",
    "easy_rois_zeroed",
    "focal_loss_star",
    "ghm_weights",
    "ghmc_loss",
    "ghmr_loss",
    "gradient_density",
    "hard_examples",
    "hardest",
    "hardest_per_image",
    "max_negatives",
    "multibox_conf_loss",
    "multibox_loc_loss",
    "num_positives",
    "ohem_roi_loss",
    "prior_bias",
    "roi_cls_loss",
    "roi_loc_loss",
    "select_hard_rois",
    "select_rois_by_ratio",
    "select_stratified_rois",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "softmax_prior_bias",
]
