"""Pooling, of windows and of pyramids of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Layer, register
from .convolution import pad_axes, patches, same_padding, spatial

_FLT_MAX = torch.finfo(torch.float32).max
_LARGE = 1 << 14  # values, from which on whole-blob operations cost less than torch's loop over windows


def _max_by_axes_pays(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.numel() >= _LARGE and not (torch.is_grad_enabled() and x.requires_grad)


def max_by_axes(x: Tensor, windows, kernel, stride) -> Tensor:
    """The maximum of each window of ``x`` ``[N, C, *sizes]``, without a gradient: along one axis, then of these along
    the next.

    Whole rows are compared at once. Without a gradient torch's pooling looks for each maximum's place all the same, and
    takes 2 to 10 times as long.

    Args:
        windows: how many there are along each axis; none may reach over the end.
    """
    for axis, (n, k, s) in enumerate(zip(windows, kernel, stride, strict=True), start=2):
        cells = [x.narrow(axis, i, (n - 1) * s + 1)[(slice(None),) * axis + (slice(None, None, s),)] for i in range(k)]
        x = cells[0].clone() if k == 1 else torch.maximum(cells[0], cells[1])
        for more in cells[2:]:
            torch.maximum(x, more, out=x)
    return x


class PoolingLayer(Layer):
    """Caffe's pooling over 2 or 3 axes, whatever message describes it.

    The output is ``ceil((size + pads - kernel) / stride) + 1`` wide (``floor`` where asked); only with a pad on some
    axis the last window is dropped when it starts past the cells and the pad before them. AVE divides by the window's
    cells counted up to the pad after the last cell, AVE_EXC_PAD by those of the bottom alone. A window that holds no
    cell (stride > kernel, no pad) gives -FLT_MAX or 0/0 as in Caffe. Among equal maxima the first in row-major order
    gets the gradient.
    """

    saves_top = False
    with_index = False  # whether a second top says where each maximum was

    def pool(self, x: Tensor, method: str, kernel, stride, sides, floor=False) -> list[Tensor]:
        """The pooled ``x``, and where each maximum was if the layer has a second top.

        Args:
            method: "MAX", "AVE", "AVE_EXC_PAD" or "STOCHASTIC".
            sides: the padding ``(before, after)`` of each axis.
        """
        sizes, padded = x.shape[2:], any(map(any, sides))
        axes = list(zip(sizes, kernel, stride, sides, strict=True))
        windows = [self._windows(*axis, floor, padded) for axis in axes]
        # torch's pooling has Caffe's rules, but no uneven or wide pads, and it drops a last window in any case
        by_axes = method == "MAX" and not self.with_index and _max_by_axes_pays(x)
        known = (
            method != "STOCHASTIC"
            and not by_axes
            and all(
                before == after and 2 * before <= k and (n - 1) * s < size + before
                for n, (size, k, s, (before, after)) in zip(windows, axes, strict=True)
            )
        )
        if known:
            options = {"padding": [before for before, _ in sides], "ceil_mode": not floor}
        else:
            reached = [(b, (n - 1) * s + k - b - size) for n, (size, k, s, (b, _)) in zip(windows, axes, strict=True)]
            options = {}
            if any(map(any, reached)):
                lowest = -min(_FLT_MAX, torch.finfo(x.dtype).max)  # bfloat16 ends a little earlier
                x = pad_axes(x, reached, lowest if method == "MAX" else 0.0)
        if method == "STOCHASTIC":
            return [self._stochastic(x, kernel, stride)]
        if by_axes:
            return [max_by_axes(x, windows, kernel, stride)]
        if method == "MAX":
            operator = F.max_pool2d if len(kernel) == 2 else F.max_pool3d
            if not self.with_index:
                return [operator(x, kernel, stride, **options)]
            pooled, index = operator(x, kernel, stride, **options, return_indices=True)
            return [pooled, (index if known else self._unpadded(index, x, sizes, sides, pooled)).to(x.dtype)]
        operator = F.avg_pool2d if len(kernel) == 2 else F.avg_pool3d
        if known:
            return [operator(x, kernel, stride, **options, count_include_pad=method == "AVE")]
        return [operator(x, kernel, stride, divisor_override=1) / self._areas(windows, axes, method, x)]

    def _windows(self, size, kernel, stride, side, floor, padded) -> int:
        before, after = side
        count = (math.floor if floor else math.ceil)((size + before + after - kernel) / stride) + 1
        if padded and (count - 1) * stride >= size + before:  # a pad on any axis decides for all
            count -= 1
        if count < 1:
            raise self.error(f"kernel of {kernel} cells on {size} cells (pad {before})", field=next(iter(self.fields)))
        return count

    @staticmethod
    def _areas(windows, axes, method, like: Tensor) -> Tensor:
        """How many cells each window's average counts, in the type and on the device of ``like``."""
        area = like.new_ones(())
        for n, (size, k, s, (before, after)) in zip(windows, axes, strict=True):
            start = torch.arange(n, device=like.device) * s - before
            first, last = (0, size) if method == "AVE_EXC_PAD" else (-before, size + after)
            cells = (start + k).clamp(max=last) - start.clamp(min=first)
            area = area[..., None] * cells.clamp(min=0)  # a window past the end has none: 0/0, not 0/negative
        return area

    @staticmethod
    def _unpadded(index, x, sizes, sides, pooled) -> Tensor:
        """Positions in the padded image ``x`` as positions in the image, -1 for a window without a cell."""
        row = torch.div(index, x.shape[3], rounding_mode="floor") - sides[0][0]
        column = index % x.shape[3] - sides[1][0]
        return torch.where(pooled == -_FLT_MAX, -1, row * sizes[1] + column)

    def _stochastic(self, x, kernel, stride) -> Tensor:
        """Zeiler and Fergus' stochastic pooling of values that are not negative: training picks each cell with its
        share of the window's sum, testing weights the cells with it."""
        cells = patches(x, kernel, stride, [1] * len(kernel)).flatten(2, 1 + len(kernel))
        if self.context.train:
            sums = cells.detach().cumsum(2)
            picked = sums >= (1 - torch.rand_like(sums[:, :, :1])) * sums[:, :, -1:]  # of (0, 1], as curand draws
            return cells.gather(2, picked.byte().argmax(2, keepdim=True)).squeeze(2)
        total = cells.sum(2)
        return (cells * cells).sum(2) / total.masked_fill(total <= 0, math.inf)


@register("Pooling")
class Pooling(PoolingLayer):
    """``PoolingLayer``: MAX, AVE and STOCHASTIC pooling of images with Caffe's edge rules.

    A second top gives MAX's argmax as ``h * W + w`` (-1 without any). STOCHASTIC takes no pad. ``round_mode: FLOOR``,
    ``ceil_mode: false`` (cascade-rcnn; ``round_mode`` goes before it) and ``torch_pooling`` (NVIDIA's proto) round
    down. AVE_EXC_PAD (also AVE_TF; synopsys) and AVE with ``avg_include_pad: false`` (Intel) count no padding.
    ``pad_type: 1`` is TensorFlow's "SAME", and ``pad_l``, ``pad_r``, ``pad_t``, ``pad_b`` pad unevenly (synopsys).
    """

    fields = {
        "pooling_param": {
            "pool", "pad", "pad_h", "pad_w", "kernel_size", "kernel_h", "kernel_w", "stride", "stride_h", "stride_w",
            "global_pooling", "round_mode", "ceil_mode", "torch_pooling", "avg_include_pad", "pad_type", "pad_l",
            "pad_r", "pad_t", "pad_b",
        }
    }  # fmt: skip
    num_tops = (1, 2)

    def setup(self, bottoms):
        p = self.param.pooling_param
        for name in ("pad", "stride"):
            if p.HasField(f"{name}_h") != p.HasField(f"{name}_w"):
                raise self.error(f"give {name}_h and {name}_w, or {name}", field=f"pooling_param.{name}_h")
        if p.global_pooling and (p.HasField("kernel_size") or p.HasField("kernel_h") or p.HasField("kernel_w")):
            raise self.error("global_pooling takes no kernel size", field="pooling_param.global_pooling")
        pad, self.stride = spatial(self, p, "pad", 0), spatial(self, p, "stride", 1)
        if p.global_pooling and (any(pad) or self.stride != (1, 1)):
            raise self.error("global_pooling takes no pad and no stride", field="pooling_param.global_pooling")
        self.kernel = None if p.global_pooling else spatial(self, p, "kernel", 0)
        if self.kernel and (min(self.kernel) < 1 or min(self.stride) < 1):
            raise self.error(f"kernel {self.kernel} and stride {self.stride} must be positive", field="pooling_param")
        if self.kernel and any(cells >= k for cells, k in zip(pad, self.kernel, strict=True)):
            raise self.error(f"pad {pad} must be smaller than the kernel {self.kernel}", field="pooling_param.pad")
        self.method = {"AVE_TF": "AVE_EXC_PAD"}.get(name := p.PoolMethod.Name(p.pool), name)
        if self.method == "AVE" and not p.avg_include_pad:
            self.method = "AVE_EXC_PAD"
        self.with_index = len(self.param.top) > 1
        if self.method != "MAX" and self.with_index:
            raise self.error("only MAX has a second top", field="pooling_param.pool")
        self.sides = ((p.pad_t, p.pad_b), (p.pad_l, p.pad_r))
        uneven = any(map(any, self.sides))
        if uneven + any(pad) + (p.pad_type > 0) > 1:
            raise self.error("give one of pad, pad_type and pad_l, pad_r, pad_t, pad_b", field="pooling_param.pad")
        if p.pad_type > 1:
            raise self.error(f"0 or 1, not {p.pad_type}", field="pooling_param.pad_type")
        if self.method == "STOCHASTIC" and (uneven or any(pad) or p.pad_type):
            raise self.error("STOCHASTIC takes no pad", field="pooling_param.pool")
        if not uneven:
            self.sides = tuple((cells, cells) for cells in pad)
        rounds_down = p.round_mode == p.FLOOR if p.HasField("round_mode") else not p.ceil_mode or p.torch_pooling
        self.floor = rounds_down or p.pad_type == 1

    def forward(self, bottoms):
        x = bottoms[0]
        if x.dim() != 4:
            raise self.error(f"pools [N, C, H, W] blobs, not shape {tuple(x.shape)}")
        kernel = self.kernel or tuple(x.shape[2:])
        sides = self.same_sides(x.shape[2:], kernel) if self.param.pooling_param.pad_type else self.sides
        return self.pool(x, self.method, kernel, self.stride, sides, self.floor)

    def same_sides(self, sizes, kernel) -> list[tuple[int, int]]:
        """The padding that ``pad_type: 1`` means for an image of these sizes."""
        return [same_padding(n, k, s, k) for n, k, s in zip(sizes, kernel, self.stride, strict=True)]


@register("Pooling3D")
class Pooling3D(PoolingLayer):
    """MAX, AVE and AVE_EXC_PAD pooling of ``[N, C, D, H, W]`` blobs (synopsys); sizes round down unless
    ``ceil_mode``."""

    fields = {
        "pooling3d_param": {
            "pool", "pad", "pad_d0", "pad_d1", "pad_h0", "pad_h1", "pad_w0", "pad_w1", "kernel_size", "kernel_d",
            "kernel_h", "kernel_w", "stride", "stride_d", "stride_h", "stride_w", "global_pooling", "ceil_mode",
        }
    }  # fmt: skip

    def setup(self, bottoms):
        p = self.param.pooling3d_param
        self.kernel = None if p.global_pooling else self._three("kernel_size", "kernel_{}")
        self.stride = self._three("stride", "stride_{}")
        self.sides = list(zip(self._three("pad", "pad_{}0"), self._three("pad", "pad_{}1"), strict=True))
        if min(*(self.kernel or (1,)), *self.stride) < 1:
            raise self.error(f"kernel {self.kernel} and stride {self.stride} must be positive", field="pooling3d_param")

    def _three(self, name: str, each: str) -> tuple[int, ...]:
        p = self.param.pooling3d_param
        given = [getattr(p, each.format(axis)) for axis in "dhw"]
        return tuple(given) if any(given) and not p.HasField(name) else (getattr(p, name),) * 3

    def forward(self, bottoms):
        p, x = self.param.pooling3d_param, bottoms[0]
        if x.dim() != 5:
            raise self.error(f"pools [N, C, D, H, W] blobs, not shape {tuple(x.shape)}")
        kernel = self.kernel or tuple(x.shape[2:])
        return self.pool(x, p.PoolMethod.Name(p.pool), kernel, self.stride, self.sides, not p.ceil_mode)


@register("SPP")
class SPP(PoolingLayer):
    """``SPPLayer``, spatial pyramid pooling: level ``i`` pools the image into ``2^i x 2^i`` bins; all levels' bins,
    flattened, lie side by side in ``[N, bins]``.

    Windows are ``ceil(size / bins)`` wide, and what they have too many is padding, half before and half after. One
    level alone is not flattened. As in Caffe a level is refused whose padding is no smaller than its windows (4 bins on
    5 cells).
    """

    fields = {"spp_param": {"pyramid_height", "pool"}}

    def setup(self, bottoms):
        if self.param.spp_param.pyramid_height < 1:
            raise self.error("must be positive", field="spp_param.pyramid_height")

    def forward(self, bottoms):
        p, x = self.param.spp_param, bottoms[0]
        if x.dim() != 4 or 0 in x.shape[2:]:
            raise self.error(f"pools [N, C, H, W] blobs, not shape {tuple(x.shape)}")
        method, levels = p.PoolMethod.Name(p.pool), []
        for _, kernel, sides in self.levels(x.shape[2:]):
            levels += self.pool(x, method, kernel, kernel, sides)
        return levels if len(levels) == 1 else [torch.cat([level.flatten(1) for level in levels], 1)]

    def levels(self, sizes):
        """``(bins, kernel, sides)`` of each level for an image of these sizes."""
        p = self.param.spp_param
        for level in range(p.pyramid_height):
            bins = 2**level
            kernel = [math.ceil(size / bins) for size in sizes]
            pad = [(k * bins - size + 1) // 2 for k, size in zip(kernel, sizes, strict=True)]
            if any(cells >= k for cells, k in zip(pad, kernel, strict=True)):
                raise self.error(f"{bins} bins on {tuple(sizes)} cells", field="spp_param.pyramid_height")
            if p.pool == p.STOCHASTIC and any(pad):
                raise self.error("STOCHASTIC takes no pad, which this size needs", field="spp_param.pool")
            yield bins, kernel, [(cells, cells) for cells in pad]
