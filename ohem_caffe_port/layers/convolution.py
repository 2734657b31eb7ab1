"""Convolution."""

from __future__ import annotations

from torch.nn import functional as F

from .base import Layer, register


def spatial(layer: Layer, param, name: str, default: int) -> tuple[int, int]:
    """Caffe's two spellings of a spatial setting: ``<name>`` (once, or for each axis) and ``<name>_h`` / ``<name>_w``.

    ``kernel`` and ``kernel_size`` are the one irregular name. Returns ``(h, w)``.
    """
    both = param.kernel_size if name == "kernel" else getattr(param, name)
    stated = param.HasField("kernel_size" if name == "kernel" else name) if isinstance(both, int) else False
    values = [both] if stated else [] if isinstance(both, int) else list(both)
    if hasattr(param, f"{name}_h") and (param.HasField(f"{name}_h") or param.HasField(f"{name}_w")):
        if values and name == "kernel":
            raise layer.error("give kernel_size or kernel_h and kernel_w, not both", field="kernel_size")
        return getattr(param, f"{name}_h"), getattr(param, f"{name}_w")
    if len(values) > 2:
        raise layer.error(f"{len(values)} values for 2 spatial axes", field=name)
    values = values or [default]
    return values[0], values[-1]


@register("Convolution")
class Convolution(Layer):
    """``ConvolutionLayer`` in 2-d, grouped, dilated. Weight ``[num_output, C / group, kh, kw]``,
    bias ``[num_output]``."""

    fields = {
        "convolution_param": {
            "num_output", "bias_term", "pad", "kernel_size", "stride", "dilation", "pad_h", "pad_w", "kernel_h",
            "kernel_w", "stride_h", "stride_w", "group", "weight_filler", "bias_filler", "axis",
        }
    }  # fmt: skip
    num_bottoms, num_tops = (1, 1 << 30), (1, 1 << 30)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.convolution_param
        if len(self.param.bottom) != len(self.param.top):
            raise self.error(f"{len(self.param.bottom)} bottoms and {len(self.param.top)} tops; they go in pairs")
        if bottoms[0].dim() != 4 or p.axis not in (1, -3):
            raise self.error(
                f"convolves [N, C, H, W] blobs along axis 1; got shape {tuple(bottoms[0].shape)}, axis {p.axis}"
            )
        self.kernel = spatial(self, p, "kernel", 0)
        self.stride = spatial(self, p, "stride", 1)
        self.pad = spatial(self, p, "pad", 0)
        self.dilation = spatial(self, p, "dilation", 1)
        channels = bottoms[0].shape[1]
        if min(*self.kernel, *self.stride, *self.dilation, p.num_output, p.group) < 1:
            raise self.error(
                f"kernel {self.kernel}, stride {self.stride}, dilation {self.dilation}, num_output {p.num_output} and "
                f"group {p.group} must be positive",
                field="convolution_param",
            )
        if channels % p.group or p.num_output % p.group:
            raise self.error(
                f"{p.group} groups do not divide {channels} channels in and {p.num_output} out", field="group"
            )
        self.add_blob((p.num_output, channels // p.group, *self.kernel), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def forward(self, bottoms):
        bias = self.blob(1) if len(self.blobs) > 1 else None
        group = self.param.convolution_param.group
        return [F.conv2d(x, self.blob(0), bias, self.stride, self.pad, self.dilation, group) for x in bottoms]
