"""Net: a NetParameter as an ``nn.Module`` that behaves as Caffe's ``Net`` does."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import prototxt
from prototxt import CaffePortError
from prototxt.errors import nearest

from .config import Config
from .errors import PortError
from .fillers import filled
from .graph import NO_READER_PROPAGATES, Step, connect, filter_layers, plan_backward
from .layers import Clock, Context, Layer, check_memory, create_layer
from .precision import Precision, widened
from .segments import Segment

_NET_FIELDS = {"name", "layer", "state", "force_backward", "input", "input_shape", "input_dim"}
_WEIGHTLESS_SPEC = prototxt.caffe_pb2.ParamSpec()


def _unnamed_top(layer: Layer) -> str:
    """The name here of the top that a loss without one is given."""
    return f"({layer.name} loss)"


@dataclass
class LearnableParam:
    """One parameter tensor of the net, however many layers share it.

    ``lr_mult`` and ``decay_mult`` are None until some sharer states one; Caffe then takes 1.
    """

    blob: nn.Parameter
    owner: str  # "<layer>[<index>]" of the first layer that uses it
    name: str = ""  # of the ``param`` that shares it
    lr: float | None = None
    decay: float | None = None
    users: list[tuple[str, int]] = field(default_factory=list)

    @property
    def lr_mult(self) -> float:
        return 1.0 if self.lr is None else self.lr

    @property
    def decay_mult(self) -> float:
        return 1.0 if self.decay is None else self.decay


class Net(nn.Module):
    """Runs a network as its prototxt says, by Caffe's rules.

    Layers run in the file's order; a layer whose top has its bottom's name makes a new value of that name; parameters
    with one ``param { name }`` are one tensor; layers that no loss needs run without autograd.

    Args:
        source: path of a prototxt, or a ``NetParameter`` in the current form.
        phase: "TRAIN" or "TEST".
        level, stages: the rest of Caffe's ``NetState``: a level replaces the file's, stages are added to its own.
        cfg: configuration for data and mining layers.
        rng: random stream of data layers and samplers.
        device: where parameters live and inputs go.
        lenient: keep going over unknown fields of the file (they are listed in ``warnings``).
        path: the file that a ``NetParameter`` was read from, for messages.
        initialize: False leaves the parameters on the meta device, without values: enough to look at the net.
        precision: how exactly to compute: a name, or :class:`~ohem_caffe_port.precision.Precision`; faithfully unless
            stated.

    Attributes:
        blobs: ``{name: Tensor}`` of the last forward, in-place layers applied (with ``keep_blobs``), in float32.
        params: ``{layer: [Parameter, ...]}``; a shared tensor stands under each of its layers.
        learnable_params: each tensor once, in Caffe's order.
        outputs: names of the blobs that no layer reads, in alphabetical order as in Caffe, without the unnamed tops of
            losses.
        losses, loss: after a forward, each top with a loss_weight, and their weighted sum.
        warnings: fields without effect, one line each.

    Raises:
        PortError: an unknown layer, missing bottom, wrong shape, disagreeing shared parameters..., with file and line.
    """

    def __init__(
        self, source, phase="TRAIN", *, level=None, stages=(), cfg=None, rng=None, device="cpu", lenient=False,
        path=None, initialize=True, precision: str | Precision = "fp32",
    ):  # fmt: skip
        super().__init__()
        self.warnings: list[str] = []
        if isinstance(source, (str, Path)):
            self.source = str(source)
            unknown: list = []
            param = prototxt.read_net(source, lenient=lenient, unknown=unknown)
            self.warnings += [f"unknown field ignored: {f}" for f in unknown]
        else:
            self.source, param = path, source
        self._initialize = initialize
        if phase not in ("TRAIN", "TEST"):
            raise PortError(f"a phase is TRAIN or TEST, not {phase!r}")
        self.warnings += [f"net field {f.name} is ignored" for f, _ in param.ListFields() if f.name not in _NET_FIELDS]
        self.name, self.phase, self.device = param.name, phase, torch.device(device)
        self.precision = precision if isinstance(precision, Precision) else Precision(precision)
        self.precision.check(self.device)
        self.cfg = cfg or Config()
        self.rng = np.random.RandomState(self.cfg.RNG_SEED) if rng is None else rng
        self.clock = Clock()
        self.keep_blobs = True
        self.watch = None  # called with (step, layer, tops) after each layer of a forward
        self.segments: dict[int, Segment] = {}  # compiled runs of layers, by the number of the first one
        self.blobs: dict[str, Tensor] = {}
        self.losses: dict[str, Tensor] = {}
        self.loss: Tensor = torch.zeros(())
        try:
            self._build(param, param.state.level if level is None else level, [*stages, *param.state.stage])
        except PortError as error:
            raise self.located(error) from None

    # ---- building

    def _build(self, param, level, stages) -> None:
        layer_params = filter_layers(param, self.phase, level, stages)
        if not layer_params:
            raise PortError(f"no layer is left in phase {self.phase}", hint="check the include / exclude rules")
        self.layers = nn.ModuleList()
        for layer_param in layer_params:
            own_phase = self.phase
            if layer_param.HasField("phase"):
                own_phase = ("TRAIN", "TEST")[layer_param.phase]
            layer = create_layer(layer_param, Context(own_phase, self.cfg, self.rng, self.clock, self.device))
            self._check_arity(layer)
            self.layers.append(layer)
        self.steps, self.values = connect([layer.param for layer in self.layers])
        self.layer_by_name: dict[str, Layer] = {}
        for layer in self.layers:
            if self.layer_by_name.setdefault(layer.name, layer) is not layer:  # Caffe lets that pass without a word
                self.warnings.append(f"two layers are named '{layer.name}'; weights load into the first")
        self._infer_shapes()
        self.warnings += [warning for layer in self.layers for warning in layer.warnings]  # of set-up, too
        self._share_params()
        self._plan(param)
        self.precision.install(self.layers)
        unnamed = {_unnamed_top(layer) for layer in self.layers}
        self.outputs = sorted(v.name for v in self.values if not v.readers and v.name not in unnamed)
        self.inputs = [name for layer in self.layers if layer.type == "Input" for name in layer.param.top]

    def _check_arity(self, layer: Layer) -> None:
        if layer.is_loss and not layer.param.top:
            layer.param.top.append(_unnamed_top(layer))  # Caffe's AutoTopBlobs
        for kind, given, (least, most) in (
            ("bottom", len(layer.param.bottom), layer.num_bottoms),
            ("top", len(layer.param.top), layer.num_tops),
        ):
            if not least <= given <= most:
                wanted = str(least) if least == most else f"at least {least}" if most > 99 else f"{least} to {most}"
                raise layer.error(f"a {layer.type} layer takes {wanted} {kind}s, not {given}", field=kind)

    def _infer_shapes(self) -> None:
        """Runs every layer on meta tensors: parameters get their shapes, and a misfit is found before any data is."""
        metas: list[Tensor | None] = [None] * len(self.values)
        self.shapes: list[tuple[int, ...]] = []
        with torch.no_grad():
            for step, layer in zip(self.steps, self.layers, strict=True):
                bottoms = [metas[v] for v in step.bottoms]
                tops = self._guarded(layer, lambda b, layer=layer: (layer.setup(b), layer.infer(b))[1], bottoms)
                if len(tops) != len(step.tops):
                    raise layer.error(f"makes {len(tops)} blobs but names {len(step.tops)} tops", field="top")
                if self._initialize:
                    check_memory(layer, [top.shape for top in tops])
                for v, top in zip(step.tops, tops, strict=True):
                    metas[v] = top
        self.shapes = [tuple(m.shape) for m in metas]

    def _share_params(self) -> None:
        """``Net::AppendParam``: the first layer to use a name owns the tensor; others use it."""
        self.learnable_params: list[LearnableParam] = []
        by_name: dict[str, LearnableParam] = {}
        device = self.device if self._initialize else torch.device("meta")
        for layer in self.layers:
            specs = layer.param.param
            if len(specs) > len(layer.blobs):
                raise layer.error(f"{len(specs)} given, but the layer has {len(layer.blobs)} parameters", field="param")
            for j, blob in enumerate(layer.blobs):
                spec = specs[j] if j < len(specs) else _WEIGHTLESS_SPEC
                shared = by_name.get(spec.name) if spec.name else None
                if shared is None:
                    try:
                        values = filled(blob.shape, layer.fillers[j]) if self._initialize else blob
                    except PortError as error:
                        raise layer.error(error.message, field=error.field, hint=error.hint) from None
                    except (RuntimeError, TypeError):  # torch's words for too much, and for far too much
                        raise layer.error(f"no memory for its parameter {j}, {tuple(blob.shape)}") from None
                    shared = LearnableParam(nn.Parameter(values.to(device)), f"{layer.name}[{j}]", spec.name)
                    self.learnable_params.append(shared)
                    if spec.name:
                        by_name[spec.name] = shared
                elif not self._shapes_agree(shared.blob, blob, spec):
                    raise layer.error(
                        f"shares '{spec.name}' with {shared.owner}, whose shape is {tuple(shared.blob.shape)}; "
                        f"here it is {tuple(blob.shape)}",
                        field=f"param[{j}]",
                    )
                for attribute, multiplier in (("lr", "lr_mult"), ("decay", "decay_mult")):
                    if spec.HasField(multiplier):
                        value, stated = getattr(spec, multiplier), getattr(shared, attribute)
                        if stated is not None and stated != value:
                            raise layer.error(
                                f"{value} for shared '{spec.name}', but an earlier layer says {stated}",
                                field=f"param[{j}].{multiplier}",
                            )
                        setattr(shared, attribute, value)
                layer.frozen[j] = spec.lr_mult == 0
                shared.users.append((layer.name, j))
                layer.blobs[j] = shared.blob
        self.params = {layer.name: list(layer.blobs) for layer in self.layer_by_name.values() if len(layer.blobs)}

    @staticmethod
    def _shapes_agree(owner: Tensor, blob: Tensor, spec) -> bool:
        return owner.numel() == blob.numel() if spec.share_mode == spec.PERMISSIVE else owner.shape == blob.shape

    def _plan(self, param) -> None:
        self.loss_weights: dict[int, float] = {}
        # losses of unstated weight that a layer reads: the gradient of that layer takes the place of their own
        self.overruled: set[int] = set()
        for step, layer in zip(self.steps, self.layers, strict=True):
            weights = list(layer.param.loss_weight) or ([1.0] if layer.is_loss else [])
            if len(weights) not in (0, len(step.tops)):
                stated = len(layer.param.loss_weight) or "no"
                raise layer.error(f"{stated} values for {len(step.tops)} tops", field="loss_weight",
                                  hint="a loss with several tops needs one for each")  # fmt: skip
            self.loss_weights |= {v: w for v, w in zip(step.tops, weights, strict=False) if w}
            if not layer.param.loss_weight:
                self.overruled |= {v for v in step.tops if self.values[v].readers}
        has_loss = [any(v in self.loss_weights for v in step.tops) for step in self.steps]
        trains = [not all(layer.frozen) for layer in self.layers]
        forced = None
        if param.force_backward:
            forced = lambda i, bottom: self.layers[i].allow_force_backward(bottom)  # noqa: E731
            for layer in self.layers:
                layer.frozen[:] = [False] * len(layer.frozen)
        plan_backward(self.steps, self.values, has_loss, trains, forced)
        for layer, step, loss in zip(self.layers, self.steps, has_loss, strict=True):
            if loss and self.phase == "TRAIN" and step.why_not == NO_READER_PROPAGATES:
                self.warnings.append(
                    f"layer '{layer.name}': trains nothing, for the layers that read its loss pass no gradient down; "
                    "with a loss_weight stated it does"
                )
        self.force_backward = bool(param.force_backward)
        for i, layer in enumerate(self.layers):
            layer.in_place = self._may_overwrite(self.steps[i])
        wants_grad = {id(b) for s, layer in zip(self.steps, self.layers, strict=True) if s.runs_backward
                      for b, frozen in zip(layer.blobs, layer.frozen, strict=True) if not frozen}  # fmt: skip
        for learnable in self.learnable_params:
            learnable.blob.requires_grad_(id(learnable.blob) in wants_grad)
        self.last_reader = [max((r for r, _ in v.readers), default=len(self.steps)) for v in self.values]

    def _may_overwrite(self, step: Step) -> bool:
        """An in-place layer may really overwrite its bottom when nobody else, autograd included, needs the values."""
        if not (step.param.top and step.param.bottom and step.param.top[0] == step.param.bottom[0]):
            return False
        value = self.values[step.bottoms[0]]
        maker = self.layers[value.producer]
        return len(value.readers) == 1 and not maker.saves_top and maker.type not in ("Input", "Dropout")

    # ---- running

    def forward(self, *, blobs=(), start=None, end=None, **inputs) -> dict[str, Tensor]:
        """Runs the layers, all or some; returns the output blobs by name.

        Args:
            inputs: one tensor or array for every blob of the ``Input`` layers, of any shape that the net can take. With
                ``start`` or ``end`` those that the layers in between read are enough; with ``start`` that may be blobs
                of earlier layers too, and what is not given is taken as the last forward left it in ``blobs``.
            start, end: names of the first and the last layer to run, as in pycaffe; after ``end`` the blobs of that
                layer are the outputs.
            blobs: names of further blobs to return; they are kept whatever ``keep_blobs`` says.

        Raises:
            PortError: inputs missing or unknown; no such layer or blob; a layer that fails, with its name and the
                shapes it got.
        """
        first, last = self._range(start, end)
        values: list[Tensor | None] = [None] * len(self.values)
        given = self._given(inputs, first, last, start is not None)
        for v, blob in given.items():
            values[v] = blob
        kept = self._latest(blobs, last)
        replaced = {self.values[v].name for step in self.steps[first : last + 1] for v in step.tops}
        self.blobs = {} if start is None else {n: blob for n, blob in self.blobs.items() if n not in replaced}
        self.losses = {}
        with self.precision.in_force(self.device):
            total = self._run(first, last, values, given, kept)
        self.loss = total if isinstance(total, Tensor) else torch.zeros((), device=self.device)
        self.blobs |= {v.name: widened(t) for v, t in zip(self.values, values, strict=True) if t is not None}
        outputs = self.outputs if end is None else [self.values[v].name for v in self.steps[last].tops]
        return {name: self.blobs[name] for name in [*outputs, *blobs] if name in self.blobs}

    def _run(self, first: int, last: int, values: list[Tensor | None], given, kept) -> Tensor | float:
        """Runs the layers ``first`` to ``last`` on ``values``; returns the weighted sum of their losses."""
        grad_mode = torch.is_grad_enabled()
        total: Tensor | float = 0.0
        for i, step, layer in self._units(first, last, kept):
            if layer.type == "Input":
                tops = [values[v] for v in step.tops]
                if any(top is None for top in tops):  # of a part that does not read it
                    continue
            else:
                bottoms = [
                    values[v] if keep else values[v].detach()
                    for v, keep in zip(step.bottoms, step.propagate, strict=True)
                ]
                if layer.in_place and step.bottoms[0] in given:  # not ours to overwrite
                    bottoms[0] = bottoms[0].clone()
                with torch.set_grad_enabled(grad_mode and step.runs_backward):
                    if not isinstance(layer, Segment):
                        bottoms = self.precision.bottoms(layer, bottoms)
                    tops = self._guarded(layer, layer, bottoms)
                if not bottoms:  # a data layer hands out what it read, wherever that lies
                    tops = [top.to(self.device, non_blocking=True) for top in tops]
            if self.watch is not None:
                self.watch(step, layer, tops)
            for v, top in zip(step.tops, tops, strict=True):
                values[v] = top
                if v in self.loss_weights:
                    self.losses[self.values[v].name] = widened(top.detach())
                    total = total + self.loss_weights[v] * widened(top.detach() if v in self.overruled else top).sum()
            if not self.keep_blobs:
                for v in {*step.bottoms, *step.tops}:
                    if self.last_reader[v] <= i and v not in kept:
                        values[v] = None
        return total

    def _units(self, first: int, last: int, kept):
        """What runs, ``(number of its last layer, step, layer)``: compiled runs where they may, and single layers."""
        i = first
        while i <= last:
            segment = None if self.keep_blobs or self.watch else self.segments.get(i)
            if segment is not None and segment.last <= last and not segment.inner & kept:
                i = segment.last
                yield i, segment.step, segment
            else:
                yield i, self.steps[i], self.layers[i]
            i += 1

    def backward(self, loss: Tensor | None = None) -> None:
        """Adds the gradients of ``loss``, the net's own unless given, to ``.grad`` of the learnable parameters."""
        loss = self.loss if loss is None else loss
        if loss.requires_grad:
            with self.precision.in_force(self.device):
                loss.backward()

    def summary(self):
        """Layers, shapes, parameters, multiply-adds, memory and backward: :class:`ohem_caffe_port.summary.Summary`."""
        from .summary import summarize

        return summarize(self)

    def _range(self, start, end) -> tuple[int, int]:
        """Numbers of the first and the last layer of a forward."""
        names = [layer.name for layer in self.layers]
        for name in (start, end):
            if name is not None and name not in names:
                near = nearest(name, names)
                hint = f"did you mean '{near}'?" if near else None
                raise PortError(f"no layer is named '{name}'", file=self.source, hint=hint)
        first = 0 if start is None else names.index(start)
        last = len(names) - 1 if end is None else names.index(end)
        if first > last:
            raise PortError(f"layer '{end}' comes before layer '{start}'", file=self.source)
        return first, last

    def _given(self, inputs, first: int, last: int, from_blobs: bool) -> dict[int, Tensor]:
        """The values that come from outside of the layers ``first`` to ``last``: ``inputs`` or, where ``from_blobs``,
        ``blobs``."""
        sources = {i for i, layer in enumerate(self.layers) if layer.type == "Input"} | set(range(first))
        read = {v for step in self.steps[first : last + 1] for v in step.bottoms}
        whole = last - first + 1 == len(self.steps)
        read |= {v for i in sources for v in self.steps[i].tops if whole or self.values[v].name in inputs}
        by_name = {self.values[v].name: v for v in sorted(read) if self.values[v].producer in sources}
        missing = set(by_name) - set(inputs) - set(self.blobs if from_blobs else ())
        extra = set(inputs) - set(by_name) - set(self.inputs)
        if missing or extra:
            which = f"net's inputs are {self.inputs}"
            if first > 0:
                which = f"layers from '{self.layers[first].name}' on read {sorted(by_name)}"
            raise PortError(f"the {which}; missing {sorted(missing)}, unknown {sorted(extra)}", file=self.source)
        return {v: self._as_blob(inputs[n]) if n in inputs else self.blobs[n] for n, v in by_name.items()}

    def _latest(self, names, last: int) -> set[int]:
        """The values that blobs of these names have after layer ``last``."""
        latest = {value.name: v for v, value in enumerate(self.values) if value.producer <= last}
        unknown = sorted(set(names) - set(latest))
        if unknown:
            raise PortError(f"no layer that runs makes a blob {', '.join(unknown)}", file=self.source)
        return {latest[name] for name in names}

    def _as_blob(self, value) -> Tensor:
        blob = torch.as_tensor(value, dtype=torch.float32).to(self.device)
        return blob.detach().requires_grad_() if self.force_backward and torch.is_grad_enabled() else blob

    def _guarded(self, layer: Layer, run, bottoms):
        """``run(bottoms)``; torch's complaints about shapes and indices become errors that name the layer."""
        try:
            return run(bottoms)
        except CaffePortError as error:
            if error.layer is None:  # a reader's, about a file that the layer names
                where = ":".join(str(part) for part in (error.file, error.line) if part is not None)
                message = f"{where}: {error.message}" if where else error.message
                error = layer.error(message, field=error.field, hint=error.hint)
            raise self.located(error) from None
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError) as error:
            shapes = ", ".join(str(tuple(b.shape)) for b in bottoms)
            raise self.located(layer.error(f"{error} (bottom shapes: {shapes or 'none'})")) from error

    def located(self, error: CaffePortError) -> CaffePortError:
        """The same error with this net's file and the line of its layer."""
        if self.source is not None and error.file is None:
            error.file = self.source
            if error.layer is not None:
                error.line = prototxt.locate(self.source, layer=error.layer)
        return error
