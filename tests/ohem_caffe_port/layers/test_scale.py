import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net

X = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
GLOBAL = "channel_scale_param { global_scale: true }"


def values(shape):
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    ("settings", "shape", "aligned"),
    [
        ("", (3,), (3, 1, 1)),
        ("axis: -1", (5,), (5,)),
        ("axis: 0 num_axes: 2", (2, 3), (2, 3, 1, 1)),
        ("axis: 2 num_axes: -1", (4, 5), (4, 5)),
        ("num_axes: 0", (), ()),
    ],
)
def test_learned(run_layer, settings, shape, aligned):
    factor, shift = values(shape), values(shape) + 1
    expected = X * factor.reshape(aligned)
    scale = f"scale_param {{ {settings} }}"
    np.testing.assert_allclose(run_layer("Scale", scale, X, params=[factor])[0].detach(), expected, rtol=1e-6)
    scale = f"scale_param {{ {settings} bias_term: true }}"
    (out,) = run_layer("Scale", scale, X, params=[factor, shift])
    np.testing.assert_allclose(out.detach(), expected + shift.reshape(aligned), rtol=1e-5, atol=1e-6)
    (out,) = run_layer("Bias", f"bias_param {{ {settings} }}", X, params=[shift])
    np.testing.assert_allclose(out.detach(), X + shift.reshape(aligned), rtol=1e-6)


@pytest.mark.parametrize(("axis", "shape"), [(0, (2, 3)), (1, (3,)), (2, (4, 5)), (7, ())])
def test_two_bottoms(run_layer, axis, shape):
    other, shift = values(shape), values(shape)
    aligned = other.reshape((*shape, *[1] * (4 - axis - len(shape))))
    (out,) = run_layer("Scale", f"scale_param {{ axis: {axis} }}", X, other)
    np.testing.assert_allclose(out, X * aligned, rtol=1e-6)
    (out,) = run_layer("Bias", f"bias_param {{ axis: {axis} }}", X, other)
    np.testing.assert_allclose(out, X + aligned, rtol=1e-6)
    if axis < 4:
        (out,) = run_layer("Scale", f"scale_param {{ axis: {axis} bias_term: true }}", X, other, params=[shift])
        np.testing.assert_allclose(out.detach(), X * aligned + shift.reshape(aligned.shape), rtol=1e-5, atol=1e-6)


def net_of(layers: str, shape="dim: 2 dim: 3 dim: 4 dim: 5", phase="TRAIN") -> Net:
    text = f'layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ {shape} }} }} }}'
    return Net(prototxt.parse_net(text + layers), phase)


def test_first_values():
    net = net_of(
        'layer { name: "s" type: "Scale" bottom: "x" top: "y" scale_param { bias_term: true } }'
        'layer { name: "b" type: "Bias" bottom: "y" top: "z" }'
    )
    assert [p.tolist() for p in net.params["s"]] == [[1, 1, 1], [0, 0, 0]]
    assert torch.equal(net(x=X)["z"].detach(), torch.tensor(X))


@pytest.mark.parametrize("frozen", [False, True])
def test_in_place_gives_the_same_gradients(frozen):
    """Frozen scales overwrite their bottom, learned ones keep it for their gradient."""
    multiplier = f"param {{ lr_mult: {int(not frozen)} }}" * 2

    def run(tops):
        torch.manual_seed(0)
        text = """layer { name: "c" type: "Convolution" bottom: "x" top: "c" convolution_param {
                      num_output: 3 kernel_size: 1 weight_filler { type: "gaussian" std: 1 } } }"""
        for i, (bottom, top) in enumerate(zip(["c", *tops], tops, strict=False)):
            text += f'''layer {{ name: "s{i}" type: "Scale" bottom: "{bottom}" top: "{top}" {multiplier} scale_param {{
                bias_term: true filler {{ value: 3 }} bias_filler {{ value: 1 }} }} }}'''
        text += f'layer {{ name: "r" type: "ReLU" bottom: "{tops[-1]}" top: "{tops[-1]}" }}'
        text += f'layer {{ name: "l" type: "EuclideanLoss" bottom: "{tops[-1]}" bottom: "x" top: "loss" }}'
        net = net_of(text)
        net(x=X)
        net.backward()
        return net

    apart, in_place = run(["s", "t"]), run(["c", "c"])
    assert in_place.layer_by_name["s0"].in_place
    torch.testing.assert_close(in_place.loss, apart.loss)
    for name, blobs in apart.params.items():
        for ours, theirs in zip(in_place.params[name], blobs, strict=True):
            assert (theirs.grad is None) == (frozen and name != "c")
            torch.testing.assert_close(ours.grad, theirs.grad)


def test_clamped_for_good():
    net = net_of(
        'layer { name: "s" type: "Scale" bottom: "x" top: "y" '
        "scale_param { filler { value: 3 } min_value: -1 max_value: 2 } }"
    )
    assert torch.equal(net(x=X)["y"].detach(), 2 * torch.tensor(X))
    assert net.params["s"][0].tolist() == [2, 2, 2]


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 1, 1)])
def test_axpy(run_layer, shape):
    scale, y = values(shape), values(X.shape)
    expected = scale.reshape(2, 3, 1, 1) * X + y
    np.testing.assert_allclose(run_layer("Axpy", "", scale, X, y)[0], expected, rtol=1e-5, atol=1e-6)
    doubles = [torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in (scale, X, y)]
    assert torch.autograd.gradcheck(lambda *b: run_layer("Axpy", "", *b)[0], doubles)


@pytest.mark.parametrize(
    ("settings", "factor", "to_x", "to_scale"),
    [
        ("", "scale", "scale", True),
        ("do_forward: false", 1, "scale", True),
        ("do_backward_feature: false", "scale", 1, True),
        ("do_backward_scale: false", "scale", "scale", False),
    ],
)
def test_channel_scale(run_layer, settings, factor, to_x, to_scale):
    x = torch.tensor(X, requires_grad=True)
    scale = torch.tensor(values((2, 1, 4, 5)), requires_grad=True)
    (out,) = run_layer("ChannelScale", f"channel_scale_param {{ {settings} }}", x, scale)
    torch.testing.assert_close(out, x * (scale if factor == "scale" else 1))
    weight = torch.tensor(values(X.shape))
    (out * weight).sum().backward()
    torch.testing.assert_close(x.grad, weight * (scale.detach() if to_x == "scale" else 1))
    if to_scale:
        torch.testing.assert_close(scale.grad, (weight * x.detach()).sum(1, keepdim=True))
    else:
        assert scale.grad is None


def test_global_scale():
    net = net_of(
        'layer { name: "n" type: "Input" top: "n" input_param { shape { dim: 2 dim: 1 dim: 4 dim: 5 } } }'
        'layer { name: "s" type: "ChannelScale" bottom: "x" bottom: "n" top: "y" top: "by" '
        "channel_scale_param { global_scale: true max_global_scale: 2.5 } }"
    )
    norms = np.full((2, 1, 4, 5), 2, np.float32)
    assert net.learnable_params[0].lr_mult == 0
    for norm, expected in ((norms, 2), (2 * norms, 0.99 * 2 + 0.01 * 4), (1000 * norms, 2.5)):
        tops = net(x=X, n=norm)
        assert tops["by"].item() == net.params["s"][0].item() == pytest.approx(expected)
        torch.testing.assert_close(tops["y"], torch.tensor(X) * tops["by"])


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "message"),
    [
        ("Scale", "scale_param { axis: 4 }", [(2, 3)], "axis 4 of a blob with 2 axes"),
        ("Scale", "scale_param { num_axes: 2 }", [(2, 3)], "2 axes from axis 1 on, of a blob with 2"),
        ("Bias", "bias_param { num_axes: -2 }", [(2, 3)], "-2 axes from axis 1 on"),
        ("Scale", "", [(2, 3), (2,)], r"shape \(2,\) does not fit \(2, 3\) from axis 1 on"),
        ("Bias", "", [(2, 3), (3, 1)], "does not fit"),
        ("Axpy", "", [(2, 4), (2, 3, 1), (2, 3, 1)], "are not"),
        ("Axpy", "", [(2, 3, 2), (2, 3, 2), (2, 3, 2)], "are not"),
        ("ChannelScale", "", [(2, 3, 4), (2, 4, 2)], "has not one value for each place"),
        ("ChannelScale", f"{GLOBAL} param {{ lr_mult: 1 }}", [(2, 3), (2, 1)], "lr_mult 1 for a statistic"),
    ],
)
def test_settings_and_shapes_that_make_no_sense(run_layer, kind, settings, shapes, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, *[np.ones(s) for s in shapes])


def test_a_second_top_without_a_global_scale(run_layer):
    with pytest.raises(PortError, match="the second top is the global_scale"):
        run_layer("ChannelScale", "", np.ones((2, 3)), np.ones((2, 1)), tops=2)
