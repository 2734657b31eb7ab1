"""Which examples a detector learns from: plain functions on tensors, usable from any PyTorch detector."""

from .ohem import easy_rois_zeroed, ohem_roi_loss, select_hard_rois

__all__ = ["easy_rois_zeroed", "ohem_roi_loss", "select_hard_rois"]
