"""Which files are found, what their outputs are called, and what is written in them."""

from pathlib import Path

import numpy as np
import pytest

from converters import (
    CaffeModel,
    LayerWeights,
    SolverState,
    WeightsError,
    read_caffemodel,
    read_solverstate,
    write_caffemodel,
    write_solverstate,
)
from converters.binaryproto import read_binaryproto, write_binaryproto
from converters.convert import convert, find_files, output_name, plan_outputs
from converters.formats import kind_of, read
from prototxt import CaffePortError, parse_net

MODEL = CaffeModel(
    "tiny",
    [
        LayerWeights("data", "Input", [], ["data"]),
        LayerWeights("ip", "InnerProduct", ["data"], ["ip"], [np.arange(6.0, dtype=np.float32).reshape(2, 3)]),
        LayerWeights("bn", "BatchNorm", ["ip"], ["ip"], [np.float32([1, 2]), np.float32([3, 4]), np.float32([0.3])]),
    ],
)
STATE = SolverState(40, "x_iter_40.caffemodel", [np.arange(6.0, dtype=np.float32)], 2)
MEAN = np.arange(12.0, dtype=np.float32).reshape(1, 3, 2, 2)
WRITTEN = {
    "x.caffemodel": (write_caffemodel, MODEL),
    "x.caffemodel.h5": (write_caffemodel, MODEL),
    "x.solverstate": (write_solverstate, STATE),
    "x.solverstate.h5": (write_solverstate, STATE),
    "x.binaryproto": (write_binaryproto, MEAN),
}


@pytest.fixture
def put(tmp_path):
    """``put("a/x.caffemodel", ...)`` writes files whose content their extensions tell; returns the folder."""

    def write(*names) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            suffix = "x" + "".join(path.suffixes) if path.suffix else "x.caffemodel"
            if suffix in WRITTEN:
                function, content = WRITTEN[suffix]
                function(path, content)
            else:
                convert(write("from.caffemodel") / "from.caffemodel", path, path.suffix[1:])
                (tmp_path / "from.caffemodel").unlink()
        return tmp_path

    return write


def _found(paths, to=None) -> tuple[list[str], int]:
    jobs, skipped = find_files(paths, to)
    return [job.below.as_posix() if job.below else job.source.name for job in jobs], skipped


# ---- names


@pytest.mark.parametrize(
    ("name", "content", "to", "expected"),
    [
        ("x.caffemodel", "model", "safetensors", "x.safetensors"),
        ("x.caffemodel.h5", "model", "safetensors", "x.safetensors"),
        ("squeezenet_v1.0.caffemodel", "model", "pt", "squeezenet_v1.0.pt"),
        ("cifar10_quick_iter_5000", "model", "npz", "cifar10_quick_iter_5000.npz"),
        ("v1.0", "model", "npz", "v1.0.npz"),
        ("x.safetensors", "model", "caffemodel", "x.caffemodel"),
        ("x.pth", "model", "h5", "x.caffemodel.h5"),
        ("x.caffemodel", "model", "onnx", "x.onnx"),
        ("x.solverstate", "solver state", "safetensors", "x.solverstate.safetensors"),
        ("x.solverstate.h5", "solver state", "pt", "x.solverstate.pt"),
        ("x.solverstate.safetensors", "solver state", "npz", "x.solverstate.npz"),
        ("x.solverstate.npz", "solver state", "caffemodel", "x.solverstate"),
        ("x.solverstate", "solver state", "h5", "x.solverstate.h5"),
        ("mean.binaryproto", "mean", "safetensors", "mean.safetensors"),
        ("mean.npz", "mean", "caffemodel", "mean.binaryproto"),
    ],
)
def test_names_of_outputs(name, content, to, expected):
    assert output_name(name, content, to) == expected


@pytest.mark.parametrize(("content", "to"), [("mean", "h5"), ("mean", "onnx"), ("solver state", "onnx")])
def test_contents_that_a_format_has_no_form_for(content, to):
    with pytest.raises(WeightsError, match=f"holds a {content}, which has no form as {to}"):
        output_name("x", content, to)


# ---- finding


def test_files_of_a_folder_and_those_below(put):
    folder = put("a.caffemodel", "in/b.caffemodel.h5", "in/b.solverstate", "in/noext", "mean.binaryproto", "in/c.npz")
    (folder / "readme").write_text("no weights here")
    (folder / "data.h5").write_bytes(b"\x89HDF\r\n\x1a\nnothing")
    (folder / "net.prototxt").write_text("name: 'x'")
    (folder / ".git").mkdir()
    put(".git/d.caffemodel")
    caffe = ["a.caffemodel", "mean.binaryproto", "in/b.caffemodel.h5", "in/b.solverstate", "in/noext"]
    assert _found([folder]) == (caffe, 4)
    assert _found([folder, folder / "a.caffemodel"])[0] == caffe  # once
    assert _found([folder], "caffemodel")[0] == ["in/b.caffemodel.h5", "in/c.npz"]
    assert _found([folder], "h5")[0] == ["a.caffemodel", "in/b.solverstate", "in/c.npz", "in/noext"]
    assert find_files([folder], every_kind=True)[0][-1].kind == "caffemodel"
    assert len(find_files([folder], every_kind=True)[0]) == 6
    assert _found([folder], "onnx")[0] == ["a.caffemodel", "in/b.caffemodel.h5", "in/noext"]


def test_a_damaged_file_is_found_when_its_name_tells_what_it_is(put):
    folder = put("a.caffemodel")
    (folder / "b.caffemodel").write_bytes(b"")
    (folder / "c").write_bytes(b"\0\0\0\0")
    jobs, skipped = find_files([folder])
    assert [(job.source.name, bool(job.error)) for job in jobs] == [("a.caffemodel", False), ("b.caffemodel", True)]
    assert skipped == 1
    assert "no such file" in str(find_files([folder / "absent"])[0][0].error)


# ---- planning


def _targets(folder, paths, *args, **options) -> list[str]:
    jobs, _ = find_files([folder / path for path in paths], args[0] if args else None)
    plan_outputs(jobs, *args, **options)
    return [str(job.target.relative_to(folder)) for job in jobs]


def test_outputs_lie_beside_inputs_or_in_a_folder(put):
    folder = put("a.caffemodel", "in/b.solverstate")
    assert _targets(folder, ["a.caffemodel"]) == ["a.safetensors"]
    assert _targets(folder, ["."]) == ["a.safetensors", "in/b.solverstate.safetensors"]
    assert _targets(folder, ["."], "pt", f"{folder}/new") == ["new/a.pt", "new/in/b.solverstate.pt"]
    assert _targets(folder, ["a.caffemodel"], None, f"{folder}/new/") == ["new/a.safetensors"]
    assert _targets(folder, ["a.caffemodel"], None, f"{folder}/in") == ["in/a.safetensors"]
    assert _targets(folder, ["a.caffemodel"], "npz", f"{folder}/other") == ["other"]
    assert _targets(folder, ["in"], "npz", f"{folder}/other") == ["other/b.solverstate.npz"]
    assert _targets(folder, ["a.caffemodel", "in/b.solverstate"], None, f"{folder}/new") == [
        "new/a.safetensors",
        "new/b.solverstate.safetensors",
    ]


def test_the_name_of_the_output_tells_the_format(put):
    folder = put("a.caffemodel", "b.npz")
    jobs, _ = find_files([folder / "a.caffemodel"])
    plan_outputs(jobs, None, str(folder / "c.pth"))
    assert jobs[0].to == "pt"
    jobs, _ = find_files([folder / "b.npz"])
    plan_outputs(jobs)
    assert (jobs[0].to, jobs[0].target.name) == ("caffemodel", "b.caffemodel")
    with pytest.raises(WeightsError, match="is no name for a model"):
        jobs, _ = find_files([folder / "a.caffemodel"])
        plan_outputs(jobs, None, str(folder / "c.solverstate"))
        raise jobs[0].error
    for to, name in (("caffemodel", "c.h5"), ("h5", "c.caffemodel"), ("h5", "c"), ("pt", "c.npz")):
        with pytest.raises(WeightsError, match=f"is no name for the format {to}"):
            plan_outputs(find_files([folder / "a.caffemodel"])[0], to, str(folder / name))


def test_outputs_that_would_destroy_something_are_refused(put):
    folder = put("a.caffemodel", "a.caffemodel.h5", "b.caffemodel", "b.safetensors", "in/a.caffemodel")
    with pytest.raises(WeightsError, match=r"a\.safetensors: would be the output of both") as caught:
        _targets(folder, ["a.caffemodel", "a.caffemodel.h5"])
    assert "--out" in str(caught.value)
    with pytest.raises(WeightsError, match="output of both"):
        _targets(folder, ["a.caffemodel", "in/a.caffemodel"], None, f"{folder}/new")
    with pytest.raises(WeightsError, match=r"b\.safetensors: is there already") as caught:
        _targets(folder, ["b.caffemodel"])
    assert "--force" in str(caught.value)
    assert _targets(folder, ["b.caffemodel"], force=True) == ["b.safetensors"]
    for options in ({}, {"force": True}):
        with pytest.raises(WeightsError, match="but it is an input"):
            _targets(folder, ["a.caffemodel"], "caffemodel", **options)
    with pytest.raises(WeightsError, match="but it is an input"):
        _targets(folder, ["a.caffemodel"], "pt", f"{folder}/net", inputs=[folder / "net"])


# ---- writing


@pytest.mark.parametrize("name", WRITTEN)
@pytest.mark.parametrize("to", ["safetensors", "pt", "npz"])
@pytest.mark.parametrize("caffe_names", [False, True])
def test_every_file_of_caffe_comes_back_from_every_format(put, name, to, caffe_names):
    folder = put(name)
    arrays, back = folder / f"arrays.{to}", folder / ("back" + name[1:])
    convert(folder / name, arrays, to, caffe_names=caffe_names)
    assert kind_of(arrays) == to
    convert(arrays, back, "h5" if name.endswith(".h5") else "caffemodel")
    assert kind_of(back) == kind_of(folder / name)
    if name == "x.binaryproto":
        assert read_binaryproto(back).tobytes() == MEAN.tobytes()
    elif "solverstate" in name:
        state = read_solverstate(back)
        assert (state.iter, state.learned_net, state.current_step) == (40, "x_iter_40.caffemodel", 2)
        np.testing.assert_array_equal(state.history[0], STATE.history[0])
    else:
        layers = {layer.name: layer for layer in read_caffemodel(back).layers}
        for wanted in MODEL.layers[1:]:
            assert [b.tobytes() for b in layers[wanted.name].blobs] == [b.tobytes() for b in wanted.blobs]
            assert layers[wanted.name].type == ("" if name.endswith(".h5") else wanted.type)


@pytest.mark.parametrize(("first", "to"), [("safetensors", "pt"), ("pt", "npz"), ("npz", "safetensors")])
def test_from_one_array_format_to_another(put, first, to):
    folder = put("x.caffemodel")
    convert(folder / "x.caffemodel", folder / f"x.{first}", first)
    convert(folder / f"x.{first}", folder / f"y.{to}", to)
    expected, got = read(folder / f"x.{first}"), read(folder / f"y.{to}")
    assert got.metadata == expected.metadata
    assert {name: a.tobytes() for name, a in got.arrays.items()} == {n: a.tobytes() for n, a in expected.arrays.items()}
    convert(folder / f"x.{first}", folder / f"z.{to}", to, caffe_names=True)
    assert list(read(folder / f"z.{to}").arrays) == ["ip.0", "bn.0", "bn.1", "bn.2"]


def test_the_prototxt_tells_what_hdf5_does_not(put):
    net = parse_net("""
        name: "named" layer { name: "data" type: "Input" top: "data" }
        layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
        layer { name: "bn" type: "BatchNorm" bottom: "ip" top: "ip" }
    """)
    folder = put("x.caffemodel.h5")
    convert(folder / "x.caffemodel.h5", folder / "y.caffemodel", "caffemodel", net=net)
    model = read_caffemodel(folder / "y.caffemodel")
    assert model.name == "named"
    assert [(layer.name, layer.type) for layer in model.layers if layer.blobs] == [
        ("ip", "InnerProduct"),
        ("bn", "BatchNorm"),
    ]


def test_folders_are_made_and_failures_leave_nothing(put):
    folder = put("x.binaryproto")
    convert(folder / "x.binaryproto", folder / "a/b/x.npz", "npz")
    assert (folder / "a/b/x.npz").exists()
    with pytest.raises(WeightsError):
        convert(folder / "x.binaryproto", folder / "x.caffemodel.h5", "h5")
    with pytest.raises(CaffePortError, match="cannot be created"):
        convert(folder / "x.binaryproto", folder / "x.binaryproto/y.npz", "npz")
    assert sorted(p.name for p in folder.iterdir()) == ["a", "x.binaryproto"]


def test_shared_tensors_lie_in_hdf5_once_and_come_back(tmp_path):
    weight, old, new = (
        np.arange(6, dtype=np.float32).reshape(2, 3),
        tmp_path / "x.caffemodel",
        tmp_path / "y.caffemodel",
    )
    layers = [LayerWeights(n, "InnerProduct", blobs=[weight.copy()], params=["w"]) for n in ("a", "b")]
    write_caffemodel(old, CaffeModel("", layers))
    convert(old, tmp_path / "x.caffemodel.h5", "h5")
    first, second = read(tmp_path / "x.caffemodel.h5").layers
    assert first.blobs[0] is second.blobs[0]
    notes = convert(tmp_path / "x.caffemodel.h5", new, "caffemodel")
    assert "give --prototxt" in notes[0]
    assert [layer.blobs[0].tolist() for layer in read(new).layers] == [weight.tolist()] * 2
    convert(tmp_path / "x.caffemodel.h5", tmp_path / "x.npz", "npz")
    assert list(read(tmp_path / "x.npz").arrays) == ["a.weight"]
    convert(tmp_path / "x.npz", new, "caffemodel")
    assert [layer.blobs[0].tolist() for layer in read(new).layers] == [weight.tolist()] * 2
