"""Thousands of damaged files: a valid result, or one message that names the file. Nothing else, ever."""

import importlib.util
import json
import random
import struct
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from converters import CaffeModel, LayerWeights, SolverState, convert, write_caffemodel, write_solverstate
from converters.binaryproto import write_binaryproto
from converters.formats import read

TOOLS = Path(__file__).resolve().parents[2] / "tools"
WEIGHTS = {"conv1": [np.arange(6, dtype=np.float32).reshape(1, 2, 3, 1), np.ones(1, np.float32)], "fc": [np.eye(3)]}
NAMED = {"conv1.weight": WEIGHTS["conv1"][0], "conv1.bias": WEIGHTS["conv1"][1], "fc.weight": WEIGHTS["fc"][0]}


# ---- the files to damage


def of_message(name):
    """A caffemodel of an old form, or with raw halves, written by protobuf itself."""

    def write(path, proto):
        net = proto.NetParameter(name="n")
        if name == "raw":
            blob = net.layer.add(name="conv1", type="Convolution", bottom=["data"], top=["conv1"]).blobs.add()
            blob.raw_data_type, blob.raw_data = 2, np.arange(6, dtype="<f2").tobytes()
            blob.shape.dim.extend([2, 3])
        else:
            layer = net.layers.add(bottom=["data"], top=["conv1"])
            if name == "v1":
                layer.name, layer.type = "conv1", 4
            else:
                layer.layer.name, layer.layer.type = "conv1", "conv"
                layer = layer.layer
            layer.blobs.add(num=1, channels=1, height=2, width=3, data=range(6))
        path.write_bytes(net.SerializeToString())

    return write


def of_weights(path, proto):
    layers = [LayerWeights(name, "Convolution", ["data"], [name], blobs) for name, blobs in WEIGHTS.items()]
    write_caffemodel(path, CaffeModel("n", layers))


def of_state(path, proto):
    write_solverstate(path, SolverState(7, "n_iter_7.caffemodel", WEIGHTS["conv1"], 2))


def of_us(path, proto):
    """As the tool writes it, with what Caffe needs in the metadata."""
    of_weights(path.with_suffix(".caffemodel"), proto)
    convert.write(read(path.with_suffix(".caffemodel")), path, path.suffix[1:])


def of_pt(path, proto):
    torch.save({name: torch.from_numpy(array) for name, array in NAMED.items()}, path)


def of_state_dict(path, proto):
    """The OrderedDict with metadata that ``Module.state_dict`` gives."""
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(2, 1, 1), torch.nn.BatchNorm2d(1)).state_dict(), path)


FORMS = {
    "n.caffemodel": of_weights,
    "v1.caffemodel": of_message("v1"),
    "v0.caffemodel": of_message("v0"),
    "raw.caffemodel": of_message("raw"),
    "n.caffemodel.h5": of_weights,
    "n.solverstate": of_state,
    "n.solverstate.h5": of_state,
    "n.binaryproto": lambda path, proto: write_binaryproto(path, WEIGHTS["conv1"][0]),
    "n.safetensors": lambda path, proto: safetensors.numpy.save_file(NAMED, path, {"format": "pt"}),
    "n.npz": lambda path, proto: np.savez(path, **NAMED),
    "packed.npz": lambda path, proto: np.savez_compressed(path, **NAMED),
    "n.pt": of_pt,
    "module.pth": of_state_dict,
    "ours.safetensors": of_us,
    "ours.npz": of_us,
    "ours.pt": of_us,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, proto):
    """The bytes of each file of ``FORMS``."""
    folder = tmp_path_factory.mktemp("whole")
    for name, write in FORMS.items():
        write(folder / name, proto)
    return {name: (folder / name).read_bytes() for name in FORMS}


# ---- and what becomes of them


def mutations(data: bytes, others: list[bytes], rng: random.Random, count: int):
    """``count`` damaged copies of ``data``."""
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            start = rng.randrange(len(copy) + 1)
            size = rng.choice((1, 2, 4, 8, 30))
            match rng.randrange(7):
                case 0 | 1:
                    if start < len(copy):
                        copy[start] ^= 1 << rng.randrange(8)
                case 2:
                    copy[start:start] = rng.randbytes(size)
                case 3:
                    del copy[start : start + size]
                case 4:
                    copy[start : start + size] = rng.randbytes(size)
                case 5:  # lengths and counts: varints and little-endian numbers, large and negative
                    huge = rng.choice((b"\xff" * 9 + b"\x01", b"\xff\xff\xff\xff\x0f", b"\x80\x80\x80\x80\x80\x20"))
                    huge = rng.choice(
                        (huge, struct.pack("<Q", 100 * 10**9), struct.pack("<q", -1), b"\xff\xff\xff\x7f")
                    )
                    copy[start : start + rng.choice((0, 1, len(huge)))] = huge
                case 6:
                    other = rng.choice(others)
                    begin = rng.randrange(len(other))
                    copy[start : start + size] = other[begin : begin + rng.choice((size, 200))]
        yield bytes(copy)


@pytest.mark.parametrize("name", FORMS)
def test_whole_files_are_read(whole, tmp_path, name, outcome):
    path = tmp_path / name
    path.write_bytes(whole[name])
    assert outcome(path) is None
    if "raw" in name or name[0] == "v":
        np.testing.assert_array_equal(read(path).layers[0].blobs[0].ravel(), range(6))


@pytest.mark.parametrize("name", FORMS)
def test_cut_anywhere(whole, tmp_path, name, outcome):
    data, path = whole[name], tmp_path / name
    messages = set()
    for size in range(0, len(data), 1 + len(data) // 700):
        path.write_bytes(data[:size])
        messages.add(outcome(path))
    assert len(messages - {None}) >= 1
    if None in messages:  # a row of fields without length: cut between two of them, it is a shorter row
        assert path.suffix in (".caffemodel", ".solverstate", ".binaryproto")


@pytest.mark.parametrize("name", FORMS)
def test_damaged_bytes(whole, tmp_path, name, outcome):
    rng = random.Random(name)
    path = tmp_path / name
    count = 250 if path.suffix == ".h5" else 450
    refusals = 0
    for number, data in enumerate(mutations(whole[name], list(whole.values()), rng, count)):
        path.write_bytes(data)
        try:
            refusals += outcome(path) is not None
        except BaseException as error:
            raise AssertionError(f"mutation {number} of {name}: {type(error).__name__}: {error}") from error
    assert refusals > count // 20


@pytest.mark.parametrize("name", ["x", "x.caffemodel", "x.solverstate", "x.binaryproto", "x.h5", "x.npz", "x.pt",
                                  "x.safetensors"])  # fmt: skip
def test_nothing_and_noise_and_text(tmp_path, name, outcome, refused):
    rng = random.Random(name)
    refused(tmp_path / name, b"")
    refused(tmp_path / name, b'name: "net"\nlayer { name: "conv1" type: "Convolution" }\n' * 20)
    refused(tmp_path / name, b"\0" * 1000)
    for _ in range(60):
        refused(tmp_path / name, rng.randbytes(rng.choice((100, 3000))))
    for _ in range(60):  # two bytes can be a solver state: iteration 5
        (tmp_path / name).write_bytes(rng.randbytes(rng.choice((1, 2, 9))))
        outcome(tmp_path / name)


# ---- the tool


def test_the_tool_says_which_and_why(whole, tmp_path, monkeypatch, capsys):
    """Hundreds of damaged files at once: an output or an error for each, exit code 2, nothing half-written."""
    monkeypatch.syspath_prepend(TOOLS)
    spec = importlib.util.spec_from_file_location("convert_tool", TOOLS / "convert.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    rng = random.Random("tool")
    (tmp_path / "in").mkdir()
    names = [name for name in FORMS if not name.startswith("ours") and not name.endswith((".pt", ".pth", ".npz"))]
    for name in names:  # n.caffemodel and n.solverstate.h5 would have outputs of one name
        for number, data in enumerate(mutations(whole[name], list(whole.values()), rng, 12)):
            (tmp_path / "in" / f"{number}_{names.index(name)}_{name}").write_bytes(data)
    options = [tmp_path / "in", "--to", "npz", "--out", tmp_path / "out/", "--json", "--stats"]
    monkeypatch.setattr("sys.argv", ["convert.py", *map(str, options)])
    with pytest.raises(SystemExit) as ended:
        tool._cli.run(tool.main)
    assert ended.value.code == 2
    files = json.loads(capsys.readouterr().out)["files"]
    failed = [file for file in files if "error" in file]
    written = {file["output"]["path"] for file in files if "output" in file}
    assert len(failed) + len(written) == len(files) > 50
    assert len(failed) > 20
    assert all(file["source"] in file["error"] for file in failed)
    assert {str(path) for path in (tmp_path / "out").rglob("*")} == written
    for path in written:
        read(path)
