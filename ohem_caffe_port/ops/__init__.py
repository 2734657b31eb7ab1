"""Detection primitives: one function each, the same for CPU and CUDA tensors. Imports nothing of the rest."""

from .boxes import bbox_overlaps, bbox_transform, bbox_transform_inv, clip_boxes
from .nms import nms
from .roi_pool import RoIPool, roi_pool

__all__ = ["RoIPool", "bbox_overlaps", "bbox_transform", "bbox_transform_inv", "clip_boxes", "nms", "roi_pool"]
