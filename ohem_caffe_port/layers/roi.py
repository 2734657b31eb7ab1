"""Layers on regions of interest."""

from __future__ import annotations

from ..ops import roi_pool
from .base import Layer, register


@register("ROIPooling")
class ROIPooling(Layer):
    """caffe-fast-rcnn's ``ROIPoolingLayer``; see :func:`ohem_caffe_port.ops.roi_pool`. Bottoms: features
    ``[N, C, H, W]`` and rois ``[R, 5]``."""

    fields = {"roi_pooling_param": {"pooled_h", "pooled_w", "spatial_scale"}}
    num_bottoms = (2, 2)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.roi_pooling_param
        if p.pooled_h < 1 or p.pooled_w < 1 or p.spatial_scale <= 0:
            raise self.error(
                f"pooled_h {p.pooled_h}, pooled_w {p.pooled_w} and spatial_scale {p.spatial_scale} must be positive",
                field="roi_pooling_param",
            )

    def forward(self, bottoms):
        features, rois = bottoms
        if rois.shape[1:].numel() != 5:
            raise self.error(f"rois are rows (batch_index, x1, y1, x2, y2); got shape {tuple(rois.shape)}")
        p = self.param.roi_pooling_param
        return [roi_pool(features, rois.reshape(-1, 5), p.pooled_h, p.pooled_w, p.spatial_scale)]
