"""Detection primitives: one function each, the same for CPU and CUDA tensors. Imports of the rest boxes.py alone."""

from ..boxes import bbox_overlaps, bbox_transform, bbox_transform_inv, clip_boxes
from .nms import nms, nms_padded, nms_ranked
from .priors import box_area, crosses_boundary, decode_boxes, encode_boxes, jaccard_overlap, match_boxes
from .ps_roi_pool import ps_roi_align, ps_roi_pool
from .roi_align import roi_align
from .roi_pool import RoIPool, roi_pool
from .roi_warp import mask_resize, roi_warp

__all__ = [
    "RoIPool",
    "bbox_overlaps",
    "bbox_transform",
    "bbox_transform_inv",
    "box_area",
    "clip_boxes",
    "crosses_boundary",
    "decode_boxes",
    "encode_boxes",
    "jaccard_overlap",
    "mask_resize",
    "match_boxes",
    "nms",
    "nms_padded",
    "nms_ranked",
    "ps_roi_align",
    "ps_roi_pool",
    "roi_align",
    "roi_pool",
    "roi_warp",
]
