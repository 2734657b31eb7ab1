"""Two weight files compared, layer by layer."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field

import numpy as np

from .caffemodel import CaffeModel
from .errors import WeightsError
from .report import chunks, dims, named_layers, new_table, number, plural, printable
from .solverstate import SolverState

IDENTICAL, DIFFERENT, SHAPES, ONLY_FIRST, ONLY_SECOND = (
    "identical",
    "different",
    "shapes differ",
    "only in the first",
    "only in the second",
)


@dataclass
class ArrayDiff:
    """One array of both files. ``max_abs`` is the largest difference and ``relative`` the same over the largest value
    of the first file's array; None where NaN or infinities stand in other places, or nothing could be compared."""

    name: str
    verdict: str
    shapes: tuple[tuple[int, ...] | None, tuple[int, ...] | None]
    max_abs: float | None = None
    relative: float | None = None


@dataclass
class LayerDiff:
    """A layer's arrays in both files."""

    name: str
    arrays: list[ArrayDiff] = field(default_factory=list)
    types: tuple[str, str] = ("", "")

    @property
    def types_differ(self) -> bool:
        """Whether both files tell a type, and not the same."""
        return all(self.types) and self.types[0] != self.types[1]

    @property
    def verdict(self) -> str:
        """The gravest one of its arrays' and its type's."""
        verdicts = {array.verdict for array in self.arrays}
        for verdict in (SHAPES, ONLY_FIRST, ONLY_SECOND, DIFFERENT):
            if verdict in verdicts:
                return verdict
        return DIFFERENT if self.types_differ else IDENTICAL


@dataclass
class Diff:
    """``facts`` are those of a solver state that differ, ``{name: (first, second)}``."""

    facts: dict[str, tuple]
    layers: list[LayerDiff]

    @property
    def identical(self) -> bool:
        return not self.facts and all(layer.verdict == IDENTICAL for layer in self.layers)

    def as_dict(self) -> dict:
        """For JSON."""
        layers = [asdict(layer) | {"verdict": layer.verdict} for layer in self.layers]
        return {"identical": self.identical, "facts": self.facts, "layers": layers}

    def summary(self) -> str:
        """One line: how many layers came out how."""
        counts = Counter(layer.verdict for layer in self.layers)
        parts = [f"{name} {a} and {b}" for name, (a, b) in self.facts.items()]
        found = [f"{plural(count, 'layer')} {verdict}" for verdict, count in counts.items()]
        return ", ".join(found + parts)

    def table(self):
        """A :class:`rich.table.Table` of the layers that are not identical, to print with ``markup=False``."""
        columns = ("layer", "verdict", "array", "first", "second", "largest difference", "relative")
        table = new_table(columns, right=columns[-2:])
        for layer in self.layers:
            if layer.verdict == IDENTICAL:
                continue
            if layer.types_differ:
                table.add_row(printable(layer.name), DIFFERENT, "type", *map(printable, layer.types), "", "")
            for array in layer.arrays:
                if array.verdict == IDENTICAL:
                    continue
                shapes = ["" if shape is None else dims(shape) for shape in array.shapes]
                cells = [layer.name, array.verdict, array.name, *shapes, number(array.max_abs), number(array.relative)]
                table.add_row(*map(printable, cells))
        return table


def compare(first, second) -> Diff:
    """The differences of two models, two solver states or two means, whatever formats they come from.

    Layers go by name, their arrays by position. Shapes that differ only in leading ones, as the four numbers of old
    files do, are equal. An array that one file keeps under another layer, as HDF5 does, is not compared.

    Raises :class:`WeightsError` when the two are different kinds of files.
    """
    if type(first) is not type(second):
        raise WeightsError(
            f"a {_kind(first)} and a {_kind(second)} cannot be compared", hint="Give two files of the same kind."
        )
    facts = {}
    if isinstance(first, SolverState):
        pairs = {name: (value, getattr(second, name)) for name, value in vars(first).items() if name != "history"}
        facts = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    once = [getattr(content, "shared_once", False) for content in (first, second)]
    ours, theirs = _by_name(first), _by_name(second)
    layers = []
    for name in {**ours, **theirs}:
        (kind_a, a), (kind_b, b) = ours.get(name, ("", None)), theirs.get(name, ("", None))
        if not a and not b:
            continue  # neither has weights
        layer = LayerDiff(name, types=(kind_a, kind_b))
        for label in {**(a or {}), **(b or {})}:
            pair = (a or {}).get(label), (b or {}).get(label)
            elsewhere = [blob is None and blobs is not None and (label in blobs or one)
                         for blob, blobs, one in zip(pair, (a, b), once, strict=True)]  # fmt: skip
            if not any(elsewhere):
                layer.arrays.append(_compare_arrays(label, *pair))
        if layer.arrays:
            layers.append(layer)
    return Diff(facts, layers)


def _by_name(content) -> dict[str, tuple[str, dict]]:
    """Type and arrays of each layer; a name that comes again is counted."""
    layers: dict[str, tuple[str, dict]] = {}
    seen: Counter = Counter()
    for name, kind, arrays in named_layers(content):
        seen[name] += 1
        layers[name if seen[name] == 1 else f"{name} ({seen[name]})"] = kind, arrays
    return layers


def _kind(content) -> str:
    kinds = {CaffeModel: "model", SolverState: "solver state"}
    return kinds.get(type(content), "mean")


def _compare_arrays(name: str, a: np.ndarray | None, b: np.ndarray | None) -> ArrayDiff:
    shapes = tuple(None if array is None else array.shape for array in (a, b))
    if a is None or b is None:
        return ArrayDiff(name, ONLY_SECOND if a is None else ONLY_FIRST, shapes)
    if _without_leading_ones(a.shape) != _without_leading_ones(b.shape):
        return ArrayDiff(name, SHAPES, shapes)
    largest = scale = 0.0
    identical = True
    for x, y in zip(chunks(a), chunks(b), strict=True):
        x, y = x.astype(np.float64), y.astype(np.float64)
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        identical &= bool(same.all())
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0, np.abs(x - y))
        largest = max(largest, float(np.where(np.isnan(difference), np.inf, difference).max(initial=0)))
        scale = max(scale, float(np.abs(x[np.isfinite(x)]).max(initial=0)))
    if identical:
        return ArrayDiff(name, IDENTICAL, shapes, 0.0, 0.0)
    if math.isinf(largest):
        return ArrayDiff(name, DIFFERENT, shapes)
    return ArrayDiff(name, DIFFERENT, shapes, largest, largest / scale if scale else None)


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    start = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[start:]
