"""``.safetensors`` against the library of that name: what it refuses, we refuse; what it writes, we read."""

import json

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from converters.errors import WeightsError
from converters.named import NamedArrays
from converters.safetensors import read_safetensors, write_safetensors
from prototxt.errors import CaffePortError


def test_the_library_reads_it(tmp_path, every_dtype):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, NamedArrays(every_dtype, {"net": "né", "path": "\udcff"}))
    found = load_file(path)
    assert set(found) == set(every_dtype)
    for name, array in every_dtype.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"net": "né", "path": "\\udcff", "format": "pt"}
        assert file.get_tensor("float32").dtype == torch.float32
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0  # so that the values are aligned


def test_read_again(tmp_path, every_dtype):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, NamedArrays(every_dtype, {"net": "n"}))
    named = read_safetensors(path)
    assert named.metadata == {"net": "n"}
    assert list(named.arrays) == list(every_dtype)  # the order, too
    for name, array in named.arrays.items():
        np.testing.assert_array_equal(array, every_dtype[name])
        assert array.shape == every_dtype[name].shape
        assert array.flags.aligned and not array.flags.writeable
    again = tmp_path / "y.safetensors"
    write_safetensors(again, named)
    assert again.read_bytes() == path.read_bytes()


def test_what_the_library_writes(tmp_path, every_dtype):
    path = tmp_path / "x.safetensors"
    save_file(
        {name: np.ascontiguousarray(a.astype(a.dtype.newbyteorder("="))) for name, a in every_dtype.items()}, path
    )
    named = read_safetensors(path)
    assert named.metadata == {}
    for name, array in every_dtype.items():
        np.testing.assert_array_equal(named.arrays[name], array)


def test_bfloat16_is_widened(tmp_path):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    save_torch({"x": values}, tmp_path / "x.safetensors")
    read = read_safetensors(tmp_path / "x.safetensors").arrays["x"]
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.float().numpy())


def test_no_values_at_all(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", NamedArrays({}, {"net": "n"}))
    assert load_file(tmp_path / "x.safetensors") == {}
    assert read_safetensors(tmp_path / "x.safetensors").arrays == {}


# ---- files that are not right


def file_of(header, data=b"\0" * 24) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(start=0, end=24, dtype="F32", shape=(2, 3)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


GOOD = file_of({"a": entry()})
BAD = {
    "no length": (b"\x10\0\0", "not a .safetensors|fewer than"),
    "no header": (b"\x10" + b"\0" * 7, "cut off"),
    "a header of 100 GB": ((10**11).to_bytes(8, "little") + GOOD[8:], "would have 100000000000 bytes"),
    "a header longer than the file": ((9999).to_bytes(8, "little") + GOOD[8:], "header has 9999 bytes"),
    "no brace": (file_of(b'  {"a": 1}'), "does not begin"),
    "no JSON": (file_of(b'{"a": '), "not valid JSON"),
    "no UTF-8": (file_of(b'{"\xff": 1}'), "not valid JSON"),
    "two of a name": (file_of(b'{"a":' + json.dumps(entry()).encode() + b',"a":' + json.dumps(entry()).encode() + b"}"),
                      "'a' stands there twice"),
    "not a number": (file_of(b'{"a": {"dtype":"F32","shape":[NaN],"data_offsets":[0,24]}}'), "NaN is no JSON"),
    "infinite": (file_of(b'{"a": {"dtype":"F32","shape":[1e999],"data_offsets":[0,24]}}'), "impossible shape"),
    "deep": (file_of(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"), "not valid JSON"),
    "a number of many digits": (file_of(b'{"a": {"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,24]}}'),
                                "not valid JSON"),
    "half a character": (file_of(b'{"\\ud800": {"dtype":"F32","shape":[6],"data_offsets":[0,24]}}'), "not valid JSON"),
    "no table": (file_of(b'{"a": [1, 2]}'), "lacks a proper dtype"),
    "no dtype": (file_of({"a": {"shape": [6], "data_offsets": [0, 24]}}), "lacks a proper dtype"),
    "three offsets": (file_of({"a": {**entry(), "data_offsets": [0, 8, 24]}}), "lacks a proper dtype"),
    "offsets of text": (file_of({"a": entry("0", "24")}), "lies at bytes"),
    "backwards": (file_of({"a": entry(24, 0)}), "lies at bytes 24 to 0"),
    "behind the end": (file_of({"a": entry(0, 48, shape=(4, 3))}), "lies at bytes 0 to 48, but there are 24"),
    "a hole": (file_of({"a": entry(0, 8, shape=(2,)), "b": entry(16, 24, shape=(2,))}), "'b' begins at byte 16"),
    "overlap": (file_of({"a": entry(0, 16, shape=(4,)), "b": entry(8, 24, shape=(4,))}), "'b' begins at byte 8"),
    "too short": (file_of({"a": entry(0, 16, shape=(4,))}), "take 16 bytes, but there are 24"),
    "another size": (file_of({"a": entry(shape=(2, 2))}), "needs 16 bytes but has 24"),
    "an overflow": (file_of({"a": entry(shape=(2**33, 2**33))}), "needs 295147905179352825856 bytes"),
    "an overflow to nothing": (file_of({"a": entry(0, 0, shape=(0, 2**62, 2**62))}, b""), "impossible shape"),
    "100 GB": (file_of({"a": entry(shape=(25_000_000_000,))}), "needs 100000000000 bytes but has 24"),
    "negative": (file_of({"a": entry(shape=(-2, -3))}), "impossible shape"),
    "a truth": (file_of({"a": entry(0, 4, shape=(True,))}, b"\0" * 4), "impossible shape"),
    "many axes": (file_of({"a": entry(shape=(1,) * 1000)}), "1000 axes"),
    "an unknown type": (file_of({"a": entry(0, 24, dtype="F7", shape=(24,))}), "is of type F7"),
    "a type without weights": (file_of({"a": entry(0, 24, dtype="F8_E4M3", shape=(24,))}), "is of type F8_E4M3"),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}, "a": entry()}), "not a table of texts"),
    "metadata in a row": (file_of({"__metadata__": ["a"], "a": entry()}), "not a table of texts"),
}  # fmt: skip
OURS_ALONE = {
    "two of a name",
    "many axes",
    "an overflow to nothing",
    "a type without weights",
}  # the library takes them


@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path, case):
    data, message = BAD[case]
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as caught:
        read_safetensors(path)
    assert str(path) in str(caught.value)
    if case not in OURS_ALONE:
        with pytest.raises(SafetensorError), safe_open(path, "np") as file:
            file.keys()


@pytest.mark.parametrize("kept", range(1, len(GOOD)))
def test_cut_short(tmp_path, kept):
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD[:kept])
    with pytest.raises(WeightsError):
        read_safetensors(path)


def test_other_files(tmp_path):
    for data, message in [(b"", "empty"), (b"name: 'net'\n", "text file"), (b"PK\3\4" + b"\0" * 9, "zip archive")]:
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(WeightsError, match=message):
            read_safetensors(tmp_path / "x")


# ---- arrays that cannot be written


def test_types_that_are_none_of_weights(tmp_path):
    for array in (np.zeros(2, complex), np.array(["a"]), np.array([None]), np.zeros(2, np.longdouble)):
        with pytest.raises(WeightsError, match=f"array 'x' is of type {array.dtype}"):
            write_safetensors(tmp_path / "x.safetensors", NamedArrays({"x": array}))
    with pytest.raises(WeightsError, match="__metadata__"):
        write_safetensors(tmp_path / "x.safetensors", NamedArrays({"__metadata__": np.zeros(2)}))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"old")
    with full_disk(1 << 20), pytest.raises(CaffePortError, match="cannot be written"):
        write_safetensors(path, NamedArrays({"x": np.zeros(1 << 20)}))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
