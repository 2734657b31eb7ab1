"""``.npz`` against numpy's own reader and writer."""

import io
import json
import sys
import zipfile
import zlib

import numpy as np
import pytest

from converters.errors import WeightsError
from converters.named import NamedArrays
from converters.npz import read_npz, write_npz
from prototxt.errors import CaffePortError

W = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)


def test_numpy_reads_it(tmp_path, every_dtype):
    path = tmp_path / "x.npz"
    write_npz(path, NamedArrays(every_dtype, {"net": "né", "path": "\udcff"}))
    with np.load(path, allow_pickle=False) as found:
        assert json.loads(found["__metadata__"].item()) == {"net": "né", "path": "\udcff"}
        assert found.files == [*every_dtype, "__metadata__"]
        for name, array in every_dtype.items():
            assert found[name].dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found[name], array)
    assert zipfile.ZipFile(path).testzip() is None


def test_read_again(tmp_path, every_dtype):
    path = tmp_path / "x.npz"
    write_npz(path, NamedArrays(every_dtype, {"net": "n"}))
    named = read_npz(path)
    assert named.metadata == {"net": "n"}
    assert list(named.arrays) == list(every_dtype)
    for name, array in named.arrays.items():
        np.testing.assert_array_equal(array, every_dtype[name])
        assert array.shape == every_dtype[name].shape
        assert array.flags.aligned and not array.flags.writeable
    again = tmp_path / "y.npz"
    write_npz(again, named)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_writes(tmp_path, every_dtype, save):
    save(tmp_path / "x.npz", **every_dtype)
    named = read_npz(tmp_path / "x.npz")
    assert named.metadata == {}
    for name, array in every_dtype.items():
        assert named.arrays[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(named.arrays[name], array)


# ---- files that are not right


def npy(array, **options) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, **options)
    return file.getvalue()


def header_of(text: str, data=b"") -> bytes:
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + data


def archive_of(*entries, **options) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **options) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return file.getvalue()


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


GOOD = archive_of(("a.npy", npy(W)))
CRC = zlib.crc32(npy(W)).to_bytes(4, "little")
LONG = "{'descr': '<f4', 'fortran_order': False, 'shape': (25000000000,), }"
BAD = {
    "objects": (archive_of(("a.npy", npy(np.array([{}]), allow_pickle=True))), "'a' holds Python objects"),
    "text": (archive_of(("a.npy", npy(np.array(["a"])))), "is of type <U1"),
    "complex": (archive_of(("a.npy", npy(np.zeros(2, complex)))), "is of type complex128"),
    "a record": (archive_of(("a.npy", npy(np.zeros(2, "f4,f4")))), "is of type"),
    "no npy": (archive_of(("a.txt", b"text")), "'a.txt' is not a .npy"),
    "no magic": (archive_of(("a.npy", b"text")), "no valid header"),
    "version 9": (archive_of(("a.npy", b"\x93NUMPY\x09\0" + npy(W)[8:])), "no valid header"),
    "code": (archive_of(("a.npy", header_of("__import__('os').abort()"))), "no valid header"),
    "deep": (archive_of(("a.npy", header_of("(" * 3900))), "no valid header"),
    "a long header": (archive_of(("a.npy", header_of(LONG + " " * 9999))), "no valid header"),
    "100 GB": (archive_of(("a.npy", header_of(LONG))), "needs 100000000000 bytes but has 0"),
    "too few values": (archive_of(("a.npy", npy(W)[:-4])), "needs 48 bytes but has 44"),
    "too many values": (archive_of(("a.npy", npy(W) + b"\0" * 4)), "needs 48 bytes but has 52"),
    "negative": (archive_of(("a.npy", header_of(LONG.replace("250", "-25")))), "impossible shape"),
    "a checksum": (replaced(GOOD, CRC, b"\1\2\3\4"), "damaged"),
    "a bit": (replaced(GOOD, W.tobytes(), W.tobytes()[:-1] + b"\x99"), "damaged"),
    "encrypted": (replaced(GOOD, b"PK\1\2\x14\x03\x14\0\0\0", b"PK\1\2\x14\x03\x14\0\1\0"), "encrypted"),
    "lzma": (archive_of(("a.npy", npy(W)), compression=zipfile.ZIP_LZMA), "packed in a way that is not read"),
    "twice": (replaced(archive_of(("a.npy", npy(W)), ("b.npy", npy(W))), b"b.npy", b"a.npy"), "two entries named"),
    "metadata of numbers": (archive_of(("__metadata__.npy", npy(W))), "__metadata__ cannot be read"),
    "metadata without JSON": (archive_of(("__metadata__.npy", npy(np.array("{")))), "__metadata__ cannot be read"),
    "metadata in a row": (archive_of(("__metadata__.npy", npy(np.array("[1]")))), "__metadata__ cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(tmp_path, case):
    data, message = BAD[case]
    path = tmp_path / "x.npz"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=message) as caught:
        read_npz(path)
    assert str(path) in str(caught.value)


def test_a_size_that_is_not_there(tmp_path):
    """The directory claims 4 GB for a packed entry of a few bytes."""
    path = tmp_path / "x.npz"
    data = archive_of(("a.npy", npy(W)), compression=zipfile.ZIP_DEFLATED)
    at = data.index(b"PK\1\2") + 24
    path.write_bytes(data[:at] + b"\xf0\xff\xff\xff" + data[at + 4 :])
    with pytest.raises(WeightsError, match="claims 4294967280 bytes"):
        read_npz(path)


def test_entries_that_lie_over_each_other(tmp_path):
    """Many names for the same packed bytes: small in the file, large in memory."""
    path = tmp_path / "x.npz"
    data = archive_of(("a.npy", npy(np.zeros(1 << 16))), compression=zipfile.ZIP_DEFLATED)
    start, end = data.index(b"PK\1\2"), data.index(b"PK\5\6")
    record = data[start:end]
    names = [f"{i:x}.npy".encode() for i in range(10, 16)]
    directory = b"".join(record.replace(b"a.npy", name) for name in names)
    count = len(names).to_bytes(2, "little") * 2
    tail = b"PK\5\6\0\0\0\0" + count + len(directory).to_bytes(4, "little") + start.to_bytes(4, "little") + b"\0\0"
    path.write_bytes(data[:start] + directory + tail)
    with pytest.raises(WeightsError, match="damaged|more than the file has"):
        read_npz(path)


@pytest.mark.parametrize("kept", range(1, len(GOOD), 3))
def test_cut_short(tmp_path, kept):
    path = tmp_path / "x.npz"
    path.write_bytes(GOOD[:kept])
    with pytest.raises(WeightsError):
        read_npz(path)


def test_what_cannot_be_written(tmp_path):
    for name, message in [("__metadata__", "__metadata__"), ("a\0b", "cannot be a name"), ("n" * 70000, "cannot be")]:
        with pytest.raises(WeightsError, match=message):
            write_npz(tmp_path / "x.npz", NamedArrays({name: W}))
    with pytest.raises(WeightsError, match="'x' is of type complex64"):
        write_npz(tmp_path / "x.npz", NamedArrays({"x": W.astype(np.complex64)}))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "x.npz"
    path.write_bytes(b"old")
    with full_disk(1 << 20), pytest.raises(CaffePortError, match="cannot be written"):
        write_npz(path, NamedArrays({"x": np.zeros(1 << 20)}))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.npz"]


def test_a_signal_between_two_steps_of_zipfile(tmp_path, monkeypatch):
    """It must end the process as it would elsewhere, and not as an error of the archive that is left half done."""

    def stopped(archive, *args, opened=zipfile.ZipFile.open, **options):
        kept.append(opened(archive, *args, **options))
        sys.exit(143)

    kept = []
    monkeypatch.setattr(zipfile.ZipFile, "open", stopped)
    with pytest.raises(SystemExit, match="143"):
        write_npz(tmp_path / "a.npz", NamedArrays({"a": np.zeros(3, np.float32)}))
    assert not list(tmp_path.iterdir())
