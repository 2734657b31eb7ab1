"""What ``torch.compile`` makes faster: runs of layers, each of which becomes one function (the convolutions, a head
behind RoI pooling; data, RoI pooling, mining and losses between them run as always), and a solver's update."""

from __future__ import annotations

from types import FunctionType

import torch
from torch import Tensor

from .errors import PortError
from .graph import Step
from .optim import update
from .precision import PRODUCTS

# Layers that compute tops from bottoms and parameters alone, and whose Python torch's compiler follows.
PURE = PRODUCTS | {"ReLU", "PReLU", "Pooling", "Dropout", "Concat", "Permute", "Flatten", "Softmax"}


def is_pure(layer) -> bool:
    """Whether a layer can be part of a run; the window of global pooling would be compiled anew for each size."""
    return layer.type in PURE and not (layer.type == "Pooling" and layer.kernel is None)


class Segment:
    """Consecutive layers that a net runs as if they were one.

    Attributes:
        first, last: numbers of its first and last layer.
        step: the values that it reads, and those that others read of it.
        inner: the values that nobody else reads.
    """

    type, in_place = "Segment", False

    def __init__(self, net, first: int, last: int, **options):
        self.first, self.last = first, last
        own = range(first, last + 1)
        made = [v for i in own for v in net.steps[i].tops]
        read = sorted({v for i in own for v in net.steps[i].bottoms} - set(made))
        readers = {v: {reader for reader, _ in net.values[v].readers} for v in made}
        tops = [v for v in made if not readers[v] or readers[v] - set(own)]
        self.inner = set(made) - set(tops)
        self.step = Step(None, read, tops, net.steps[first].runs_backward, [True] * len(read))
        self.error = net.layers[first].error
        for i in own:
            if net.steps[i].bottoms[0] in read:
                net.layers[i].in_place = False  # what comes from outside is not the run's to overwrite
        self.plain = self._function(net)
        self.run = torch.compile(self.plain, fullgraph=True, **options)

    def _function(self, net):
        """The layers as a function; its code is a copy of its own, for torch counts compilations by code."""
        layers = range(self.first, self.last + 1)
        reads = [tuple(zip(net.steps[i].bottoms, net.steps[i].propagate, strict=True)) for i in layers]
        parts = [(net.layers[i], read, tuple(net.steps[i].tops)) for i, read in zip(layers, reads, strict=True)]
        bottoms, tops, convert = tuple(self.step.bottoms), tuple(self.step.tops), net.precision.bottoms

        def run(inputs: list[Tensor]) -> list[Tensor]:
            values = dict(zip(bottoms, inputs, strict=True))
            for layer, read, made in parts:
                given = [values[v] if keep else values[v].detach() for v, keep in read]
                values.update(zip(made, layer.forward(convert(layer, given)), strict=True))
            return [values[v].contiguous() for v in tops]

        code = run.__code__.replace(co_name=f"layers_{self.first}_to_{self.last}")
        return FunctionType(code, run.__globals__, code.co_name, None, run.__closure__)

    def __call__(self, bottoms: list[Tensor]) -> list[Tensor]:
        bottoms = [bottom.contiguous() for bottom in bottoms]  # what follows takes each layout for another function
        try:
            return self.run(bottoms)
        except torch._dynamo.exc.TorchDynamoException as error:
            if "LimitHit" in type(error).__name__:  # ever new shapes that one function does not serve
                self.run = self.plain
                return self.run(bottoms)
            reason = " ".join(line.strip() for line in str(error).strip().splitlines()[:2])
            raise self.error(f"cannot be compiled: {reason}", hint="it runs without compiling") from None


def compile_net(net, **options) -> list[Segment]:
    """Compiles all runs of pure layers of a net that hold a convolution or an inner product; returns them.

    The compiler works at the first forward, and once more when a shape changes; further shapes compile nothing. Of the
    blobs inside a run none are kept; where some are asked for (``keep_blobs``, ``forward(blobs=...)``, ``watch``) the
    layers run one by one, as if they had not been compiled. Dropout draws other numbers.

    Args:
        net: a :class:`~ohem_caffe_port.net.Net`.
        options: of ``torch.compile``; without any, no layout of memory is changed but as the net's precision says.

    Raises:
        PortError: there is no such run.
    """
    options = options or {"options": {"layout_optimization": False}}
    runs: list[list[int]] = []
    for i, (step, layer) in enumerate(zip(net.steps, net.layers, strict=True)):
        if not is_pure(layer) or any(v in net.loss_weights for v in step.tops):
            continue
        if runs and runs[-1][-1] == i - 1 and net.steps[i - 1].runs_backward == step.runs_backward:
            runs[-1].append(i)
        else:
            runs.append([i])
    runs = [run for run in runs if any(net.layers[i].type in PRODUCTS for i in run)]
    if not runs:
        raise PortError("nothing to compile: no convolution and no inner product", file=net.source)
    net.segments = {run[0]: Segment(net, run[0], run[-1], **options) for run in runs}
    return list(net.segments.values())


def compile_update(solver, **options) -> None:
    """Compiles the update of a solver's parameters: on a GPU one kernel for each, which reads and writes every number
    once. On a CPU the update goes through the cache part by part, and is better left as it is.

    Args:
        solver: a :class:`~ohem_caffe_port.solver.Solver`.
        options: of ``torch.compile``.
    """
    compiled = torch.compile(update, dynamic=True, **options)

    def vectors(p, weight, grad, history, *, iteration, **rest):
        """All shapes are one, and the iteration a constant to the rules that do not read it."""
        if not (weight.is_contiguous() and grad.is_contiguous()):
            return update(p, weight, grad, history, iteration=iteration, **rest)
        flat = weight.view(-1), grad.view(-1), [blob.view(-1) for blob in history]
        return compiled(p, *flat, iteration=iteration if p.type == "Adam" else 0, **rest)

    solver.update = vectors
