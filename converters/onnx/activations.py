"""Layers that treat every value by itself: rectifiers, sigmoids, powers and logarithms, and dropout."""

from __future__ import annotations

import math

import numpy as np

from .graph import GraphBuilder, Node, exporter


def linear(g: GraphBuilder, x: str, scale: float = 1.0, shift: float = 0.0) -> str:
    """The name of ``scale * x + shift``: ``x`` itself where that is the same."""
    if scale != 1:
        x = g.op("Mul", x, g.constant(scale))
    return g.op("Add", x, g.constant(shift)) if shift != 0 else x


def clip(g: GraphBuilder, x: str, low: float = -math.inf, high: float = math.inf) -> str:
    """The name of ``x`` kept between the limits: ``x`` itself where there are none."""
    if (low, high) == (-math.inf, math.inf):
        return x
    limits = [g.constant(limit) if math.isfinite(limit) else "" for limit in (low, high)]
    return g.op("Clip", x, *(limits if limits[1] else limits[:1]))


def refuse_training(node: Node) -> None:
    """For layers that draw at random or follow the batches in the TRAIN phase, which has no form in a graph.

    Raises:
        WeightsError: the layer is in that phase.
    """
    if node.layer.context.train:
        raise node.error("does something else in the TRAIN phase", hint="a graph is written of the TEST phase")


SAME = {"Sigmoid": "Sigmoid", "AbsVal": "Abs", "Softsign": "Softsign", "HardSwish": "HardSwish"}


@exporter(*SAME)
def same_operator(g: GraphBuilder, node: Node) -> list[str]:
    """The operator that does the same."""
    return [g.op(SAME[node.type], node.bottoms[0].name)]


def tanh(g: GraphBuilder, x: str) -> str:
    """The name of the hyperbolic tangent of ``x``, which OpenCV 5 finds to be NaN from 45 on."""
    return g.op("Tanh", clip(g, x, -10, 10) if g.for_opencv else x)  # at 10 it is 1 in single precision


@exporter("TanH")
def tanh_layer(g: GraphBuilder, node: Node) -> list[str]:
    """Tanh."""
    return [tanh(g, node.bottoms[0].name)]


@exporter("BNLL", "Softplus")
def softplus(g: GraphBuilder, node: Node) -> list[str]:
    """Softplus; for OpenCV 5, whose own is infinite from 89 on, that of ``-|x|`` plus ``max(x, 0)``."""
    x = node.bottoms[0].name
    if not g.for_opencv:
        return [g.op("Softplus", x)]
    return [g.op("Add", g.op("Softplus", g.op("Neg", g.op("Abs", x))), g.op("Relu", x))]


def rectified(g: GraphBuilder, x: str, slope: float, low: float = -math.inf, high: float = math.inf) -> list[str]:
    """``max(x, 0) + slope * min(x, 0)`` kept between ``low`` and ``high``."""
    if slope:
        return [clip(g, g.op("LeakyRelu", x, alpha=slope), low, high)]
    if (low, high) == (-math.inf, math.inf):
        return [g.op("Relu", x)]
    return [clip(g, x, max(low, 0.0), high)]


@exporter("ReLU", "XLU")
def relu(g: GraphBuilder, node: Node) -> list[str]:
    """Relu, LeakyRelu or Clip."""
    return rectified(g, node.bottoms[0].name, node.layer.settings.negative_slope, node.layer.low, node.layer.high)


@exporter("ReLU6")
def relu6(g: GraphBuilder, node: Node) -> list[str]:
    """Clip, after LeakyRelu with a ``negative_slope``."""
    p = node.layer.settings
    return rectified(g, node.bottoms[0].name, p.negative_slope, high=p.threshold)


@exporter("PReLU")
def prelu(g: GraphBuilder, node: Node) -> list[str]:
    """PRelu with one slope, or ``[C, 1, ...]``."""
    slope = node.blobs[0].reshape(-1, *[1] * (len(node.bottoms[0].shape) - 2))
    return [g.op("PRelu", node.bottoms[0].name, g.weight(node, 0, slope))]


@exporter("ELU")
def elu(g: GraphBuilder, node: Node) -> list[str]:
    """Elu, times NVIDIA's ``lambda``."""
    p = node.layer.settings
    return [linear(g, g.op("Elu", node.bottoms[0].name, alpha=p.alpha), getattr(p, "lambda"))]


@exporter("SeLU", "SeLu")
def selu(g: GraphBuilder, node: Node) -> list[str]:
    """Selu, whose gamma is the layer's ``lambda``."""
    p = node.layer.settings
    return [g.op("Selu", node.bottoms[0].name, alpha=p.alpha, gamma=getattr(p, "lambda"))]


@exporter("Insanity")
def insanity(g: GraphBuilder, node: Node) -> list[str]:
    """LeakyRelu with the slope of testing."""
    refuse_training(node)
    return [g.op("LeakyRelu", node.bottoms[0].name, alpha=1 / node.layer.mean)]


@exporter("Swish")
def swish(g: GraphBuilder, node: Node) -> list[str]:
    """``x * Sigmoid(beta * x)``."""
    x = node.bottoms[0].name
    return [g.op("Mul", x, g.op("Sigmoid", linear(g, x, node.layer.settings.beta)))]


@exporter("Mish")
def mish(g: GraphBuilder, node: Node) -> list[str]:
    """``x * Tanh(Softplus(x))``; the operator Mish is younger than this opset."""
    x = node.bottoms[0].name
    return [g.op("Mul", x, g.op("Tanh", g.op("Softplus", x)))]


@exporter("HardSigmoid")
def hard_sigmoid(g: GraphBuilder, node: Node) -> list[str]:
    """HardSigmoid with the layer's ``alpha`` and ``beta``."""
    p = node.layer.settings
    return [g.op("HardSigmoid", node.bottoms[0].name, alpha=p.alpha, beta=p.beta)]


@exporter("Threshold")
def threshold(g: GraphBuilder, node: Node) -> list[str]:
    """Greater, as numbers."""
    above = g.op("Greater", node.bottoms[0].name, g.constant(node.layer.settings.threshold))
    return [g.op("Cast", above, to=1)]  # 1: float


@exporter("Clip")
def clipped(g: GraphBuilder, node: Node) -> list[str]:
    """Clip."""
    p = node.layer.settings
    return [clip(g, node.bottoms[0].name, p.min, p.max)]


@exporter("Exp")
def exponential(g: GraphBuilder, node: Node) -> list[str]:
    """Exp, with the logarithm of the base in the exponent."""
    return [g.op("Exp", linear(g, node.bottoms[0].name, node.layer.scale, node.layer.shift))]


@exporter("Log")
def logarithm(g: GraphBuilder, node: Node) -> list[str]:
    """Log, divided by that of the base."""
    p = node.layer.settings
    y = g.op("Log", linear(g, node.bottoms[0].name, p.scale, p.shift))
    return [y if node.layer.log_base == 1 else g.op("Div", y, g.constant(node.layer.log_base))]


@exporter("Power")
def power(g: GraphBuilder, node: Node) -> list[str]:
    """Pow; a constant of the bottom's shape where ``power`` or ``scale`` is 0."""
    x, p = node.bottoms[0].name, node.layer.settings
    if p.power * p.scale == 0:
        with np.errstate(divide="ignore", invalid="ignore"):
            value = np.power(np.float32(p.shift), np.float32(p.power))
        return [g.op("Expand", g.constant(value), g.op("Shape", x))]
    y = linear(g, x, p.scale, p.shift)
    return [y if p.power == 1 else g.op("Pow", y, g.constant(p.power))]


@exporter("Dropout")
def dropout(g: GraphBuilder, node: Node) -> list[str]:
    """The bottom itself, or without ``scale_train`` times the share of values that training kept."""
    refuse_training(node)
    p = node.layer.param.dropout_param
    if p.sample_weights_test:
        raise node.error("drops values at random in testing too", hint="leave sample_weights_test out")
    return [linear(g, node.bottoms[0].name, 1.0 if p.scale_train else 1 - node.layer.ratio)]


@exporter("SpatialDropout", "SeLUDropout", "SeLuDropout")
def other_dropout(g: GraphBuilder, node: Node) -> list[str]:
    """The bottom itself."""
    refuse_training(node)
    return [node.bottoms[0].name]


@exporter("Split")
def split(g: GraphBuilder, node: Node) -> list[str]:
    """The bottom itself, for every top."""
    return [node.bottoms[0].name] * len(node.tops)
