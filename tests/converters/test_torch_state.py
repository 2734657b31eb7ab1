"""``.pt`` against torch's own reader and writer."""

import collections
import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch

from converters.errors import WeightsError
from converters.named import NamedArrays
from converters.torch_state import read_pt, write_pt
from prototxt.errors import CaffePortError

X = torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_it(tmp_path, every_dtype, mmap):
    path = tmp_path / "x.pt"
    write_pt(path, NamedArrays(every_dtype, {"net": "né"}))
    found = torch.load(path, weights_only=True, mmap=mmap)
    assert list(found) == list(every_dtype)
    for name, array in every_dtype.items():
        assert found[name].is_contiguous() and not found[name].requires_grad
        assert found[name].data_ptr() % 64 == 0 or not found[name].numel()
        assert found[name].numpy().dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name].numpy(), array)
    assert zipfile.ZipFile(path).testzip() is None


def test_a_module_takes_it(tmp_path):
    module, other = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    write_pt(tmp_path / "x.pt", NamedArrays({name: t.numpy() for name, t in module.state_dict().items()}))
    other.load_state_dict(torch.load(tmp_path / "x.pt"))
    torch.testing.assert_close(other(X), module(X), rtol=0, atol=0)


def test_read_again(tmp_path, every_dtype):
    path = tmp_path / "x.pt"
    write_pt(path, NamedArrays(every_dtype, {"net": "né"}))
    named = read_pt(path)
    assert named.metadata == {"net": "né"}
    assert list(named.arrays) == list(every_dtype)
    for name, array in named.arrays.items():
        np.testing.assert_array_equal(array, every_dtype[name])
        assert array.shape == every_dtype[name].shape
        assert not array.flags.writeable
    again = tmp_path / "y.pt"
    write_pt(again, named)
    assert again.read_bytes() == path.read_bytes()


def test_writing_needs_no_torch(tmp_path):
    code = """
import sys
sys.modules["torch"] = None
import numpy
from converters.named import NamedArrays
from converters.torch_state import write_pt
write_pt(sys.argv[1], NamedArrays({"x": numpy.ones(2)}))
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "x.pt"], check=True)
    assert torch.load(tmp_path / "x.pt")["x"].tolist() == [1, 1]


def test_what_torch_writes(tmp_path):
    state = collections.OrderedDict(
        x=X, part=X[1:, 2:], transposed=X.T, alias=X, half=X.half(), brain=X.bfloat16(), scalar=torch.tensor(2.5),
        long=torch.tensor([1 << 40]), empty=torch.zeros(0, 2), parameter=torch.nn.Parameter(X + 1), truth=X > 3,
    )  # fmt: skip
    torch.save(state, tmp_path / "x.pth")
    named = read_pt(tmp_path / "x.pth")
    assert (named.metadata, named.notes) == ({}, [])
    assert list(named.arrays) == list(state)
    for name, tensor in state.items():
        wanted = tensor.detach().float().numpy() if name == "brain" else tensor.detach().numpy()
        assert named.arrays[name].dtype == wanted.dtype
        np.testing.assert_array_equal(named.arrays[name], wanted)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_checkpoints(tmp_path, key):
    optimizer = {"state": {0: {"momentum": X}}, "lr": 0.1}
    torch.save({"epoch": 3, key: {"x": X, "_version\udcff": 2}, "optimizer": optimizer}, tmp_path / "x.pt")
    named = read_pt(tmp_path / "x.pt")
    assert list(named.arrays) == ["x"]
    assert named.notes == ["no tensors, left out: epoch, optimizer, _version\\udcff"]


# ---- files that are not right


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def scripted() -> bytes:
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(torch.nn.Linear(4, 3), X), file)
    return file.getvalue()


def rebuilt(data: bytes, name: str, change) -> bytes:
    """The archive with the record ``name`` put through ``change``."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for entry in old.namelist():
            new.writestr(entry, change(old.read(entry)) if entry.endswith(name) else old.read(entry))
    return file.getvalue()


def packed(data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


def quantised():
    return torch.quantize_per_tensor(X, 0.1, 0, torch.qint8)


BAD = {
    "a module": (lambda: saved(torch.nn.Linear(4, 3)), "as tensors only.*GLOBAL torch.nn.modules.linear.Linear"),
    "TorchScript": (scripted, "TorchScript"),
    "before 1.6": (lambda: saved({"x": X}, _use_new_zipfile_serialization=False), "PyTorch before 1.6"),
    "a tensor": (lambda: saved(X), "holds a Tensor, not a state dict"),
    "a list": (lambda: saved([X]), "holds a list, not a state dict"),
    "no tensors": (lambda: saved({"epoch": 3}), "holds no tensors, only epoch"),
    "quantised": (lambda: saved({"x": quantised()}), "'x' is quantised"),
    "sparse": (lambda: saved({"x": X.to_sparse()}), "'x' is cpu, torch.sparse_coo"),
    "meta": (lambda: saved({"x": X.to("meta")}), "'x' is meta"),
    "complex": (lambda: saved({"x": X.to(torch.complex64)}), "'x' is of type torch.complex64"),
    "float8": (lambda: saved({"x": X.to(torch.float8_e5m2)}), "'x' is of type torch.float8_e5m2"),
    "repeated": (lambda: saved({"x": torch.ones(1).expand(1 << 40)}), "more than the file has"),
    "no pickle": (lambda: rebuilt(saved({"x": X}), "data.pkl", lambda pkl: b"text"), "as tensors only"),
    "a short record": (lambda: rebuilt(saved({"x": X}), "data/0", lambda data: data[:-4]), "more than the file has"),
    "packed": (lambda: packed(saved({"x": X})), "packed"),
    "another zip": (lambda: saved({"x": X}).replace(b"data.pkl", b"data.pik"), "no data.pkl"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings("ignore")
def test_refused(tmp_path, case):
    make, message = BAD[case]
    path = tmp_path / "x.pt"
    path.write_bytes(make())
    with pytest.raises(WeightsError, match=message) as caught:
        read_pt(path)
    assert str(path) in str(caught.value)


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="needs PyTorch 2.6")
def test_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"x": X}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_pt(tmp_path / "x.pt").arrays["x"], X.numpy())


def test_a_bit(tmp_path):
    data = bytearray(saved({"x": X}))
    data[data.index(X.numpy().tobytes())] ^= 1
    (tmp_path / "x.pt").write_bytes(data)
    with pytest.raises(WeightsError, match="'x/data/0'|'archive/data/0' is cut off or damaged"):
        read_pt(tmp_path / "x.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_nothing_is_run(tmp_path, legacy):
    path, trace = tmp_path / "x.pt", tmp_path / "trace"
    torch.save({"x": X, "y": Evil(trace)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError):
        read_pt(path)
    assert not trace.exists()
    path.write_bytes(pickle.dumps(Evil(trace)))
    with pytest.raises(WeightsError, match="Python pickle"):
        read_pt(path)
    assert not trace.exists()


def test_cut_short(tmp_path):
    path, data = tmp_path / "x.pt", saved({"x": X})
    for kept in range(1, len(data), 7):
        path.write_bytes(data[:kept])
        with pytest.raises(WeightsError):
            read_pt(path)


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(WeightsError, match="'x' is of type complex64"):
        write_pt(tmp_path / "x.pt", NamedArrays({"x": np.zeros(2, np.complex64)}))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path, full_disk):
    path = tmp_path / "x.pt"
    path.write_bytes(b"old")
    with full_disk(1 << 20), pytest.raises(CaffePortError, match="cannot be written"):
        write_pt(path, NamedArrays({"x": np.zeros(1 << 20)}))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt"]
