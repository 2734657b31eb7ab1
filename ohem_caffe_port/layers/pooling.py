"""Pooling."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from .base import Layer, register
from .convolution import spatial

_FLT_MAX = torch.finfo(torch.float32).max


@register("Pooling")
class Pooling(Layer):
    """``PoolingLayer``, MAX and AVE, with Caffe's edge rules.

    The output is ``ceil((H + 2 pad - kernel) / stride) + 1`` wide (``floor`` with ``round_mode: FLOOR``); only with
    ``pad > 0`` on some axis the last window is dropped when it starts past the padded end. AVE divides by the window's
    cells counted up to ``H + pad``. A window that holds no cell (stride > kernel, no pad) gives -FLT_MAX or 0/0 as in
    Caffe. Among equal maxima the first in row-major order gets the gradient. A second
    top gives MAX's argmax as ``h * W + w``.
    """

    fields = {
        "pooling_param": {
            "pool", "pad", "pad_h", "pad_w", "kernel_size", "kernel_h", "kernel_w", "stride", "stride_h", "stride_w",
            "global_pooling", "round_mode", "ceil_mode",
        }
    }  # fmt: skip
    num_tops = (1, 2)
    saves_top = False

    def setup(self, bottoms):
        p = self.param.pooling_param
        if bottoms[0].dim() != 4:
            raise self.error(f"pools [N, C, H, W] blobs, not shape {tuple(bottoms[0].shape)}")
        if p.pool not in (p.MAX, p.AVE):
            raise self.error("STOCHASTIC pooling is not supported", field="pooling_param.pool")
        if p.global_pooling and (p.HasField("kernel_size") or p.HasField("kernel_h") or p.HasField("kernel_w")):
            raise self.error("global_pooling takes no kernel size", field="pooling_param.global_pooling")
        self.pad, self.stride = spatial(self, p, "pad", 0), spatial(self, p, "stride", 1)
        if p.global_pooling and (any(self.pad) or self.stride != (1, 1)):
            raise self.error("global_pooling takes no pad and no stride", field="pooling_param.global_pooling")
        self.kernel = None if p.global_pooling else spatial(self, p, "kernel", 0)
        if self.kernel and (min(self.kernel) < 1 or min(self.stride) < 1):
            raise self.error(f"kernel {self.kernel} and stride {self.stride} must be positive", field="pooling_param")
        if self.kernel and any(pad >= k for pad, k in zip(self.pad, self.kernel, strict=True)):
            raise self.error(f"pad {self.pad} must be smaller than the kernel {self.kernel}", field="pooling_param.pad")
        floor = p.round_mode == p.FLOOR or (p.HasField("ceil_mode") and not p.ceil_mode)
        self.rounded = math.floor if floor else math.ceil

    def _output_size(self, size, kernel, pad, stride) -> int:
        if size + 2 * pad < kernel:
            raise self.error(f"kernel of {kernel} cells on {size} cells (pad {pad})", field="pooling_param")
        out = self.rounded((size + 2 * pad - kernel) / stride) + 1
        if any(self.pad) and (out - 1) * stride >= size + pad:  # a pad on either axis decides for both
            out -= 1
        return out

    def forward(self, bottoms):
        x, p = bottoms[0], self.param.pooling_param
        kernel = self.kernel or tuple(x.shape[2:])
        axes = list(zip(x.shape[2:], kernel, self.pad, self.stride, strict=True))
        out = [self._output_size(*axis) for axis in axes]
        # cells that the windows reach beyond the bottom, before and after, on each axis
        after = [(o - 1) * s + k - pad - size for o, (size, k, pad, s) in zip(out, axes, strict=True)]
        border = (self.pad[1], max(after[1], 0), self.pad[0], max(after[0], 0))
        x = x[:, :, : x.shape[2] + min(after[0], 0), : x.shape[3] + min(after[1], 0)]
        if p.pool == p.MAX:
            padded = F.pad(x, border, value=-_FLT_MAX) if any(border) else x
            if len(self.param.top) == 1:
                return [F.max_pool2d(padded, kernel, self.stride)]
            pooled, index = F.max_pool2d(padded, kernel, self.stride, return_indices=True)
            width = padded.shape[3]
            row, column = index // width - self.pad[0], index % width - self.pad[1]
            return [pooled, (row * bottoms[0].shape[3] + column).to(x.dtype)]
        total = F.avg_pool2d(F.pad(x, border) if any(border) else x, kernel, self.stride, divisor_override=1)
        counts = []
        for o, (size, k, pad, s) in zip(out, axes, strict=True):
            start = torch.arange(o) * s - pad
            counts.append((torch.clamp(start + k, max=size + pad) - start).to(x.dtype))
        # a window past the end has no cell at all: 0/0, not 0/negative
        area = counts[0].clamp(min=0)[:, None] * counts[1].clamp(min=0)[None, :]
        return [total / area.to(total.device)]
