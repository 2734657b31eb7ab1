"""Layers that bring data in."""

from __future__ import annotations

import torch

from .base import Layer, register


@register("Input")
class Input(Layer):
    """``InputLayer``: blobs that the caller of ``Net.forward`` gives; any shape may follow the declared one."""

    fields = {"input_param": {"shape"}}
    num_bottoms, num_tops = (0, 0), (1, 1 << 30)

    def setup(self, bottoms):
        shapes = [tuple(s.dim) for s in self.param.input_param.shape]
        tops = len(self.param.top)
        if len(shapes) not in (0, 1, tops):
            raise self.error(f"{len(shapes)} shapes for {tops} tops: give none, one or as many", field="input_param")
        if not shapes:
            raise self.error("declares no shape", field="input_param.shape", hint="add  shape { dim: ... }  to it")
        self.shapes = shapes * tops if len(shapes) == 1 else shapes

    def infer(self, bottoms):
        return [torch.empty(shape, device="meta") for shape in self.shapes]

    def forward(self, bottoms):
        raise self.error("the net's inputs are given to forward()")
