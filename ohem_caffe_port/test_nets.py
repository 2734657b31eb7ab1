"""A solver's test nets: built by Caffe's rules, on the weights that are being trained (``Solver::InitTestNets``,
``Solver::Test``)."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from .errors import PortError
from .net import Net
from .weights import copy_from


@dataclass
class TestResult:
    """Means over ``test_iter`` batches: every value of every output blob with its loss_weight, and the loss (where
    ``test_compute_loss`` asks for it)."""

    net: int
    scores: list[tuple[str, float, float]] = field(default_factory=list)
    loss: float | None = None

    def lines(self) -> list[str]:
        """In Caffe's words."""
        lines = [] if self.loss is None else [f"Test loss: {self.loss:.6g}"]
        return lines + score_lines("Test", self.scores)


def score_lines(kind: str, scores) -> list[str]:
    """``Test net output #0: accuracy = 0.5`` for each ``(name, value, loss_weight)``, as Caffe prints them."""
    lines = []
    for i, (name, value, weight) in enumerate(scores):
        loss = f" (* {weight:g} = {weight * value:.6g} loss)" if weight else ""
        lines.append(f"    {kind} net output #{i}: {name} = {value:.6g}{loss}")
    return lines


def output_scores(net: Net) -> list[tuple[str, torch.Tensor, float]]:
    """``(name, flattened values, loss_weight)`` of each output blob of the last forward."""
    outputs = [(v, value.name) for v, value in enumerate(net.values) if not value.readers]
    return [(name, net.blobs[name].detach().flatten(), net.loss_weights.get(v, 0.0)) for v, name in outputs]


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
            net = Net(source, "TEST", cfg=train.cfg, device=train.device, lenient=solver.lenient, **state)
            for weights in p.weights:
                for part in weights.split(","):
                    copy_from(net, find(part.strip(), "weights file"))
            share_layers(net, train)
            net.keep_blobs = False
            self.nets.append(net)

    @torch.no_grad()
    def run(self) -> list[TestResult]:
        """Tests every net with its ``test_iter`` batches."""
        results = []
        p = self.solver.param
        for i, net in enumerate(self.nets):
            totals, loss = None, 0.0
            for _ in range(p.test_iter[i]):
                net()
                scores = output_scores(net)
                loss += float(net.loss)
                if totals is None:
                    totals = scores
                else:
                    totals = [(n, a + b, w) for (n, a, w), (_, b, _) in zip(totals, scores, strict=True)]
            means = [(n, a / p.test_iter[i], w) for n, a, w in totals or []]
            results.append(TestResult(i, spread(means), loss / p.test_iter[i] if p.test_compute_loss else None))
        return results


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
