"""Which examples a detector learns from: plain functions on tensors, usable from any PyTorch detector."""

from .multibox import hard_examples, hardest, max_negatives, multibox_conf_loss, multibox_loc_loss
from .ohem import easy_rois_zeroed, ohem_roi_loss, select_hard_rois
from .per_image import hardest_per_image

__all__ = [
    "easy_rois_zeroed",
    "hard_examples",
    "hardest",
    "hardest_per_image",
    "max_negatives",
    "multibox_conf_loss",
    "multibox_loc_loss",
    "ohem_roi_loss",
    "select_hard_rois",
]
