"""The Python layer of VNet (faustomilletari/VNet, ``pyLayer.py``; Intel's caffe trains it)."""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

from ..layers import PythonLayer, register_python


@register_python("pyLayer", "DiceLoss")
class DiceLoss(PythonLayer):
    """VNet's Dice coefficient of two classes, summed over the volumes; its backward makes it greater.

    Bottoms: probabilities ``[N, 2, V]`` of V voxels and labels ``[N, 1, V]``, above 0.5 for the second class. Top
    ``[1]``: of each volume ``2 I / (U + 0.00001)``, where U is how many voxels are of the second class or found to be
    of it, both counted, and I how many are both. (F. Milletari et al., "V-Net", 3DV 2016, section 3.)

    The gradient is the original's, whatever the loss weight: ``-2 (g / U - 2 p I / U^2)`` for the probability ``p`` of
    the second class and label ``g``, its negative for the first class. A volume without U has none, where the original
    has NaN. It counts as a loss only with a ``loss_weight``, as every Python layer does.
    """

    num_bottoms, num_tops = (2, 2), (1, 1)

    def allow_force_backward(self, bottom):
        return bottom == 0

    def forward(self, bottoms):
        prob, label = bottoms
        if prob.dim() != 3 or prob.shape[1] != 2 or label.numel() * 2 != prob.numel():
            shapes = [tuple(bottom.shape) for bottom in bottoms]
            raise self.error(f"needs probabilities [N, 2, V] and labels [N, 1, V], not {shapes}")
        return [_Dice.apply(prob, label.reshape(len(prob), -1))]


class _Dice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, prob, label):
        truth = label > 0.5
        found = prob[:, 1] > prob[:, 0]  # argmax: the first of equals
        ctx.save_for_backward(prob, truth)
        union, inter = _counts(found, truth)
        ctx.union, ctx.inter = union, inter
        return (2 * inter / (union + 0.00001)).sum().reshape(1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        prob, truth = ctx.saved_tensors
        per_voxel = 1 / ctx.union.clamp(min=1)  # 0 in all: every term has a factor that is 0 then
        slope = 2 * (truth * per_voxel[:, None] - 2 * prob[:, 1] * (ctx.inter * per_voxel**2)[:, None])
        return torch.stack((slope, -slope), 1), None


def _counts(found, truth):
    """U and I of each volume."""
    return (found.sum(1) + truth.sum(1)).float(), (found & truth).sum(1).float()
