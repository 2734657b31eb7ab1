"""RoI max pooling as Triton kernels, for GPUs.

A program pools some bins of one RoI for some channels: it goes through the cells of all its bins at once, and reads a
cell's channels side by side. Bins are found in the kernel with Caffe's operations in single precision, so nothing is
started before it and the host waits for nothing. Half types are compared, and their gradients summed, in float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .roi_bins import Settings, last_cell

_BINS = 64  # of a program, a power of two as the channels
_CHANNELS = {"pool": 64, "add": 32, "find": 32}  # with twice as many, registers that hold their cells run out


def forward(features: Tensor, rois: Tensor, how: Settings) -> Tensor:
    """:func:`~ohem_caffe_port.ops.roi_pool`, bit for bit."""
    pooled = features.new_empty((len(rois), features.shape[1], how.pooled_h, how.pooled_w))
    _launch("pool", features, rois, how, pooled)
    return pooled


def backward(features: Tensor, rois: Tensor, grad: Tensor, how: Settings) -> Tensor:
    """The gradient of ``features``, for that of the result. Values are added to their cells as they come, so sums are
    rounded in another way every time, unless ``torch.use_deterministic_algorithms`` is on."""
    batch, channels, height, width = features.shape
    kind = torch.promote_types(features.dtype, torch.float32)
    cells = batch * height * width * channels
    sums = torch.zeros(cells + 1, dtype=kind, device=features.device)  # the last is for those that do not count
    if torch.are_deterministic_algorithms_enabled():
        places = torch.empty(grad.shape, dtype=torch.int64, device=grad.device)
        _launch("find", features, rois, how, places)
        sums.scatter_add_(0, places.flatten(), grad.flatten().to(kind))
    else:
        _launch("add", features, rois, how, grad.contiguous(), sums)
    return sums[:cells].view(batch, height, width, channels).permute(0, 3, 1, 2).to(features.dtype)


def _launch(purpose: str, features: Tensor, rois: Tensor, how: Settings, top: Tensor, sums: Tensor | None = None):
    batch, channels, height, width = features.shape
    bins = how.pooled_h * how.pooled_w
    if not top.numel():
        return
    cells = features.detach().permute(0, 2, 3, 1).contiguous()
    block = min(_CHANNELS[purpose], triton.next_power_of_2(channels))
    grid = (len(rois), triton.cdiv(bins, _BINS), triton.cdiv(channels, block))
    with torch.cuda.device_of(features):
        _kernel[grid](
            top, sums, cells, rois.float().contiguous(), batch, channels, height, width,
            last_cell(height, how.spatial_scale), last_cell(width, how.spatial_scale),
            float(how.spatial_scale), float(how.pad_ratio),
            PURPOSE=purpose, GRADIENT=how.gradient, POOLED_H=how.pooled_h, POOLED_W=how.pooled_w,
            DOUBLE=features.dtype == torch.float64,
            BINS=min(_BINS, triton.next_power_of_2(bins)), CHANNELS=block,
            enable_fp_fusion=False,  # a fused multiply-add is not rounded as Caffe's two operations are
        )  # fmt: skip


@triton.jit
def _rounded(x):
    """C's ``round``, as int32; what is farther away than 2^29 cells is there."""
    away = tl.minimum(tl.floor(tl.abs(x.to(tl.float64)) + 0.5), 536870912.0).to(tl.int32)
    return tl.where(x < 0, -away, away)


@triton.jit
def _bin_size(start, end, BINS: tl.constexpr):
    return tl.div_rn(tl.maximum(end - start + 1, 1).to(tl.float32), tl.full((), BINS, tl.float32))


@triton.jit
def _edges(start, end, index, size, BINS: tl.constexpr):
    """As :func:`roi_bins.bin_edges`."""
    step = _bin_size(start, end, BINS)
    low = tl.floor(index.to(tl.float32) * step).to(tl.int32) + start
    high = tl.ceil((index + 1).to(tl.float32) * step).to(tl.int32) + start
    return tl.minimum(tl.maximum(low, 0), size), tl.minimum(tl.maximum(high, 0), size)


@triton.jit
def _mscnn_finds(cell, index, start, end, last, BINS: tl.constexpr):
    """As :func:`roi_bins._mscnn_finds`, whether it does."""
    start, end = tl.maximum(start, 0), tl.minimum(end, last)
    step = _bin_size(start, end, BINS)
    low = tl.floor(tl.div_rn((cell - start).to(tl.float32), tl.broadcast_to(step, cell.shape)))
    high = tl.ceil(tl.div_rn((cell - start + 1).to(tl.float32), tl.broadcast_to(step, cell.shape)))
    return (index >= low) & (index < high) & (cell >= start) & (cell <= end)


# no kernel of its own for a number that is 1 or divisible by 16
@triton.jit(do_not_specialize=["batch", "height", "width", "last_y", "last_x"])
def _kernel(
    top, sums, cells, rois, batch, channels, height, width, last_y, last_x, scale, pad_ratio,
    PURPOSE: tl.constexpr, GRADIENT: tl.constexpr, POOLED_H: tl.constexpr, POOLED_W: tl.constexpr,
    DOUBLE: tl.constexpr, BINS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Finds the maxima ``[BINS, CHANNELS]`` and, by its purpose, stores them in ``top`` (``pool``), adds the gradients
    in ``top`` to ``sums`` (``add``), or stores in ``top`` the place in ``sums`` (``find``)."""
    roi = tl.program_id(0)
    bin = tl.program_id(1) * BINS + tl.arange(0, BINS)
    channel = tl.program_id(2) * CHANNELS + tl.arange(0, CHANNELS)
    image = tl.load(rois + 5 * roi).to(tl.int32)
    known = (image >= 0) & (image < batch)
    x1, y1 = tl.load(rois + 5 * roi + 1), tl.load(rois + 5 * roi + 2)
    x2, y2 = tl.load(rois + 5 * roi + 3), tl.load(rois + 5 * roi + 4)
    pad_x, pad_y = (x2 - x1 + 1) * pad_ratio, (y2 - y1 + 1) * pad_ratio
    x1, x2 = _rounded((x1 - pad_x) * scale), _rounded((x2 + pad_x) * scale)
    y1, y2 = _rounded((y1 - pad_y) * scale), _rounded((y2 + pad_y) * scale)
    i, j = bin // POOLED_W, bin % POOLED_W
    upper, lower = _edges(y1, y2, i, height, POOLED_H)
    left, right = _edges(x1, x2, j, width, POOLED_W)
    lower = tl.where(known, lower, upper)
    filled = (lower > upper) & (right > left) & (i < POOLED_H)
    rows, columns = tl.where(filled, lower - upper, 0), tl.where(filled, right - left, 0)

    best = tl.full((BINS, CHANNELS), -float("inf"), tl.float64 if DOUBLE else tl.float32)
    at = tl.broadcast_to((upper * width + left)[:, None], (BINS, CHANNELS))
    first_cell = image.to(tl.int64) * height * width
    there = (channel < channels)[None, :]
    for y in range(0, tl.max(rows, 0)):
        for x in range(0, tl.max(columns, 0)):
            cell = (upper + y) * width + left + x
            place = (first_cell + cell)[:, None] * channels + channel[None, :]
            mask = ((y < rows) & (x < columns))[:, None] & there
            value = tl.load(cells + place, mask=mask, other=-float("inf")).to(best.dtype)
            larger = value > best  # of equal ones the first stays
            best = tl.where(larger, value, best)
            at = tl.where(larger, cell[:, None], at)

    there = there & (i < POOLED_H)[:, None]
    top_place = (roi.to(tl.int64) * channels + channel)[None, :] * (POOLED_H * POOLED_W) + bin[:, None]
    if PURPOSE == "pool":
        best = tl.where(known, tl.where(filled[:, None], best, 0), float("nan"))
        tl.store(top + top_place, best.to(top.dtype.element_ty), mask=there)
    else:
        counts = filled[:, None] & there
        y, x = at // width, at % width
        if GRADIENT == "inside":
            counts = counts & (y >= y1) & (y <= y2) & (x >= x1) & (x <= x2)
        elif GRADIENT == "mscnn":
            counts = counts & _mscnn_finds(y, i[:, None], y1, y2, last_y, POOLED_H)
            counts = counts & _mscnn_finds(x, j[:, None], x1, x2, last_x, POOLED_W)
        place = (first_cell + at) * channels + channel[None, :]
        if PURPOSE == "add":
            slope = tl.load(top + top_place, mask=counts, other=0)
            tl.atomic_add(sums + place, slope.to(sums.dtype.element_ty), mask=counts, sem="relaxed")
        else:
            nowhere = batch.to(tl.int64) * height * width * channels
            tl.store(top + top_place, tl.where(counts, place, nowhere), mask=there)
