"""What a net is made of: a row for each layer with shapes, parameters, arithmetic, memory and its part in backward."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field

from converters.report import short

_BYTES = 4  # of a float32


@dataclass
class LayerRow:
    """One layer. ``tops`` are ``(name, shape)``; ``parameters`` counts its own tensors, those it shares with an earlier
    layer are in ``shares`` (that layer's name); ``multiply_adds`` are of one forward, ``bytes`` those of its tops
    (0 for a layer that works in place); ``backward`` says whether it runs backward, and ``why_not``."""

    name: str
    type: str
    bottoms: list[str]
    tops: list[tuple[str, tuple[int, ...]]]
    parameters: int
    shares: str
    multiply_adds: int
    bytes: int
    backward: bool
    why_not: str


@dataclass
class Summary:
    """Rows and totals of a net; ``str()`` is a table, ``as_dict()`` is for JSON."""

    net: str
    phase: str
    rows: list[LayerRow] = field(default_factory=list)
    gradients: int = 0  # parameters that get one

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def multiply_adds(self) -> int:
        return sum(row.multiply_adds for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    def as_dict(self) -> dict:
        totals = ("net", "phase", "parameters", "gradients", "multiply_adds", "bytes")
        return {name: getattr(self, name) for name in totals} | {"layers": [asdict(row) for row in self.rows]}

    def table(self):
        """A :class:`rich.table.Table`."""
        from rich import box
        from rich.table import Table

        title = f"{self.net or 'net'}, phase {self.phase}"
        table = Table(title=title, title_justify="left", show_footer=True, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        footers = {
            "parameters": f"{self.parameters:,}",
            "multiply-adds": short(self.multiply_adds),
            "memory": short(self.bytes, "B"),
            "backward": f"{short(self.gradients)} trained",
        }
        for column in ("layer", "type", "tops", "parameters", "multiply-adds", "memory", "backward"):
            right = column in ("parameters", "multiply-adds", "memory")
            table.add_column(
                column, footers.get(column, ""), justify="right" if right else "left", no_wrap=right, overflow="fold"
            )
        for row in self.rows:
            tops = "\n".join(f"{name} {'x'.join(map(str, shape)) or 'scalar'}" for name, shape in row.tops)
            count = f"{row.parameters:,}" if row.parameters else f"of {row.shares}" if row.shares else ""
            arithmetic = short(row.multiply_adds) if row.multiply_adds else ""
            memory = short(row.bytes, "B") if row.bytes else ""
            table.add_row(
                row.name, row.type, tops, count, arithmetic, memory, "yes" if row.backward else f"no: {row.why_not}"
            )
        return table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=160, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
        return capture.get()


def summarize(net) -> Summary:
    """The summary of a :class:`ohem_caffe_port.net.Net`, for the shapes it was built with."""
    summary = Summary(net.name, net.phase)
    counted: dict[int, str] = {}
    summary.gradients = sum(p.blob.numel() for p in net.learnable_params if p.blob.requires_grad)
    for step, layer in zip(net.steps, net.layers, strict=True):
        own, shares = 0, ""
        for blob in layer.blobs:
            if id(blob) in counted:
                shares = shares or counted[id(blob)]
            else:
                counted[id(blob)] = layer.name
                own += blob.numel()
        bottoms, tops = [net.shapes[v] for v in step.bottoms], [net.shapes[v] for v in step.tops]
        summary.rows.append(
            LayerRow(
                name=layer.name,
                type=layer.param.type,
                bottoms=list(step.param.bottom),
                tops=[(net.values[v].name, net.shapes[v]) for v in step.tops],
                parameters=own,
                shares=shares,
                multiply_adds=layer.multiply_adds(bottoms, tops),
                bytes=0 if layer.in_place else _BYTES * sum(map(math.prod, tops)),
                backward=step.runs_backward,
                why_not=step.why_not,
            )
        )
    return summary
