"""Which sizes of a net's blobs may differ from run to run: found by giving its layers inputs of other sizes."""

from __future__ import annotations

import torch

from converters.onnx import layer_type
from prototxt import caffe_pb2

from .errors import PortError
from .layers.convolution import SlidingLayer
from .layers.recurrent import LSTMUnit, RecurrentLayer
from .layers.roi import RoILayer
from .net import Net

# Layers whose tops have as many rows as are found, and the axis of these rows: in the first top, in all others.
ROWS_AXIS = {
    "BoxGroupOutput": (0,),
    "BoxOutput": (0,),
    "DecodeBBox": (0,),
    "DetectionOutput": (2,),
    "Filter": (0,),
    "FrcnnOutput": (0,),
    "Proposal": (0,),
    "ScaleRoute": (0,),
    "YoloDetectionOutput": (2,),
    "Yolov3DetectionOutput": (2,),
    "pylayer.proposal_layer.ProposalLayer": (0, 1),
    "rpn.proposal_layer.ProposalLayer": (0,),
}
Growth = dict[tuple[int, int], int]  # (value, axis): how many times as large


def open_shapes(net: Net, names: list[str], kept=None) -> tuple[list[tuple[int | str, ...]], list[str]]:
    """The shape of every value of ``net``, with a name in the place of each size that may vary.

    "batch" is axis 0 of the inputs (of sequences ``[T, N, ...]`` axis 1: recurrent layers have a fixed number of time
    steps, as in Caffe), "num_rois" axis 0 of inputs that a layer takes RoIs from; ``<value>_<axis>`` is a size that
    follows from these, or that a layer finds in the data. Sizes that are equal in every trial have one name.

    Args:
        names: of the values, in the order of ``net.values``.
        kept: the numbers of the layers that matter [all].

    Returns:
        shapes, and a line about each group of inputs whose rows the net fixes.
    """
    kept = set(range(len(net.layers)) if kept is None else kept)
    trials, changes, notes = _Trials(net, kept), [], []
    images, rois = _inputs(net, kept)
    left = []
    for name, inputs in (("batch", images), ("num_rois", rois)):
        growth, why = trials.widest(inputs, left)
        left = [v for v in (*inputs, *left) if not any(v == grown for grown, _ in growth)]
        changes += [(name, growth)] if growth else []
        if inputs and not growth:
            rows = ", ".join(f"'{net.values[v].name}'" for v in inputs)
            notes.append(f"the size of {rows} is fixed, {name} cannot vary: {str(why).splitlines()[0]}")
    for i in sorted(kept):
        axes, tops = ROWS_AXIS.get(layer_type(net.layers[i]), ()), net.steps[i].tops
        growth = {(v, axes[min(k, len(axes) - 1)]): 3 for k, v in enumerate(tops) if axes}
        if growth and all(axis < len(net.shapes[v]) for v, axis in growth):
            changes.append((None, growth))
    runs = [net.shapes, *(trials.run(growth) for _, growth in changes)]
    named: dict[tuple[int, ...], str] = {}  # a size in each of the runs -> its name

    def sizes(v: int, axis: int) -> tuple[int, ...]:
        return tuple(run[v][axis] for run in runs)

    for name, growth in changes:
        if name:
            named[sizes(*next(iter(growth)))] = name
    shapes = []
    for v, shape in enumerate(net.shapes):
        varying = [(axis, sizes(v, axis)) for axis in range(len(shape))]
        shapes.append(tuple(
            named.setdefault(found, f"{names[v]}_{axis}") if len(set(found)) > 1 else shape[axis]
            for axis, found in varying
        ))  # fmt: skip
    return shapes, notes


def _inputs(net: Net, kept) -> tuple[list[int], list[int]]:
    """The inputs that matter and have axes: those that are no RoIs, and those that are."""
    images, rois = [], []
    for step, layer in zip(net.steps, net.layers, strict=True):
        if layer.type == "Input":
            for v in step.tops:
                readers = [(net.layers[i], bottom) for i, bottom in net.values[v].readers if i in kept]
                is_rois = any(isinstance(reader, RoILayer) and bottom == 1 for reader, bottom in readers)
                if net.shapes[v] and (readers or not net.values[v].readers):
                    (rois if is_rois else images).append(v)
    return images, rois


class _Trials:
    """Runs of a net's layers, as they are set up, on tensors without data."""

    def __init__(self, net: Net, kept: set[int]):
        self.kept = kept
        param = caffe_pb2.NetParameter()
        for layer in net.layers:
            added = param.layer.add()
            added.CopyFrom(layer.param)
            added.ClearField("include")
            added.ClearField("exclude")
        self.net = Net(param, net.phase, cfg=net.cfg, initialize=False)
        recurrent = [net.shapes[step.bottoms[0]][:2] for step, layer in zip(net.steps, net.layers, strict=True)
                     if isinstance(layer, (RecurrentLayer, LSTMUnit))]  # fmt: skip
        self.sequences = {start for t, n in recurrent for start in ((t, n), (1, n))}

    def widest(self, inputs: list[int], left: list[int]) -> tuple[Growth, PortError | None]:
        """The largest group of ``inputs`` (and of those ``left`` over), the first of them in it, that may grow
        together; none, and why, where there is no such group."""
        if not inputs:
            return {}, None
        first, *rest = inputs
        groups = [[*inputs, *left], inputs, *([first, *(v for v in rest if v != out)] for out in rest), [first]]
        reason = None
        for group in groups:
            growth = {(v, int(self.net.shapes[v][:2] in self.sequences)): 3 for v in group}
            try:
                self.run(growth)
            except PortError as error:
                reason = error
            else:
                return growth, None
        return {}, reason

    def run(self, growth: Growth) -> list[tuple[int, ...]]:
        """The shapes of all values when some are made larger; those of layers that do not matter stay.

        Raises:
            PortError: a layer does not take such bottoms.
        """
        metas = [torch.empty(shape, device="meta") for shape in self.net.shapes]
        with torch.no_grad():
            for i in sorted(self.kept):
                step, layer = self.net.steps[i], self.net.layers[i]
                bottoms = [metas[v] for v in step.bottoms]
                try:
                    self._check(step, layer, bottoms)
                    tops = layer.infer(bottoms)
                except (RuntimeError, ValueError, IndexError) as error:  # torch's words for shapes that do not fit
                    raise layer.error(str(error)) from None
                for v, top in zip(step.tops, tops, strict=True):
                    shape = [size * growth.get((v, axis), 1) for axis, size in enumerate(top.shape)]
                    metas[v] = top.new_empty(shape)
        return [tuple(meta.shape) for meta in metas]

    def _check(self, step, layer, bottoms) -> None:
        """What ``infer`` does not see: fixed numbers of time steps and channels, layers that take one image only."""
        shapes, own = [tuple(b.shape) for b in bottoms], [self.net.shapes[v] for v in step.bottoms]
        if isinstance(layer, RecurrentLayer) and shapes[0][0] != own[0][0]:
            raise layer.error(f"is unrolled over {own[0][0]} time steps")
        if isinstance(layer, SlidingLayer) and shapes[0][layer.axis] != layer.channels:
            raise layer.error(f"slides over {layer.channels} channels")
        if layer_type(layer).startswith("Yolo"):  # takes any number of images, and finds thousands of boxes in zeros
            return
        if layer_type(layer) in ROWS_AXIS and shapes != own:
            try:
                layer([torch.zeros(shape) for shape in own])
            except PortError:  # zeros tell nothing
                return
            layer([torch.zeros(shape) for shape in shapes])
