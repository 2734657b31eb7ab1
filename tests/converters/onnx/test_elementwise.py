import pytest

import prototxt
from converters.errors import WeightsError
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

SHAPE = (2, 3, 4, 5)
SHAPES = [(2, 3), (2, 3, 4), SHAPE, (2, 3, 2, 3, 4)]


def net(kind, *settings, inputs=(SHAPE,), tops=1):
    """Layers of one type and with the same bottoms, side by side."""
    text, bottoms = "", ""
    for i, shape in enumerate(inputs):
        sizes = " ".join(f"dim: {n}" for n in shape)
        text += f'layer {{ name: "b{i}" type: "Input" top: "b{i}" input_param {{ shape {{ {sizes} }} }} }}\n'
        bottoms += f'bottom: "b{i}" '
    for i, setting in enumerate(settings):
        names = " ".join(f'top: "y{i}_{j}"' for j in range(tops))
        text += f'layer {{ name: "l{i}" type: "{kind}" {bottoms} {names} {setting} }}\n'
    return text


def positive(shapes, rng):
    return {name: 0.5 + rng.random_sample(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("shape", [(4,), *SHAPES], ids=str)
def test_eltwise(check, shape):
    settings = ["", "coeff: 2 coeff: -1 coeff: 0.5", "operation: PROD", "operation: MAX", "operation: MIN",
                "operation: SORT", "operation: STOCHASTIC_SUM coeff: 1 coeff: 0.25 coeff: 1"]  # fmt: skip
    check(net("Eltwise", *(f"eltwise_param {{ {s} }}" for s in settings), inputs=[shape] * 3))


@pytest.mark.parametrize(("axis", "shape"), [(0, (2,)), (1, (3,)), (-2, (4, 5)), (0, SHAPE)], ids=str)
def test_eltwise_with_a_smaller_second_bottom(check, axis, shape):
    operations = ["SUM", "SUM coeff: 2 coeff: -1", "PROD", "MAX", "MIN", "DIV", "SORT"]
    settings = (f"eltwise_param {{ operation: {operation} axis: {axis} }}" for operation in operations)
    check(net("Eltwise", *settings, inputs=[SHAPE, shape]), positive)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scale(check, shape):
    settings = [f"{bias} {axes}" for bias in ("", "bias_term: true") for axes in ("", "num_axes: 0", "num_axes: -1")]
    check(net("Scale", *(f"scale_param {{ {s} }}" for s in settings), inputs=[shape]))


def test_scale_along_other_axes(check):
    settings = ["axis: 2", "axis: -1", "axis: 1 num_axes: 2", "min_value: -0.1 max_value: 0.3"]
    settings += [f"{s} bias_term: true" for s in settings]
    check(net("Scale", *(f"scale_param {{ {s} }}" for s in settings)))


def test_scale_of_every_image(check):
    check(net("Scale", "scale_param { axis: 0 num_axes: 2 bias_term: true }"), static=True)


@pytest.mark.parametrize(("shape", "axis"), [((2,), 0), ((2, 3), 0), ((3,), 1), ((4, 5), -2), ((4,), 2), (SHAPE, 0)])
@pytest.mark.parametrize(("kind", "message"), [("Scale", "scale_param"), ("Bias", "bias_param")])
def test_second_bottom(check, kind, message, shape, axis):
    check(net(kind, f"{message} {{ axis: {axis} }}", inputs=[SHAPE, shape]))


def test_scale_by_a_second_bottom_within_limits_and_a_bias(check):
    check(net("Scale", "scale_param { min_value: 0.2 bias_term: true }", inputs=[SHAPE, (3,)]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bias(check, shape):
    check(net("Bias", "", "bias_param { num_axes: 0 }", "bias_param { axis: -1 }", inputs=[shape]))


@pytest.mark.parametrize(
    ("factor", "shape"),
    [((2, 3, 1, 1), SHAPE), ((2, 3), SHAPE), ((2, 3, 1, 1), (2, 3)), ((2, 3, 1), (2, 3, 2, 3, 4))],
)
def test_axpy(check, factor, shape):
    check(net("Axpy", "", inputs=[factor, shape, shape]))


@pytest.mark.parametrize(
    ("shape", "factor"), [(SHAPE, (2, 1, 4, 5)), (SHAPE, (2, 4, 5)), ((2, 3), (2, 1)), ((2, 3), (2,))]
)
def test_channel_scale(check, shape, factor):
    check(net("ChannelScale", "", "channel_scale_param { do_forward: false }", inputs=[shape, factor]))


def test_channel_scale_by_one_number(check):
    check(net("ChannelScale", "channel_scale_param { global_scale: true }", inputs=[SHAPE, (2, 1, 4, 5)], tops=2))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("ChannelScale", "channel_scale_param { global_scale: true }"),
     ("Eltwise", "eltwise_param { operation: STOCHASTIC_SUM }")],
)  # fmt: skip
def test_training_is_refused(kind, settings):
    built = Net(prototxt.parse_net(net(kind, f"phase: TRAIN {settings}", inputs=[(2, 1), (2, 1)])), "TEST")
    with pytest.raises(WeightsError, match=f"(?s)'l0'.*{kind}.*TRAIN phase"):
        to_onnx(built)
