"""Names, against the modules of PyTorch that take the tensors, and the way back, which loses nothing."""

import inspect
import json

import numpy as np
import pytest
import torch
from torch import nn

import prototxt
from converters import (
    CaffeModel,
    LayerWeights,
    SolverState,
    WeightsError,
    read_caffemodel,
    read_solverstate,
    write_caffemodel,
)
from converters.binaryproto import read_binaryproto
from converters.formats import kind_of, read
from converters.named import NamedArrays
from converters.naming import from_named, suffixes, to_named
from converters.naming.layer_types import known_names
from ohem_caffe_port.layers import LAYERS
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import to_caffemodel

RNG = np.random.default_rng(0)


def array(*shape, dtype=np.float32):
    return RNG.standard_normal(shape).astype(dtype)


def layer(type, *blobs, name="a", **rest):
    return LayerWeights(name, type, blobs=list(blobs), **rest)


def named_of(*layers, **options):
    return to_named(CaffeModel("net", list(layers)), **options)


def shapes_of(named):
    return {name: tensor.shape for name, tensor in named.arrays.items()}


def same(ours, theirs):
    """Both have the same bits, None included."""
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def same_models(ours, theirs):
    assert (ours.name, ours.shared_once) == (theirs.name, theirs.shared_once)
    assert len(ours.layers) == len(theirs.layers)
    for a, b in zip(ours.layers, theirs.layers, strict=True):
        same(a.blobs, b.blobs)
        assert {**vars(a), "blobs": 0} == {**vars(b), "blobs": 0}


# ---- PyTorch takes the tensors and computes the same


def ip(extra="", outputs=4):
    return f'type: "InnerProduct" inner_product_param {{ num_output: {outputs} {extra} }}'


class Lstm(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


class Rnn(nn.RNN):
    """Caffe's RNN has a layer more for its output."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.weight_ho = nn.Parameter(torch.empty(sizes[1], sizes[1]))
        self.bias_ho = nn.Parameter(torch.empty(sizes[1]))

    def forward(self, x):
        return torch.tanh(nn.functional.linear(super().forward(x)[0], self.weight_ho, self.bias_ho))


class Normed(nn.BatchNorm2d):
    def __init__(self, channels, affine):
        super().__init__(channels, affine=affine)
        self.eval()


CONV = "num_output: 6 kernel_size: 3 pad: 1 stride: 2"
MODULES = {
    "convolution": ((2, 4, 7, 7), f'type: "Convolution" convolution_param {{ {CONV} group: 2 }}',
                    lambda: nn.Conv2d(4, 6, 3, 2, 1, groups=2)),
    "without bias": ((2, 4, 7, 7), f'type: "Convolution" convolution_param {{ {CONV} bias_term: false }}',
                     lambda: nn.Conv2d(4, 6, 3, 2, 1, bias=False)),
    "depthwise": ((2, 6, 7, 7), f'type: "DepthwiseConvolution" convolution_param {{ {CONV} group: 6 }}',
                  lambda: nn.Conv2d(6, 6, 3, 2, 1, groups=6)),
    "deconvolution": ((2, 4, 5, 5), f'type: "Deconvolution" convolution_param {{ {CONV} group: 2 }}',
                      lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2)),
    "inner product": ((2, 5), ip(), lambda: nn.Linear(5, 4)),
    "transposed": ((2, 5), ip("transpose: true"), lambda: nn.Linear(5, 4)),
    "transposed square": ((2, 4), ip("transpose: true"), lambda: nn.Linear(4, 4)),
    "PReLU": ((2, 5, 3, 3), 'type: "PReLU"', lambda: nn.PReLU(5)),
    "shared PReLU": ((2, 5, 3, 3), 'type: "PReLU" prelu_param { channel_shared: true }', lambda: nn.PReLU(1)),
    "BatchNorm": ((2, 5, 3, 3), 'type: "BatchNorm"', lambda: Normed(5, False)),
    "NVIDIA's BatchNorm": ((2, 5, 3, 3), 'type: "BatchNorm" batch_norm_param { scale_bias: true }',
                           lambda: Normed(5, True)),
    "Intel's BatchNorm": ((2, 5, 3, 3), 'type: "BatchNorm" batch_norm_param { use_weight_bias: true }',
                          lambda: Normed(5, True)),
    "PSPNet's BN": ((2, 5, 3, 3), 'type: "BN"', lambda: Normed(5, True)),
    "embedding": ((2, 3), 'type: "Embed" embed_param { num_output: 4 input_dim: 9 bias_term: false }',
                  lambda: nn.Embedding(9, 4)),
    "LSTM": ((4, 2, 5), 'type: "LSTM" bottom: "cont" recurrent_param { num_output: 3 }', lambda: Lstm(5, 3)),
    "RNN": ((4, 2, 5), 'type: "RNN" bottom: "cont" recurrent_param { num_output: 3 }', lambda: Rnn(5, 3)),
}  # fmt: skip


@pytest.mark.parametrize("case", MODULES)
def test_pytorch_loads_strictly_and_computes_the_same(case):
    shape, text, module = MODULES[case]
    torch.manual_seed(0)
    spec = prototxt.parse_net(
        "".join(
            f'layer {{ name: "{n}" type: "Input" top: "{n}" input_param {{ shape {{ {dims} }} }} }}'
            for n, size in {"x": shape, "cont": shape[:2]}.items()
            for dims in [" ".join(f"dim: {d}" for d in size)]
        )
        + f'layer {{ name: "l" bottom: "x" top: "y" {text} }}'
    )
    net = Net(spec, "TEST")
    blobs = net.params["l"]
    with torch.no_grad():
        for blob in blobs:
            blob.uniform_(0.5, 1.5)
        if case == "NVIDIA's BatchNorm":
            blobs[2].fill_(1)  # that fork never uses another one
    x = torch.randint(0, 9, shape) if case == "embedding" else torch.randn(shape)
    with torch.no_grad():
        theirs = net(x=x.float(), cont=torch.ones(shape[:2]))["y"]
    named = to_named(to_caffemodel(net), net=spec)
    ours = module()
    state = {k.removeprefix("l."): torch.from_numpy(np.array(v)) for k, v in named.arrays.items()}
    ours.load_state_dict(state, strict=True)
    torch.testing.assert_close(ours(x).detach(), theirs, rtol=1e-5, atol=1e-6)
    # ...and back from what PyTorch saves, without metadata
    saved = {f"l.{k}": v.numpy() for k, v in ours.state_dict().items()}
    again = next(x for x in from_named(NamedArrays(saved), net=spec).layers if x.name == "l")
    for blob, given in zip(again.blobs, blobs, strict=True):
        assert blob.shape == given.shape
    if "BatchNorm" not in case:  # whose weight is 1 from then on
        same(again.blobs, [b.detach().numpy() for b in blobs])


# ---- names and shapes


@pytest.mark.parametrize(
    ("type", "shapes", "names"),
    [
        ("Convolution", [(1, 1, 3, 3), (1, 1, 1, 1)], {"weight": (1, 1, 3, 3), "bias": (1,)}),
        ("Convolution", [(8, 1, 1, 1), (1, 1, 1, 8)], {"weight": (8, 1, 1, 1), "bias": (8,)}),
        ("InnerProduct", [(1, 1, 4, 3), (1, 1, 1, 4)], {"weight": (4, 3), "bias": (4,)}),
        ("InnerProduct", [(1, 1, 1, 3), (1, 1, 1, 1)], {"weight": (1, 3), "bias": (1,)}),
        ("Embed", [(9, 4), (4,)], {"weight": (9, 4), "bias": (4,)}),
        ("Scale", [(3, 4, 5), (3, 4, 5)], {"weight": (3, 4, 5), "bias": (3, 4, 5)}),
        ("Bias", [(5,)], {"bias": (5,)}),
        ("Normalize", [()], {"weight": ()}),
        ("Local", [(4, 1, 27, 9), (1, 1, 4, 9)], {"weight": (4, 1, 27, 9), "bias": (1, 1, 4, 9)}),
        ("BN", [(1, 5, 1, 1)] * 2, {"weight": (5,), "bias": (5,)}),
        ("BatchNorm", [(5,), (5,), (1,), (5,)], {"running_mean": (5,), "running_var": (5,), "weight": (5,)}),
        ("CenterLoss", [(10, 64)], {"centers": (10, 64)}),
        ("ChannelScale", [(1,)], {"global_scale": (1,)}),
        ("LSTM", [(12, 5), (12,), (12, 7), (12, 3)], {"weight_ih_l0": (12, 5), "bias_ih_l0": (12,), "weight_static":
         (12, 7), "weight_hh_l0": (12, 3), "bias_hh_l0": (12,)}),
        # types nobody knows
        ("OctConv", [(8, 3, 3, 3), (8,)], {"weight": (8, 3, 3, 3), "bias": (8,)}),
        ("V1:77", [(1, 1, 8, 3), (1, 1, 1, 8)], {"weight": (8, 3), "bias": (8,)}),
        ("Something", [(8, 3, 3, 3)], {"weight": (8, 3, 3, 3)}),
        ("Something", [(8, 3), (3, 8)], {"0": (8, 3), "1": (3, 8)}),
        ("Something", [(5,), (5,), (1,)], {"0": (5,), "1": (5,), "2": (1,)}),
        ("Convolution", [(8, 3), (8,), (1,)], {"0": (8, 3), "1": (8,), "2": (1,)}),
        ("", [(5,), (5,), (1,)], {"running_mean": (5,), "running_var": (5,)}),  # HDF5
    ],
)  # fmt: skip
def test_names_and_shapes(type, shapes, names):
    model = CaffeModel("net", [layer(type, *(array(*shape) for shape in shapes))])
    named = to_named(model)
    assert shapes_of(named) == {f"a.{name}": shape for name, shape in names.items()}
    same_models(from_named(named), model)
    numbered = to_named(model, caffe_names=True)
    same(list(numbered.arrays.values()), model.layers[0].blobs)
    assert list(numbered.arrays) == [f"a.{j}" for j in range(len(shapes))]
    same_models(from_named(numbered), model)


@pytest.mark.parametrize(
    "type",
    [t for t in LAYERS if hasattr(LAYERS[t], "setup") and "self.add_blob(" in inspect.getsource(LAYERS[t].setup)],
)
def test_every_layer_with_parameters_has_names(type):
    assert known_names(type)


def test_suffixes():
    assert suffixes("BatchNorm", 3) == ["running_mean", "running_var", "scale_factor"]
    assert suffixes("Unknown", 2) == ["0", "1"]
    assert suffixes("Unknown", 2, [(8, 3), (8,)]) == ["weight", "bias"]


def test_a_scale_layer_of_two_bottoms_has_a_bias():
    assert list(named_of(layer("Scale", array(5), bottoms=["x", "s"])).arrays) == ["a.bias"]


def test_arrays_are_not_copied():
    blobs = [array(1, 1, 4, 3), array(1, 1, 1, 4)]
    for tensor, blob in zip(named_of(layer("InnerProduct", *blobs)).arrays.values(), blobs, strict=True):
        assert np.shares_memory(tensor, blob)


def test_odd_layer_names_lose_nothing():
    names = ["conv1/3x3", "block.1", "a", "a", "a#2", "", "", "unnamed", "\udcff", "ü"]
    model = CaffeModel("net", [layer("PReLU", array(3), name=name) for name in names])
    model.layers.insert(3, LayerWeights("a", "ReLU"))
    named = to_named(model)
    assert [name.removesuffix(".weight") for name in named.arrays] == (
        ["conv1/3x3", "block.1", "a", "a#2", "a#2#2", "unnamed", "unnamed#2", "unnamed#3", "\\udcff", "ü"]
    )
    "".join([*named.arrays, *named.metadata.values()]).encode()
    same_models(from_named(named), model)


# ---- BatchNorm


@pytest.mark.parametrize("factor", [1, 999.98236, 0, 1e-30, np.nan, -2.5])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_statistics_as_caffe_uses_them(factor, dtype):
    blobs = [array(40, dtype=dtype), array(40, dtype=dtype), np.array([factor], dtype)]
    model = CaffeModel("net", [layer("BatchNorm", *blobs, name="bn")])
    named = to_named(model)
    assert list(named.arrays) == ["bn.running_mean", "bn.running_var"]
    scale = dtype(0) if factor == 0 else dtype(1) / blobs[2][0]
    same(list(named.arrays.values()), [blobs[0] * scale, blobs[1] * scale])
    same_models(from_named(named), model)


def test_two_of_them_in_hdf5(tmp_path):
    one = np.ones(1, np.float32)
    model = CaffeModel("", [layer("BatchNorm", array(4), array(4), one.copy(), name=name) for name in "ab"])
    write_caffemodel(tmp_path / "x.h5", from_named(to_named(model)))
    again = read_caffemodel(tmp_path / "x.h5")
    for ours, theirs in zip(again.layers, model.layers, strict=True):
        same(ours.blobs, theirs.blobs)


def test_edited_statistics_win():
    model = CaffeModel("net", [layer("BatchNorm", array(4), array(4), np.float32([7]), name="bn")])
    named = to_named(model)
    named.arrays["bn.running_mean"] = array(4)
    same(from_named(named).layers[0].blobs, [*named.arrays.values(), np.float32([1])])


def test_edited_tensors_keep_their_own_shape():
    named = named_of(layer("InnerProduct", array(1, 1, 4, 3), array(1, 1, 1, 4)))
    named.arrays = {"a.weight": array(9, 3), "a.bias": array(9).astype(np.float16)}
    blobs = from_named(named).layers[0].blobs
    same(blobs, [named.arrays["a.weight"], named.arrays["a.bias"].astype(np.float32)])


# ---- sharing


def sharers(copies, params=("w", ""), type="InnerProduct"):
    return CaffeModel(
        "net",
        [layer(type, *blobs, name=name, params=list(params)) for name, blobs in zip("abc", copies, strict=False)],
    )


def test_shared_tensors_come_once():
    weight, biases = array(3, 3), [array(3), array(3)]
    model = sharers([[weight, biases[0]], [weight.copy(), biases[1]]])
    named = to_named(model)
    assert list(named.arrays) == ["a.weight", "a.bias", "b.bias"]
    assert not named.notes
    again = from_named(named)
    same_models(again, model)
    assert np.shares_memory(again.layers[0].blobs[0], again.layers[1].blobs[0])


def test_equal_values_alone_are_no_sharing():
    zeros = np.zeros(3, np.float32)
    model = CaffeModel("net", [layer("PReLU", zeros, name=name, params=["" * (name == "a")]) for name in "ab"])
    assert list(to_named(model).arrays) == ["a.weight", "b.weight"]


def test_the_last_copy_counts_and_is_told():
    model = sharers([[array(3, 4), array(3)], [array(4, 3), array(4)], [array(2, 2), array(2)]])
    named = to_named(model)
    assert len(named.notes) == 2
    assert "layer 'b': its copy of 'w' differs from a's" in named.notes[0]
    assert "layer 'c': 'w' is (2, 2), in a (3, 4): not shared" in named.notes[1]
    same([named.arrays["a.weight"]], [model.layers[1].blobs[0].reshape(3, 4)])
    a, b, c = from_named(named).layers
    same([a.blobs[0], b.blobs[0], c.blobs[0]], [named.arrays["a.weight"], model.layers[1].blobs[0], array_of(model, 2)])


def array_of(model, i):
    return model.layers[i].blobs[0]


def test_tied_weights_of_an_autoencoder():
    """One tensor, read as it is by one layer and transposed by the other."""
    weight = array(4, 3)
    model = sharers([[weight], [weight]])
    model.layers[1].transposed = True
    named = to_named(model)
    assert shapes_of(named) == {"a.weight": (4, 3)}
    same_models(from_named(named), model)
    model.layers.reverse()
    named = to_named(model)
    assert shapes_of(named) == {"b.weight": (3, 4)}
    same_models(from_named(named), model)


@pytest.mark.parametrize("params", [["m", "v", "f"], ["m", "v"], ["m", "", "f", "s"], ["", "", "", "s", "b"]])
def test_shared_batch_norm(params):
    blobs = [array(4), array(4), np.float32([3]), array(4), array(4)]
    others = [b if name else array(*b.shape) for b, name in zip(blobs, [*params, "", ""], strict=False)]
    model = sharers([blobs, others], params, "BatchNorm")
    named = to_named(model)
    assert not named.notes
    same_models(from_named(named), model)
    if len(params) == 3:
        assert "b.running_mean" not in named.arrays
    named.arrays["a.running_mean" if "a.running_mean" in named.arrays else "a.0"] += 1
    a, b = (x.blobs[0] for x in from_named(named).layers)
    assert np.array_equal(a, b) == bool(params[0])


def test_shared_lstm():
    blobs = [array(12, 5), array(12), array(12, 3)]
    model = sharers([blobs, blobs], ["x", "b", "h"], "LSTM")
    named = to_named(model)
    assert {name[0] for name in named.arrays} == {"a"}
    same_models(from_named(named), model)
    named.arrays["a.bias_hh_l0"] = array(12)
    a, b = (x.blobs[1].reshape(4, 3) for x in from_named(named).layers)
    both = (named.arrays["a.bias_ih_l0"] + named.arrays["a.bias_hh_l0"]).reshape(4, 3)
    same([a, b], [both[[0, 1, 3, 2]]] * 2)


SHARING = """
name: "tied"
layer { name: "z" type: "InnerProduct" bottom: "x" top: "z" param { name: "w" } inner_product_param { num_output: 3 } }
layer { name: "s" type: "Sigmoid" bottom: "z" top: "s" }
layer { name: "b" type: "InnerProduct" bottom: "s" top: "b" param { name: "w" } inner_product_param { num_output: 3 } }
"""


def test_hdf5_with_a_net():
    """It tells which tensor the file has left out, the order and the types."""
    net = prototxt.parse_net(SHARING)
    weight, biases = array(3, 3), [array(3), array(3)]
    file = CaffeModel(
        "",
        [
            LayerWeights("b", "", blobs=[None, biases[1]]),
            LayerWeights("s", ""),
            LayerWeights("z", "", blobs=[weight, biases[0]]),
        ],
        shared_once=True,
    )
    blind = to_named(file)
    same_models(from_named(blind), file)
    assert list(to_named(file, net=net).arrays) == ["z.weight", "z.bias", "b.bias"]
    for model in (from_named(to_named(file, net=net)), from_named(blind, net=net)):
        assert model.name == "tied"
        assert [(x.name, x.type, x.bottoms) for x in model.layers] == [
            ("z", "InnerProduct", ["x"]), ("s", "Sigmoid", ["z"]), ("b", "InnerProduct", ["s"])
        ]  # fmt: skip
        same(model.layers[0].blobs, [weight, biases[0]])
        same(model.layers[2].blobs, [weight, biases[1]])


def test_all_blobs_under_another_layer():
    net = prototxt.parse_net(SHARING.replace("} inner", '} param { name: "v" } inner'))
    blobs = [array(3, 3), array(3)]
    file = CaffeModel("", [LayerWeights("b", ""), LayerWeights("z", "", blobs=blobs)], shared_once=True)
    model = from_named(to_named(file, net=net))
    same(model.layers[1].blobs, blobs)


# ---- tensors of PyTorch


RESNET = """
layer { name: "conv" type: "Convolution" bottom: "x" top: "c" convolution_param { num_output: 4 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "scale" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "fc" type: "InnerProduct" bottom: "c" top: "y" inner_product_param { num_output: 2 } }
"""


def resnet(**changes):
    module = nn.Module()
    module.conv, module.bn, module.fc = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Linear(4, 2)
    state = {name: tensor.detach().numpy() for name, tensor in module.state_dict().items()}
    state |= {name.replace("__", "."): value for name, value in changes.items()}
    return NamedArrays({name: value for name, value in state.items() if value is not None})


def test_batch_norm_of_pytorch_becomes_two_layers():
    named = resnet(bn__weight=array(4), bn__bias=array(4), bn__running_mean=array(4))
    model = from_named(named, net=prototxt.parse_net(RESNET))
    assert [(x.name, len(x.blobs)) for x in model.layers] == (
        [("conv", 1), ("bn", 3), ("scale", 2), ("relu", 0), ("fc", 2)]
    )
    of = named.arrays
    same(model.layers[1].blobs, [of["bn.running_mean"], of["bn.running_var"], np.float32([1])])
    same(model.layers[2].blobs, [of["bn.weight"], of["bn.bias"]])


def test_missing_and_superfluous_tensors_are_all_named():
    named = resnet(fc__bias=None, conv__bias=array(4), other__weight=array(1), bn__running_var=None)
    with pytest.raises(WeightsError) as caught:
        from_named(named, net=prototxt.parse_net(RESNET))
    assert "missing: bn.running_var, fc.bias; of no use: conv.bias, other.weight" in str(caught.value)


def test_numbers_are_names_too():
    named = NamedArrays({"conv.0": array(4, 3, 1, 1), "bn.0": array(4), "bn.1": array(4), "bn.2": np.float32([9]),
                         "scale.0": array(4), "scale.1": array(4), "fc.0": array(2, 4), "fc.1": array(2)})  # fmt: skip
    model = from_named(named, net=prototxt.parse_net(RESNET))
    same([b for x in model.layers for b in x.blobs], list(named.arrays.values()))


def test_shared_tensors_of_pytorch_may_stand_once():
    net = prototxt.parse_net(SHARING)
    tensors = {"z.weight": array(3, 3), "z.bias": array(3), "b.bias": array(3)}
    z, _, b = from_named(NamedArrays(tensors), net=net).layers
    same([*z.blobs, *b.blobs], [tensors[name] for name in ("z.weight", "z.bias", "z.weight", "b.bias")])


def test_neither_metadata_nor_net():
    with pytest.raises(WeightsError, match="Give the net's prototxt"):
        from_named(resnet())
    mean = array(1, 3, 4, 4)
    assert from_named(NamedArrays({"mean": mean})) is mean


# ---- metadata


def test_solver_state_and_mean(tmp_path):
    state = SolverState(7, "a\udcff.caffemodel", [array(3), array(2, 2, dtype=np.float64)], 2, 0.25, 5)
    named = to_named(state)
    assert list(named.arrays) == ["history.0", "history.1"]
    again = from_named(named)
    same(again.history, state.history)
    assert {**vars(again), "history": 0} == {**vars(state), "history": 0}
    mean = array(1, 3, 4, 4)
    named = to_named(mean)
    assert list(named.arrays) == ["mean"]
    assert from_named(named) is mean
    with pytest.raises(WeightsError, match="gaps"):
        to_named(SolverState(history=[None]))


def test_tensors_that_do_not_fit_the_metadata():
    named = named_of(layer("InnerProduct", array(4, 3), array(4)))
    named.arrays = {"a.weight": array(4, 3), "b.bias": array(4)}
    with pytest.raises(WeightsError, match=r"missing: a\.bias; of no use: b\.bias"):
        from_named(named)


def test_damaged_metadata_are_one_clear_error():
    model = sharers([[array(12, 5), array(12), array(12, 3)]] * 2, ["x", "b", "h"], "LSTM")
    model.layers += [layer("BatchNorm", array(3), array(3), np.float32([2]), name="bn")]
    good = to_named(model)
    rng = np.random.default_rng(1)
    values = ["1", '"x"', "[]", "{}", "null", "-3", "1e99", "[[", "true"]
    refused = 0
    for _ in range(2000):
        text = good.metadata["layers"]
        at = int(rng.integers(len(text)))
        text = text[:at] + values[rng.integers(len(values))] + text[at + int(rng.integers(20)) :]
        try:
            from_named(NamedArrays(good.arrays, {**good.metadata, "layers": text}))
        except WeightsError:
            refused += 1
    assert refused > 1000
    for text in ("[" * 100_000, "7", "[7]", '[{"blobs":7}]', '[{"name":7}]', '[{"blobs":[{"tensor":[]}]}]'):
        with pytest.raises(WeightsError):
            from_named(NamedArrays(good.arrays, {**good.metadata, "layers": text}))
    for key, text in {"iter": '"x"', "learned_net": "7", "minimum_loss": "[]", "current_step": "{"}.items():
        with pytest.raises(WeightsError, match="damaged"):
            from_named(NamedArrays({}, {"kind": "solverstate", key: text}))


def test_metadata_are_text_that_tells_types():
    named = named_of(layer("Convolution", array(2, 2, 1, 1), bottoms=["x"], tops=["y"]))
    assert named.metadata["net"] == "net"
    assert json.loads(named.metadata["layers"]) == [
        {"name": "a", "type": "Convolution", "bottoms": ["x"], "tops": ["y"], "blobs": [{"tensor": "a.weight"}]}
    ]


# ---- real files


@pytest.mark.parametrize("caffe_names", [False, True])
def test_real_files_come_back_to_the_bit(shared, caffe_names):
    files = [p for p in sorted((shared / "weights").rglob("*")) if p.suffix in (".caffemodel", ".h5", ".solverstate")]
    files += sorted((shared / "golden").glob("*/*.caffemodel")) + [*(shared / "weights").rglob("*iter_5000")]
    for path in files:
        content = read(path)
        again = from_named(to_named(content, caffe_names=caffe_names))
        if isinstance(content, CaffeModel):
            same_models(again, content)
        else:
            same(again.history, content.history)
    means = list((shared / "weights").rglob("*.binaryproto"))
    for path in means:
        same([from_named(to_named(read_binaryproto(path)))], [read_binaryproto(path)])
    assert len(files) > 50
    assert len(means) == 3


def test_ohem_snapshots_have_their_shared_layers_once(shared):
    model = read_caffemodel(shared / "golden/e2e_ohem_small/vgg_cnn_m_1024_fast_rcnn_iter_8.caffemodel")
    named = to_named(model)
    assert not named.notes
    assert sum(len(x.blobs) for x in model.layers) == 26
    assert len(named.arrays) == 18
    assert {"fc6.weight", "fc6_readonly.weight"} & set(named.arrays) == {"fc6_readonly.weight"}


def test_tests_own_files(run_folder):
    model = read_caffemodel(run_folder / "initial.caffemodel")
    same_models(from_named(to_named(model)), model)
    state = read_solverstate(run_folder / "snap_iter_5.solverstate")
    same(from_named(to_named(state)).history, state.history)
    assert kind_of(run_folder / "snap_iter_5.solverstate") == "solverstate"
