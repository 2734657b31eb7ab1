"""Caffe's rules about a net's graph that need no tensors: which layers take part, who reads what, who runs backward."""

from __future__ import annotations

from dataclasses import dataclass, field

from .errors import PortError


def _meets(rule, phase: str, level: int, stages: set[str]) -> bool:
    """``Net::StateMeetsRule``."""
    if rule.HasField("phase") and rule.phase != {"TRAIN": 0, "TEST": 1}[phase]:
        return False
    if rule.HasField("min_level") and level < rule.min_level or rule.HasField("max_level") and level > rule.max_level:
        return False
    return set(rule.stage) <= stages and not set(rule.not_stage) & stages


def filter_layers(net_param, phase: str, level: int = 0, stages=()) -> list:
    """The layers that take part in this phase, level and set of stages, in the file's order (``Net::FilterNet``).

    Raises:
        PortError: a layer with both include and exclude rules.
    """
    stages, kept = set(stages), []
    for layer in net_param.layer:
        if layer.include and layer.exclude:
            raise PortError("give include rules or exclude rules, not both", layer=layer.name, field="include")
        if layer.include:
            takes_part = any(_meets(rule, phase, level, stages) for rule in layer.include)
        else:
            takes_part = not any(_meets(rule, phase, level, stages) for rule in layer.exclude)
        if takes_part:
            kept.append(layer)
    return kept


NO_READER_PROPAGATES = "its readers pass no gradient down"


@dataclass
class Value:
    """One blob at one point of its life: an in-place layer makes a new value of the same name."""

    name: str
    producer: int  # step, or -1 - i for the net's i-th input
    top: int
    readers: list[tuple[int, int]] = field(default_factory=list)  # (step, bottom)


@dataclass
class Step:
    """One layer in the order of the file, with the values it reads and makes."""

    param: object
    bottoms: list[int]
    tops: list[int]
    runs_backward: bool = False
    propagate: list[bool] = field(default_factory=list)  # per bottom: its gradient is computed
    why_not: str = ""  # it does not run backward


def connect(layers: list) -> tuple[list[Step], list[Value]]:
    """Resolves blob names to values.

    Raises:
        PortError: a bottom that no earlier layer makes, a top that exists already, or a wrong number of
            ``propagate_down``.
    """
    values: list[Value] = []
    steps: list[Step] = []
    current: dict[str, int] = {}
    for i, layer in enumerate(layers):
        if len(layer.propagate_down) not in (0, len(layer.bottom)):
            raise PortError(
                f"{len(layer.propagate_down)} values for {len(layer.bottom)} bottoms",
                layer=layer.name,
                field="propagate_down",
            )
        bottoms = []
        for j, name in enumerate(layer.bottom):
            if name not in current:
                raise PortError(_unknown_bottom(name, i, layers, current), layer=layer.name, field="bottom")
            bottoms.append(current[name])
            values[current[name]].readers.append((i, j))
        tops = []
        for j, name in enumerate(layer.top):
            in_place = j < len(layer.bottom) and layer.bottom[j] == name
            if name in current and not in_place:
                raise PortError(f"top '{name}' is made by an earlier layer already", layer=layer.name, field="top")
            current[name] = len(values)
            tops.append(len(values))
            values.append(Value(name, i, j))
        steps.append(Step(layer, bottoms, tops))
    return steps, values


def _unknown_bottom(name, i, layers, current) -> str:
    from prototxt.errors import nearest

    later = [layer.name for layer in layers[i:] if name in layer.top]
    if later:
        return f"bottom '{name}' is made only later, by layer '{later[0]}'"
    near = nearest(name, current)
    return f"no earlier layer makes bottom '{name}'" + (f"; did you mean '{near}'?" if near else "")


def plan_backward(steps: list[Step], values: list[Value], has_loss, trains, forced=None) -> None:
    """Decides which layers run backward and which bottoms get a gradient (``Net::Init``, both of its passes).

    Sets ``runs_backward``, ``why_not`` and ``propagate`` of every step. A layer runs backward only if a loss depends on
    it and something below it, or a parameter of its own, wants a gradient; ``propagate_down`` overrides that for one
    bottom.

    Args:
        has_loss: per step, whether one of its tops has a loss_weight.
        trains: per step, whether one of its parameters has lr_mult != 0.
        forced: None, or ``forced(step, bottom) -> bool`` for a net with ``force_backward``.
    """
    wanted = [False] * len(values)  # going down the file: a gradient of this value is of use below it
    for i, step in enumerate(steps):
        explicit = list(step.param.propagate_down)
        step.propagate = explicit or [wanted[v] for v in step.bottoms]
        step.runs_backward = trains[i] or any(wanted[v] for v in step.bottoms)
        step.why_not = "" if step.runs_backward else "nothing in it or below it learns"
        for v in step.tops:
            wanted[v] = step.runs_backward
    under_loss = [False] * len(values)
    for i in reversed(range(len(steps))):
        step = steps[i]
        contributes = has_loss[i] or any(under_loss[v] for v in step.tops)
        reaches = any(_gets_gradient(values[v], steps) for v in step.tops)
        if not contributes or not reaches:
            step.runs_backward = False
            step.why_not = step.why_not or (NO_READER_PROPAGATES if contributes else "no loss depends on it")
            step.propagate = [False] * len(step.bottoms)
        if contributes:
            for v in step.bottoms:
                under_loss[v] = True
    if forced is not None:
        for i, step in enumerate(steps):
            step.runs_backward, step.why_not = True, ""
            step.propagate = [p or forced(i, b) for b, p in enumerate(step.propagate)]


def _gets_gradient(value: Value, steps: list[Step]) -> bool:
    """Whether a gradient can come back to a value: not if every reader refuses it. A loss_weight stated for it counts
    as a reader that passes one down; the 1 that a loss layer has without does not."""
    weights = steps[value.producer].param.loss_weight
    if not value.readers or (value.top < len(weights) and weights[value.top]):
        return True
    return any(steps[reader].propagate[bottom] for reader, bottom in value.readers)
