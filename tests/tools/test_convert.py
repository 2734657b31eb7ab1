"""``tools/convert.py``."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from converters import CaffeModel, LayerWeights, read_caffemodel, read_solverstate, write_caffemodel
from converters.binaryproto import read_binaryproto, write_binaryproto
from converters.convert import Job
from prototxt.files import temporary_name

TOOL = Path(__file__).resolve().parents[2] / "tools/convert.py"
MODEL = "snapshots/tiny_iter_2.caffemodel"
STATE = "snapshots/tiny_iter_2.solverstate"
# the first layer of each tensor: those of the read-only RoI network share theirs with the trained ones
LAYERS = ["conv1", "fc6_readonly", "cls_score_readonly", "bbox_pred_readonly"]
NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 2 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip" inner_product_param { num_output: 4 } }
"""


def _numbers(*shape) -> np.ndarray:
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


def _net_weights() -> list[LayerWeights]:
    return [
        LayerWeights("conv", "Convolution", ["data"], ["conv"], [_numbers(2, 3, 3, 3), _numbers(2)]),
        LayerWeights("ip", "InnerProduct", ["conv"], ["ip"], [_numbers(4, 72), _numbers(4)]),
    ]


@pytest.fixture
def convert(workspace):
    """Runs the tool in the workspace, which has ``net.prototxt`` and ``net.caffemodel`` of :data:`NET`, too."""
    workspace.write("net.prototxt", NET)
    write_caffemodel(workspace.folder / "net.caffemodel", CaffeModel("small", _net_weights()))
    return lambda *options: workspace.run(workspace.tools.convert, options)


# ---- what is written


def test_a_model_becomes_safetensors_and_a_table(convert):
    run = convert(MODEL)
    assert run.code == 0
    assert run.new == {"snapshots/tiny_iter_2.safetensors"}
    for words in ("tiny_iter_2.caffemodel: caffemodel, form V2", "conv1", "8x3x8x8  8", "InnerProduct", "(shared)"):
        assert words in run.out
    assert run.out.splitlines()[-1].startswith("snapshots/tiny_iter_2.safetensors: ")
    arrays = safetensors.numpy.load_file("snapshots/tiny_iter_2.safetensors")
    assert sorted(arrays) == sorted(f"{layer}.{part}" for layer in LAYERS for part in ("weight", "bias"))


@pytest.mark.parametrize("to", ["safetensors", "pt", "npz", "caffemodel", "h5"])
def test_models_states_and_means_come_back_from_every_format(convert, workspace, to):
    write_binaryproto(workspace.folder / "mean.binaryproto", _numbers(1, 3, 4, 4))
    sources = [MODEL, STATE, *(["mean.binaryproto"] if to != "h5" else [])]
    run = convert(*sources, "--to", to, "--out", "new")
    assert run.code == 0
    assert f"{len(sources)} files converted, 0 failed, 0 others left alone" in run.out
    if to != "caffemodel":
        assert convert("new", "--to", "caffemodel", "--out", "back").code == 0
    for source in sources:
        made = Path("new" if to == "caffemodel" else "back") / Path(source).name
        run = convert(source, "--diff", made)
        assert (run.code, "identical" in run.out) == (0, True), run
    if to == "pt":
        tensors = torch.load("new/tiny_iter_2.pt", weights_only=True)
        assert list(tensors["conv1.weight"].shape) == [8, 3, 8, 8]
    if to == "safetensors":
        assert safetensors.numpy.load_file("new/mean.safetensors")["mean"].shape == (1, 3, 4, 4)
        back = Path("back")
        assert read_solverstate(back / "tiny_iter_2.solverstate").iter == 2
        assert read_binaryproto(back / "mean.binaryproto").tobytes() == _numbers(1, 3, 4, 4).tobytes()


def test_names_of_caffe(convert):
    assert convert("net.caffemodel", "--caffe-names").code == 0
    assert list(safetensors.numpy.load_file("net.safetensors")) == ["conv.0", "conv.1", "ip.0", "ip.1"]


def test_folders_keep_their_tree_and_one_bad_file_does_not_stop_the_others(convert, workspace):
    for name in ("in/a.caffemodel", "in/deep/b.caffemodel", "in/noext"):
        workspace.write(name, Path("net.caffemodel").read_bytes())
    workspace.write("in/bad.caffemodel", Path("net.caffemodel").read_bytes()[:-100])
    workspace.write("in/readme.txt", "words")
    run = convert("in", "--out", "new", "--to", "npz")
    assert run.code == 2
    assert run.new == {"new/a.npz", "new/deep/b.npz", "new/noext.npz"}
    assert "error: in/bad.caffemodel: " in run.err
    assert "3 files converted, 1 failed, 1 others left alone" in run.out


# ---- with the net


def test_weights_are_checked_against_the_net(convert, workspace):
    layers = [*_net_weights(), LayerWeights("old", "InnerProduct", blobs=[_numbers(2, 2)])]
    write_caffemodel(workspace.folder / "more.caffemodel", CaffeModel("", layers))
    run = convert("more.caffemodel", "--prototxt", "net.prototxt")
    assert run.code == 0
    assert "note: layer 'old', (2, 2): not in the net" in run.out
    assert "2 layers fit the net" in run.out
    write_caffemodel(workspace.folder / "less.caffemodel", CaffeModel("", layers[:1]))
    assert (
        "note: layer 'ip', (4, 72), (4,): not in the file"
        in convert("less.caffemodel", "--prototxt", "net.prototxt").out
    )
    layers[0].blobs[1], layers[1].blobs[0] = _numbers(3), _numbers(4, 7)
    write_caffemodel(workspace.folder / "wrong.caffemodel", CaffeModel("", layers))
    run = convert("wrong.caffemodel", "--prototxt", "net.prototxt")
    assert (run.code, run.new) == (2, set())
    assert "layer 'old', (2, 2): not in the net\n" in run.err
    for words in ("wrong.caffemodel: ", "layer 'conv'", "(3,)", "layer 'ip'", "(4, 7)", "(4, 72)"):
        assert words in run.err


def test_tensors_of_pytorch_become_a_caffemodel(convert, workspace):
    only_train = 'layer { name: "more" type: "InnerProduct" bottom: "ip" inner_product_param { num_output: 2 } %s }'
    workspace.write("both.prototxt", NET + only_train % 'top: "more" include { phase: TRAIN }')
    layers = {f"{name}.{part}": torch.from_numpy(blob) for name, blobs in ((w.name, w.blobs) for w in _net_weights())
              for part, blob in zip(("weight", "bias"), blobs, strict=True)}  # fmt: skip
    torch.save(layers, "from_torch.pt")
    convert("from_torch.pt").ended_in_one_message(["from_torch.pt", "prototxt"])
    assert convert("from_torch.pt", "--prototxt", "both.prototxt").code == 0
    model = read_caffemodel("from_torch.caffemodel")
    assert [layer.type for layer in model.layers if layer.blobs] == ["Convolution", "InnerProduct"]
    assert convert("from_torch.caffemodel", "--diff", "net.caffemodel").code == 0
    assert convert("from_torch.pt", "--diff", "net.caffemodel", "--prototxt", "both.prototxt").code == 0
    assert convert("from_torch.pt", "--diff", "from_torch.pt").code == 0
    run = convert("from_torch.pt", "--prototxt", "both.prototxt", "--phase", "TRAIN", "--out", "x.caffemodel")
    run.ended_in_one_message(["from_torch.pt", "more.weight"])


def test_hdf5_gets_types_and_order_from_the_net(convert):
    assert convert("net.caffemodel", "--to", "h5").code == 0
    run = convert(
        "net.caffemodel.h5", "--to", "caffemodel", "--out", "new/net.caffemodel", "--prototxt", "net.prototxt"
    )
    assert run.code == 0
    assert "Convolution" in run.out
    assert [layer.type for layer in read_caffemodel("new/net.caffemodel").layers] == ["Convolution", "InnerProduct"]


@pytest.mark.parametrize("target", ["onnxruntime", "opencv"])
def test_onnx_gives_what_the_net_gives(convert, target):
    onnx = pytest.importorskip("onnx")
    options = ("--to", "onnx", "--prototxt", "net.prototxt", "--target", target)
    run = convert("net.caffemodel", *options, "--shape", "data=1,3,8,8")
    assert run.code == 0
    assert run.new == {"net.onnx"}
    assert "input data: batch x 3 x 8 x 8" in run.out
    assert "output ip: batch x 4" in run.out
    told = {prop.key: prop.value for prop in onnx.load("net.onnx").metadata_props}
    assert told == {"target": target, "prototxt": "net.prototxt", "weights": "net.caffemodel"}
    onnxruntime = pytest.importorskip("onnxruntime")
    values = _numbers(2, 3, 8, 8)
    conv, ip = _net_weights()
    wide = np.lib.stride_tricks.sliding_window_view(values, (3, 3), axis=(2, 3))
    expected = np.einsum("nchwij,ocij->nohw", wide, conv.blobs[0]) + conv.blobs[1][:, None, None]
    expected = expected.reshape(2, -1) @ ip.blobs[0].T + ip.blobs[1]
    got = onnxruntime.InferenceSession("net.onnx").run(None, {"data": values})[0]
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_what_onnx_lacks_is_named_before_anything_is_written(convert, workspace):
    pytest.importorskip("onnx")
    net = NET
    for name in ("odd", "odder"):
        net += f'layer {{ name: "{name}" type: "EuclideanLoss" bottom: "ip" bottom: "ip" top: "{name}" }}\n'
        net += f'layer {{ name: "of_{name}" type: "Power" bottom: "{name}" top: "of_{name}" }}\n'
    workspace.write("odd.prototxt", net)
    run = convert("net.caffemodel", "--to", "onnx", "--prototxt", "odd.prototxt")
    assert (run.code, run.new) == (2, set())
    for words in ("error: odd.prototxt: ", "layer 'odd'", "layer 'odder'", "EuclideanLoss"):
        assert words in run.err


def test_what_lies_where_large_weights_go_is_not_written_over(convert, workspace):
    workspace.write("net.onnx.data", b"precious")
    run = convert("net.caffemodel", "--to", "onnx", "--prototxt", "net.prototxt")
    run.ended_in_one_message(["net.onnx.data: is there already", "--force"])


def test_onnx_needs_the_net_and_all_its_weights(convert, workspace):
    convert("net.caffemodel", "--to", "onnx").ended_in_one_message(["--prototxt"])
    write_caffemodel(workspace.folder / "less.caffemodel", CaffeModel("", _net_weights()[:1]))
    run = convert("less.caffemodel", "--to", "onnx", "--prototxt", "net.prototxt")
    run.ended_in_one_message(["less.caffemodel", "no weights for ip"])


# ---- looking


def test_looking_writes_nothing(convert):
    run = convert(MODEL, "--list")
    assert (run.code, run.new) == (0, set())
    assert "fc6" in run.out
    for options in (("--list", "--out", "x"), ("--diff", STATE, "--out", "x"), ("--shape", "data=1,3,8,8")):
        run = convert(MODEL, *options)
        assert (run.code, run.new) == (2, set())


def test_statistics_and_their_warnings(convert, workspace):
    layers = _net_weights()
    layers[0].blobs[1][0] = np.nan
    layers[1].blobs[1][:] = 0
    write_caffemodel(workspace.folder / "odd.caffemodel", CaffeModel("odd", layers))
    run = convert("odd.caffemodel", "--list", "--stats")
    assert run.code == 0
    assert "note: layer 'conv': array 1 (2): 1 NaN" in run.out
    assert "note: layer 'ip': array 1 (4): all zero" in run.out
    assert f"{layers[1].blobs[0].max():.4g}" in run.out
    stats = json.loads(convert("odd.caffemodel", "--list", "--stats", "--json").out)["files"][0]["layers"][0]["blobs"][
        1
    ]["stats"]
    assert (stats["nan"], stats["inf"]) == (1, 0)


def test_json_is_one_document_and_nothing_else(convert, workspace):
    workspace.write("bad.caffemodel", b"")
    run = convert("net.caffemodel", STATE, "bad.caffemodel", "--json")
    assert run.code == 2
    model, state, bad = json.loads(run.out)["files"]
    assert (model["net"], model["kind"], model["form"], model["parameters"]) == ("small", "caffemodel", "V2", 348)
    assert model["layers"][0]["blobs"][0] == {
        "name": "0", "shape": [2, 3, 3, 3], "dtype": "float32", "count": 54, "shared": False,
    }  # fmt: skip
    assert model["output"]["path"] == "net.safetensors"
    assert model["output"]["bytes"] == Path("net.safetensors").stat().st_size
    assert state["iter"] == 2
    assert "bad.caffemodel: the file is empty" in bad["error"]
    for options in (["model"], ["net.caffemodel", "--diff", "absent"], ["net.caffemodel", "--prototxt", "absent"]):
        run = convert(*options, "--json")
        assert (run.code, list(json.loads(run.out))) == (2, ["error"])


def test_a_comparison_tells_what_differs(convert, workspace):
    layers = _net_weights()
    layers[0].blobs[0][0, 0, 0, 0] += 0.5
    write_caffemodel(workspace.folder / "other.caffemodel", CaffeModel("small", layers[:1]))
    run = convert("net.caffemodel", "--diff", "other.caffemodel")
    assert (run.code, run.new) == (1, set())
    assert "1 layer different, 1 layer only in the first" in run.out
    document = json.loads(convert("net.caffemodel", "--diff", "other.caffemodel", "--json").out)
    assert document["identical"] is False
    assert document["layers"][0]["arrays"][0]["max_abs"] == pytest.approx(0.5, rel=1e-6)
    convert("net.caffemodel", "--diff", STATE).ended_in_one_message(["a model and a solver state cannot be compared"])


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("absent.caffemodel",), ["absent.caffemodel", "no such file"]),
        (("net.prototxt",), ["net.prototxt", "text file"]),
        (("model",), ["model: holds no weight files", "4 other files"]),
        (("net.caffemodel", "--to", "caffemodel"), ["net.caffemodel", "it is an input"]),
        (("net.caffemodel", "--out", "net.prototxt", "--force", "--prototxt", "net.prototxt"), ["it is an input"]),
        (("net.caffemodel", "--to", "h5", "--out", "x.npz"), ["x.npz", "is no name for the format h5"]),
        ((MODEL, "--prototxt", "net.prototxt"), ["no layer of the file is in the net", "conv1", "ip"]),
        ((STATE, "--to", "onnx", "--prototxt", "net.prototxt"), ["holds a solver state, which has no form as onnx"]),
        (("net.caffemodel", "--prototxt", "absent.prototxt"), ["absent.prototxt", "no such file"]),
        (("net.caffemodel", "--prototxt", "model/train.prototxt", "--shape", "data=x"), ["--shape data=x"]),
        (("net.caffemodel", STATE, "--diff", "net.caffemodel"), ["--diff compares two files"]),
        (
            ("net.caffemodel", "--to", "pt", "--out", "net.prototxt/x.pt"),
            ["net.prototxt: cannot be", "a file is there"],
        ),
        (("net.caffemodel", "--to", "pt", "--out", "/dev/null", "--force"), ["/dev/null", "no ordinary file"]),
    ],
)
def test_mistakes(convert, options, words):
    convert(*options).ended_in_one_message(words)


@pytest.mark.parametrize("options", [("",), ("net.caffemodel", "--diff", ""), ("net.caffemodel", "--out", "")])
def test_an_empty_name_is_no_folder(convert, options):
    """As a script's unset variable gives it."""
    run = convert(*options)
    assert (run.code, run.new) == (2, set())
    assert "a name is empty" in run.err


def test_links_that_lead_nowhere(convert, workspace):
    for name, to in (("broken", "nowhere"), ("loop", "loop")):
        (workspace.folder / name).symlink_to(to)
        convert(name).ended_in_one_message([f"{name}: is a link that leads nowhere: {to}"])


def test_names_as_long_as_they_can_be(convert, workspace):
    for name in ("x" * 243 + ".safetensors", "ü" * 121 + "x.safetensors"):
        assert convert("net.caffemodel", "--out", name).new == {name}
    convert("net.caffemodel", "--out", "x" * 244 + ".safetensors").ended_in_one_message(["File name too long"])


def test_nothing_is_written_over_without_force(convert, workspace):
    workspace.write("net.npz", b"precious")
    convert("net.caffemodel", "--to", "npz").ended_in_one_message(["net.npz: is there already", "--force"])
    assert Path("net.npz").read_bytes() == b"precious"
    workspace.write("cut.caffemodel", Path("net.caffemodel").read_bytes()[:-10])
    run = convert("cut.caffemodel", "--to", "npz", "--out", "net.npz", "--force")
    assert run.code == 2
    assert Path("net.npz").read_bytes() == b"precious"
    assert convert("net.caffemodel", "--to", "npz", "--force").code == 0
    assert Path("net.npz").read_bytes() != b"precious"


def test_data_layers_without_their_data_need_shapes(convert, workspace):
    data = 'layer { name: "data" type: "Data" top: "data" data_param { source: "not/here" batch_size: 8 } }'
    workspace.write("train.prototxt", data + NET.split("\n", 2)[2])
    run = convert("net.caffemodel", "--prototxt", "train.prototxt")
    run.ended_in_one_message(["layer 'data'", "--shape BLOB=N,C,H,W"])
    assert convert("net.caffemodel", "--prototxt", "train.prototxt", "--shape", "data=1,3,8,8").code == 0


# ---- the process


def test_a_bar_shows_how_far_a_file_is(tools, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        isatty = lambda self: True  # noqa: E731

    monkeypatch.setattr(sys, "stderr", Terminal())
    source, target = tmp_path / "a.caffemodel", tmp_path / "a.npz"
    source.write_bytes(bytes(1000))
    temporary_name(target).write_bytes(bytes(400))
    job = Job(source, Path("a.caffemodel"), target=target)
    progress = tools.convert.Progress([job])
    progress.patience = 0
    with progress:
        progress.begin(job)
        while "400/1.00k" not in sys.stderr.getvalue():
            time.sleep(0.01)
        with progress.printing():
            pass
        progress.end(job)


@pytest.mark.parametrize("to", ["safetensors", "pt", "npz", "caffemodel"])
def test_torch_is_not_imported(tmp_path, to):
    write_caffemodel(tmp_path / "a.caffemodel", CaffeModel("small", _net_weights()))
    code = f"import sys, runpy; sys.argv = {['convert.py', 'a.caffemodel', '--to', to, '--out', 'new/']!r}\n"
    code += f"sys.path.insert(0, {str(TOOL.parent)!r})\n"
    code += f"try: runpy.run_path({str(TOOL)!r}, run_name='__main__')\n"
    code += "finally: print({'torch', 'h5py', 'onnx', 'safetensors', 'cv2'} & {*sys.modules}, file=sys.stderr)"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (run.returncode, run.stderr.strip()) == (0, "set()")


@pytest.mark.parametrize(("number", "code", "said"), [
    (signal.SIGINT, 130, b"interrupted\n"), (signal.SIGTERM, 143, b""), (signal.SIGHUP, 129, b""),
])  # fmt: skip
def test_a_process_that_is_stopped_leaves_no_partial_file(tmp_path, number, code, said):
    write_caffemodel(
        tmp_path / "a.caffemodel",
        CaffeModel("big", [LayerWeights("ip", "", blobs=[np.zeros((50, 1_000_000), np.float32)])]),
    )
    process = subprocess.Popen(
        [sys.executable, TOOL, "a.caffemodel", "--to", "npz"], cwd=tmp_path, stderr=subprocess.PIPE
    )
    while process.poll() is None and len(list(tmp_path.iterdir())) == 1:
        time.sleep(0.001)
    process.send_signal(number)
    message = process.communicate()[1]
    names = {path.name for path in tmp_path.iterdir()}
    assert (process.returncode, message, names) == (code, said, {"a.caffemodel"}) or names == {
        "a.caffemodel",
        "a.npz",
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "opencv"), "--target is for --to onnx"),
        (("--caffe-names", "--to", "h5"), "--caffe-names is for"),
        (("--phase", "TRAIN"), "give --prototxt"),
        (("--lenient",), "give --prototxt"),
        (("--list", "--to", "pt"), "write nothing"),
        (("--diff", "net.caffemodel", "--to", "pt"), "write nothing"),
    ],
)
def test_no_option_is_ignored_in_silence(convert, options, message):
    run = convert("net.caffemodel", *options)
    assert (run.code, run.new) == (2, set())
    assert message in run.err
