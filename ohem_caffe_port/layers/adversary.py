"""What an adversary inside a network needs: A-Fast-RCNN's spatial transformer (ASTN), and reversed gradients.

The authors of A-Fast-RCNN published no code of ASTN; this is what section 4.2 of their paper says.
"""

from __future__ import annotations

import torch

from ..ops.rotation import rotate_blocks
from .base import Layer, register


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return -ctx.weight * grad, None


@register("GradientReversal")
class GradientReversal(Layer):
    """This project's gradient reversal: passes values on, and the gradient back times ``-weight``.

    Ganin and Lempitsky (2015), section 3.1. What lies below maximises the loss that lies above. ``weight`` is 1 unless
    stated.
    """

    fields = {"gradient_reversal_param": {"weight"}}
    saves_top = False

    def setup(self, bottoms):
        self.weight = self.param.gradient_reversal_param.weight
        if not self.weight >= 0:
            raise self.error(f"must not be negative, it is {self.weight:g}", field="weight")

    def forward(self, bottoms):
        return [_Reversed.apply(bottoms[0], self.weight)]


@register("BlockRotation")
class BlockRotation(Layer):
    """A-Fast-RCNN's spatial transformer (ASTN, paper section 4.2): features turned about their centre, each of several
    blocks of channels by an angle of its own.

    Bottoms: features ``[N, C, H, W]`` and the output of a localisation network ``[N, B]``, one number for each of ``B``
    blocks of ``C / B`` neighbouring channels (the paper has 4). The angle is ``max_angle * tanh(number)`` degrees
    counter-clockwise, so that 10, the default and the paper's limit, is never passed; the paper does not say how it
    limits angles. With ``max_angle: 0`` the number is the angle itself. A third bottom, labels ``[N]``, keeps the
    adversary to the foreground: rows with labels not above 0 stay as they are. Sampling is bilinear, zero outside the
    map; see :func:`ohem_caffe_port.ops.rotation.rotate_blocks`. Differentiable in the first two bottoms.
    """

    fields = {"block_rotation_param": {"max_angle"}}
    num_bottoms = (2, 3)
    saves_top = False

    def setup(self, bottoms):
        self.max_angle = self.param.block_rotation_param.max_angle
        if not 0 <= self.max_angle <= 180:
            raise self.error(f"must be from 0 to 180 degrees, it is {self.max_angle:g}", field="max_angle")

    def infer(self, bottoms):
        self._check(*bottoms)
        return [torch.empty_like(bottoms[0])]

    def forward(self, bottoms):
        features, angles, *labels = bottoms
        self._check(*bottoms)
        angles = angles.flatten(1)
        if self.max_angle:
            angles = self.max_angle * angles.tanh()
        if labels:
            angles = angles * (labels[0].view(-1, 1) > 0)
        return [rotate_blocks(features, angles)]

    def _check(self, features, angles, labels=None) -> None:
        blocks = angles.shape[1:].numel()
        if features.dim() != 4:
            raise self.error(f"features must be [N, C, H, W], not {tuple(features.shape)}", field="bottom")
        if len(features) != len(angles):
            raise self.error(f"{len(angles)} rows of angles for {len(features)} rows of features", field="bottom")
        if labels is not None and labels.numel() != len(features):
            raise self.error(f"{labels.numel()} labels for {len(features)} rows of features", field="bottom")
        if not blocks or features.shape[1] % blocks:
            raise self.error(
                f"{features.shape[1]} channels cannot be split into {blocks} blocks",
                field="bottom",
                hint="the localisation network has one output for each block; their number must divide the channels",
            )
