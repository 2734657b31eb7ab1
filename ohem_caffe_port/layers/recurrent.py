"""Recurrent layers: RNN, LSTM and the latter's unit."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .base import Layer, register
from .loss import refuse_gradient


class RecurrentLayer(Layer):
    """``RecurrentLayer``: bottoms ``x [T, N, ...]``, ``cont [T, N]`` (0 where a sequence begins) and, optionally, an
    input ``[N, ...]`` for every time step; the top is ``[T, N, num_output]``.

    The hidden state of the last time step is the next forward's first, unless ``expose_hidden``: then further bottoms
    give it, ``[1, N, num_output]`` each, and further tops return it. No gradient goes from one forward to another, and
    none to ``cont``. Parameters are in the order of Caffe's unrolled net. (Caffe keeps T fixed; here it may change.)
    """

    fields = {"recurrent_param": {"num_output", "weight_filler", "bias_filler", "expose_hidden"}}
    num_bottoms, num_tops = (2, 5), (1, 3)
    states = 1  # hidden blobs
    gates = 1  # blobs of num_output that the input is transformed to

    def setup(self, bottoms):
        p = self.param.recurrent_param
        if p.num_output < 1:
            raise self.error("must be positive", field="recurrent_param.num_output")
        hidden = self.states * p.expose_hidden
        if len(bottoms) not in (2 + hidden, 3 + hidden) or len(self.param.top) != 1 + hidden:
            raise self.error(
                f"takes {2 + hidden} bottoms, or {3 + hidden} with a static one, and {1 + hidden} tops; not "
                f"{len(bottoms)} and {len(self.param.top)}",
                field="bottom",
            )
        self.static = len(bottoms) == 3 + hidden
        self.state: list[Tensor] = []
        self.check(bottoms)
        width = self.gates * p.num_output
        self.add_blob((width, bottoms[0][0, 0].numel()), p.weight_filler)
        self.add_blob((width,), p.bias_filler)
        if self.static:
            self.add_blob((width, bottoms[2][0].numel()), p.weight_filler)
        self.add_blob((width, p.num_output), p.weight_filler)
        self.recurrent = len(self.blobs) - 1

    def check(self, bottoms) -> None:
        steps = tuple(bottoms[0].shape[:2])
        if bottoms[0].dim() < 3 or 0 in steps:
            raise self.error(f"takes [time steps, streams, ...] blobs, not shape {tuple(bottoms[0].shape)}")
        if tuple(bottoms[1].shape) != steps:
            raise self.error(f"the second bottom's shape must be {steps}, not {tuple(bottoms[1].shape)}")
        if self.static and (bottoms[2].dim() < 2 or bottoms[2].shape[0] != steps[1]):
            raise self.error(f"the static bottom must hold {steps[1]} streams, not shape {tuple(bottoms[2].shape)}")
        shape = (1, steps[1], self.param.recurrent_param.num_output)
        for bottom in bottoms[2 + self.static :]:
            if tuple(bottom.shape) != shape:
                raise self.error(f"a hidden bottom's shape must be {shape}, not {tuple(bottom.shape)}")

    def multiply_adds(self, bottoms, tops):
        matrices = [math.prod(shape) for shape in self.blob_shapes if len(shape) == 2]
        static = matrices.pop(1) if self.static else 0  # once a stream
        return tops[0][0] * tops[0][1] * sum(matrices) + tops[0][1] * static

    def allow_force_backward(self, bottom):
        return bottom != 1

    def forward(self, bottoms):
        self.check(bottoms)
        refuse_gradient(self, bottoms[1], what="its sequence indicators")
        x, cont = bottoms[0], bottoms[1].detach()[..., None]
        inputs = F.linear(x.flatten(2), self.blob(0), self.blob(1))
        if self.static:
            inputs = inputs + F.linear(bottoms[2].flatten(1), self.blob(2))
        expose = self.param.recurrent_param.expose_hidden
        state = [b[0].detach() for b in bottoms[2 + self.static :]] if expose else self._kept_state(inputs)
        weight, outputs = self.blob(self.recurrent), []
        for gate_inputs, keep in zip(inputs.unbind(0), cont.unbind(0), strict=True):
            gate_inputs = gate_inputs + F.linear(keep * state[0], weight)
            state = self.step(gate_inputs, keep, state)
            outputs.append(state[0])
        final = [s.detach() for s in state]
        if expose:
            return [self.output(torch.stack(outputs)), *(s[None].clone() for s in final)]
        self.state = final
        return [self.output(torch.stack(outputs))]

    def _kept_state(self, like: Tensor) -> list[Tensor]:
        shape = (like.shape[1], self.param.recurrent_param.num_output)
        if self.state and self.state[0].shape == shape and self.state[0].device == like.device:
            return self.state
        return [like.new_zeros(shape) for _ in range(self.states)]

    def step(self, gate_inputs, keep, state) -> list[Tensor]:
        """The next hidden state, the hidden output first."""
        raise NotImplementedError

    def output(self, hidden: Tensor) -> Tensor:
        return hidden


@register("RNN")
class RNN(RecurrentLayer):
    """``RNNLayer``: ``h = tanh(W_hh cont h + W_xh x + b_h)``, top ``tanh(W_ho h + b_o)`` of each time step.

    Parameters ``W_xh, b_h,`` (``W_xh_static,``) ``W_hh, W_ho, b_o``; see :class:`RecurrentLayer`.
    """

    def setup(self, bottoms):
        super().setup(bottoms)
        p = self.param.recurrent_param
        self.add_blob((p.num_output, p.num_output), p.weight_filler)
        self.add_blob((p.num_output,), p.bias_filler)

    def step(self, gate_inputs, keep, state):
        return [torch.tanh(gate_inputs)]

    def output(self, hidden):
        return torch.tanh(F.linear(hidden, self.blob(self.recurrent + 1), self.blob(self.recurrent + 2)))


def lstm_unit(cell: Tensor, gates: Tensor, keep: Tensor) -> list[Tensor]:
    """``h = o tanh(c)`` and the new ``c = keep f c + i g``; the quarters of ``gates`` become i, f, o (sigmoid) and g
    (tanh)."""
    i, f, o = torch.sigmoid(gates[..., : 3 * cell.shape[-1]]).chunk(3, -1)
    g = torch.tanh(gates[..., 3 * cell.shape[-1] :])
    cell = keep * f * cell + i * g
    return [o * torch.tanh(cell), cell]


@register("LSTM")
class LSTM(RecurrentLayer):
    """``LSTMLayer``: ``c = cont f c + i g`` and top ``h = o tanh(c)`` of each time step, with the gates
    ``i, f, o, g`` of ``W_hc cont h + W_xc x + b_c`` (sigmoid, the last one tanh).

    Parameters ``W_xc, b_c,`` (``W_xc_static,``) ``W_hc``, gates along the first axis; hidden states h and c. See
    :class:`RecurrentLayer`.
    """

    states, gates = 2, 4

    def step(self, gate_inputs, keep, state):
        return lstm_unit(state[1], gate_inputs, keep)


@register("LSTMUnit")
class LSTMUnit(Layer):
    """``LSTMUnitLayer``, one time step of an LSTM: bottoms c ``[1, N, D]``, the gates' inputs i, f, o, g
    ``[1, N, 4 D]`` and cont ``[1, N]``; tops the new c and h."""

    num_bottoms, num_tops = (3, 3), (2, 2)

    def allow_force_backward(self, bottom):
        return bottom != 2

    def forward(self, bottoms):
        cell, gates, keep = bottoms
        refuse_gradient(self, keep, what="its sequence indicators")
        shapes = [tuple(b.shape) for b in bottoms]
        n, d = cell.shape[1:] if cell.dim() == 3 else (0, 0)
        if shapes != [(1, n, d), (1, n, 4 * d), (1, n)]:
            raise self.error(f"takes blobs of shape (1, N, D), (1, N, 4 D) and (1, N), not {shapes}")
        hidden, cell = lstm_unit(cell, gates, keep.detach()[..., None])
        return [cell, hidden]
