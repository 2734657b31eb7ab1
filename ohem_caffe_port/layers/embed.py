"""Layers whose top is their parameter, or rows of it."""

from __future__ import annotations

from torch.nn import functional as F

from .base import Layer, cheap_to_read, register
from .loss import refuse_gradient


@register("Embed")
class Embed(Layer):
    """``EmbedLayer``: the rows of a table that the bottom's whole numbers name, ``[...]`` to ``[..., num_output]``.
    Weight ``[input_dim, num_output]``, bias ``[num_output]``."""

    fields = {"embed_param": {"num_output", "input_dim", "bias_term", "weight_filler", "bias_filler"}}
    saves_top = False

    def allow_force_backward(self, bottom):
        return False

    def setup(self, bottoms):
        p = self.param.embed_param
        if min(p.num_output, p.input_dim) < 1:
            raise self.error("num_output and input_dim must be positive", field="embed_param")
        self.add_blob((p.input_dim, p.num_output), p.weight_filler)
        if p.bias_term:
            self.add_blob((p.num_output,), p.bias_filler)

    def forward(self, bottoms):
        refuse_gradient(self, bottoms[0], what="its indices")
        p, values = self.param.embed_param, bottoms[0].detach()
        index = values.long()
        if cheap_to_read(index) and ((index < 0) | (index >= p.input_dim) | (index != values)).any():
            low, high = values.aminmax()
            raise self.error(f"a table of {p.input_dim} rows is asked for rows {low:g} to {high:g}", field="input_dim")
        rows = F.embedding(index, self.blob(0))
        return [rows + self.blob(1) if p.bias_term else rows]


@register("Parameter")
class Parameter(Layer):
    """``ParameterLayer``: the top is the layer's one parameter, of the ``shape`` stated and filled as ``blob_filler``
    says (caffe-windows; zeros in BVLC's)."""

    fields = {"parameter_param": {"shape", "blob_filler"}}
    num_bottoms = (0, 0)

    def setup(self, bottoms):
        p = self.param.parameter_param
        if any(size < 0 for size in p.shape.dim):
            raise self.error(f"{list(p.shape.dim)} is no shape", field="parameter_param.shape")
        self.add_blob(p.shape.dim, p.blob_filler)

    def forward(self, bottoms):
        return [self.blob(0)]
