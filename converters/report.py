"""What a weight file holds, for people (:mod:`rich` tables) and for scripts (dictionaries for JSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np

from .caffemodel import CaffeModel
from .named import NamedArrays
from .solverstate import SolverState

_CHUNK = 1 << 18  # values looked at together: 2 MB as float64

_NO_LAYERS = ("solverstate", "binaryproto")  # what arrays by name may be instead of a model


@dataclass
class Stats:
    """Of one array: least, largest and mean of its finite values (None without any), and how many are none."""

    min: float | None = None
    max: float | None = None
    mean: float | None = None
    nan: int = 0
    inf: int = 0

    @property
    def warnings(self) -> list[str]:
        found = [f"{count:,} {what}" for count, what in ((self.nan, "NaN"), (self.inf, "infinite")) if count]
        return found or (["all zero"] if self.min == self.max == 0 else [])


@dataclass
class ArrayRow:
    """One array of a layer; ``shared`` when it is a tensor that an earlier layer has already shown."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    shared: bool = False
    stats: Stats | None = None

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    def describe(self) -> str:
        """Name (unless it is a mere number), shape, and the type when it is not float32."""
        parts = ["" if self.name.isdigit() else self.name, dims(self.shape) if self.dtype else "elsewhere"]
        parts += [self.dtype if self.dtype not in ("", "float32") else "", "(shared)" if self.shared else ""]
        return " ".join(filter(None, parts))


@dataclass
class LayerRow:
    """A layer with weights."""

    name: str
    type: str
    arrays: list[ArrayRow] = field(default_factory=list)

    @property
    def parameters(self) -> int:
        return sum(a.count for a in self.arrays if not a.shared)

    @property
    def bytes(self) -> int:
        return sum(a.bytes for a in self.arrays if not a.shared)


@dataclass
class Report:
    """A file's kind, facts (net's name, iteration...) and layers with weights; ``layers`` counts those without, too."""

    kind: str
    facts: dict[str, str | int | float | None]
    rows: list[LayerRow]
    layers: int

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    @property
    def warnings(self) -> list[str]:
        """What :class:`Stats` found amiss, with layer and array."""
        return [
            f"layer '{row.name}': array {array.name} ({dims(array.shape)}): {warning}"
            for row in self.rows
            for array in row.arrays
            if array.stats
            for warning in array.stats.warnings
        ]

    def as_dict(self) -> dict:
        """For JSON."""
        return {
            "kind": self.kind,
            **self.facts,
            "parameters": self.parameters,
            "bytes": self.bytes,
            "layers_in_file": self.layers,
            "layers": [
                {"name": row.name, "type": row.type, "blobs": [_array_dict(array) for array in row.arrays]}
                for row in self.rows
            ],
            "warnings": self.warnings,
        }

    def headline(self) -> str:
        """Kind, facts and how many layers have weights, on one line."""
        facts = [f"{name.replace('_', ' ')} {value}" for name, value in self.facts.items() if value not in ("", None)]
        if "net" in self.facts:
            total = f"{len(self.rows)} of " if self.layers > len(self.rows) else ""
            facts.append(total + plural(self.layers, "layer"))
        else:
            facts.append(plural(len(self.rows), "array"))
        return ", ".join([self.kind, *facts]) + (" with weights" if "net" in self.facts else "")

    def table(self):
        """A :class:`rich.table.Table`, to print with ``markup=False``."""
        with_types = any(row.type for row in self.rows)
        with_stats = any(array.stats for row in self.rows for array in row.arrays)
        numbers = [*(("min", "max", "mean") if with_stats else ()), "parameters", "size"]
        table = new_table(["layer", *(["type"] if with_types else []), "shapes", *numbers], right=numbers)
        for row in self.rows:
            cells = [row.name, *([row.type] if with_types else [])]
            cells.append(("\n" if with_stats else "  ").join(array.describe() for array in row.arrays))
            for name in numbers[:-2]:
                cells.append("\n".join(number(getattr(array.stats or Stats(), name)) for array in row.arrays))
            table.add_row(*map(printable, cells), f"{row.parameters:,}", short(row.bytes, "B"))
        table.show_footer = True
        table.columns[0].footer = "total"
        table.columns[-2].footer, table.columns[-1].footer = f"{self.parameters:,}", short(self.bytes, "B")
        return table


def describe(content: CaffeModel | SolverState | np.ndarray | NamedArrays, *, kind: str, stats=False) -> Report:
    """The report of what a reader gave; ``stats`` reads every value, a few MB at a time."""
    facts: dict = {}
    if isinstance(content, CaffeModel):
        facts = {"form": content.form, "net": content.name}
    elif isinstance(content, SolverState):
        plateau = ("minimum_loss", "iter_last_event") if content.minimum_loss is None else ()
        facts = {name: value for name, value in vars(content).items() if name not in ("history", *plateau)}
    elif isinstance(content, NamedArrays):
        facts = {"holds": content.metadata.get("kind", "")}
        fact = "iter" if facts["holds"] in _NO_LAYERS else "net"
        facts[fact] = content.metadata.get(fact)
    rows, seen, layers = [], set(), 0
    sharing = [layer.params for layer in content.layers] if isinstance(content, CaffeModel) else repeat([])
    for (name, type_, arrays), params in zip(named_layers(content), sharing):  # noqa: B905  one of them has no end
        layers += 1
        row = LayerRow(name, type_)
        for j, (label, array) in enumerate(arrays.items()):
            if array is None:
                row.arrays.append(ArrayRow(label, (), "", 0, shared=True))
                continue
            key = params[j] if j < len(params) and params[j] else array.__array_interface__["data"][0]
            row.arrays.append(ArrayRow(label, array.shape, array.dtype.name, array.nbytes, key in seen))
            if array.size:
                seen.add(key)
            if stats:
                row.arrays[-1].stats = statistics(array)
        if arrays:
            rows.append(row)
    return Report(kind, facts, rows, layers)


def named_layers(content) -> Iterator[tuple[str, str, dict[str, np.ndarray | None]]]:
    """``(layer, type, {array's name: array})`` of whatever a reader gives. An array is None when the file has it under
    another layer."""
    if isinstance(content, CaffeModel):
        for layer in content.layers:
            yield layer.name, layer.type, {str(j): blob for j, blob in enumerate(layer.blobs)}
    elif isinstance(content, SolverState):
        for i, blob in enumerate(content.history):
            yield f"history[{i}]", "", {"0": blob}
    elif isinstance(content, NamedArrays) and content.metadata.get("kind") in _NO_LAYERS:
        for name, array in content.arrays.items():
            yield name, "", {"0": array}
    elif isinstance(content, NamedArrays):
        layers: dict[str, dict] = {}
        for name, array in content.arrays.items():
            layer, _, label = name.rpartition(".")
            layers.setdefault(layer, {})[label] = array
        types = _types(content.metadata)
        for layer, arrays in layers.items():
            yield layer, types.get(layer, ""), arrays
    else:
        yield "mean", "", {"0": content}


def _types(metadata: dict[str, str]) -> dict[str, str]:
    """Types by layer, as far as the metadata tell them (:mod:`converters.naming`)."""
    try:
        return {str(record["name"]): str(record["type"]) for record in json.loads(metadata.get("layers", "[]"))}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}


def statistics(array: np.ndarray) -> Stats:
    """One pass over the values, in double precision."""
    stats, total, count = Stats(), 0.0, 0
    for chunk in chunks(array):
        finite = np.isfinite(chunk)
        if not finite.all():
            stats.nan += int(np.isnan(chunk).sum())
            stats.inf += int(np.isinf(chunk).sum())
            chunk = chunk[finite]
        if chunk.size:
            least, largest = float(chunk.min()), float(chunk.max())
            stats.min = least if stats.min is None else min(least, stats.min)
            stats.max = largest if stats.max is None else max(largest, stats.max)
            total, count = total + float(chunk.sum(dtype=np.float64)), count + chunk.size
    if count:
        stats.mean = total / count
    return stats


def chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The values, a bounded number at a time."""
    flat = array.reshape(-1)
    for start in range(0, len(flat), _CHUNK):
        yield flat[start : start + _CHUNK]


def short(number: float, unit: str = "") -> str:
    """12.3 M, 1.5 GB: three digits and a power of 1,000."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000 or prefix == "T":
            digits = 0 if prefix == "" else max(0, 2 - int(math.log10(max(number, 1))))
            return f"{number:.{digits}f} {prefix}{unit}".strip()
        number /= 1000
    raise AssertionError


def plural(count: int, what: str) -> str:
    """1 layer, 2 layers"""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def printable(text: str) -> str:
    """``text`` without what would steer a terminal: names come from files."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def new_table(columns, right):
    """An empty :class:`rich.table.Table` in the form that all tables here have; ``right`` names columns of numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        justify = "right" if column in right else "left"
        table.add_column(column, justify=justify, no_wrap=column in right, overflow="fold")
    return table


def _array_dict(array: ArrayRow) -> dict:
    if not array.dtype:  # it lies under another layer
        return {"name": array.name, "shape": None, "shared": True}
    values = {"name": array.name, "shape": list(array.shape), "dtype": array.dtype, "count": array.count}
    return values | {"shared": array.shared} | ({"stats": vars(array.stats)} if array.stats else {})


def dims(shape) -> str:
    """64x3x3x3"""
    return "x".join(map(str, shape)) or "scalar"


def number(value: float | None) -> str:
    """Four digits, or nothing for None."""
    return "" if value is None else f"{value:.4g}"
