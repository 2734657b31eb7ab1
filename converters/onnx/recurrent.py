"""Recurrent layers: a loop over the time steps."""

from __future__ import annotations

import numpy as np

from .activations import tanh
from .graph import GraphBuilder, Node, Value, exporter
from .shape import product, reshape


@exporter("RNN", "LSTM")
def recurrent(g: GraphBuilder, node: Node) -> list[str]:
    """A Loop over the time steps, since ONNX's own LSTM and RNN cannot begin a sequence anew where ``cont`` is 0.

    The graph keeps nothing between two runs: each begins with hidden states of zeros, as the first forward in Caffe
    does. A net with ``expose_hidden`` hands them in and out. The number of streams may be open.
    """
    layer, x = node.layer, node.bottoms[0]
    steps, streams, width = *x.shape[:2], layer.param.recurrent_param.num_output
    inputs = reshape(g, x.name, x.shape, (steps, streams, product(x.shape[2:])))
    inputs = _affine(g, node, inputs, 0, bias=1)
    if layer.static:
        static = node.bottoms[2]
        static = reshape(g, static.name, static.shape, (streams, product(static.shape[1:])))
        inputs = g.op("Add", inputs, _affine(g, node, static, 2))
    if layer.param.recurrent_param.expose_hidden:
        hidden = [reshape(g, b.name, b.shape, (streams, width)) for b in node.bottoms[2 + layer.static :]]
    else:
        zeros, size = g.constant([[0]]), g.vector(g.sizes(x, 1), width)
        hidden = [g.op("Expand", zeros, size) for _ in range(layer.states)]  # OpenCV 5 takes states of one name for one

    def step(time, hidden):
        keep = g.op("Reshape", g.op("Gather", node.bottoms[1].name, time, axis=0), g.ints(-1, 1))
        gates = g.op("Reshape", g.op("Gather", inputs, time, axis=0), g.ints(-1, layer.gates * width))
        gates = g.op("Add", gates, _affine(g, node, g.op("Mul", hidden[0], keep), layer.recurrent))
        return [tanh(g, gates)] if node.type == "RNN" else lstm_unit(g, hidden[1], gates, keep)

    states = [Value(name, (streams, width)) for name in hidden]
    top, last = g.loop(g.constant(steps, np.int64), states, step)
    if node.type == "RNN":
        top = tanh(g, _affine(g, node, top, layer.recurrent + 1, bias=layer.recurrent + 2))
    last = last if layer.param.recurrent_param.expose_hidden else []
    return [top, *(g.op("Unsqueeze", name, g.ints(0)) for name in last)]


def _affine(g: GraphBuilder, node: Node, x: str, weight: int, bias: int | None = None) -> str:
    x = g.op("MatMul", x, g.weight(node, weight, node.blobs[weight].T))
    return x if bias is None else g.op("Add", x, g.weight(node, bias))


def lstm_unit(g: GraphBuilder, cell: str, gates: str, keep: str) -> list[str]:
    """The names of ``h = o tanh(c)`` and of the new ``c = keep f c + i g``; the quarters of ``gates`` along the last
    axis become i, f, o (sigmoid) and g (tanh)."""
    *gates, new = g.op("Split", gates, outputs=4, axis=-1)
    i, f, o = (g.op("Sigmoid", gate) for gate in gates)
    kept = g.op("Mul", g.op("Mul", keep, f), cell)
    cell = g.op("Add", kept, g.op("Mul", i, tanh(g, new)))
    return [g.op("Mul", o, tanh(g, cell)), cell]


@exporter("LSTMUnit")
def lstm_unit_layer(g: GraphBuilder, node: Node) -> list[str]:
    """Sigmoid, Tanh and products."""
    cell, gates, keep = (bottom.name for bottom in node.bottoms)
    hidden, cell = lstm_unit(g, cell, gates, g.op("Unsqueeze", keep, g.ints(2)))
    return [cell, hidden]
