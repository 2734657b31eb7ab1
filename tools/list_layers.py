"""List the layers that a net may use, with the fields that each of them honours.

python tools/list_layers.py
python tools/list_layers.py --markdown > docs/layers.md
"""

from __future__ import annotations

import argparse
import inspect
import re
from pathlib import Path

import _cli
from rich.table import Table

import ohem_caffe_port
from ohem_caffe_port import python_layers
from ohem_caffe_port.layers import LAYERS, PYTHON_LAYERS, PythonLayer
from ohem_caffe_port.layers.base import MANY, NEUTRAL_FIELDS
from prototxt import caffe_pb2

ROOT = Path(ohem_caffe_port.__file__).parents[1]
COLUMNS = ("type", "what it is", "bottoms", "tops", "fields it honours", "fields it refuses", "file")
PYTHON_COLUMNS = ("module", "layer", "what it is", "file")

INTRODUCTION = """\
# Layers

Made by `python tools/list_layers.py --markdown > docs/layers.md`; a test fails when this page is out of date.

Every field that a layer's own message may have falls in one of three groups:

- **honoured**: it does what it does in Caffe;
- **without effect**: a choice between implementations of one result ({neutral}).
  One that is set gives a note;
- **refused**: an error that names the file, the line, the layer and the field. Most of these belong to forks of Caffe.

Of a filler, all of BVLC Caffe's fields are honoured; the `scale` of a fork is refused.

A message that belongs to another type of layer (`pooling_param` in a `ReLU`) is skipped with a note, as Caffe skips
it without one. All types read `name`, `type`, `bottom`, `top`, `phase`, `loss_weight`, `param`, `propagate_down`,
`include` and `exclude`; the net handles these (see [architecture.md](architecture.md)).
"""

PYTHON_INTRODUCTION = """\
## Python layers

A layer of type `Python` names a `module` and a `layer`. They are looked up in this table, and nothing that a prototxt
names is ever imported. How to add your own: [CONTRIBUTING.md](../CONTRIBUTING.md).
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="the page docs/layers.md instead of a table")
    return parser.parse_args()


def main() -> None:
    if parse_args().markdown:
        print(markdown(), end="")
        return
    console = _cli.console()
    for title, columns, rows in (
        ("layers", COLUMNS, layer_rows()),
        ("Python layers", PYTHON_COLUMNS, python_layer_rows()),
    ):
        table = Table(title=title, show_lines=True)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in rows:
            table.add_row(*(cell.replace("`", "") for cell in row))
        console.print(table)


def layer_rows() -> list[tuple[str, ...]]:
    """One row for each type, in the order of ``COLUMNS``; code is set in backticks."""
    rows = []
    for kind in sorted(LAYERS, key=str.lower):
        cls = PythonLayer if kind == "Python" else LAYERS[kind]
        honoured, refused = [], []
        for message, names in cls.fields.items():
            known = caffe_pb2.LayerParameter.DESCRIPTOR.fields_by_name[message].message_type.fields
            honoured += [f"`{message}`: {_codes(f.name for f in known if f.name in names) or 'none'}"]
            others = _codes(f.name for f in known if f.name not in names | NEUTRAL_FIELDS)
            refused += [f"`{message}`: {others}"] if others else []
        rows.append(
            (
                f"`{kind}`",
                _text(first_sentence(cls)),
                _range(cls.num_bottoms),
                _range(cls.num_tops),
                "; ".join(honoured) or "none",
                "; ".join(refused) or "none",
                _source(cls),
            )
        )
    return rows


def python_layer_rows() -> list[tuple[str, ...]]:
    """One row for each registered Python layer, in the order of ``PYTHON_COLUMNS``."""
    return [
        (f"`{module}`", f"`{layer}`", _text(full_docstring(cls)), _source(cls))
        for (module, layer), cls in sorted(PYTHON_LAYERS.items())
    ]


def markdown() -> str:
    """The whole of docs/layers.md."""
    introduction = INTRODUCTION.format(neutral=_codes(sorted(NEUTRAL_FIELDS)))
    parts = [introduction, _markdown_table(COLUMNS, layer_rows())]
    parts += [PYTHON_INTRODUCTION, _markdown_table(PYTHON_COLUMNS, python_layer_rows())]
    return "\n".join(parts)


def first_sentence(cls) -> str:
    """Of the docstring of ``cls``: up to the first full stop that a space or the end follows."""
    return re.split(r"(?<=\.)\s", inspect.cleandoc(cls.__doc__), maxsplit=1)[0]


def full_docstring(cls) -> str:
    """The docstring of a Python layer, and what its bases say of all their layers: those without a row of their own,
    less their "Base of ..." and their class attributes."""
    parts = [inspect.cleandoc(cls.__doc__)]
    for base in cls.__mro__[1:]:
        if base.__module__.startswith(python_layers.__name__) and base not in PYTHON_LAYERS.values() and base.__doc__:
            text = inspect.cleandoc(base.__doc__).partition("Class attributes:")[0]
            parts.append(re.sub(r"^Base of .*?\.(\s|$)", "", text, flags=re.DOTALL))
    return " ".join(parts)


def _markdown_table(columns, rows) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _text(docstring: str) -> str:
    """A docstring on one line, its reST code and roles as plain backticks."""
    one_line = " ".join(docstring.split())
    return re.sub(r":\w+:`~?([^`]+)`", r"`\1`", one_line).replace("``", "`")


def _codes(names) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _range(limits: tuple[int, int]) -> str:
    least, most = limits
    if least == most:
        return str(least)
    return f"{least} or more" if most == MANY else f"{least} to {most}"


def _source(cls) -> str:
    return f"`{Path(inspect.getfile(cls)).relative_to(ROOT).as_posix()}`"


if __name__ == "__main__":
    _cli.run(main)
