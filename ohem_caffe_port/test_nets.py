"""A solver's test nets: built by Caffe's rules, on the weights that are being trained (``Solver::InitTestNets``,
``Solver::Test``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from .debug_info import DebugInfo
from .errors import PortError
from .evaluate.detection_rows import VERSIONS, average_precisions
from .net import Net
from .weights import copy_from


@dataclass
class TestResult:
    """Means over ``test_iter`` batches: every value of every output blob with its loss_weight, and the loss (where
    ``test_compute_loss`` asks for it). With SSD's ``eval_type: "detection"`` the mean average precision of every output
    blob, and in ``classes`` each label's by the blob's name: None where nothing was found of it."""

    net: int
    scores: list[tuple[str, float, float]] = field(default_factory=list)
    loss: float | None = None
    classes: dict[str, dict[int, float | None]] = field(default_factory=dict)
    show_classes: bool = False

    def lines(self) -> list[str]:
        """In Caffe's words."""
        lines = [] if self.loss is None else [f"Test loss: {self.loss:.6g}"]
        for (name, *_), line in zip(self.scores, score_lines("Test", self.scores), strict=True):
            for label, ap in self.classes.get(name, {}).items():
                if ap is None:
                    lines.append(f"Missing true_pos for label: {label}")
                elif self.show_classes:
                    lines.append(f"class{label}: {ap:.6g}")
            lines.append(line)
        return lines


def score_lines(kind: str, scores) -> list[str]:
    """``Test net output #0: accuracy = 0.5`` for each ``(name, value, loss_weight)``, as Caffe prints them."""
    lines = []
    for i, (name, value, weight) in enumerate(scores):
        loss = f" (* {weight:g} = {weight * value:.6g} loss)" if weight else ""
        lines.append(f"    {kind} net output #{i}: {name} = {value:.6g}{loss}")
    return lines


def output_scores(net: Net) -> list[tuple[str, torch.Tensor, float]]:
    """``(name, flattened values, loss_weight)`` of each output blob of the last forward."""
    last = {value.name: v for v, value in enumerate(net.values)}
    return [(name, net.blobs[name].detach().flatten(), net.loss_weights.get(last[name], 0.0)) for name in net.outputs]


def spread(scores) -> list[tuple[str, float, float]]:
    """One entry a value from :func:`output_scores`."""
    return [(name, value, weight) for name, values, weight in scores for value in values.tolist()]


class TestNets:
    """The nets of ``test_net_param``, ``test_net`` and, for the remaining ``test_iter``, ``net_param`` or ``net``.

    They use the very tensors of the training net, layer by layer of the same name.

    Args:
        solver: the :class:`ohem_caffe_port.solver.Solver` whose net is trained.
        find: ``find(path, what)`` gives the file of a net or weights that the solver names.

    Raises:
        PortError: as many ``test_iter`` or ``test_state`` as needed are not given; ``test_interval`` is 0; a layer
            whose parameters have another shape than the training net's.
    """

    __test__ = False  # not a test case, whatever pytest thinks of its name

    def __init__(self, solver, find):
        p = solver.param
        sources = [*p.test_net_param, *(find(path, "test net") for path in p.test_net)]
        generic = p.net_param if p.HasField("net_param") else find(p.net, "net") if p.HasField("net") else None
        wanted = len(p.test_iter)
        if wanted < len(sources) or (wanted > len(sources) and generic is None):
            message = f"{wanted} given for {len(sources)} test nets; each needs one"
            raise solver.error(message, "test_iter")
        sources += [generic] * (wanted - len(sources))
        if sources and p.eval_type not in ("classification", "detection"):
            raise solver.error(f"is classification or detection, not '{p.eval_type}'", "eval_type")
        if sources and p.eval_type == "detection" and p.ap_version not in VERSIONS:
            raise solver.error(f"is one of {', '.join(VERSIONS)}, not '{p.ap_version}'", "ap_version")
        if min(p.test_iter, default=0) < 0:
            raise solver.error("must not be negative", "test_iter")
        if len(p.test_state) not in (0, wanted):
            raise solver.error(f"{len(p.test_state)} given for {wanted} test nets: none, or one for each", "test_state")
        if sources and p.test_interval <= 0:
            raise solver.error("must be positive where there are test nets", "test_interval")
        self.solver, self.nets = solver, []
        train = solver.net
        for i, source in enumerate(sources):
            state = {}
            if p.test_state:
                state = {"stages": p.test_state[i].stage}
                if p.test_state[i].HasField("level"):
                    state["level"] = p.test_state[i].level
            options = {"cfg": train.cfg, "device": train.device, "precision": train.precision}
            net = Net(source, "TEST", lenient=solver.lenient, **options, **state)
            for weights in p.weights:
                for part in weights.split(","):
                    copy_from(net, find(part.strip(), "weights file"))
            share_layers(net, train)
            net.keep_blobs = False
            self.nets.append(net)

    @torch.no_grad()
    def run(self, i: int) -> TestResult:
        """Tests net ``i`` with its ``test_iter`` batches."""
        p, net = self.solver.param, self.nets[i]
        passes: list[list[torch.Tensor]] = []
        outputs, loss = [], 0.0
        for _ in range(p.test_iter[i]):
            net.watch = DebugInfo(net, self.solver.log) if p.debug_info and self.solver.log else None
            net()
            outputs = output_scores(net)
            passes.append([values for _, values, _ in outputs])
            loss += float(net.loss)
            if p.eval_type != "detection":
                self._add_up(net, passes, [name for name, _, _ in outputs])
        result = TestResult(i, loss=loss / p.test_iter[i] if p.test_compute_loss and p.test_iter[i] else None)
        result.show_classes = p.show_per_class_result
        for j, (name, _, weight) in enumerate(outputs):
            if p.eval_type == "detection":
                aps = average_precisions(self._rows(net, name, [values[j] for values in passes]), p.ap_version)
                result.classes[name] = aps
                result.scores.append((name, sum(ap or 0 for ap in aps.values()) / max(1, len(aps)), 0.0))
            else:
                result.scores += spread([(name, passes[0][j] / p.test_iter[i], weight)])
        return result

    @staticmethod
    def _add_up(net: Net, passes: list[list[torch.Tensor]], names: list[str]) -> None:
        """Leaves the sum of all passes as the only one."""
        if len(passes) < 2:
            return
        first, last = passes
        for name, a, b in zip(names, first, last, strict=True):
            if a.shape != b.shape:
                raise PortError(
                    f"output '{name}' of the test net has {len(a)} values in one batch and {len(b)} in the next: "
                    "no mean can be taken",
                    file=net.source,
                    hint='for the rows of DetectionEvaluate the solver says  eval_type: "detection"; a Silence layer '
                    "takes in what is not to be shown",
                )
        passes[:] = [[a + b for a, b in zip(first, last, strict=True)]]

    @staticmethod
    def _rows(net: Net, name: str, passes: list[torch.Tensor]) -> np.ndarray:
        if 5 not in net.blobs[name].shape[-3:]:
            raise PortError(
                f"output '{name}' of the test net has shape {tuple(net.blobs[name].shape)}; eval_type detection takes "
                "rows of 5 values",
                file=net.source,
                hint="a DetectionEvaluate layer makes them; a Silence layer takes in other outputs",
            )
        return torch.cat([values.view(-1, 5) for values in passes]).cpu().numpy()


def share_layers(net: Net, source: Net) -> None:
    """Makes ``net`` use the parameters of ``source``'s layers of the same names (``Net::ShareTrainedLayersWith``).

    Raises:
        PortError: a layer with another number or other shapes of parameters.
    """
    for layer in net.layers:
        shared = source.params.get(layer.name)
        if shared is None or not len(layer.blobs):
            continue
        shapes = [tuple(b.shape) for b in layer.blobs], [tuple(b.shape) for b in shared]
        if shapes[0] != shapes[1]:
            raise PortError(
                f"its parameters have shapes {shapes[0]}, in the training net {shapes[1]}",
                file=net.source,
                layer=layer.name,
            )
        own = {id(old): new for old, new in zip(layer.blobs, shared, strict=True)}
        for learnable in net.learnable_params:
            learnable.blob = own.get(id(learnable.blob), learnable.blob)
        for j, blob in enumerate(shared):
            layer.blobs[j] = blob
        net.params[layer.name] = list(shared)
