"""Warping of RoIs and of masks as Multi-task Network Cascades do (MNC, Dai, He and Sun 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from .bilinear import Taps, lerp, sample
from .rois import image_index, round_half_away


class _Axis:
    """A RoI's points along one axis: ``bins`` of them from its first rounded cell on, the last cell excluded."""

    def __init__(self, start: Tensor, end: Tensor, bins: int, size: int):
        self.start, self.end, self.bins, self.size = start[:, None], end[:, None], bins, size
        bin_size = ((end - start).clamp(min=0) / bins)[:, None]
        steps = torch.arange(bins, dtype=start.dtype, device=start.device)
        self.position = self.start + steps * bin_size  # [R, bins]
        # the backward pass takes the last cell as included, so its bins are larger
        self.back_bin = ((end - start + 1).clamp(min=1) / bins)[:, None]

    def taps(self) -> Taps:
        taps = lerp(self.position, self.size, reach=0.5)
        cell = taps.index.to(self.position.dtype)
        start, end, bin_size = self.start[..., None], self.end[..., None], self.back_bin[..., None]
        point = torch.arange(self.bins, device=cell.device)[:, None]
        found = (cell >= start) & (cell <= end)
        found &= point >= torch.floor((cell - start - 1) / bin_size - 1)
        found &= point < torch.ceil((cell - start + 1) / bin_size)
        return taps._replace(back=taps.weight * found)

    def slope(self) -> Taps:
        """The derivative by the position: the upper cell minus the lower one; none on the last cell."""
        at = self.position.clamp(0, self.size - 1)
        low = torch.floor(at).long().clamp(0, self.size - 1)
        index = torch.stack([low, (low + 1).clamp(max=self.size - 1)], -1)
        sign = torch.tensor([-1.0, 1.0], dtype=at.dtype, device=at.device)
        return Taps(index, sign * self.counts()[..., None])

    def counts(self) -> Tensor:
        """Where a point moves with its RoI: on the map and before its last cell."""
        at = self.position.clamp(0, self.size - 1)
        inside = (self.position >= -0.5) & (self.position <= self.size - 0.5)
        return inside & (torch.floor(at) + 1 <= self.size - 1)

    def share(self) -> Tensor:
        """How far along the RoI a point lies, as the backward pass sees it: what its second corner moves it by."""
        return (self.position.clamp(0, self.size - 1) - self.start) / (self.back_bin * self.bins)


class _Warp(torch.autograd.Function):
    """Forward and feature gradient by :func:`sample`; the gradient of the RoIs as MNC computes it."""

    @staticmethod
    def forward(ctx, features, rois, pooled_h, pooled_w, spatial_scale):
        ctx.save_for_backward(features, rois)
        ctx.settings = pooled_h, pooled_w, spatial_scale
        image, y, x = _axes(features, rois, *ctx.settings)
        return sample(features, image, y.taps(), x.taps())

    @staticmethod
    def backward(ctx, grad):
        features, rois = ctx.saved_tensors
        image, y, x = _axes(features, rois, *ctx.settings)
        grad_features = grad_rois = None
        if ctx.needs_input_grad[0]:
            with torch.enable_grad():
                leaf = features.detach().requires_grad_()
                values = sample(leaf, image, y.taps(), x.taps())
            (grad_features,) = torch.autograd.grad(values, leaf, grad)
        if ctx.needs_input_grad[1]:
            # both axes must be clear of the map's last cell
            plain_y = lerp(y.position, y.size).scaled(y.counts()[..., None])
            plain_x = lerp(x.position, x.size).scaled(x.counts()[..., None])
            by_y = (grad * sample(features, image, y.slope(), plain_x)).sum((1, 3)) * ctx.settings[2]
            by_x = (grad * sample(features, image, plain_y, x.slope())).sum((1, 2)) * ctx.settings[2]
            share_y, share_x = y.share(), x.share()
            columns = [(1 - share_x) * by_x, (1 - share_y) * by_y, share_x * by_x, share_y * by_y]
            grad_rois = torch.stack([torch.zeros_like(rois[:, 0]), *(c.sum(1) for c in columns)], 1)
        return grad_features, grad_rois, None, None, None


def _axes(features: Tensor, rois: Tensor, pooled_h: int, pooled_w: int, spatial_scale: float):
    corners = round_half_away(rois[:, 1:5] * spatial_scale).to(rois.dtype)
    x1, y1, x2, y2 = corners.unbind(1)
    height, width = features.shape[2:]
    return image_index(rois, len(features)), _Axis(y1, y2, pooled_h, height), _Axis(x1, x2, pooled_w, width)


def roi_warp(features: Tensor, rois: Tensor, pooled_h: int, pooled_w: int, spatial_scale: float) -> Tensor:
    """Bilinear samples of each RoI, ``[N, C, H, W], [R, 5] -> [R, C, ph, pw]``, with a gradient for the RoIs too.

    ``ROIWarpingLayer`` of caffe-mnc (MNC, section 3.2): corners are multiplied by ``spatial_scale`` and rounded, point
    ``i`` of ``n`` lies at ``start + i * (end - start) / n``; points more than half a cell outside the map give 0.

    Both gradients are MNC's own, which are not quite the derivatives. A cell gets one only inside the RoI and from the
    points that MNC's search finds, which takes the RoI for one cell larger. A corner moves a point by its place in that
    larger RoI, rounding is taken for the identity, and points on the map's last row or column move nothing. (Points
    outside the map, for which MNC reads memory before it, move nothing here.)

    Args:
        features: ``[N, C, H, W]``.
        rois: ``[R, 5]`` rows ``(batch_index, x1, y1, x2, y2)`` in pixels of the network's input image.
    """
    if features.is_meta:
        return features.new_empty((len(rois), features.shape[1], pooled_h, pooled_w))
    return _Warp.apply(features, rois, pooled_h, pooled_w, spatial_scale)


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, masks, height, width):
        rows = _resize_matrix(masks.shape[2], height, masks)
        columns = _resize_matrix(masks.shape[3], width, masks)
        ctx.save_for_backward(rows, columns)
        return rows @ masks @ columns.T

    @staticmethod
    def backward(ctx, grad):
        rows, columns = (m * _found(m) for m in ctx.saved_tensors)
        return rows.T @ grad @ columns, None, None


def _resize_matrix(size: int, output: int, like: Tensor) -> Tensor:
    """``[output, size]``: what each output cell takes of each input cell."""
    ratio = torch.tensor(size / output, dtype=like.dtype, device=like.device)
    taps = lerp((torch.arange(output, device=like.device) * ratio)[None], size, reach=0.5)
    matrix = like.new_zeros((output, size))
    return matrix.scatter_add_(1, taps.index[0], taps.weight[0].to(like.dtype))


def _found(matrix: Tensor) -> Tensor:
    """MNC's backward looks, for an input cell, at the two output cells around its place only."""
    output, size = matrix.shape
    ratio = torch.tensor(size / output, dtype=matrix.dtype, device=matrix.device)
    first = torch.floor(torch.arange(size, device=matrix.device) / ratio)
    ahead = torch.arange(output, device=matrix.device)[:, None] - first
    return (ahead == 0) | (ahead == 1)


def mask_resize(masks: Tensor, height: int, width: int) -> Tensor:
    """Bilinear resizing ``[N, C, h, w] -> [N, C, height, width]``: output ``i`` reads input ``i * h / height``.

    ``MaskResizeLayer`` of caffe-mnc. When it shrinks its gradient is the derivative; when it enlarges, MNC's backward
    looks, for an input cell, at two output cells along each axis and misses the others, and so does this.
    """
    if masks.is_meta:
        return masks.new_empty((*masks.shape[:2], height, width))
    return _Resize.apply(masks, height, width)
