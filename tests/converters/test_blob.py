"""BlobProto in every order and number of pieces, judged by protobuf's own reader where it knows the fields."""

import itertools
import tracemalloc

import numpy as np
import pytest

from converters.blob import decode_blob, encode_blob
from converters.dtypes import flat
from converters.errors import WeightsError
from converters.wire import I32, I64, LEN, VARINT, fields, len_field, varint, varint_field

VALUES = np.linspace(-3, 3, 30, dtype=np.float32)
SHAPE = b"".join(len_field(7, *len_field(1, varint(6), varint(5))))


def packed(number, values) -> bytes:
    return b"".join(len_field(number, values.tobytes()))


def unpacked(number, wire, values) -> bytes:
    return b"".join(bytes([number << 3 | wire]) + value.tobytes() for value in values)


PIECES = {
    "float": [packed(5, VALUES[:7]), unpacked(5, I32, VALUES[7:])],
    "double": [packed(8, VALUES[:7].astype("<f8")), unpacked(8, I64, VALUES[7:].astype("<f8"))],
    "half": [varint_field(10, 2), packed(12, VALUES.astype("<f2"))],
}
OTHERS = [SHAPE, packed(6, VALUES), packed(9, VALUES.astype("<f8"))]  # a gradient is no weight


@pytest.mark.parametrize("kind", PIECES)
def test_any_order_of_fields(kind, proto):
    first, second = PIECES[kind]
    wanted = {"float": VALUES, "double": VALUES.astype("<f8"), "half": VALUES.astype("<f2").astype("<f4")}[kind]
    for order in itertools.permutations([first, second, *OTHERS]):
        if kind != "half" and order.index(first) > order.index(second):
            continue  # then the values are in another order, too
        array = decode_blob(memoryview(b"".join(order)))
        assert (array.dtype, array.shape) == (wanted.dtype, (6, 5))
        np.testing.assert_array_equal(array.ravel(), wanted)
        assert not array.flags.writeable
    message = proto.BlobProto.FromString(b"".join(order))
    assert len(message.data or message.double_data) == (0 if kind == "half" else 30)


def test_which_field_counts():
    """``double_data`` before ``data`` before ``raw_data``, as in NVIDIA's Blob::FromProto; empty ones do not count."""
    half = b"".join(PIECES["half"])
    for more, wanted in [(packed(5, 2 * VALUES), 2 * VALUES), (packed(5, VALUES[:0]), VALUES.astype("f2"))]:
        for message in (more + half, half + more):
            np.testing.assert_array_equal(decode_blob(memoryview(message + SHAPE)).ravel(), wanted)
    doubles = packed(8, VALUES[:0].astype("<f8")) + packed(5, VALUES)
    assert decode_blob(memoryview(doubles + SHAPE)).dtype == np.float32
    with pytest.raises(WeightsError, match="raw_data_type None is not supported"):
        decode_blob(memoryview(packed(12, VALUES) + SHAPE))


@pytest.mark.parametrize("size", [0, 1])
def test_many_pieces_take_little_memory(size):
    """Values one by one, or no values at all 100,000 times: memory follows the message's size, not its pieces."""
    values = np.arange(100_000 * size, dtype=np.float32)
    chunk = packed(5, np.float32(7)) if size else packed(5, VALUES[:0])
    message = chunk * 100_000 + b"".join(len_field(7, *len_field(1, varint(len(values)))))
    tracemalloc.start()
    array = decode_blob(memoryview(message))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert array.shape == values.shape
    assert (array == 7).all()
    assert peak < 3 * len(message) + 100_000


def test_large_arrays_are_written_in_pieces():
    array = np.arange(600_000, dtype=np.float32).reshape(600, 1000)
    parts = encode_blob(array)
    assert max(map(len, flat(parts))) <= 1 << 20
    assert sum(np.shares_memory(part, array) for part in flat(parts) if isinstance(part, np.ndarray)) == 3
    np.testing.assert_array_equal(decode_blob(memoryview(b"".join(flat(parts)))), array)


@pytest.mark.parametrize("dtype", ["f2", ">f4", "i8"])
def test_other_types_are_converted_piece_by_piece(dtype):
    array = (np.arange(2_000_000) % 999).reshape(1000, 2000).astype(dtype).T
    tracemalloc.start()
    size = sum(map(len, flat(encode_blob(array))))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 4 * array.size
    assert peak < 4 << 20


def test_fields():
    message = varint_field(1, -1) + packed(2, VALUES[:1]) + unpacked(3, I32, VALUES[:3])
    found = list(fields(memoryview(message)))
    assert [(number, wire) for number, wire, _ in found] == [(1, VARINT), (2, LEN), (3, I32)]
    assert found[0][2] == 2**64 - 1
    np.testing.assert_array_equal(found[2][2], VALUES[:3])


def test_more_fields_than_a_message_can_have():
    with pytest.raises(WeightsError, match="more than 131072 fields"):
        for _ in fields(memoryview(b"\xa2\x06\x00" * 140_000)):  # layers of three bytes, half a kilobyte each when read
            pass
