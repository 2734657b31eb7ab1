"""What a file is, told by its content: every kind, under names that say something else."""

import gzip
import pickle

import h5py
import numpy as np
import pytest
import torch

from converters import CaffeModel, LayerWeights, SolverState, write_caffemodel, write_solverstate
from converters.binaryproto import write_binaryproto
from converters.errors import WeightsError
from converters.formats import KINDS, kind_of, read
from converters.named import NamedArrays
from converters.npz import write_npz
from converters.safetensors import write_safetensors
from converters.torch_state import write_pt
from converters.wire import len_field, varint_field

W = np.random.default_rng(3).standard_normal((4, 3)).astype(np.float32)
MODEL = CaffeModel("net", [LayerWeights("ip", "InnerProduct", blobs=[W])])
STATE = SolverState(7, "x.caffemodel", [W], 2)
NAMED = NamedArrays({"ip.weight": W}, {"net": "net"})


def write_h5(write, content):
    def through_h5(path, _):
        write(path.with_suffix(".h5"), content)
        path.with_suffix(".h5").rename(path)

    return through_h5


WRITERS = {
    "caffemodel": (write_caffemodel, MODEL),
    "caffemodel.h5": (write_h5(write_caffemodel, MODEL), None),
    "solverstate": (write_solverstate, STATE),
    "solverstate.h5": (write_h5(write_solverstate, STATE), None),
    "binaryproto": (write_binaryproto, W),
    "safetensors": (write_safetensors, NAMED),
    "pt": (write_pt, NAMED),
    "npz": (write_npz, NAMED),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["noext", "x.caffemodel", "x.npz"])
def test_the_name_does_not_matter(tmp_path, kind, name):
    write, content = WRITERS[kind]
    write(tmp_path / name, content)
    assert kind_of(tmp_path / name) == kind
    found = read(tmp_path / name)
    if kind.startswith("caffemodel"):
        array = found.layers[-1].blobs[0]
    elif kind.startswith("solverstate"):
        assert found.iter == 7
        array = found.history[0]
    else:
        array = found if kind == "binaryproto" else found.arrays["ip.weight"]
    np.testing.assert_array_equal(array.reshape(W.shape), W)


REAL = {
    "cifar10_quick_v1_noext/cifar10_quick_iter_5000": "caffemodel",
    "lenet_v1/lenet_iter_10000.caffemodel": "caffemodel",
    "lenet_v1/lenet_iter_10000.solverstate": "solverstate",
    "hyperlpr_fp16/HorizonalFinemapping_fp16.caffemodel": "caffemodel",
    "cifar10_h5/cifar10_full_iter_60000.caffemodel.h5": "caffemodel.h5",
    "cifar10_h5/cifar10_full_iter_60000.solverstate.h5": "solverstate.h5",
}


@pytest.mark.parametrize("file", REAL)
def test_real_files(shared, file):
    assert kind_of(shared / "weights" / file) == REAL[file]


def test_real_files_by_extension(shared):
    found = [path for kind in ("caffemodel", "solverstate", "binaryproto") for path in shared.rglob(f"*.{kind}")]
    assert len(found) > 20
    for path in found:
        assert f".{kind_of(path)}" == path.suffix


BLOB = len_field(5, b"\0" * 4)
MESSAGES = [
    ("caffemodel", len_field(1, b"") + len_field(100, *len_field(1, b"a"))),
    ("caffemodel", len_field(100, *len_field(1, b"a"))),  # a net without a name
    ("caffemodel", len_field(2, *len_field(4, b"a")) * 2),
    ("caffemodel", len_field(3, b"data") + [varint_field(4, 1)] * 4 + len_field(2, *len_field(4, b"a"))),
    ("caffemodel", [*len_field(1, b"net"), b"\xa2\x06\x7fcut off"]),
    ("solverstate", [varint_field(1, 5)] + len_field(2, b"x")),
    ("solverstate", [varint_field(1, 5)] + len_field(3, *BLOB)),
    ("solverstate", [varint_field(1, 5), varint_field(4, 1), b"\x2d\0\0\0\0"]),  # a minimum loss, no values
    ("solverstate", [varint_field(1, 5)]),
    ("binaryproto", [varint_field(n, 1) for n in (1, 2, 3, 4)] + BLOB),
    ("binaryproto", BLOB),
    ("binaryproto", [b"\x2d\0\0\0\0"]),
    ("binaryproto", len_field(7, b"\x08\x01") + BLOB),
    ("binaryproto", len_field(8, b"\0" * 8)),
]


@pytest.mark.parametrize(("kind", "parts"), MESSAGES)
def test_messages(tmp_path, kind, parts):
    (tmp_path / "x").write_bytes(b"".join(parts))
    assert kind_of(tmp_path / "x") == kind


def zip_of_text(path):
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "text")


def other_hdf5(path):
    with h5py.File(path, "w") as file:
        file["images"] = W


OTHERS = {
    "nothing": (lambda path: path.write_bytes(b""), "empty"),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "missing": (lambda path: None, "no such file"),
    "a prototxt": (lambda path: path.write_text('name: "net"\nlayer { name: "a" }\n'), "text file"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps({"a": W})), "Python pickle"),
    "old torch": (lambda path: torch.save({"a": 1}, path, _use_new_zipfile_serialization=False), "before 1.6"),
    "gzip": (lambda path: path.write_bytes(gzip.compress(W.tobytes())), "gzip"),
    "tar": (lambda path: path.write_bytes(b"a.caffemodel".ljust(257, b"\0") + b"ustar" + b"\0" * 250), "tar archive"),
    "an array": (lambda path: path.write_bytes(b"\x93NUMPY\1\0" + b"\0" * 99), "numpy array"),
    "git lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
    "a page": (lambda path: path.write_text("<!DOCTYPE html>"), "web page"),
    "a zip": (zip_of_text, "zip archive"),
    "half a zip": (lambda path: path.write_bytes(b"PK\3\4" + b"\0" * 60), "damaged zip"),
    "HDF5": (other_hdf5, "not one of Caffe: it holds images"),
    "half HDF5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 60), "damaged"),
    "noise": (lambda path: path.write_bytes(bytes(range(255, 0, -1))), "cannot be|more than 64 bits"),
    "zeros": (lambda path: path.write_bytes(bytes(99)), "field 0 of wire type 0"),
    "another message": (lambda path: path.write_bytes(varint_field(99, 1)), "none of the weight files"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_refused(tmp_path, case):
    make, message = OTHERS[case]
    make(tmp_path / "x")
    with pytest.raises(WeightsError, match=message) as caught:
        kind_of(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)
