import numpy as np
import pytest
import torch

from converters import CaffeModel, LayerWeights, WeightsError, read_caffemodel, write_caffemodel
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from, to_caffemodel

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
