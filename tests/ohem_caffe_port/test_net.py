import math

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net

IP = 'layer {{ name: "{0}" type: "InnerProduct" bottom: "{1}" top: "{0}" {2} inner_product_param {{ num_output: {3} ' \
     'weight_filler {{ type: "gaussian" std: 1 }} }} }}\n'  # fmt: skip


def ip(name, bottom, outputs=2, params=""):
    return IP.format(name, bottom, params, outputs)


def loss(bottom, target="t", name="loss", extra=""):
    bottoms = f'bottom: "{bottom}" bottom: "{target}"'
    return f'layer {{ name: "{name}" type: "EuclideanLoss" {bottoms} top: "{name}" {extra} }}\n'


def blob(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- inputs

SPELLINGS = {
    "Input layer": 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 5 } } }',
    "input_shape": 'input: "x" input_shape { dim: 2 dim: 3 dim: 4 dim: 5 }',
    "input_dim": 'input: "x" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 5',
    "input_param for all tops": 'layer { name: "x" type: "Input" top: "x" top: "y" input_param { shape { dim: 2 dim: 3 '
    'dim: 4 dim: 5 } } } layer { name: "s" type: "Silence" bottom: "y" }',
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_input_spellings(build, spelling):
    net = build(SPELLINGS[spelling] + ' layer { name: "r" type: "ReLU" bottom: "x" top: "r" }')
    assert net.inputs[0] == "x"
    assert net.shapes[0] == (2, 3, 4, 5)
    x = blob(2, 3, 4, 5)
    out = net(**dict.fromkeys(net.inputs, x))
    assert torch.equal(out["r"], x.clamp(min=0))
    assert net(**dict.fromkeys(net.inputs, x[:1, :, :2]))["r"].shape == (1, 3, 2, 5), "another shape may follow"


def test_data_layer_needs_no_inputs(build, feed):
    net = build(feed(x=[[1, -1], [2, -2]]) + 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" }')
    assert [net()["r"].tolist() for _ in range(3)] == [[1, 0], [2, 0], [1, 0]]


@pytest.mark.parametrize(("given", "said"), [({}, r"missing \['x'\]"), ({"x": 0, "z": 0}, r"unknown \['z'\]")])
def test_wrong_inputs(build, inputs_of, given, said):
    net = build(inputs_of(x=(1, 2)) + ip("a", "x"))
    with pytest.raises(PortError, match=said):
        net(**given)


# ---- graph


def test_phases(build, inputs_of):
    text = inputs_of(x=(1, 4)) + "".join(
        f'layer {{ name: "{phase}" type: "ReLU" bottom: "x" top: "{phase}" include {{ phase: {phase} }} }}'
        for phase in ("TRAIN", "TEST")
    )
    assert build(text).outputs == ["TRAIN"]
    assert build(text, "TEST").outputs == ["TEST"]


def test_state_in_the_file_is_merged(build, inputs_of):
    text = (
        inputs_of(x=(1, 4))
        + 'layer { name: "r" type: "ReLU" bottom: "x" top: "r" include { stage: "s" min_level: 2 } }'
    )
    assert build(text).outputs == ["x"]
    assert build(text, stages=["s"], level=2).outputs == ["r"]
    assert build('state { stage: "s" level: 2 }' + text).outputs == ["r"]
    # as Net::Init merges them: stages add up, the later level counts
    assert build('state { stage: "s" level: 2 }' + text, level=1).outputs == ["x"]
    assert build('state { stage: "t" level: 2 }' + text, stages=["s"]).outputs == ["r"]


def test_two_layers_of_one_name(build, inputs_of):
    """Caffe lets it pass; weights load into the first."""
    twice = 'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "%s" inner_product_param { num_output: %d } }'
    net = build(inputs_of(x=(1, 4)) + twice % ("a", 2) + twice % ("b", 3))
    assert "two layers are named 'ip'; weights load into the first" in net.warnings
    assert [tuple(p.shape) for p in net.params["ip"]] == [(2, 4), (2,)]
    assert len(net.learnable_params) == 4


def test_phase_must_exist():
    with pytest.raises(PortError, match="TRAIN or TEST"):
        Net(prototxt.parse_net('layer { name: "x" type: "Input" top: "x" }'), "train")


def test_no_layer_is_left(build):
    with pytest.raises(PortError, match="no layer is left in phase TEST"):
        build('layer { name: "x" type: "ReLU" include { phase: TRAIN } }', "TEST")


def test_in_place_chain_and_split_readers(build, inputs_of):
    """y = relu(ip(x)) in place, read twice: later readers see the new value and their gradients add up."""
    text = inputs_of(x=(3, 4), t=(3, 2)) + ip("y", "x", 5)
    text += 'layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }' + ip("a", "y") + ip("b", "y")
    text += 'layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "s" }' + loss("s")
    net = build(text)
    x, t = blob(3, 4), blob(3, 2, seed=1)
    net(x=x, t=t)
    net.backward()
    (wy, by), (wa, ba), (wb, bb) = ([p.detach().clone().requires_grad_() for p in net.params[n]] for n in "yab")
    y = (x @ wy.t() + by).clamp(min=0)
    expected = ((y @ wa.t() + ba + y @ wb.t() + bb - t) ** 2).sum() / 3 / 2
    expected.backward()
    assert net.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert torch.equal(net.blobs["y"], y)
    for name, weight in (("y", wy), ("a", wa), ("b", wb)):
        torch.testing.assert_close(net.params[name][0].grad, weight.grad)


@pytest.mark.parametrize("maker", ["Sigmoid", "TanH", "Softmax", "Dropout"])
def test_in_place_over_a_value_that_backward_needs(build, inputs_of, maker):
    """Two in-place layers over a layer whose backward reads its own top."""
    text = inputs_of(x=(3, 4), t=(3, 4)) + ip("y", "x", 4)
    text += f'layer {{ name: "m" type: "{maker}" bottom: "y" top: "m" }}'
    text += 'layer { name: "r" type: "ReLU" bottom: "m" top: "m" relu_param { negative_slope: 0.5 } }' + loss("m")
    separate = text.replace('bottom: "m" top: "m"', 'bottom: "m" top: "r"').replace(
        'bottom: "m" bottom', 'bottom: "r" bottom'
    )
    grads = []
    for spelling in (text, separate):
        torch.manual_seed(0)
        net = build(spelling)
        net(x=blob(3, 4), t=blob(3, 4, seed=1))
        net.backward()
        grads.append(net.params["y"][0].grad)
    assert grads[0].any()
    assert torch.equal(*grads)


def test_a_split_value_survives_an_in_place_reader(build, inputs_of):
    text = inputs_of(x=(2, 3)) + ip("y", "x", 3) + 'layer { name: "c" type: "Concat" bottom: "y" bottom: "y" top: "c" }'
    text += 'layer { name: "r" type: "ReLU" bottom: "y" top: "y" }'
    net = build(text)
    net(x=-blob(2, 3))
    assert torch.equal(net.blobs["y"], net.blobs["c"][:, :3].clamp(min=0))
    assert (net.blobs["c"] < 0).any()


def test_the_callers_input_is_never_overwritten(build, inputs_of):
    x = blob(2, 3)
    before = x.clone()
    build(inputs_of(x=(2, 3)) + 'layer { name: "r" type: "ReLU" bottom: "x" top: "x" }')(x=x)
    assert torch.equal(x, before)


def test_outputs_are_what_nobody_reads(build, inputs_of):
    net = build(inputs_of(x=(2, 3)) + ip("a", "x") + ip("b", "x") + ip("c", "a"))
    assert net.outputs == ["b", "c"]
    assert list(net(x=blob(2, 3))) == ["b", "c"]
    net = build(inputs_of(x=(2, 3)) + ip("b", "x") + ip("C", "x") + ip("a", "x"))
    assert net.outputs == ["C", "a", "b"], "in the order of Caffe's set of names"


# ---- loss


def test_loss_weights(build, inputs_of):
    text = inputs_of(x=(2, 3), t=(2, 3)) + loss("x", extra="loss_weight: 3") + loss("x", name="other")
    text += 'layer { name: "sum" type: "Sigmoid" bottom: "x" top: "s" loss_weight: 0.5 }'
    text += loss("x", name="off", extra="loss_weight: 0")
    net = build(text)
    x, t = blob(2, 3), blob(2, 3, seed=1)
    net(x=x, t=t)
    single = ((x - t) ** 2).sum().item() / 4
    assert list(net.losses) == ["loss", "other", "s"]
    assert net.losses["loss"].item() == pytest.approx(single, rel=1e-6)
    assert net.loss.item() == pytest.approx(4 * single + 0.5 * torch.sigmoid(x).sum().item(), rel=1e-6)


def test_a_loss_without_a_top_gets_one(build, inputs_of):
    text = inputs_of(x=(2, 3), t=(2, 3)) + 'layer { name: "l" type: "EuclideanLoss" bottom: "x" bottom: "t" }'
    net = build(text)
    assert net(x=torch.ones(2, 3), t=torch.zeros(2, 3)) == {}, "a top without a name is no output"
    assert net.loss.item() == pytest.approx(1.5)


@pytest.mark.parametrize(("weight", "slope"), [("", 3), ("loss_weight: 2", 2 + 3)])
def test_a_loss_that_another_layer_reads(build, inputs_of, weight, slope):
    """Without a stated weight, Caffe's reader writes its gradient over the loss's own."""
    text = inputs_of(x=(2, 3), t=(2, 2)) + ip("a", "x") + loss("a", extra=weight)
    net = build(
        text + 'layer { name: "p" type: "Power" bottom: "loss" top: "p" power_param { scale: 3 } loss_weight: 1 }'
    )
    x, t = blob(2, 3), blob(2, 2, seed=1)
    net(x=x, t=t)
    net.backward()
    a = net.blobs["a"].detach()
    torch.testing.assert_close(net.params["a"][1].grad, slope * (a - t).sum(0) / 2)


def test_a_loss_that_trains_nothing_is_told(build, inputs_of):
    silence = 'layer { name: "s" type: "Silence" bottom: "loss" }'
    text = inputs_of(x=(2, 3), t=(2, 2)) + ip("a", "x") + loss("a") + silence
    assert "layer 'loss': trains nothing" in build(text).warnings[0]
    assert not build(text.replace('top: "loss"', 'top: "loss" loss_weight: 1')).warnings


def test_a_loss_with_two_tops_needs_two_weights(build, inputs_of):
    text = (
        inputs_of(x=(2, 3), t=(2,))
        + """layer { name: "l" type: "SoftmaxWithLoss" bottom: "x" bottom: "t" top: "l"
        top: "p" """
    )
    assert build(text + "loss_weight: 1 loss_weight: 0 }").outputs == ["l", "p"]
    with pytest.raises(PortError, match="loss_weight: no values for 2 tops"):
        build(text + "}")


@pytest.mark.parametrize("weights", ["loss_weight: 1 loss_weight: 1"])
def test_wrong_number_of_loss_weights(build, inputs_of, weights):
    with pytest.raises(PortError, match="2 values for 1 tops"):
        build(inputs_of(x=(2, 3), t=(2, 3)) + loss("x", extra=weights))


def test_a_net_without_loss(build, inputs_of):
    net = build(inputs_of(x=(2, 3)) + ip("a", "x"))
    net(x=blob(2, 3))
    net.backward()
    assert net.loss.item() == 0
    assert net.params["a"][0].grad is None


# ---- who gets a gradient


def grads_after(net, **inputs):
    net(**inputs)
    net.backward()
    return {name: [p.grad is not None for p in params] for name, params in net.params.items()}


def test_propagate_down_and_lr_mult(build, inputs_of):
    text = inputs_of(x=(2, 3), t=(2, 2))
    text += (
        ip("a", "x")
        + ip("b", "a", params="propagate_down: false param { lr_mult: 0 } param { lr_mult: 2 }")
        + loss("b")
    )
    net = build(text)
    assert grads_after(net, x=blob(2, 3), t=blob(2, 2)) == {"a": [False, False], "b": [False, True]}


def test_frozen_layers_below_run_without_autograd(build, inputs_of):
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    text = inputs_of(x=(2, 3), t=(2, 2)) + ip("a", "x", params=frozen) + ip("b", "a") + loss("b")
    net = build(text)
    net(x=blob(2, 3), t=blob(2, 2))
    assert not net.blobs["a"].requires_grad
    assert net.blobs["b"].requires_grad


def test_a_frozen_layer_above_lets_the_gradient_through(build, inputs_of):
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    net = build(inputs_of(x=(2, 3), t=(2, 2)) + ip("a", "x") + ip("b", "a", params=frozen) + loss("b"))
    assert grads_after(net, x=blob(2, 3), t=blob(2, 2)) == {"a": [True, True], "b": [False, False]}


def test_force_backward(build, inputs_of):
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    text = "force_backward: true " + inputs_of(x=(2, 3), t=(2, 2)) + ip("a", "x", params=frozen) + loss("a")
    net = build(text)
    grads_after(net, x=blob(2, 3), t=blob(2, 2, seed=1))
    a, t = net.blobs["a"].detach(), net.blobs["t"].detach()
    assert torch.allclose(net.blobs["x"].grad, (a - t) / 2 @ net.params["a"][0].detach())
    assert net.blobs["t"].grad is not None, "EuclideanLoss lets force_backward reach its second bottom"
    assert net.params["a"][0].grad is not None


# ---- shared parameters

W, B = 'param {{ name: "w" {} }}', 'param {{ name: "b" {} }}'


def shared_net(inputs_of, first="", second="", outputs=(3, 3)):
    params = [W.format(extra) + B.format("") for extra in (first, second)]
    text = inputs_of(x=(2, 3), t=(2, outputs[1]))
    return text + ip("a", "x", outputs[0], params[0]) + ip("b", "a", outputs[1], params[1]) + loss("b")


def test_sharers_hold_one_tensor(build, inputs_of):
    net = build(shared_net(inputs_of))
    assert net.params["a"][0] is net.params["b"][0]
    assert [(p.owner, p.users) for p in net.learnable_params] == [
        ("a[0]", [("a", 0), ("b", 0)]), ("a[1]", [("a", 1), ("b", 1)]),
    ]  # fmt: skip
    x, t = blob(2, 3), blob(2, 3, seed=1)
    net(x=x, t=t)
    net.backward()
    w, b = (p.detach().clone().requires_grad_() for p in net.params["a"])
    (((x @ w.t() + b) @ w.t() + b - t) ** 2).sum().div(4).backward()
    torch.testing.assert_close(net.params["a"][0].grad, w.grad)
    torch.testing.assert_close(net.params["a"][1].grad, b.grad)


@pytest.mark.parametrize(
    ("first", "second", "lr", "decay"),
    [
        ("", "", 1, 1),
        ("lr_mult: 3", "", 3, 1),
        ("", "lr_mult: 3 decay_mult: 0", 3, 0),
        ("lr_mult: 3", "lr_mult: 3 decay_mult: 2", 3, 2),
        ("lr_mult: 0", "", 0, 1),
    ],
)
def test_any_sharer_may_state_the_multipliers(build, inputs_of, first, second, lr, decay):
    param = build(shared_net(inputs_of, first, second)).learnable_params[0]
    assert (param.lr_mult, param.decay_mult) == (lr, decay)


@pytest.mark.parametrize("multiplier", ["lr_mult", "decay_mult"])
def test_sharers_must_agree(build, inputs_of, multiplier):
    with pytest.raises(PortError, match="2.0 for shared 'w', but an earlier layer says 1.0") as caught:
        build(shared_net(inputs_of, f"{multiplier}: 1", f"{multiplier}: 2"))
    assert (caught.value.layer, caught.value.field) == ("b", f"param[0].{multiplier}")


def test_shapes_of_sharers(build, inputs_of):
    with pytest.raises(PortError, match=r"shares 'w' with a\[0\], whose shape is \(3, 3\); here it is \(2, 3\)"):
        build(shared_net(inputs_of, outputs=(3, 2)))


def test_permissive_sharing_counts_elements_only(build, inputs_of):
    text = inputs_of(x=(2, 3)) + ip("a", "x", 4, W.format(""))
    text += ip("b", "a", 3, W.format("share_mode: PERMISSIVE"))
    net = build(text)
    out = net(x=torch.ones(2, 3))["b"]
    w = net.params["a"][0].detach()
    expected = (torch.ones(2, 3) @ w.t() + net.params["a"][1].detach()) @ w.view(3, 4).t() + net.params["b"][1].detach()
    assert torch.allclose(out, expected)
    with pytest.raises(PortError, match="shares 'w'"):
        build(text.replace("share_mode: PERMISSIVE", "share_mode: STRICT"))
    with pytest.raises(PortError, match="shares 'w'"):
        build(text.replace("num_output: 3", "num_output: 5"))


def test_too_many_params(build, inputs_of):
    with pytest.raises(PortError, match="3 given, but the layer has 2 parameters"):
        build(inputs_of(x=(2, 3)) + ip("a", "x", params="param {} param {} param {}"))


# ---- complaints

BAD_NETS = {
    "unknown bottom": ('"ReLU" bottom: "xx" top: "y"', "no earlier layer makes bottom 'xx'"),
    "unknown type": ('"Convolutoin" bottom: "x" top: "y"', "did you mean 'Convolution'"),
    "unknown Python layer": (
        '"Python" top: "y" python_param { module: "roi_data_layer.layer" layer: "RoIDataLayr" }',
        "unknown Python layer roi_data_layer.layer.RoIDataLayr; did you mean roi_data_layer.layer.RoIDataLayer"),
    "too few bottoms": ('"Eltwise" bottom: "x" top: "y"', "takes at least 2 bottoms, not 1"),
    "too many bottoms": ('"ReLU" bottom: "x" bottom: "x" top: "y"', "takes 1 bottoms, not 2"),
    "too few tops": ('"ReLU" bottom: "x"', "takes 1 tops, not 0"),
    "too many tops": ('"Pooling" bottom: "x" top: "a" top: "b" top: "c" pooling_param { kernel_size: 1 }',
                      "takes 1 to 2 tops, not 3"),
    "axis": ('"Softmax" bottom: "x" top: "y" softmax_param { axis: 9 }', "axis 9 of a blob with 4 axes"),
    "num_classes missing": ('"Python" top: "y" python_param { module: "roi_data_layer.layer" layer: "RoIDataLayer" '
                            'param_str: "\'a\': 1" }', "'num_classes' is missing"),
    "num_output missing": ('"InnerProduct" bottom: "x" top: "y"', "must be positive"),
    "shape": ('"Convolution" bottom: "x" top: "y" convolution_param { num_output: 2 kernel_size: 9 }',
              "bottom shapes: .*2, 3, 4, 5"),
    "param_str": ('"Python" top: "y" python_param { module: "roi_data_layer.layer" layer: "RoIDataLayer" '
                  'param_str: "\'num_classes\': [" }', "not YAML"),
    "filler": ('"InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 1 '
               'weight_filler { type: "gausian" } }', "unknown filler type 'gausian'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_NETS)
def test_errors_name_file_line_and_layer(tmp_path, inputs_of, kind):
    text, message = BAD_NETS[kind]
    path = tmp_path / "net.prototxt"
    path.write_text(inputs_of(x=(2, 3, 4, 5)) + f'\n\nlayer {{ name: "bad" type: {text} }}\n')
    with pytest.raises(PortError, match=message) as caught:
        Net(path)
    error = caught.value
    assert (error.file, error.line, error.layer) == (str(path), 4, "bad")
    assert str(error).startswith(f"{path}:4: layer 'bad': ")


def test_a_failure_while_running_names_the_layer_and_shapes(tmp_path, inputs_of):
    path = tmp_path / "net.prototxt"
    path.write_text(inputs_of(x=(2, 3)) + ip("a", "x"))
    with pytest.raises(PortError, match=r"bottom shapes: \(2, 7\)") as caught:
        Net(path)(x=blob(2, 7))
    assert (caught.value.file, caught.value.line, caught.value.layer) == (str(path), 2, "a")


@pytest.mark.parametrize(
    ("kind", "field", "said"),
    [
        ("ReLU", "relu_param { engine: CAFFE }", "relu_param.engine has no effect here"),
        ("ReLU", "convolution_param { num_output: 3 }", "a ReLU layer does not read convolution_param; ignored"),
        ("Sigmoid", "transform_param { scale: 2 }", "a Sigmoid layer does not read transform_param; ignored"),
    ],
)
def test_fields_without_effect_are_listed(build, inputs_of, kind, field, said):
    net = build(inputs_of(x=(2, 3)) + f'layer {{ name: "r" type: "{kind}" bottom: "x" top: "y" {field} }}')
    assert net.warnings == [f"layer 'r': {said}"]


def test_lenient_reading_lists_unknown_fields(tmp_path, inputs_of):
    path = tmp_path / "net.prototxt"
    path.write_text(inputs_of(x=(2, 3)) + 'layer { name: "r" type: "ReLU" bottom: "x" top: "y" my_param { a: 1 } }')
    with pytest.raises(prototxt.PrototxtError, match="my_param"):
        Net(path)
    assert "my_param" in Net(path, lenient=True).warnings[0]


# ---- parts of a net, as pycaffe's forward(start=, end=, blobs=) runs them

PARTS = ip("a", "x", 4) + 'layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }' + ip("b", "a") + ip("c", "b")


@pytest.fixture
def parts(build, inputs_of):
    return build(inputs_of(x=(2, 3), unused=(1, 1)) + PARTS, "TEST")


@pytest.mark.parametrize("keep", [True, False])
def test_a_net_in_two_parts(parts, keep):
    x = blob(2, 3)
    whole = parts(x=x, unused=0)
    parts.keep_blobs = keep
    first = parts(x=x, end="relu")
    assert list(first) == ["a"]
    assert set(parts.blobs) == ({"x", "a"} if keep else {"a"})
    assert torch.equal(parts(start="b")["c"], whole["c"]), "from the blobs of the last forward"
    assert "a" in parts.blobs
    doubled = parts(start="b", a=2 * first["a"], blobs=["b"])
    weight, bias = parts.params["b"]
    assert torch.allclose(doubled["b"], 2 * first["a"] @ weight.T + bias)
    assert set(doubled) == {"b", "c"}
    assert torch.equal(parts(start="b", end="b", **first)["b"], parts(start="b", blobs=["b"], **first)["b"])


def test_a_blob_that_is_given_is_not_overwritten(parts):
    a = -torch.ones(2, 4)
    assert not parts(start="relu", a=a, end="relu")["a"].any()
    assert (a == -1).all()
    assert parts(x=blob(2, 3), unused=3, end="a", blobs=["unused"])["unused"] == 3


def test_blobs_that_are_asked_for_are_kept(parts):
    parts.keep_blobs = False
    found = parts(x=blob(2, 3), unused=0, blobs=["x", "b"])
    assert set(found) == {"x", "b", "c", "unused"}
    assert "a" not in parts.blobs


def test_losses_of_a_part(build, inputs_of):
    net = build(inputs_of(x=(3, 4), t=(3, 2)) + ip("a", "x") + loss("a") + ip("b", "a") + loss("b", name="late"))
    net(x=blob(3, 4), t=blob(3, 2), end="loss")
    assert list(net.losses) == ["loss"]
    net.backward()
    assert net.params["a"][0].grad.any()
    assert net.params["b"][0].grad is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "bb"}, "no layer is named 'bb'\n.*did you mean 'b'"),
        ({"start": "c", "end": "a"}, "layer 'a' comes before layer 'c'"),
        ({"start": "b"}, r"the layers from 'b' on read \['a'\]; missing \['a'\]"),
        ({"end": "relu"}, r"missing \['x'\]"),
        ({"start": "b", "a": 0, "d": 0}, r"unknown \['d'\]"),
        ({"end": "relu", "x": 0, "blobs": ["c"]}, "no layer that runs makes a blob c"),
    ],
)
def test_parts_that_cannot_run(parts, options, message):
    with pytest.raises(PortError, match=message):
        parts(**options)


# ---- memory


def test_keep_blobs_false_gives_the_same(build, inputs_of):
    text = inputs_of(x=(3, 4), t=(3, 2)) + ip("y", "x", 5)
    text += 'layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }' + ip("a", "y") + loss("a") + ip("out", "y")
    net = build(text)
    results = []
    for keep in (True, False):
        net.keep_blobs = keep
        for p in net.learnable_params:
            p.blob.grad = None
        outputs = net(x=blob(3, 4), t=blob(3, 2, seed=1))
        net.backward()
        grads = [p.blob.grad.clone() for p in net.learnable_params if p.blob.grad is not None]
        results.append((net.loss.item(), outputs["out"].tolist(), grads))
    assert results[0][:2] == results[1][:2]
    assert all(torch.equal(a, b) for a, b in zip(results[0][2], results[1][2], strict=True))
    assert set(net.blobs) == {"out", "loss"}


def test_fillers_come_from_torchs_generator(build, inputs_of):
    text = inputs_of(x=(2, 3)) + ip("a", "x")
    weights = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        weights.append(build(text).params["a"][0].detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# ---- OHEM's two branches


def minibatch(rng, classes=7, rois=40, size=(64, 96)):
    corners = rng.uniform(0, (size[1] - 20, size[0] - 20), (rois, 2))
    boxes = np.hstack([np.zeros((rois, 1)), corners, corners + rng.uniform(5, 40, (rois, 2))])
    labels = rng.integers(0, classes, rois) * rng.integers(0, 2, rois)
    inside = np.zeros((rois, 4 * classes))
    for r in np.flatnonzero(labels):
        inside[r, 4 * labels[r] : 4 * labels[r] + 4] = 1
    blobs = (rng.normal(0, 60, (1, 3, *size)), boxes, labels, rng.normal(0, 1, inside.shape) * inside, inside, inside)
    names = ("data", "rois", "labels", "bbox_targets", "bbox_inside_weights", "bbox_outside_weights")
    return {name: [value] for name, value in zip(names, blobs, strict=True)}


def fed_net(path_or_text, feed, cfg, blobs, seed=0):
    """A training net whose data layer gives ``blobs``."""
    source = path_or_text if isinstance(path_or_text, str) else path_or_text.read_text()
    param = prototxt.parse_net(source)
    param.layer[0].CopyFrom(prototxt.parse_net(feed(**blobs)).layer[0])
    torch.manual_seed(seed)
    return Net(param, cfg=cfg)


def test_naive_mining_trains_as_two_branches_do(zoo_folder, feed, shapes_cfg):
    """All losses zeroed but those of hard RoIs: the same loss and gradients as a second, trained branch."""
    blobs = minibatch(np.random.default_rng(0))
    nets = [
        fed_net(zoo_folder / "shapes" / method / "train.prototxt", feed, shapes_cfg(method), blobs)
        for method in ("ohem", "ohem_naive")
    ]
    two, naive = nets
    with torch.no_grad():
        for name, params in naive.params.items():
            for source, target in zip(two.params[name], params, strict=True):
                target.copy_(source)
                target.mul_(30 if name == "cls_score" else 1)
                source.copy_(target)
    for net in nets:
        net()
        net.backward()
    hard = [net.layer_by_name["hard_roi_mining"].hard_inds.tolist() for net in nets]
    assert hard[0] == hard[1]
    assert 8 < len(hard[0]) <= 16
    for name in ("loss_cls", "loss_bbox"):
        assert naive.losses[name].item() == pytest.approx(two.losses[name].item(), rel=1e-5)
    assert two.losses["loss_bbox"].item() > 0
    for name, params in naive.params.items():
        for j, p in enumerate(params):
            grad = two.params[name][j].grad
            assert grad.any()
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-5 * grad.abs().max().item())


def test_the_read_only_branch(zoo_folder, feed, shapes_cfg):
    net = fed_net(zoo_folder / "shapes/ohem/train.prototxt", feed, shapes_cfg(), minibatch(np.random.default_rng(1)))
    net()
    readonly = [name for name in net.blobs if name.endswith("_readonly")]
    assert {"fc6_readonly", "cls_score_readonly", "bbox_pred_readonly", "cls_prob_readonly"} <= set(readonly)
    for name in readonly + [n for n in net.blobs if n.endswith("_hard")]:
        assert net.blobs[name].grad_fn is None
        assert not net.blobs[name].requires_grad
    for name in (name for name in net.params if f"{name}_readonly" in net.params):
        assert net.blobs[name].requires_grad
        for own, other in zip(net.params[name], net.params[f"{name}_readonly"], strict=True):
            assert own is other
    assert [p.lr_mult for p in net.learnable_params if p.owner.startswith("fc6")] == [1, 2]
    assert [p.decay_mult for p in net.learnable_params if p.owner.startswith("fc6")] == [1, 0]


def test_the_read_only_branch_gives_no_gradient(zoo_folder, feed, shapes_cfg):
    """The gradient is that of a one-branch net on the selected RoIs alone."""
    blobs = minibatch(np.random.default_rng(2))
    mined = fed_net(zoo_folder / "shapes/ohem/train.prototxt", feed, shapes_cfg(), blobs)
    mined()
    mined.backward()
    hard = mined.layer_by_name["hard_roi_mining"].hard_inds.numpy()
    chosen = {name: [value[0] if name == "data" else value[0][hard]] for name, value in blobs.items()}
    plain = fed_net(zoo_folder / "shapes/fast_rcnn/train.prototxt", feed, shapes_cfg("fast_rcnn"), chosen)
    with torch.no_grad():
        for name, params in plain.params.items():
            for source, target in zip(mined.params[name], params, strict=True):
                target.copy_(source)
    plain()
    plain.backward()
    assert plain.loss.item() == pytest.approx(mined.loss.item(), rel=1e-6)
    for name, params in plain.params.items():
        for j, p in enumerate(params):
            torch.testing.assert_close(p.grad, mined.params[name][j].grad)


def test_dropout_masks_of_the_two_branches_are_independent(zoo_folder, feed, shapes_cfg):
    """The zoo's SqueezeNet head: dropout is active in both branches, with masks of their own, and off in testing."""
    source = (zoo_folder / "squeezenet_v1.1/ohem/train.prototxt").read_text()
    blobs = minibatch(np.random.default_rng(3), classes=21, rois=16)
    net = fed_net(source, feed, shapes_cfg(OHEM_USE_NMS=False), blobs)
    with torch.no_grad():
        net.params["fc6"][1].fill_(1e4)  # every unit is on before dropout
    net()
    hard = net.layer_by_name["hard_roi_mining"].hard_inds
    masks = [net.blobs["fc6_readonly"][hard] != 0, net.blobs["fc6"] != 0]
    for mask in masks:
        assert mask.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (masks[0] & masks[1]).float().mean().item() == pytest.approx(0.25, abs=0.03)
    kept = net.blobs["fc6"][masks[1]]
    undropped = net.blobs["fc6_readonly"][hard][masks[0] & masks[1]]
    torch.testing.assert_close(net.blobs["fc6"][masks[0] & masks[1]], undropped)
    assert kept.min() > 15_000, "kept values are divided by 1 - dropout_ratio"

    test = Net(zoo_folder / "squeezenet_v1.1/ohem/test.prototxt", "TEST")
    with torch.no_grad():
        test.params["fc6"][1].fill_(1e4)
    inputs = {"data": torch.randn(1, 3, 64, 96), "rois": torch.tensor([[0, 0.0, 0, 50, 50]])}
    first = test(**inputs)["cls_prob"]
    assert (test.blobs["fc6"] != 0).all()
    assert torch.equal(first, test(**inputs)["cls_prob"])
    assert math.isclose(first.sum().item(), 1, rel_tol=1e-5)
