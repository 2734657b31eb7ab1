"""Layers that bring data in without reading any: what the caller gives, and what fillers make up."""

from __future__ import annotations

import torch

from prototxt.caffe_pb2 import FillerParameter

from ..errors import PortError
from ..fillers import filled
from .base import MANY, Layer, register


@register("Input")
class Input(Layer):
    """``InputLayer``: blobs that the caller of ``Net.forward`` gives; any shape may follow the declared one."""

    fields = {"input_param": {"shape"}}
    num_bottoms, num_tops = (0, 0), (1, MANY)

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


@register("DummyData")
class DummyData(Layer):
    """``DummyDataLayer``: blobs of given shapes that ``data_filler`` fills, by default with 0.

    Shapes come as ``shape`` or as ``num``, ``channels``, ``height``, ``width``; each field, and ``data_filler``, once
    or once for each top. Constant blobs are filled once, all others anew at each forward, from torch's generator.
    """

    fields = {"dummy_data_param": {"data_filler", "shape", "num", "channels", "height", "width"}}
    num_bottoms, num_tops = (0, 0), (1, MANY)

    def setup(self, bottoms):
        p = self.param.dummy_data_param
        legacy = ("num", "channels", "height", "width")
        if any(getattr(p, name) for name in legacy):
            if p.shape:
                raise self.error("cannot be given together with num, channels...", field="dummy_data_param.shape")
            self.shapes = list(zip(*(self._for_each_top(name, getattr(p, name)) for name in legacy), strict=True))
        else:
            self.shapes = [tuple(shape.dim) for shape in self._for_each_top("shape", p.shape)]
        if min((size for shape in self.shapes for size in shape), default=0) < 0:
            raise self.error(f"sizes below 0: {self.shapes}", field="dummy_data_param.shape")
        self._fillers = self._for_each_top("data_filler", p.data_filler or [FillerParameter()])
        self._constants: list[torch.Tensor | None] = [None] * len(self.shapes)
        with torch.random.fork_rng(devices=[]):  # finds unknown fillers before anything runs
            for i in range(len(self.shapes)):
                self._filled(i, (1, 1, 1, 1))

    def infer(self, bottoms):
        return [torch.empty(shape, device="meta") for shape in self.shapes]

    def forward(self, bottoms):
        tops = []
        for i, shape in enumerate(self.shapes):
            top = self._constants[i]
            if top is None:
                top = self._filled(i, shape)
                if self._fillers[i].type == "constant":
                    self._constants[i] = top
            tops.append(top)
        return tops

    def _filled(self, i: int, shape) -> torch.Tensor:
        try:
            return filled(shape, self._fillers[i])
        except PortError as error:
            field = f"dummy_data_param.data_filler.{error.field}"
            raise self.error(error.message, field=field, hint=error.hint) from None

    def _for_each_top(self, name: str, values) -> list:
        tops = len(self.param.top)
        if len(values) not in (1, tops):
            raise self.error(
                f"{len(values)} given for {tops} tops: give one, or one for each", field=f"dummy_data_param.{name}"
            )
        return list(values) * tops if len(values) == 1 else list(values)
