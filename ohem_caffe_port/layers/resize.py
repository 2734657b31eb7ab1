"""Layers that change the size of images."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops.rois import round_half_away
from .base import Layer, cheap_to_read, register
from .convolution import pad_axes, spatial


def check_image(layer: Layer, x: Tensor) -> None:
    """Raises a PortError unless ``x`` has the four axes of images."""
    if x.dim() != 4:
        raise layer.error(f"takes blobs with 4 axes, not shape {tuple(x.shape)}")


@register("Interp")
class Interp(Layer):
    """Bilinear resize of images with corners aligned (DeepLab, PSPNet).

    The bottom is cropped by ``-pad_beg`` cells before and ``-pad_end`` after on both axes. The size is, in this order:
    the second bottom's with ``use_blob_size`` (or if no size is stated), ``(size - 1) / shrink_factor + 1``,
    ``size + (size - 1) * (zoom_factor - 1)``, ``height`` and ``width``, shrunk and then zoomed, or
    ``size * full_zoom_factor`` (synopsys).
    """

    fields = {
        "interp_param": {
            "height", "width", "zoom_factor", "shrink_factor", "full_zoom_factor", "pad_beg", "pad_end",
            "use_blob_size",
        }
    }  # fmt: skip
    num_bottoms = (1, 2)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.interp_param
        if max(p.pad_beg, p.pad_end) > 0:
            raise self.error("crops only: must not be positive", field="interp_param.pad_beg")
        if min(p.zoom_factor, p.shrink_factor, p.full_zoom_factor) < 1:
            raise self.error("factors must be positive", field="interp_param")
        stated = {field.name for field, _ in p.ListFields()} - {"pad_beg", "pad_end"}
        self.by_blob = p.use_blob_size or (len(bottoms) == 2 and not stated)
        if self.by_blob != (len(bottoms) == 2):
            raise self.error("a second bottom and use_blob_size go together", field="interp_param.use_blob_size")
        self.shrinks, self.zooms = "shrink_factor" in stated, "zoom_factor" in stated
        self.sized = {"height", "width"} <= stated and self.shrinks == self.zooms
        if not (self.by_blob or self.shrinks or self.zooms or self.sized or "full_zoom_factor" in stated):
            raise self.error("no size is stated", field="interp_param", hint="give height and width, or a factor")

    def size(self, sizes) -> list[int]:
        p = self.param.interp_param
        if self.sized:
            return [p.height, p.width]
        if not (self.shrinks or self.zooms):
            return [size * p.full_zoom_factor for size in sizes]
        small = [(size - 1) // p.shrink_factor + 1 for size in sizes]
        return [size + (size - 1) * (p.zoom_factor - 1) for size in small]

    def forward(self, bottoms):
        p, x = self.param.interp_param, bottoms[0]
        for bottom in bottoms:
            check_image(self, bottom)
        if p.pad_beg or p.pad_end:
            if min(x.shape[2:]) + p.pad_beg + p.pad_end < 1:
                raise self.error(f"nothing is left of {tuple(x.shape[2:])} cells", field="interp_param.pad_beg")
            x = pad_axes(x, [(p.pad_beg, p.pad_end)] * 2)
        size = list(bottoms[1].shape[2:]) if self.by_blob else self.size(x.shape[2:])
        if min(size) < 1:
            raise self.error(f"cannot resize to {size}", field="interp_param")
        return [F.interpolate(x, size, mode="bilinear", align_corners=True)]


@register("Upsample")
class Upsample(Layer):
    """Repeats each cell of an image, or with a second bottom puts each cell where a Pooling's mask says.

    One bottom (YOLO): every cell becomes a block of ``scale`` (or ``stride``) cells, which may differ by axis.

    Two bottoms (SegNet): value and mask, a Pooling's two tops, of one shape; the value goes to position
    ``h * width + w`` of an image of zeros, ``upsample_h x upsample_w`` or ``scale`` times as large, less one row or
    column with ``pad_out_h`` / ``pad_out_w``. Of two values for one position the later stays (on a GPU, as in Caffe,
    either may); both get its gradient.
    """

    fields = {
        "upsample_param": {
            "scale", "scale_h", "scale_w", "stride", "stride_h", "stride_w", "pad_out_h", "pad_out_w", "upsample_h",
            "upsample_w",
        }
    }  # fmt: skip
    num_bottoms = (1, 2)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.upsample_param
        stated = {field.name for field, _ in p.ListFields()}
        strides = stated & {"stride", "stride_h", "stride_w"}
        if strides and stated & {"scale", "scale_h", "scale_w"}:
            raise self.error("stride is another word for scale; give one of them", field="upsample_param.stride")
        self.scale = spatial(self, p, "stride" if strides else "scale", 2)
        self.target = (p.upsample_h, p.upsample_w) if stated & {"upsample_h", "upsample_w"} else None
        self.less = (p.pad_out_h, p.pad_out_w)
        unpools = len(bottoms) == 2
        if not unpools and (self.target or any(self.less)):
            raise self.error("this size needs a mask, the second bottom", field="upsample_param")
        if min(self.target or self.scale) < 1 + unpools:
            raise self.error(f"cannot upsample to {self.target or self.scale}", field="upsample_param")
        if not self.target and any(less and scale != 2 for less, scale in zip(self.less, self.scale, strict=True)):
            raise self.error("needs a scale of 2", field="upsample_param.pad_out_h")

    def forward(self, bottoms):
        x = bottoms[0]
        check_image(self, x)
        if len(bottoms) == 1:
            return [F.interpolate(x, [n * scale for n, scale in zip(x.shape[2:], self.scale, strict=True)])]
        if x.shape != bottoms[1].shape:
            raise self.error(f"values {tuple(x.shape)} and mask {tuple(bottoms[1].shape)} differ in shape")
        axes = zip(x.shape[2:], self.scale, self.less, strict=True)
        height, width = self.target or [size * scale - less for size, scale, less in axes]
        index = bottoms[1].detach().long().flatten(2)
        if cheap_to_read(index) and index.numel():
            low, high = index.aminmax()
            if low < 0 or high >= height * width:
                raise self.error(f"the mask holds {int(low)} to {int(high)}, beyond a top of {height} x {width}")
        result = x.new_zeros(*x.shape[:2], height * width).scatter(2, index, x.flatten(2))
        return [result.unflatten(2, (height, width))]


@register("Resample")
class Resample(Layer):
    """Resize by NEAREST, LINEAR or CUBIC interpolation to ``height`` and ``width``, or to a second bottom's (FlowNet).

    Cell ``o`` of an axis lies at ``o * f + g / 2 - 1/2`` with ``f`` the shrinking of this axis and ``g``, as in the
    fork, that of the other one. Shrinking widens the kernel unless ``antialias: false``. Where the image ends, the
    remaining weights are scaled to sum 1. The fork has no backward; here the gradient is the true one.
    """

    fields = {"resample_param": {"height", "width", "type", "antialias"}}
    num_bottoms = (1, 2)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.resample_param
        if p.type == p.AREA:
            raise self.error("AREA is not supported", field="resample_param.type", hint="NEAREST, LINEAR or CUBIC")
        if len(bottoms) == 1 and min(p.height, p.width) < 1:
            raise self.error("height and width must be positive", field="resample_param")

    def forward(self, bottoms):
        p, x = self.param.resample_param, bottoms[0]
        for bottom in bottoms:
            check_image(self, bottom)
        size = bottoms[1].shape[2:] if len(bottoms) == 2 else (p.height, p.width)
        rows, columns = (cells.to(x.device) for cells in self.cells(x.shape[2:], size))
        if p.type == p.NEAREST:
            return [x[:, :, rows][:, :, :, columns]]
        return [rows @ x @ columns.t()]

    def cells(self, old, new) -> list[Tensor]:
        """For an image of ``old`` cells that becomes one of ``new``, both (height, width), and for each of the axes:
        the cell that every result takes, or for LINEAR and CUBIC ``[out, in]``, what each cell weighs in it."""
        p = self.param.resample_param
        shrink = [a / b for a, b in zip(old, new, strict=True)]
        places = [torch.arange(n) * f + other / 2 - 0.5 for n, f, other in zip(new, shrink, shrink[::-1], strict=True)]
        if p.type == p.NEAREST:
            return [round_half_away(at).clamp(0, n - 1) for at, n in zip(places, old, strict=True)]
        widened = p.antialias and max(shrink) > 1
        return [self._weights(at, n, f, f if widened else 1.0) for at, n, f in zip(places, old, shrink, strict=True)]

    def _weights(self, at, size, shrink, width) -> Tensor:
        """``[out, in]``: what each cell of an axis weighs in each result."""
        p = self.param.resample_param
        cubic = p.type == p.CUBIC
        cells = torch.arange(size, device=at.device)
        distance = (at[:, None] - cells).abs() / width
        if cubic:
            near = distance * distance * (1.5 * distance - 2.5) + 1
            far = distance * (distance * (-0.5 * distance + 2.5) - 4) + 2
            weights = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
        else:
            weights = (1 - distance).clamp(min=0)
        reach = 2 if shrink < 1 else math.ceil((4 if cubic else 2) * width)
        weights = torch.where((round_half_away(at)[:, None] - cells).abs() <= reach, weights, 0.0)
        total = weights.sum(1, keepdim=True)
        return weights / torch.where(total == 0, 1.0, total)


def layout(layer: Layer, param, known=("NHWC", "NCHW")) -> str:
    """The message's ``data_format``, one of ``known``."""
    if param.data_format not in known:
        raise layer.error(f"one of {', '.join(known)}, not {param.data_format!r}", field="data_format")
    return param.data_format


@register("ResizeBilinear")
class ResizeBilinear(Layer):
    """TensorFlow's bilinear resize to ``output_height`` and ``output_width``, or by ``scale_height`` and
    ``scale_width`` (synopsys).

    Cell ``o`` lies at ``o * f``, ``f = in / out``; with ``align_corners`` ``f = (in - 1) / (out - 1)``, with
    ``half_pixel_centers`` at ``(o + 1/2) f - 1/2``. Blobs are NHWC unless ``data_format`` says NCHW.
    """

    fields = {
        "resize_bilinear_param": {
            "align_corners", "half_pixel_centers", "output_height", "output_width", "scale_height", "scale_width",
            "data_format",
        }
    }  # fmt: skip
    saves_top = False

    def setup(self, bottoms):
        p = self.param.resize_bilinear_param
        self.first = 1 if layout(self, p) == "NHWC" else 2
        if p.align_corners and p.half_pixel_centers:
            raise self.error("excludes align_corners", field="resize_bilinear_param.half_pixel_centers")

    def forward(self, bottoms):
        p, x = self.param.resize_bilinear_param, bottoms[0]
        check_image(self, x)
        for axis, name in enumerate(("height", "width"), start=self.first):
            size = x.shape[axis]
            wanted = getattr(p, f"output_{name}")
            if not p.HasField(f"output_{name}"):
                wanted = math.floor(np.float32(size) * np.float32(getattr(p, f"scale_{name}")))
            if wanted < 1:
                raise self.error(f"{name} {wanted} must be positive", field="resize_bilinear_param")
            aligned = p.align_corners and wanted > 1
            step = (size - 1) / (wanted - 1) if aligned else size / wanted
            at = torch.arange(wanted, device=x.device, dtype=x.dtype)
            at = (at + 0.5) * step - 0.5 if p.half_pixel_centers else at * step
            before = at.floor()
            share = (at - before).view(-1, *[1] * (3 - axis))
            low = x.index_select(axis, before.long().clamp(min=0))
            high = x.index_select(axis, at.ceil().long().clamp(0, size - 1))
            x = low + (high - low) * share
        return [x]
