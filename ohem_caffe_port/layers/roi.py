"""Layers that pool regions of interest, and MNC's on masks."""

from __future__ import annotations

from functools import partial

from ..ops import roi_pool
from ..ops.ps_roi_pool import ps_roi_align, ps_roi_pool
from ..ops.roi_align import roi_align, roi_align_grid, roi_align_max, roi_align_window
from ..ops.roi_pool_3d import roi_pool_3d
from ..ops.roi_warp import mask_resize, roi_warp
from .base import Layer, register


class RoILayer(Layer):
    """Bottoms: feature maps and RoIs, a row ``(batch_index, x1, y1, x2, y2)`` each, of any shape with R rows."""

    num_bottoms = (2, 2)
    saves_top = False

    def checked(self, bottoms):
        """Features ``[N, C, H, W]`` and RoIs ``[R, 5]``, with a third spatial axis ``[R, 7]``.

        Raises:
            PortError: bottoms of other shapes.
        """
        features, rois = bottoms
        columns = 2 * features.dim() - 3
        if rois.shape[1:].numel() != columns:
            names = "batch_index, x1, y1, x2, y2" if columns == 5 else "batch_index, z1, x1, y1, z2, x2, y2"
            raise self.error(f"rois are rows ({names}); got shape {tuple(rois.shape)}")
        return features, rois.reshape(-1, columns)

    def check_pooled(self, message: str):
        """``pooled_h``, ``pooled_w`` and ``spatial_scale`` of a message that has them; returns it."""
        p = getattr(self.param, message)
        if p.pooled_h < 1 or p.pooled_w < 1 or p.spatial_scale <= 0:
            raise self.error(
                f"pooled_h {p.pooled_h}, pooled_w {p.pooled_w} and spatial_scale {p.spatial_scale} must be positive",
                field=message,
            )
        return p

    def check_maps(self, bottoms):
        if bottoms[0].dim() != 4:
            raise self.error(f"takes feature maps [N, C, H, W], not shape {tuple(bottoms[0].shape)}")


@register("ROIPooling")
class ROIPooling(RoILayer):
    """Max over the bins of each RoI, as in Fast R-CNN; see :func:`ohem_caffe_port.ops.roi_pool`.

    ``pad_ratio`` (MS-CNN, cascade-rcnn) is context around the RoI; with it the gradient is MS-CNN's, which loses some
    of it in RoIs that reach over the map's edge. ``pooled_size`` (Intel's fork) is height and width, or depth, height
    and width for maps ``[N, C, D, H, W]``, whose RoIs are rows ``(batch_index, z1, x1, y1, z2, x2, y2)``; there every
    maximum gets its gradient, whereas by default it must lie inside the rounded RoI.
    """

    fields = {"roi_pooling_param": {"pooled_h", "pooled_w", "spatial_scale", "pad_ratio", "pooled_size"}}

    def setup(self, bottoms):
        p = self.param.roi_pooling_param
        axes = bottoms[0].dim() - 2
        if axes not in (2, 3):
            raise self.error(f"takes maps [N, C, H, W] or [N, C, D, H, W], not shape {tuple(bottoms[0].shape)}")
        self.pooled = list(p.pooled_size)
        if axes == 2 and not self.pooled:
            self.check_pooled("roi_pooling_param")
            self.pooled = [p.pooled_h, p.pooled_w]
        self.gradient = "all" if p.pooled_size else "mscnn" if p.pad_ratio else "inside"
        if len(self.pooled) == 1:
            self.pooled *= axes
        if len(self.pooled) != axes or min(self.pooled) < 1 or p.spatial_scale <= 0:
            raise self.error(
                f"takes one or {axes} positive numbers for maps with {axes} spatial axes, and a positive spatial_scale",
                field="roi_pooling_param.pooled_size",
            )
        for other in ("pooled_h", "pooled_w") if axes == 3 else ("pad_ratio",) if p.pooled_size else ():
            if p.HasField(other):
                raise self.error("does not go with pooled_size", field=f"roi_pooling_param.{other}")

    def forward(self, bottoms):
        features, rois = self.checked(bottoms)
        p = self.param.roi_pooling_param
        if features.dim() == 5:
            return [roi_pool_3d(features, rois, *self.pooled, p.spatial_scale)]
        return [roi_pool(features, rois, *self.pooled, p.spatial_scale, pad_ratio=p.pad_ratio, gradient=self.gradient)]


@register("ROIAlign")
class ROIAlign(RoILayer):
    """RoI align: bilinear samples of each RoI without rounding its corners; which samples depends on the fork.

    * ``roi_pooling_param`` (cascade-rcnn, MS-CNN): the corners of the bins, so the top is ``[R, C, pooled_h + 1,
      pooled_w + 1]``; :func:`~ohem_caffe_port.ops.roi_align.roi_align_grid`.
    * ``roi_align_param`` (synopsys-caffe): the largest of four sums over a bin's first cells;
      :func:`~ohem_caffe_port.ops.roi_align.roi_align_window`.
    * with ``sampling_ratio`` (Caffe ports of Caffe2's layer): the mean of each bin's samples, as in Mask R-CNN;
      :func:`~ohem_caffe_port.ops.roi_align.roi_align`.
    * with ``bi_type`` (0 bilinear, 1 cubic) or ``is_multi_interpolate`` in either message, or ``pad_ratio`` in
      ``roi_align_param``: the largest of each bin's four samples;
      :func:`~ohem_caffe_port.ops.roi_align.roi_align_max`.
    """

    fields = {
        "roi_pooling_param": {"pooled_h", "pooled_w", "spatial_scale", "pad_ratio", "bi_type", "is_multi_interpolate"},
        "roi_align_param": {"pooled_h", "pooled_w", "spatial_scale", "pad_ratio", "bi_type", "sampling_ratio"},
    }

    def setup(self, bottoms):
        self.check_maps(bottoms)
        old, new = self.param.roi_pooling_param, self.param.roi_align_param
        if self.param.HasField("roi_pooling_param") and self.param.HasField("roi_align_param"):
            raise self.error("give either roi_pooling_param or roi_align_param", field="roi_align_param")
        pools = self.param.HasField("roi_pooling_param")
        p = self.p = self.check_pooled("roi_pooling_param" if pools else "roi_align_param")
        if p.HasField("bi_type") or old.HasField("is_multi_interpolate") or new.HasField("pad_ratio"):
            if p.bi_type not in (0, 1):
                raise self.error("is 0 (bilinear) or 1 (cubic)", field="bi_type")
            if new.HasField("sampling_ratio"):
                raise self.error("is another fork's than bi_type and pad_ratio", field="roi_align_param.sampling_ratio")
            self.pool = partial(
                roi_align_max, pad_ratio=p.pad_ratio, cubic=p.bi_type == 1, multiple=old.is_multi_interpolate
            )
        elif pools:
            self.pool = partial(roi_align_grid, pad_ratio=p.pad_ratio)
        elif p.HasField("sampling_ratio"):
            self.pool = partial(roi_align, sampling_ratio=p.sampling_ratio)
        else:
            self.pool = roi_align_window

    def forward(self, bottoms):
        return [self.pool(*self.checked(bottoms), self.p.pooled_h, self.p.pooled_w, self.p.spatial_scale)]


class _PositionSensitive(RoILayer):
    message: str

    def setup(self, bottoms):
        p = self.p = getattr(self.param, self.message)
        self.check_maps(bottoms)
        if p.output_dim < 1 or p.group_size < 1 or p.spatial_scale <= 0:
            raise self.error(
                f"output_dim {p.output_dim}, group_size {p.group_size} and spatial_scale {p.spatial_scale} must be"
                " positive",
                field=self.message,
            )

    def checked(self, bottoms):
        channels, wanted = bottoms[0].shape[1], self.p.output_dim * self.p.group_size**2
        if channels != wanted:
            raise self.error(
                f"{channels} channels, but output_dim * group_size^2 = {wanted} are needed",
                field=f"{self.message}.output_dim",
            )
        return super().checked(bottoms)


@register("PSROIPooling")
class PSROIPooling(_PositionSensitive):
    """Position-sensitive RoI pooling of R-FCN, a mean over each bin; :func:`ohem_caffe_port.ops.ps_roi_pool`.

    The same in microsoft/caffe, caffe-rfcn, cascade-rcnn, caffe-windows and Intel's fork.
    """

    message = "psroi_pooling_param"
    fields = {message: {"spatial_scale", "output_dim", "group_size"}}

    def forward(self, bottoms):
        return [ps_roi_pool(*self.checked(bottoms), self.p.output_dim, self.p.group_size, self.p.spatial_scale)]


@register("PSROIAlign")
class PSROIAlign(_PositionSensitive):
    """Position-sensitive RoI align of Light-Head R-CNN, a mean of ``sample_num^2`` bilinear samples of each bin.

    See :func:`ohem_caffe_port.ops.ps_roi_align`, also for its gradient. With ``sampling_ratio`` (a fork of
    caffe-windows) it is :func:`ohem_caffe_port.ops.roi_align` on position-sensitive maps. (Layers of this name without
    either field exist that place their four samples differently; nothing tells them apart.)
    """

    message = "psroi_align_param"
    fields = {message: {"spatial_scale", "output_dim", "group_size", "sample_num", "sampling_ratio"}}

    def setup(self, bottoms):
        super().setup(bottoms)
        if self.p.sample_num < 1:
            raise self.error("must be positive", field="psroi_align_param.sample_num")
        if self.p.HasField("sample_num") and self.p.HasField("sampling_ratio"):
            raise self.error("is another fork's than sample_num", field="psroi_align_param.sampling_ratio")

    def forward(self, bottoms):
        (features, rois), p = self.checked(bottoms), self.p
        if p.HasField("sampling_ratio"):
            size = p.group_size
            return [roi_align(features, rois, size, size, p.spatial_scale, p.sampling_ratio, group=size)]
        return [ps_roi_align(features, rois, p.output_dim, p.group_size, p.spatial_scale, p.sample_num)]


@register("ROIWarping")
class ROIWarping(RoILayer):
    """MNC's RoI warping: one bilinear sample for each bin, with a gradient for the RoIs too.

    See :func:`ohem_caffe_port.ops.roi_warp`. Both gradients are those of caffe-mnc, which are approximate.
    """

    fields = {"roi_warping_param": {"pooled_h", "pooled_w", "spatial_scale"}}

    def setup(self, bottoms):
        self.check_maps(bottoms)
        self.p = self.check_pooled("roi_warping_param")

    def forward(self, bottoms):
        return [roi_warp(*self.checked(bottoms), self.p.pooled_h, self.p.pooled_w, self.p.spatial_scale)]


@register("MaskPooling")
class MaskPooling(Layer):
    """MNC's mask pooling: features ``[N, C, H, W]`` times masks ``[N, 1, H, W]``."""

    num_bottoms = (2, 2)
    saves_top = False

    def forward(self, bottoms):
        features, masks = bottoms
        if features.dim() != 4 or masks.shape != (features.shape[0], 1, *features.shape[2:]):
            raise self.error(
                f"takes features [N, C, H, W] and masks [N, 1, H, W]; got {[tuple(b.shape) for b in bottoms]}"
            )
        return [features * masks]


@register("MaskResize")
class MaskResize(Layer):
    """MNC's bilinear resizing of masks to ``output_height x output_width``; :func:`ohem_caffe_port.ops.mask_resize`."""

    fields = {"mask_resize_param": {"output_height", "output_width"}}
    saves_top = False

    def setup(self, bottoms):
        p = self.param.mask_resize_param
        if p.output_height < 1 or p.output_width < 1:
            raise self.error("output_height and output_width must be positive", field="mask_resize_param")

    def forward(self, bottoms):
        if bottoms[0].dim() != 4:
            raise self.error(f"takes masks [N, C, H, W], not shape {tuple(bottoms[0].shape)}")
        p = self.param.mask_resize_param
        return [mask_resize(bottoms[0], p.output_height, p.output_width)]
