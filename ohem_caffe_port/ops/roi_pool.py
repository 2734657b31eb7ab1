"""RoI max pooling with the arithmetic of caffe-fast-rcnn's ``ROIPooling`` layer.

Three ways with identical results: compiled by numba on a CPU (:mod:`roi_pool_numba`, extra ``fast``), a Triton kernel
on CUDA (:mod:`roi_pool_triton`), and plain torch operations where these libraries are missing.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .roi_bins import Settings, find_bins

_CELLS_AT_A_TIME = 1 << 21  # that plain torch lists for some RoIs, with two or three int64 numbers for each


def roi_pool(
    features: Tensor,
    rois: Tensor,
    pooled_h: int,
    pooled_w: int,
    spatial_scale: float,
    *,
    pad_ratio: float = 0.0,
    gradient: str = "inside",
) -> Tensor:
    """Max over each of ``pooled_h x pooled_w`` bins of each RoI, ``[N, C, H, W], [R, 5] -> [R, C, ph, pw]``.

    Caffe-fast-rcnn's ``ROIPoolingLayer``: corners are multiplied by ``spatial_scale`` and rounded (halves away from
    zero), both ends inclusive; a malformed RoI counts as one cell; bins that hold no cell give 0; among equal maxima
    the first in row-major order gets the gradient. Features must be numbers: which of a bin with a NaN is its maximum
    depends on the device.

    Args:
        features: ``[N, C, H, W]`` of any strides. Gradients of half types are summed in float32.
        rois: ``[R, 5]`` rows ``(batch_index, x1, y1, x2, y2)`` in pixels of the network's input image; they are worked
            with in float32.
        spatial_scale: cells per input pixel, e.g. 1/16.
        pad_ratio: MS-CNN's context: this part of its width and height is added to a RoI on every side.
        gradient: which maxima get one: "inside", those inside the rounded RoI (caffe-fast-rcnn); "all" (Intel);
            "mscnn", those that the search of MS-CNN's backward finds again.

    Raises:
        ValueError: a RoI whose batch index is no image of the batch. The Triton kernel, whose host does not wait to
            know, gives NaN for it.
    """
    if features.is_meta:
        return features.new_empty((len(rois), features.shape[1], pooled_h, pooled_w))
    how = Settings(pooled_h, pooled_w, spatial_scale, pad_ratio, gradient)
    kernels = _kernels(features.device.type)
    if features.dtype in (torch.float16, torch.bfloat16) and not features.is_cuda:
        return roi_pool(features.float(), rois, *how[:3], pad_ratio=pad_ratio, gradient=gradient).to(features.dtype)
    if kernels is None:
        return pool_plainly(features, rois, how)
    return _RoIPool.apply(features, rois, how, kernels)


@functools.cache
def _kernels(device: str):
    """The module that pools on this type of device; None where there is none or its library is missing."""
    try:
        if device == "cpu":
            from . import roi_pool_numba as kernels
        elif device == "cuda":
            from . import roi_pool_triton as kernels
        else:
            return None
    except ImportError:
        return None
    return kernels


class _RoIPool(torch.autograd.Function):
    """Backward finds the maxima again. That takes less time than writing down 4 bytes for each value of the top and
    reading them, and no memory."""

    @staticmethod
    def forward(ctx, features, rois, how, kernels):
        ctx.save_for_backward(features, rois)
        ctx.how, ctx.kernels = how, kernels
        return kernels.forward(features, rois, how)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return ctx.kernels.backward(*ctx.saved_tensors, grad, ctx.how), None, None, None


def pool_plainly(features: Tensor, rois: Tensor, how: Settings) -> Tensor:
    """:func:`roi_pool` in torch operations, on any device. Cells are listed bin by bin, for some RoIs at a time."""
    bins = find_bins(rois, features.shape, how)
    cells = features.permute(0, 2, 3, 1).contiguous()
    height, width = features.shape[2:]
    work = ((bins.y[..., 1] - bins.y[..., 0]).sum(1) * (bins.x[..., 1] - bins.x[..., 0]).sum(1)).cumsum(0)
    parts = torch.unique_consecutive(work // _CELLS_AT_A_TIME, return_counts=True)[1].tolist() or [0]
    pooled = []
    for image, y, x in zip(*(b.split(parts) for b in bins), strict=True):
        best, at = max_of_boxes(cells, image, (y[..., :2], x[..., :2]))  # [R, ph, pw, C]
        if torch.is_grad_enabled() and features.requires_grad:
            row, column = at // width % height, at % width
            y, x = y[:, :, None, None], x[:, None, :, None]
            counts = (row >= y[..., 2]) & (row < y[..., 3]) & (column >= x[..., 2]) & (column < x[..., 3])
            best = torch.where(counts, best, best.detach())
        pooled.append(best.permute(0, 3, 1, 2))
    return torch.cat(pooled).contiguous()


def max_of_boxes(cells: Tensor, image: Tensor, edges) -> tuple[Tensor, Tensor]:
    """The largest cell of every box and where it is, the first of equal ones in row-major order.

    Args:
        cells: ``[N, *sizes, C]``.
        image: ``[R]``, which of the N.
        edges: for each axis ``[R, bins, 2]``, first and past-the-end cell; the boxes of one r are all combinations.

    Returns:
        ``[R, *bins, C]`` values with a gradient, 0 for boxes without a cell, and indices into all cells.
    """
    shape = (len(image), *(edge.shape[1] for edge in edges))
    count = torch.ones_like(image)[:, None]
    for edge in edges:
        extent = (edge[..., 1] - edge[..., 0]).clamp(min=0)
        count = (count[:, :, None] * extent[:, None, :]).flatten(1)
    count = count.flatten()
    offset = count.cumsum(0) - count
    box = torch.repeat_interleave(count)
    place = torch.arange(len(box), device=box.device) - offset[box]  # of a cell in its box
    r, *bins = torch.unravel_index(box, shape)
    cell, stride = 0, 1
    for edge, index, size in zip(reversed(edges), reversed(bins), reversed(cells.shape[1:-1]), strict=True):
        low, high = edge[r, index].unbind(-1)
        cell = cell + (low + place % (high - low)) * stride
        place, stride = place // (high - low), stride * size
    best, _, _, at = torch.embedding_bag(cells.flatten(0, -2), cell + image[r] * stride, offset, mode=2)  # the maximum
    return best.view(*shape, cells.shape[-1]), at.view(*shape, cells.shape[-1])


class RoIPool(nn.Module):
    """:func:`roi_pool` as a module."""

    def __init__(self, pooled_h: int, pooled_w: int, spatial_scale: float):
        super().__init__()
        self.pooled_h, self.pooled_w, self.spatial_scale = pooled_h, pooled_w, spatial_scale

    def forward(self, features: Tensor, rois: Tensor) -> Tensor:
        return roi_pool(features, rois, self.pooled_h, self.pooled_w, self.spatial_scale)
