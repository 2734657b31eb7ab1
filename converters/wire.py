"""Protocol buffers' wire format, read in place and written in pieces, without a schema.

https://protobuf.dev/programming-guides/encoding/ in short: a message is a row of fields; a field is a tag (number and
wire type in one varint) and a value, whose extent the wire type alone tells. So a reader can pick the fields it
knows and step over all others, however large.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .errors import WeightsError

VARINT, I64, LEN, I32 = 0, 1, 2, 5
_NAMES = {VARINT: "a varint", I64: "8 bytes", LEN: "a length and bytes", I32: "4 bytes"}
_FIXED = {I64: np.dtype("<f8"), I32: np.dtype("<f4")}
_MAX_FIELDS = 1 << 17  # of one message; Caffe's have thousands. More would take far more memory than the file has


def read_varint(message: memoryview, pos: int) -> tuple[int, int]:
    """The unsigned varint at ``pos`` and the position behind it.

    Raises :class:`WeightsError` when it is cut off or has more than 64 bits.
    """
    value = shift = 0
    while shift < 70:
        if pos >= len(message):
            raise WeightsError("the file is cut off in the middle of a number", hint="Fetch or write it again.")
        byte = message[pos]
        pos += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >> 64:
                break
            return value, pos
        shift += 7
    raise WeightsError("a number has more than 64 bits: this is not a Caffe file, or it is damaged")


def signed(value: int) -> int:
    """A varint of type int32 or int64: two's complement in 64 bits."""
    return value - (1 << 64) if value >> 63 else value


def fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview | np.ndarray]]:
    """Yield ``(number, wire type, value)`` of each field, in the file's order.

    The value is an int for VARINT and a view of the bytes for LEN. For I32 and I64 it is a float32 or float64 array
    of this field and all that follow it directly under the same tag: an unpacked repeated field comes as one strided
    view instead of millions of values.

    Raises :class:`WeightsError` when a field reaches past the end of the message, no field can look like that, or
    there are more of them than any Caffe writes.
    """
    pos, end, count = 0, len(message), 0
    while pos < end:
        count += 1
        if count > _MAX_FIELDS:
            raise WeightsError(
                f"a message has more than {_MAX_FIELDS} fields: this is not a Caffe file, or it is damaged"
            )
        start = pos
        tag, pos = read_varint(message, pos)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29 or wire not in _NAMES:
            raise WeightsError(
                f"field {number} of wire type {wire} cannot be: this is not a Caffe file, or it is damaged"
            )
        if wire == VARINT:
            value, pos = read_varint(message, pos)
        elif wire == LEN:
            size, pos = read_varint(message, pos)
            _check_room(number, size, end - pos)
            value, pos = message[pos : pos + size], pos + size
        else:
            dtype = _FIXED[wire]
            _check_room(number, dtype.itemsize, end - pos)
            stride = pos - start + dtype.itemsize
            length = _run_length(message[start:], stride) if pos - start == 1 else 1
            value = np.ndarray(length, dtype, message, offset=pos, strides=(stride,))
            pos = start + length * stride
        yield number, wire, value


def _check_room(number: int, size: int, room: int) -> None:
    if size > room:
        raise WeightsError(
            f"the file is cut off or damaged: field {number} needs {size} bytes and {room} are left",
            hint="Fetch or write it again.",
        )


def _run_length(message: memoryview, stride: int) -> int:
    """How many records of ``stride`` bytes begin with the same byte as the first one."""
    firsts = np.frombuffer(message, np.uint8)[: len(message) // stride * stride : stride]
    count, window = 1, 64
    while count < len(firsts):  # growing windows: a short run costs little, a long one few steps
        others = np.flatnonzero(firsts[count : count + window] != firsts[0])
        if others.size:
            return count + int(others[0])
        count, window = count + window, window * 2
    return len(firsts)


def expect(number: int, wire: int, wanted: int) -> None:
    """Refuse a known field of another wire type, rather than step over weights in silence."""
    if wire != wanted:
        raise WeightsError(
            f"field {number} holds {_NAMES[wire]} where {_NAMES[wanted]} should be: "
            "this is a message of another kind, or it is damaged"
        )


def text(number: int, wire: int, value) -> str:
    """A string field. Bytes that are not UTF-8 come out as ``\\xNN``."""
    expect(number, wire, LEN)
    return bytes(value).decode("utf-8", "backslashreplace")


def varint(value: int) -> bytes:
    """The bytes of a varint; a negative value in two's complement, as int32 and int64 are written."""
    value &= (1 << 64) - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def varint_field(number: int, value: int) -> bytes:
    """A field of wire type VARINT."""
    return varint(number << 3 | VARINT) + varint(value)


def len_field(number: int, *parts) -> list:
    """A field of wire type LEN as a list of pieces to write one after the other: its header, then ``parts``.

    ``parts`` are bytes or one-dimensional uint8 arrays, so large arrays are never joined in memory.
    """
    return [varint(number << 3 | LEN) + varint(sum(map(len, parts))), *parts]
