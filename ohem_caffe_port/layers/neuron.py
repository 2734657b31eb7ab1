"""Layers that work element by element; the rectifiers, which bend at 0, are in ``rectifier.py``."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from .base import Layer, register
from .loss import refuse_gradient


class Neuron(Layer):
    """A layer whose top has its bottom's shape; as a rule its backward needs the bottom alone."""

    saves_top = False

    @property
    def message(self) -> str:
        """The one message of ``LayerParameter`` that the layer reads."""
        return next(iter(self.fields))

    @property
    def settings(self):
        return getattr(self.param, self.message)


class _Given(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, derivative):
        ctx.save_for_backward(derivative)
        return y.view_as(y)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0], None, None


def with_derivative(x, y, derivative):
    """``y``, whose derivative by ``x`` is ``derivative()``: where Caffe's backward is not the one of its forward.

    The result must not be overwritten: its layer has ``saves_top``.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return y
    with torch.no_grad():
        slope = derivative()
    return _Given.apply(x, y.detach(), slope)


def linear(x, scale, shift):
    """``shift + scale * x``, or ``x`` itself where that is the same."""
    return x if (scale, shift) == (1, 0) else torch.rsub(x, shift, alpha=-scale)  # in one pass


@register("Sigmoid")
class Sigmoid(Neuron):
    """``SigmoidLayer``: ``1 / (1 + exp(-x))``."""

    fields = {"sigmoid_param": set()}
    saves_top = True

    def forward(self, bottoms):
        return [bottoms[0].sigmoid_() if self.in_place else bottoms[0].sigmoid()]


@register("TanH")
class TanH(Neuron):
    """``TanHLayer``: the hyperbolic tangent."""

    fields = {"tanh_param": set()}
    saves_top = True

    def forward(self, bottoms):
        return [bottoms[0].tanh_() if self.in_place else bottoms[0].tanh()]


@register("AbsVal")
class AbsVal(Neuron):
    """``AbsValLayer``: ``|x|``, with gradient 0 at 0. It does not work in place."""

    def setup(self, bottoms):
        if self.param.bottom[0] == self.param.top[0]:
            raise self.error("cannot work in place", field="top", hint="give the top a name of its own")

    def forward(self, bottoms):
        return [bottoms[0].abs()]


@register("BNLL")
class BNLL(Neuron):
    """``BNLLLayer``: ``log(1 + exp(x))``, the binomial normal log likelihood."""

    def forward(self, bottoms):
        return [F.softplus(bottoms[0])]


@register("Softplus")
class Softplus(BNLL):
    """BNLL under another name (synopsys-caffe)."""


@register("Softsign")
class Softsign(Neuron):
    """``x / (1 + |x|)`` (synopsys-caffe)."""

    def forward(self, bottoms):
        return [F.softsign(bottoms[0])]


@register("Swish")
class Swish(Neuron):
    """``SwishLayer``: ``x * sigmoid(beta * x)`` (Ramachandran et al., 2017)."""

    fields = {"swish_param": {"beta"}}

    def forward(self, bottoms):
        x, beta = bottoms[0], self.settings.beta
        return [F.silu(x) if beta == 1 else x * torch.sigmoid(beta * x)]


@register("Mish")
class Mish(Neuron):
    """``x * tanh(log(1 + exp(x)))`` (synopsys-caffe; Misra, 2019); the gradient is that fork's, which takes the
    derivative at the top instead of the bottom."""

    saves_top = True

    def forward(self, bottoms):
        y = F.mish(bottoms[0])
        return [with_derivative(bottoms[0], y, lambda: self._derivative(y))]

    @staticmethod
    def _derivative(x):
        softplus = F.softplus(x)
        tanh = softplus.tanh()
        return tanh + x * (1 - tanh * tanh) * (1 - (-softplus).exp())


@register("HardSwish")
class HardSwish(Neuron):
    """``x * min(max(x + 3, 0), 6) / 6`` (synopsys-caffe; MobileNetV3)."""

    def forward(self, bottoms):
        return [F.hardswish(bottoms[0])]


@register("HardSigmoid")
class HardSigmoid(Neuron):
    """``min(max(alpha * x + beta, 0), 1)``, with 0.2 and 0.5 unless stated (synopsys-caffe)."""

    fields = {"hard_sigmoid_param": {"alpha", "beta"}}

    def forward(self, bottoms):
        return [F.hardtanh(linear(bottoms[0], self.settings.alpha, self.settings.beta), 0, 1)]


@register("Threshold")
class Threshold(Neuron):
    """``ThresholdLayer``: 1 above ``threshold``, else 0; no gradient."""

    fields = {"threshold_param": {"threshold"}}

    def allow_force_backward(self, bottom):
        return False

    def forward(self, bottoms):
        refuse_gradient(self, bottoms[0], what="its bottom")
        return [(bottoms[0] > self.settings.threshold).to(bottoms[0].dtype)]


@register("Clip")
class Clip(Neuron):
    """``ClipLayer``: ``x`` kept between ``min`` and ``max``; the gradient passes at both limits."""

    fields = {"clip_param": {"min", "max"}}

    def setup(self, bottoms):
        p = self.settings
        if not (p.HasField("min") and p.HasField("max")) or p.min > p.max:
            raise self.error("needs min and a max that is not below it", field="clip_param")

    def forward(self, bottoms):
        return [bottoms[0].clamp(self.settings.min, self.settings.max)]


def _log_base(layer: Neuron) -> float:
    """The natural logarithm of the layer's ``base``; a base of -1 stands for e."""
    base = layer.settings.base
    if base != -1 and not 0 < base < math.inf:
        raise layer.error(f"must be positive, or -1 for e, not {base}", field=f"{layer.message}.base")
    return 1.0 if base == -1 else math.log(base)


@register("Exp")
class Exp(Neuron):
    """``ExpLayer``: ``base ** (shift + scale * x)``, base e unless stated."""

    fields = {"exp_param": {"base", "scale", "shift"}}
    saves_top = True

    def setup(self, bottoms):
        log_base = _log_base(self)
        self.scale, self.shift = log_base * self.settings.scale, log_base * self.settings.shift

    def forward(self, bottoms):
        return [torch.exp(linear(bottoms[0], self.scale, self.shift))]


@register("Log")
class Log(Neuron):
    """``LogLayer``: the logarithm of ``shift + scale * x`` to ``base``, e unless stated."""

    fields = {"log_param": {"base", "scale", "shift"}}

    def setup(self, bottoms):
        self.log_base = _log_base(self)
        if self.log_base == 0:
            raise self.error("there is no logarithm to base 1", field="log_param.base")

    def forward(self, bottoms):
        return [torch.log(linear(bottoms[0], self.settings.scale, self.settings.shift)).div_(self.log_base)]


@register("Power")
class Power(Neuron):
    """``PowerLayer``: ``(shift + scale * x) ** power``; a constant without gradient if power or scale is 0."""

    fields = {"power_param": {"power", "scale", "shift"}}
    saves_top = True  # the top may be the very bottom

    def forward(self, bottoms):
        x, p = bottoms[0], self.settings
        if p.power * p.scale == 0:
            return [torch.full_like(x, torch.tensor(p.shift).pow(p.power).item())]
        y = linear(x, p.scale, p.shift)
        return [y if p.power == 1 else y.pow(p.power)]
