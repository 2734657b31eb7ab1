import numpy as np
import pytest
import torch

import prototxt
from converters import CaffeModel, LayerWeights, SolverState, WeightsError, read_caffemodel, write_caffemodel
from converters.named import NamedArrays
from converters.naming import to_named
from converters.npz import write_npz
from converters.safetensors import write_safetensors
from converters.torch_state import write_pt
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import check, copy_from, to_caffemodel

RNG = np.random.default_rng(0)


def ip(name, bottom, outputs, param=""):
    return (
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {param} '
        f"inner_product_param {{ num_output: {outputs} }} }}\n"
    )


@pytest.fixture
def net(build, inputs_of):
    return build(inputs_of(x=(2, 3)) + ip("a", "x", 4) + ip("b", "a", 5))


def array(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def model_file(tmp_path):
    """``model_file(a=[array, ...])``: a caffemodel with these layers."""

    def make(**layers):
        path = tmp_path / "some.caffemodel"
        write_caffemodel(path, CaffeModel("n", [LayerWeights(k, "InnerProduct", blobs=v) for k, v in layers.items()]))
        return path

    return make


def values(net):
    return {name: [p.detach().numpy().copy() for p in params] for name, params in net.params.items()}


def test_report(net, model_file):
    blobs = [array(4, 3), array(4)]
    report = copy_from(net, model_file(a=blobs, other=[array(2, 2)], empty=[]))
    assert report.rows == [
        ("a", "(4, 3), (4,)", "loaded"),
        ("other", "(2, 2)", "not in the net"),
        ("b", "(5, 4), (5,)", "not in the file"),
    ]
    assert report.loaded == ["a"]
    assert report.summary().endswith("1 layers loaded, 1 layers not in the file, 1 layers not in the net")
    for ours, theirs in zip(values(net)["a"], blobs, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_legacy_shapes(net, model_file):
    blobs = [array(1, 1, 4, 3), array(1, 1, 1, 4)]
    copy_from(net, model_file(a=blobs))
    np.testing.assert_array_equal(values(net)["a"][0], blobs[0][0, 0])
    np.testing.assert_array_equal(values(net)["a"][1], blobs[1][0, 0, 0])


@pytest.mark.parametrize(
    ("layers", "layer", "message"),
    [
        ({"b": [(5, 3), (5,)]}, "b", r"parameter 0 has shape \(5, 3\) in the file and \(5, 4\) in the net"),
        ({"b": [(5, 4), (4,)]}, "b", r"parameter 1 has shape \(4,\)"),
        ({"b": [(5, 4)]}, "b", "has 1 parameters in the file and 2 in the net"),
        ({"b": [(1, 4, 1, 5), (5,)]}, "b", "parameter 0"),
        ({"b": [(1, 5, 4), (5,)]}, "b", "parameter 0"),
    ],
)
def test_nothing_is_copied_when_one_layer_does_not_fit(net, model_file, layers, layer, message):
    before = values(net)
    fitting = {"a": [array(4, 3), array(4)]}
    path = model_file(**fitting, **{name: [array(*s) for s in shapes] for name, shapes in layers.items()})
    with pytest.raises(WeightsError, match=message) as caught:
        copy_from(net, path)
    assert (caught.value.file, caught.value.layer) == (path, layer)
    for name, blobs in values(net).items():
        for old, new in zip(before[name], blobs, strict=True):
            np.testing.assert_array_equal(old, new)


def test_all_misfits_are_told(net, model_file):
    with pytest.raises(WeightsError) as caught:
        copy_from(net, model_file(a=[array(4, 2), array(5)], b=[array(1)]))
    text = str(caught.value)
    assert "parameter 0 has shape (4, 2) in the file and (4, 3) in the net, parameter 1 has shape (5,)" in text
    assert "layer 'b': has 1 parameters in the file and 2 in the net" in text


def test_check_lists_everything_and_needs_no_values(build, inputs_of, model_file):
    text = inputs_of(x=(2, 3)) + ip("a", "x", 4) + ip("b", "a", 5) + ip("c", "b", 5)
    net = build(text, "TEST", initialize=False)
    model = read_caffemodel(model_file(a=[array(4, 3), array(4)], b=[array(5, 3), array(5)], x=[array(2)]))
    report = check(net, model, "some.caffemodel")
    assert report.rows == [
        ("a", "(4, 3), (4,)", "loaded"),
        ("b", "(5, 3), (5,)", "mis-shaped: parameter 0 has shape (5, 3) in the file and (5, 4) in the net"),
        ("x", "(2,)", "not in the net"),
        ("c", "(5, 5), (5,)", "not in the file"),
    ]
    assert report.misfits == [("b", "parameter 0 has shape (5, 3) in the file and (5, 4) in the net")]
    assert report.summary() == (
        "some.caffemodel: 1 layers loaded, 1 layers not in the file, 1 layers not in the net, 1 layers mis-shaped"
    )


# ---- files of other kinds


@pytest.mark.parametrize("caffe_names", [False, True])
@pytest.mark.parametrize("write", [write_safetensors, write_pt, write_npz])
def test_named_arrays_of_caffe(net, build, inputs_of, tmp_path, write, caffe_names):
    other = build(inputs_of(x=(2, 3)) + ip("a", "x", 4) + ip("b", "a", 5))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    path = tmp_path / "weights"
    write(path, to_named(to_caffemodel(net), caffe_names=caffe_names))
    assert copy_from(other, path).loaded == ["a", "b"]
    for name, blobs in values(net).items():
        for old, new in zip(blobs, values(other)[name], strict=True):
            np.testing.assert_array_equal(old, new)


def test_tensors_of_pytorch(net, tmp_path):
    state = {"a.weight": array(4, 3), "a.bias": array(4), "head.weight": array(2, 2)}
    write_safetensors(tmp_path / "x.safetensors", NamedArrays(state))
    report = copy_from(net, tmp_path / "x.safetensors")
    assert report.rows == [
        ("a", "(4, 3), (4,)", "loaded"),
        ("head.weight", "(2, 2)", "not in the net"),
        ("b", "(5, 4), (5,)", "not in the file"),
    ]
    np.testing.assert_array_equal(values(net)["a"][0], state["a.weight"])
    del state["a.bias"]
    write_safetensors(tmp_path / "y.safetensors", NamedArrays(state))
    with pytest.raises(WeightsError, match="layer 'a': has 1 parameters in the file and 2 in the net"):
        copy_from(net, tmp_path / "y.safetensors")


def test_transposed_weights_of_pytorch(build, inputs_of, tmp_path):
    text = inputs_of(x=(2, 3)) + ip("a", "x", 4).replace("num_output", "transpose: true num_output")
    net, linear = build(text), torch.nn.Linear(3, 4)
    named = NamedArrays({f"a.{k}": v.detach().numpy() for k, v in linear.named_parameters()})
    write_safetensors(tmp_path / "x.safetensors", named)
    copy_from(net, tmp_path / "x.safetensors")
    x = torch.randn(2, 3)
    torch.testing.assert_close(net(x=x)["a"], linear(x))
    again = to_named(to_caffemodel(net))
    np.testing.assert_array_equal(again.arrays["a.weight"], named.arrays["a.weight"])


@pytest.mark.parametrize(
    ("content", "message"), [(SolverState(3), "holds a solver state"), (array(1, 3, 2, 2), "holds a mean image")]
)
def test_what_are_no_weights(net, content, message):
    with pytest.raises(WeightsError, match=message):
        check(net, content)
    with pytest.raises(WeightsError, match=message):
        check(net, to_named(content))


def test_unaligned_double_and_scattered(build, inputs_of, tmp_path):
    """Whatever lies where: bytes at an odd place of the file, doubles, a parameter with other strides."""
    text = inputs_of(x=(1, 2, 5, 5)) + 'layer { name: "c" type: "Convolution" bottom: "x" top: "c" '
    text += "convolution_param { num_output: 3 kernel_size: 2 } }"
    for extra in range(4):
        net = build(text)
        if extra == 3:
            net.params["c"][0].data = net.params["c"][0].data.to(memory_format=torch.channels_last)
        blobs = [array(3, 2, 2, 2), array(3).astype(np.float64)]
        write_caffemodel(tmp_path / "x", CaffeModel("n" * extra, [LayerWeights("c", "Convolution", blobs=blobs)]))
        copy_from(net, tmp_path / "x")
        for new, blob in zip(values(net)["c"], blobs, strict=True):
            np.testing.assert_array_equal(new, blob.astype(np.float32))


def test_a_file_of_another_net(net, model_file):
    with pytest.raises(WeightsError, match="no layer of the file is in the net") as caught:
        copy_from(net, model_file(conv1=[array(2, 2)], conv2=[array(2, 2)]))
    assert "the file has conv1, conv2; the net has a, b" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"\x00\x01garbage", b"name: 'text'"])
def test_a_file_of_another_kind(net, tmp_path, content):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(content)
    with pytest.raises(WeightsError):
        copy_from(net, path)
    with pytest.raises(WeightsError):
        copy_from(net, tmp_path / "absent.caffemodel")


def test_of_sharers_the_last_in_the_file_wins(build, inputs_of, model_file):
    share = 'param { name: "w" } param { name: "v" }'
    net = build(inputs_of(x=(2, 3)) + ip("a", "x", 3, share) + ip("b", "a", 3, share))
    last = [array(3, 3), array(3)]
    copy_from(net, model_file(a=[array(3, 3), array(3)], b=last))
    np.testing.assert_array_equal(values(net)["a"][0], last[0])


def test_to_caffemodel_and_back(net, build, inputs_of, tmp_path):
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, to_caffemodel(net))
    other = build(inputs_of(x=(2, 3)) + ip("a", "x", 4) + ip("b", "a", 5))
    with torch.no_grad():
        other.params["a"][0].fill_(7)
    assert copy_from(other, path).loaded == ["a", "b"]
    for name, blobs in values(net).items():
        for old, new in zip(blobs, values(other)[name], strict=True):
            np.testing.assert_array_equal(old, new)


def test_permissive_sharers_are_written_in_their_own_shapes(build, inputs_of):
    text = inputs_of(x=(2, 3)) + ip("a", "x", 4, 'param { name: "w" }')
    text += ip("b", "a", 3, 'param { name: "w" share_mode: PERMISSIVE }')
    layers = {layer.name: layer for layer in to_caffemodel(build(text)).layers}
    assert layers["a"].blobs[0].shape == (4, 3)
    assert layers["b"].blobs[0].shape == (3, 4)


def test_sharing_is_written_and_stored_once(build, inputs_of, tmp_path):
    share = 'param { name: "w" } param { name: "" }'
    text = inputs_of(x=(2, 3)) + ip("a", "x", 3, share) + ip("b", "a", 3, share)
    path = tmp_path / "net.caffemodel"
    write_caffemodel(path, to_caffemodel(build(text)))
    model = read_caffemodel(path)
    assert [layer.params for layer in model.layers if layer.blobs] == [["w"], ["w"]]
    for net in (None, prototxt.parse_net(text)):
        assert list(to_named(model, net=net).arrays) == ["a.weight", "a.bias", "b.bias"]


@pytest.mark.parametrize("run", ["e2e_ohem_small", "e2e_fast_rcnn_small"])
def test_layers_are_listed_as_caffe_does(golden_data, run):
    """Names, types, bottoms and tops of every layer of a snapshot that Caffe wrote, its automatic splits included."""
    folder = golden_data / run
    cfg = Config()
    ours = to_caffemodel(Net(folder / "train.prototxt", cfg=cfg))
    theirs = read_caffemodel(next(folder.glob("*_iter_8.caffemodel")))
    assert ours.name == theirs.name
    listed = [
        [(x.name, x.type, x.bottoms, x.tops, [b.shape for b in x.blobs]) for x in m.layers] for m in (ours, theirs)
    ]
    assert listed[0] == listed[1]
    assert any(kind == "Split" for _, kind, *_ in listed[0])
