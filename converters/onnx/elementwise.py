"""Layers that combine blobs value by value: Eltwise, Scale, Bias, Axpy, ChannelScale."""

from __future__ import annotations

import functools

import numpy as np

from .activations import clip, linear, refuse_training
from .graph import GraphBuilder, Node, Value, exporter


def with_axes(g: GraphBuilder, x: str, ndim: int, wanted: int) -> str:
    """The name of ``x``, of ``ndim`` axes, with so many of length 1 behind them that it has ``wanted``."""
    return g.op("Unsqueeze", x, g.ints(*range(ndim, wanted))) if ndim < wanted else x


def sizes_from(g: GraphBuilder, value: Value, axis: int) -> list[int | str]:
    """The sizes of the axes from ``axis`` on as parts for :meth:`GraphBuilder.vector`."""
    shape = value.shape[axis:]
    return [g.sizes(value, *range(axis, len(value.shape)))] if any(isinstance(n, str) for n in shape) else list(shape)


def axes_behind(node: Node, axis: int, ndim: int) -> int:
    """How many axes of the first bottom lie behind the ``ndim`` from ``axis`` on: none of a single number's."""
    total = len(node.bottoms[0].shape)
    return total - axis % total - ndim if ndim else 0


def chain(g: GraphBuilder, op_type: str, names: list[str]) -> str:
    """The name of ``((a op b) op c)...``."""
    return functools.reduce(lambda a, b: g.op(op_type, a, b), names)


@exporter("Eltwise")
def eltwise(g: GraphBuilder, node: Node) -> list[str]:
    """Mul, Add, Max, Min or Div, one after the other; coefficients are factors."""
    p, bottoms = node.layer.param.eltwise_param, node.bottoms
    names = [bottom.name for bottom in bottoms]
    if p.HasField("axis"):
        names[1] = second_bottom(g, node, p.axis)
    if p.operation == p.STOCHASTIC_SUM:
        refuse_training(node)
    if p.operation == p.SORT:
        names = [linear(g, name, shift=1) for name in names]
    names = [linear(g, name, c) for name, c in zip(names, p.coeff or [1] * len(names), strict=True)]
    operators = {p.PROD: "Mul", p.SORT: "Mul", p.SUM: "Add", p.STOCHASTIC_SUM: "Add", p.MAX: "Max", p.MIN: "Min"}
    return [chain(g, operators.get(p.operation, "Div"), names)]


def second_bottom(g: GraphBuilder, node: Node, axis: int, name: str | None = None) -> str:
    """The name of the second bottom (or what was made of it), which covers the first one's axes from ``axis`` on, in a
    shape that broadcasts to it."""
    y = node.bottoms[1]
    ndim = len(y.shape)
    return with_axes(g, name or y.name, ndim, ndim + axes_behind(node, axis, ndim))


def parameter(g: GraphBuilder, node: Node, index: int, axis: int, low: float = -np.inf, high: float = np.inf) -> str:
    """The same of a parameter, kept between ``low`` and ``high``."""
    blob = np.clip(node.blobs[index], low, high)
    return g.weight(node, index, blob.reshape((*blob.shape, *[1] * axes_behind(node, axis, blob.ndim))))


@exporter("Scale")
def scale(g: GraphBuilder, node: Node) -> list[str]:
    """Mul, and Add with a ``bias_term``; ``min_value`` and ``max_value`` bound the factor.

    caffe-windows writes the bounded factor into the second bottom, where layers behind this one would read it; here
    they read what it was.
    """
    p, bottoms = node.layer.param.scale_param, node.bottoms
    low = p.min_value if p.HasField("min_value") else -np.inf
    high = p.max_value if p.HasField("max_value") else np.inf
    if len(bottoms) == 1:
        factor = parameter(g, node, 0, p.axis, low, high)
    else:
        factor = second_bottom(g, node, p.axis, clip(g, bottoms[1].name, low, high))
    y = g.op("Mul", bottoms[0].name, factor)
    return [g.op("Add", y, parameter(g, node, len(node.blobs) - 1, p.axis)) if p.bias_term else y]


@exporter("Bias")
def bias(g: GraphBuilder, node: Node) -> list[str]:
    """Add."""
    axis = node.layer.param.bias_param.axis
    shift = parameter(g, node, 0, axis) if len(node.bottoms) == 1 else second_bottom(g, node, axis)
    return [g.op("Add", node.bottoms[0].name, shift)]


@exporter("Axpy")
def axpy(g: GraphBuilder, node: Node) -> list[str]:
    """Mul and Add."""
    factor, x, y = node.bottoms
    name, ndim = factor.name, len(factor.shape)
    if ndim > len(x.shape):
        name, ndim = g.op("Squeeze", name, g.ints(*range(len(x.shape), ndim))), len(x.shape)
    return [g.op("Add", g.op("Mul", x.name, with_axes(g, name, ndim, len(x.shape))), y.name)]


@exporter("ChannelScale")
def channel_scale(g: GraphBuilder, node: Node) -> list[str]:
    """Mul with the second bottom, ``[N, 1, H, W]``, or with the ``global_scale``."""
    p, (x, factor) = node.layer.param.channel_scale_param, node.bottoms
    results = [x.name]
    if p.do_forward and p.global_scale:
        refuse_training(node)
        results = [g.op("Mul", x.name, g.weight(node, 0))]
    elif p.do_forward:
        name = factor.name
        if factor.shape != (x.shape[0], 1, *x.shape[2:]):
            name = g.op("Reshape", name, g.vector(-1, 1, *sizes_from(g, x, 2)))
        results = [g.op("Mul", x.name, name)]
    return results if len(node.tops) < 2 else [*results, g.weight(node, 0)]
