"""Files that lie: claims beyond what is there, code in pickles, metadata that make no sense. None is believed."""

import io
import json
import os
import pickle
import struct
import tracemalloc
import zipfile

import h5py
import numpy as np
import pytest
import safetensors.numpy
import torch

from converters import convert
from converters.formats import read
from prototxt import CaffePortError

MB = 1 << 20
HUGE = 100 * 10**9  # bytes that a file claims


# ---- more than there is


def varint(value):
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def delimited(number, payload, size=None):
    return varint(number << 3 | 2) + varint(len(payload) if size is None else size) + payload


def shape(*dims):
    return delimited(7, delimited(1, b"".join(map(varint, dims))))


def net_of(blob, count=1, layers=1):
    return delimited(1, b"n") + delimited(100, delimited(1, b"conv1") + delimited(7, blob) * count) * layers


def safetensors_of(header, data=bytes(64), size=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def npy_of(dims, data=bytes(64), descr="<f4"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": descr, "fortran_order": False, "shape": tuple(dims)})
    return out.getvalue() + data


def zip_of(members, method=zipfile.ZIP_STORED):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return out.getvalue()


def f32(dims, begin, end):
    return {"dtype": "F32", "shape": dims, "data_offsets": [begin, end]}


CLAIMS = {
    "a field.caffemodel": delimited(1, b"n") + delimited(100, b"", HUGE),
    "data.caffemodel": net_of(delimited(5, bytes(8), HUGE) + shape(HUGE // 4)),
    "shape.caffemodel": net_of(delimited(5, bytes(8)) + shape(HUGE // 4)),
    "product.caffemodel": net_of(delimited(5, bytes(8)) + shape(1 << 32, 1 << 32)),
    "product is right modulo 2^64.caffemodel": net_of(delimited(5, bytes(8)) + shape((1 << 63) + 1, 2)),
    "zero times huge.caffemodel": net_of(shape(0, 1 << 62, 1 << 62)),
    "negative.caffemodel": net_of(delimited(5, bytes(4)) + shape((1 << 64) - 1, (1 << 64) - 1)),
    "many axes.caffemodel": net_of(delimited(5, bytes(4)) + shape(*[1] * 5000)),
    "half.caffemodel": net_of(b"\x50\x02" + delimited(12, bytes(7)) + shape(4)),
    "many blobs.caffemodel": net_of(delimited(5, bytes(4)), 1 << 15),
    "many blobs of many layers.caffemodel": net_of(delimited(5, bytes(4)), 10, 2000),
    "history.solverstate": b"\x08\x07" + delimited(3, shape(HUGE // 4)),
    "legacy.binaryproto": b"\x08\x7f\x10\x7f\x18\x7f\x20\x7f" + delimited(5, bytes(8)),
    "header.safetensors": safetensors_of({"a": f32([16], 0, 64)}, size=HUGE),
    "header of 2^64.safetensors": safetensors_of({"a": f32([16], 0, 64)}, size=2**64 - 1),
    "tensor.safetensors": safetensors_of({"a": f32([HUGE // 4], 0, HUGE)}),
    "product.safetensors": safetensors_of({"a": f32([2**32, 2**32], 0, 64)}),
    "shape.safetensors": safetensors_of({"a": f32([17], 0, 64)}),
    "backwards.safetensors": safetensors_of({"a": f32([16], 64, 0)}),
    "negative.safetensors": safetensors_of({"a": f32([-4, -4], 0, 64)}),
    "negative offset.safetensors": safetensors_of({"a": f32([16], -64, 0)}),
    "no list.safetensors": safetensors_of({"a": f32("16", 0, 64)}),
    "truth.safetensors": safetensors_of({"a": f32([True] * 3, False, 4)}),
    "fractions.safetensors": safetensors_of({"a": f32([16.0], 0, 64.0)}),
    "no tensor.safetensors": safetensors_of({"a": 5}),
    "no object.safetensors": safetensors_of([1, 2]),
    "no JSON.safetensors": safetensors_of(b'{"a": '),
    "no UTF-8.safetensors": safetensors_of(b'{"\xff": {}}'),
    "a long number.safetensors": safetensors_of(b'{"a": ' + b"9" * 100_000 + b"}"),
    "deep.safetensors": safetensors_of(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "deep objects.safetensors": safetensors_of(b'{"a": ' * 50_000 + b"1" + b"}" * 50_000),
    "array.npz": zip_of({"a.npy": npy_of([HUGE // 4])}),
    "product.npz": zip_of({"a.npy": npy_of([2**32, 2**32])}),
    "negative.npz": zip_of({"a.npy": npy_of([-1, -16])}),
    "objects.npz": zip_of({"a.npy": npy_of([1], pickle.dumps([1]), "|O")}),
    "records.npz": zip_of({"a.npy": npy_of([1], bytes(8), "V8")}),
    "no array.npz": zip_of({"a.npy": b"\x93NUMPY\x01\x00\xff\xff"}),
    "deep.npz": zip_of({"a.npy": b"\x93NUMPY\x02\x00" + struct.pack("<I", 90_000) + b"(" * 90_000}),
    "no zip.npz": b"PK\x03\x04" + bytes(1000),
    "no pickle.pt": zip_of({"archive/version": "3", "archive/data.pkl": b"\x80\x02."}),
    "deep.pt": zip_of({"archive/version": "3", "archive/data.pkl": b"\x80\x02" + b"(" * 9999 + b"t" * 9999 + b"."}),
    "memo.pt": zip_of({"archive/version": "3", "archive/data.pkl": b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7f."}),
    "long.pt": zip_of({"archive/version": "3", "archive/data.pkl": b"\x80\x02X\xff\xff\xff\x7fa."}),
}  # fmt: skip


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_not_believed(tmp_path, name, refused):
    path = tmp_path / name
    path.write_bytes(CLAIMS[name])
    tracemalloc.start()
    try:
        refused(path)
        assert tracemalloc.get_traced_memory()[1] < 16 * MB
    finally:
        tracemalloc.stop()


class Storage:
    """Pickles as torch pickles a tensor, whose storage is described by ``description``."""

    def __init__(self, size, stride, numel, offset=0, key="0", kind=torch.FloatStorage):
        self.description = ("storage", kind, key, "cpu", numel)
        self.size, self.stride, self.offset = size, stride, offset

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, (Key(self.description), self.offset, self.size, self.stride, False, {})


class Key:
    def __init__(self, description):
        self.description = description


def pt_of(tensor, data=bytes(64)):
    """A file of torch's zip form with one tensor."""
    out = io.BytesIO()
    pickler = pickle.Pickler(out, 2)
    pickler.persistent_id = lambda value: value.description if isinstance(value, Key) else None
    pickler.dump({"a": tensor})
    return zip_of(
        {"archive/data.pkl": out.getvalue(), "archive/byteorder": "little", "archive/data/0": data,
         "archive/version": "3\n"}
    )  # fmt: skip


TENSORS = {
    "storage": Storage((HUGE // 4,), (1,), HUGE // 4),
    "view": Storage((HUGE // 4,), (1,), 16),
    "repeated": Storage((HUGE // 4,), (0,), 16),
    "repeated rows": Storage((1 << 40, 1 << 40), (0, 1), 16),
    "product": Storage((1 << 32, 1 << 32), (0, 0), 16),
    "offset": Storage((16,), (1,), 16, offset=1),
    "offset of 2^62": Storage((16,), (1,), 16, offset=1 << 62),
    "negative offset": Storage((4,), (1,), 16, offset=-4),
    "negative stride": Storage((4,), (-1,), 16, offset=4),
    "long stride": Storage((2,), (1 << 60,), 16),
    "negative size": Storage((-4,), (1,), 16),
    "axes": Storage((1,) * 100, (1,) * 100, 16),
    "no tuple": Storage(16, 1, 16),
    "strides": Storage((4, 4), (1,), 16),
    "fractions": Storage((4.0,), (1.0,), 16),
    "elsewhere": Storage((16,), (1,), 16, key="../data.pkl"),
    "missing": Storage((16,), (1,), 16, key="1"),
    "bits": Storage((16,), (1,), 16, kind=torch.device),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_reach_no_further_than_their_storage(tmp_path, name, outcome, refused):
    good = tmp_path / "good.pt"
    good.write_bytes(pt_of(Storage((4, 4), (4, 1), 16)))
    assert outcome(good) is None  # the files made here are torch's but for the one fault
    refused(tmp_path / "bad.pt", pt_of(TENSORS[name]))


def test_zip_bombs(tmp_path, refused):
    """20 MB of zeros in 20 kB: no fault of a packed .npz, but one array's memory must do; a .pt is never packed."""
    zeros = bytes(20 * MB)
    pickle = {"archive/version": "3", "archive/data.pkl": zeros}
    (tmp_path / "bomb.npz").write_bytes(zip_of({"a.npy": npy_of([len(zeros) // 4], zeros)}, zipfile.ZIP_DEFLATED))
    (tmp_path / "lie.npz").write_bytes(zip_of({"a.npy": npy_of([4], zeros)}, zipfile.ZIP_DEFLATED))
    (tmp_path / "bomb.pt").write_bytes(zip_of(pickle, zipfile.ZIP_DEFLATED))
    tracemalloc.start()
    try:
        refused(tmp_path / "bomb.pt")
        assert tracemalloc.get_traced_memory()[1] < 4 * MB
        refused(tmp_path / "lie.npz")
        assert not read(tmp_path / "bomb.npz").arrays["a"].any()
        assert tracemalloc.get_traced_memory()[1] < 1.5 * len(zeros)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("dims", [(HUGE // 4,), (1 << 20, 1 << 20)])
@pytest.mark.parametrize("options", [{}, {"chunks": (1024,)}, {"chunks": (1024,), "compression": "gzip"}])
@pytest.mark.parametrize(("name", "group"), [("a.caffemodel.h5", "data/conv1"), ("a.solverstate.h5", "history")])
def test_hdf5_claims(tmp_path, dims, options, name, group, refused):
    """HDF5 stores nothing for values never written; they would be read as zeros."""
    if "chunks" in options:
        options = options | {"chunks": options["chunks"] * len(dims)}
    with h5py.File(tmp_path / name, "w") as file:
        file.create_dataset("iter", data=[1])
        file.create_group(group).create_dataset("0", dims, "f4", **options)
    refused(tmp_path / name)


def test_hdf5_in_depth(tmp_path, refused):
    """Groups in groups: a name has slashes, but not thousands."""
    path = tmp_path / "deep.caffemodel.h5"
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group("data")
        for _ in range(3000):
            group = group.create_group("a")
        group.create_dataset("0", data=np.ones(3, np.float32))
    refused(path)
    with h5py.File(path, "w") as file:  # and a group that contains itself
        group = file.create_group("data/a")
        group["b"] = file["data"]
        group.create_dataset("0", data=np.ones(3, np.float32))
    refused(path)


def test_messages_in_messages(tmp_path, refused):
    nested = b""
    for _ in range(10_000):
        nested = delimited(7, nested)
    refused(tmp_path / "deep.caffemodel", delimited(1, b"n") + delimited(100, nested))
    refused(tmp_path / "groups.caffemodel", delimited(1, b"n") + b"\x0b" * 10_000)


# ---- code in a file does not run


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def evil_pickles(mark):
    """Pickles that make the file ``mark`` when they are loaded, in every protocol and by several ways."""
    yield from (pickle.dumps({"a": Evil(mark)}, protocol) for protocol in range(6))
    yield f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()
    yield f"(S'touch {mark}'\nios\nsystem\n.".encode()
    yield (
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c"
        + bytes([len(f"touch {mark}")])
        + f"touch {mark}".encode()
        + b"\x85R."
    )
    yield f'c__builtin__\neval\n(S\'__import__("os").system("touch {mark}")\'\ntR.'.encode()
    yield f"ctorch.serialization\nload\n(S'{mark}'\ntR.".encode()
    yield f"ccollections\nOrderedDict.__class__.__init__.__globals__\n(S'touch {mark}'\ntR.".encode()
    yield f"ctorch._utils\nos.system\n(S'touch {mark}'\ntR.".encode()


def test_pickles_do_not_run(tmp_path, refused):
    mark = tmp_path / "ran"
    for evil in evil_pickles(mark):
        forms = {
            "raw.pt": evil,
            "raw.caffemodel": evil,
            "zip.pt": zip_of({"archive/data.pkl": evil, "archive/version": "3"}),
            "after a good one.pt": zip_of({"archive/data.pkl": b"\x80\x02}" + evil, "archive/version": "3"}),
            "bytes.pth": torch_magic() + evil,
            "object.npz": zip_of({"a.npy": npy_of([1], evil, "|O")}),
            "object.npy": npy_of([1], evil, "|O"),
        }
        for name, content in forms.items():
            refused(tmp_path / name, content)
            assert not mark.exists(), f"{name} of {evil!r} ran"
    pickle.loads(next(evil_pickles(mark)))
    assert mark.exists()  # it would have


def torch_magic():
    """How a file of torch before 1.6 begins."""
    return b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


# ---- metadata

NAMED = {
    "conv1.weight": np.ones((1, 2, 3, 1), np.float32),
    "conv1.bias": np.ones(1, np.float32),
    "fc.weight": np.eye(3),
}
METADATA = [
    {},
    {"layers": "5"},
    {"layers": "[5]"},
    {"layers": "[" * 100_000},
    {"layers": '[{"name": 5, "type": {}, "bottoms": 7, "blobs": 3}]'},
    {"layers": '[{"name": "conv1", "blobs": [{"tensor": 5}]}]'},
    {"layers": '[{"name": "conv1", "blobs": [{"tensor": "conv1.weight", "shape": [100000000000]}]}]'},
    {"layers": '[{"name": "conv1", "blobs": [{"tensor": "conv1.weight", "shape": [-1, 2]}]}]'},
    {"layers": '[{"name": "conv1", "blobs": [{"tensor": "conv1.weight", "shape": "6"}]}]'},
    {"layers": '[{"name": "conv1", "blobs": [{"tensor": "conv1.bias", "form": "gates"}]}]'},
    {"layers": '[{"name": "conv1", "blobs": [{"tensor": "conv1.bias", "plus": "conv1.weight"}]}]'},
    {"layers": json.dumps([{"name": "a", "blobs": [{"tensor": "conv1.bias"}] * 100}])},
    {"layers": '[{"blobs": [{"tensor": "conv1.weight"}, {"tensor": "conv1.bias"}, {"tensor": "b.scale_factor"}], '
               '"batch_norm": ["<f4 AAAA", "<f8 !", "|O x"]}]'},
    {"kind": "solverstate"},
    {"kind": "solverstate", "iter": "null", "learned_net": "[]", "current_step": "1e999"},
    {"kind": "solverstate", "iter": "1" * 5000, "learned_net": '""', "current_step": "0"},
    {"kind": "binaryproto"},
    {"kind": "of nothing known"},
]  # fmt: skip


@pytest.mark.parametrize("metadata", METADATA)
def test_damaged_metadata(tmp_path, metadata, outcome):
    """What a file says of Caffe's layers is as little to be trusted as its bytes."""
    path = tmp_path / "made.safetensors"
    safetensors.numpy.save_file(NAMED, path, {"kind": "caffemodel", "net": "n"} | metadata)
    assert outcome(path) is None
    try:
        content = convert.as_caffe(read(path))
    except CaffePortError as error:
        assert len(error.message) < 2000
    else:
        sizes = [np.size(blob) for layer in getattr(content, "layers", []) for blob in layer.blobs]
        assert sum(sizes) <= 100 * sum(array.size for array in NAMED.values())
