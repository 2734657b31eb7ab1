"""Read nets and solvers: text to a checked, upgraded message; every error says file, line, field and what to do."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor

from prototxt import caffe_pb2
from prototxt.errors import PrototxtError, nearest
from prototxt.syntax import Entry, Scalar, parse_tree
from prototxt.upgrade import upgrade_net, upgrade_solver

_OTHER = {"NetParameter": caffe_pb2.SolverParameter, "SolverParameter": caffe_pb2.NetParameter}
_KIND = {"NetParameter": "net", "SolverParameter": "solver", "LabelMap": "label map"}
_INTEGERS = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
}
_BOOLS = {"true": True, "True": True, "t": True, "1": True, "false": False, "False": False, "f": False, "0": False}


@dataclass(frozen=True)
class UnknownField:
    """A field that no schema here knows, skipped by a lenient read. ``path`` is dotted, from the top of the file."""

    file: str
    line: int
    column: int
    path: str
    nearest: str | None

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.path}" + (f" (did you mean '{self.nearest}'?)" if self.nearest else "")


def read_net(path, *, lenient: bool = False, unknown: list | None = None) -> caffe_pb2.NetParameter:
    """The net of a prototxt file, upgraded to the current form (only ``layer`` entries).

    ``lenient`` skips fields the schema does not know; they are appended to ``unknown`` as :class:`UnknownField`, or,
    without such a list, named in one warning. Raises PrototxtError (file, line, layer, field).
    """
    return parse_net(_read_text(path, "net"), source=str(path), lenient=lenient, unknown=unknown)


def read_solver(path, *, lenient: bool = False, unknown: list | None = None) -> caffe_pb2.SolverParameter:
    """The solver of a prototxt file, upgraded; as Caffe does, ``snapshot_prefix`` defaults to the file's own name."""
    text = _read_text(path, "solver")
    return _parse(caffe_pb2.SolverParameter(), text, str(path), lenient, unknown, lambda m: upgrade_solver(m, path))


def read_any(path, *, lenient: bool = False, unknown: list | None = None):
    """The net, solver or label map of a prototxt file, whichever its fields say, upgraded. Raises PrototxtError."""
    names = [entry.name for entry in parse_tree(_read_text(path, "prototxt"), str(path))]
    kinds = (caffe_pb2.NetParameter, caffe_pb2.SolverParameter, caffe_pb2.LabelMap)
    known = [sum(name in kind.DESCRIPTOR.fields_by_name for name in names) for kind in kinds]
    best = known.index(max(known))
    if best == 1:
        return read_solver(path, lenient=lenient, unknown=unknown)
    if best == 2:
        text = _read_text(path, "label map")
        return _parse(caffe_pb2.LabelMap(), text, str(path), lenient, unknown, lambda message: message)
    return read_net(path, lenient=lenient, unknown=unknown)


def parse_net(text: str, *, source: str = "<text>", lenient: bool = False, unknown: list | None = None):
    """Like :func:`read_net`, from text; ``source`` is what errors call it."""
    return _parse(caffe_pb2.NetParameter(), text, source, lenient, unknown, upgrade_net)


def parse_solver(text: str, *, source: str = "<text>", lenient: bool = False, unknown: list | None = None):
    """Like :func:`read_solver`, from text; ``snapshot_prefix`` stays as written."""
    return _parse(caffe_pb2.SolverParameter(), text, source, lenient, unknown, upgrade_solver)


def locate(path, layer: str | None = None, field: str | None = None, index: int | None = None) -> int | None:
    """The line, counted from 1, of a layer (by its name) or of a field in it; None when it is not in the file.

    ``field`` is a name or a dotted path (``convolution_param.pad``), looked for in the layer, or at the top of the
    file when ``layer`` is None. ``index`` picks one of several occurrences (the second ``bottom``: 1). Where several
    layers share a name (a TRAIN and a TEST one) the first that has the field counts.
    """
    return _find(parse_tree(_read_text(path, "prototxt"), str(path)), layer, field, index)


def _parse(message, text, source, lenient, unknown, upgrade):
    entries = parse_tree(text, source)
    _check_kind(message, entries, source)
    skipped: list[UnknownField] = []
    _Filler(source, skipped if lenient else None).fill(message, entries)
    try:
        upgrade(message)
    except PrototxtError as error:
        line = _find(entries, error.layer, error.field, None) or _find(entries, error.layer, None, None)
        raise PrototxtError(
            error.message, file=source, line=line, layer=error.layer, field=error.field, hint=error.hint
        ) from None
    if unknown is not None:
        unknown += skipped
    elif skipped:
        warnings.warn("skipped unknown fields: " + "; ".join(map(str, skipped)), stacklevel=3)
    return message


def _read_text(path, kind: str) -> str:
    path = Path(path)
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise PrototxtError(f"this is a directory, not a {kind} file", file=str(path)) from None
    except FileNotFoundError:
        raise PrototxtError("there is no such file", file=str(path), hint=_similar_file(path)) from None
    except OSError as error:
        raise PrototxtError(f"cannot be read: {error.strerror}", file=str(path)) from None
    data = data.removeprefix(b"\xef\xbb\xbf")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise PrototxtError("this is UTF-16 text", file=str(path), hint="save it as UTF-8")
    if b"\0" in data:
        hint = f"give the {kind}'s .prototxt here" if kind != "prototxt" else None
        if path.suffix in (".caffemodel", ".solverstate", ".binaryproto", ".h5"):
            raise PrototxtError(f"this is a binary {path.suffix} file, not a prototxt", file=str(path), hint=hint)
        message = "this is a binary file, not a prototxt (a .caffemodel?)"
        raise PrototxtError(message, file=str(path), hint=hint)
    # Stray bytes are harmless in comments, which old files have in many encodings; elsewhere they are an error.
    return data.decode("utf-8", "surrogateescape")


def _similar_file(path: Path) -> str | None:
    folder = path.parent
    if not folder.is_dir():
        return f"there is no folder '{folder}' either"
    match = nearest(path.name, sorted(item.name for item in folder.iterdir()))
    return f"did you mean '{folder / match}'?" if match else None


def _check_kind(message, entries, source):
    """A solver where a net is expected, the reverse, and a file without any field."""
    expected = message.DESCRIPTOR.name
    if not entries:
        raise PrototxtError(f"no fields in this {_KIND[expected]} file: it is empty", file=source)
    if expected not in _OTHER:
        return
    other = _OTHER[expected].DESCRIPTOR
    own_names, other_names = message.DESCRIPTOR.fields_by_name, other.fields_by_name
    foreign = [entry for entry in entries if entry.name in other_names and entry.name not in own_names]
    own = any(entry.name in own_names and entry.name not in other_names for entry in entries)
    if foreign and not own:
        found, wanted = _KIND[other.name], _KIND[expected]
        raise PrototxtError(
            f"this is a {found}, where a {wanted} is expected: '{foreign[0].name}' is a field of {other.name}",
            file=source,
            line=foreign[0].line,
            hint="give the net's file; the solver names it in `net` or `train_net`"
            if wanted == "net"
            else "give the solver's file; it names this net in `net` or `train_net`",
        )


class _Filler:
    """Moves entries into a message, checking each against its descriptor."""

    def __init__(self, source, skipped):
        self.source, self.skipped = source, skipped
        self.path: list[str] = []  # of fields, from the top of the file
        self.layer: str | None = None

    def fail(self, message, line, hint=None):
        path = self.path[1:] if self.layer is not None else self.path
        where = ".".join(path) or None
        return PrototxtError(message, file=self.source, line=line, layer=self.layer, field=where, hint=hint)

    def fill(self, message, entries: list[Entry], line: int | None = None):
        descriptor = message.DESCRIPTOR
        first: dict[str, int] = {}
        for entry in entries:
            outer_layer = self.layer
            self.path.append(entry.name)
            field = descriptor.fields_by_name.get(entry.name)
            if field is None:
                self._unknown(descriptor, entry, entries)
            else:
                if not _is_repeated(field):
                    if entry.name in first:
                        raise self.fail(f"specified multiple times (first on line {first[entry.name]})", entry.line)
                    if len(entry.values) != 1:
                        raise self.fail("takes one value, not a list", entry.line)
                    first[entry.name] = entry.line
                for value in entry.values:
                    self._set(message, field, entry, value)
            self.path.pop()
            self.layer = outer_layer
        for name in _required(descriptor):
            if not message.HasField(name):
                raise self.fail(f"{descriptor.name} requires {name}", line, hint=f"add `{name}: ...`")

    def _set(self, message, field, entry, value):
        if field.message_type is not None:
            if isinstance(value, Scalar):
                block = field.message_type.name
                raise self.fail(f"expected a block '{{ ... }}' of {block}, found {value}", value.line)
            if len(self.path) == 1 and entry.name in ("layer", "layers"):
                self.layer = _layer_name(value)
            target = getattr(message, field.name)
            if _is_repeated(field):
                self.fill(target.add(), value, entry.line)
            else:
                target.SetInParent()
                self.fill(target, value, entry.line)
            return
        if not isinstance(value, Scalar):
            raise self.fail(f"expected {_wanted(field)}, found a block", entry.line)
        converted = self._convert(field, value)
        if _is_repeated(field):
            getattr(message, field.name).append(converted)
        else:
            setattr(message, field.name, converted)

    def _convert(self, field, value: Scalar):
        kind, text, cpptype = value.kind, value.text, field.cpp_type
        if cpptype == FieldDescriptor.CPPTYPE_STRING:
            if kind == "string":
                if field.type == FieldDescriptor.TYPE_BYTES:
                    return text
                try:
                    return text.decode()
                except UnicodeDecodeError:
                    raise self.fail("this string is not UTF-8 text", value.line) from None
            raise self._wrong(field, value, f'put it in quotes: "{text}"')
        if kind == "string":
            word = text.decode("utf-8", "replace")
            raise self._wrong(field, value, f"write it without quotes: {word}")
        if cpptype == FieldDescriptor.CPPTYPE_ENUM:
            return self._enum(field, value)
        if cpptype == FieldDescriptor.CPPTYPE_BOOL:
            if text in _BOOLS:
                return _BOOLS[text]
        elif cpptype in _INTEGERS:
            number = _integer(text) if kind == "number" else None
            if number is not None:
                low, high = _INTEGERS[cpptype]
                if low <= number <= high:
                    return number
                raise self.fail(f"{text} is out of range ({low} to {high})", value.line)
        else:
            number = _float(text)
            if number is not None:
                return number
        raise self._wrong(field, value)

    def _wrong(self, field, value, hint=None):
        return self.fail(f"expected {_wanted(field)}, found {value}", value.line, hint)

    def _enum(self, field, value):
        enum = field.enum_type
        number = _integer(value.text)
        if number is not None and number in enum.values_by_number:
            return number
        if value.text in enum.values_by_name:
            return enum.values_by_name[value.text].number
        name = enum.full_name.partition(".")[2]
        known = [item.name for item in enum.values]
        guess = nearest(value.text.upper(), known)
        message = f"no value '{value.text}' in {name}" + (f"; did you mean '{guess}'?" if guess else "")
        raise self.fail(message, value.line, f"known values: {', '.join(known)}")

    def _unknown(self, descriptor, entry, siblings):
        guess = nearest(entry.name, descriptor.fields_by_name)
        if self.skipped is not None:
            path = ".".join(self.path)
            self.skipped.append(UnknownField(self.source, entry.line, entry.column, path, guess))
            return
        message = f"no field '{entry.name}' in {descriptor.name}" + (f"; did you mean '{guess}'?" if guess else "")
        raise self.fail(message, entry.line, _belongs(descriptor, entry.name, siblings))


def _belongs(descriptor, name, siblings) -> str | None:
    """Where a misplaced field would belong: first the blocks that are there, then any block of this message."""
    homes = [f.name for f in descriptor.fields if f.message_type and name in f.message_type.fields_by_name]
    written = {entry.name for entry in siblings}
    homes = [home for home in homes if home in written] or homes
    return f"'{name}' is a field of {' or '.join(homes[:3])}: put it in that block" if homes else None


def _is_repeated(field) -> bool:
    """Whether a descriptor's field is repeated, in every protobuf from 4.25 on (``label`` goes away in newer ones)."""
    return field.is_repeated if hasattr(field, "is_repeated") else field.label == FieldDescriptor.LABEL_REPEATED


@cache
def _required(descriptor) -> tuple[str, ...]:
    def needed(field):
        if hasattr(field, "is_required"):
            return field.is_required
        return field.label == FieldDescriptor.LABEL_REQUIRED

    return tuple(field.name for field in descriptor.fields if needed(field))


def _wanted(field) -> str:
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM:
        return "one of " + ", ".join(value.name for value in field.enum_type.values)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "a string"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return "true or false"
    if field.cpp_type in _INTEGERS:
        return "an integer" if _INTEGERS[field.cpp_type][0] else "an integer that is not negative"
    return "a number"


def _integer(text: str) -> int | None:
    """Decimal, 0x hexadecimal or 0 octal; None for anything else."""
    digits = text.removeprefix("-")
    try:
        octal = digits.isdigit() and len(digits) > 1 and digits[0] == "0"
        number = int(digits, 8) if octal else int(digits, 0)
    except ValueError:
        return None
    return -number if text.startswith("-") else number


def _float(text: str) -> float | None:
    digits = text.removeprefix("-").lower()
    if digits in ("inf", "infinity", "nan"):
        number = float(digits)
    elif digits[0].isalpha() or digits.startswith("0x"):
        return None
    else:
        number = float(digits.removesuffix("f"))
    return math.copysign(number, -1.0) if text.startswith("-") else number


def _layer_name(block: list[Entry]) -> str | None:
    for entry in block:
        if entry.name == "name" and entry.values and isinstance(entry.values[0], Scalar):
            value = entry.values[0]
            return value.text.decode("utf-8", "replace") if value.kind == "string" else None
        if entry.name == "layer" and entry.blocks():  # the oldest form: layers { layer { name ... } }
            return _layer_name(entry.blocks()[0])
    return None


def _find(entries, layer, field, index) -> int | None:
    blocks = [(None, entries)]
    if layer is not None:
        layers = [entry for entry in entries if entry.name in ("layer", "layers")]
        blocks = [(entry.line, block) for entry in layers for block in entry.blocks() if _layer_name(block) == layer]
    if field is None:
        chosen = blocks[index or 0 : (index or 0) + 1]
        return chosen[0][0] if chosen else None
    *outer, name = field.split(".")
    for _, block in blocks:
        found = [block]
        for step in outer:
            found = [inner for level in found for entry in level if entry.name == step for inner in entry.blocks()]
        lines = [entry.line for level in found for entry in level if entry.name == name for _ in entry.values]
        if len(lines) > (index or 0):
            return lines[index or 0]
    return None
