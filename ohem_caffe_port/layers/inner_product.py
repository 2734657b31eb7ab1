"""InnerProduct."""

from __future__ import annotations

import math

from ..ops.linear import linear
from .base import Layer, canonical_axis, register
from .convolution import fused_relu


@register("InnerProduct")
class InnerProduct(Layer):
    """``InnerProductLayer``: a fully connected layer over the bottom flattened from ``axis`` on. Weight
    ``[num_output, K]`` (``[K, num_output]`` with ``transpose``), bias ``[num_output]``.

    ``relu`` with ``negative_slope`` is a ReLU fused into the layer (Intel).
    """

    fields = {
        "inner_product_param": {
            "num_output", "bias_term", "weight_filler", "bias_filler", "axis", "transpose", "relu", "negative_slope",
        }
    }  # fmt: skip

    def setup(self, bottoms):
        p = self.param.inner_product_param
        self.axis = canonical_axis(self, p.axis, bottoms[0].dim())
        self.saves_top = p.relu
        if p.num_output < 1:
            raise self.error("must be positive", field="inner_product_param.num_output")
        k = math.prod(bottoms[0].shape[self.axis :])
        self.add_blob((k, p.num_output) if p.transpose else (p.num_output, k), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def multiply_adds(self, bottoms, tops):
        return math.prod(bottoms[0][: self.axis]) * math.prod(self.blob_shapes[0])

    def forward(self, bottoms):
        p = self.param.inner_product_param
        weight = self.blob(0).t() if p.transpose else self.blob(0)
        bias = self.blob(1) if p.bias_term else None
        return [fused_relu(linear(bottoms[0].flatten(self.axis), weight, bias), p)]
