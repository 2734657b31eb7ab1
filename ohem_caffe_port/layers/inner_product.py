"""InnerProduct."""

from __future__ import annotations

import math

from torch.nn import functional as F

from .base import Layer, canonical_axis, register


@register("InnerProduct")
class InnerProduct(Layer):
    """``InnerProductLayer``: flattens the bottom from ``axis`` on. Weight ``[num_output, K]`` (``[K, num_output]`` with
    ``transpose``), bias ``[num_output]``."""

    fields = {"inner_product_param": {"num_output", "bias_term", "weight_filler", "bias_filler", "axis", "transpose"}}
    saves_top = False

    def setup(self, bottoms):
        p = self.param.inner_product_param
        self.axis = canonical_axis(self, p.axis, bottoms[0].dim())
        if p.num_output < 1:
            raise self.error("must be positive", field="inner_product_param.num_output")
        k = math.prod(bottoms[0].shape[self.axis :])
        self.add_blob((k, p.num_output) if p.transpose else (p.num_output, k), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def forward(self, bottoms):
        weight = self.blob(0).t() if self.param.inner_product_param.transpose else self.blob(0)
        bias = self.blob(1) if len(self.blobs) > 1 else None
        return [F.linear(bottoms[0].flatten(self.axis), weight, bias)]
