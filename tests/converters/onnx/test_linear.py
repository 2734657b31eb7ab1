import numpy as np
import pytest

from converters import WeightsError


def product(text):
    return f'layer {{ name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {{ {text} }} }}'


@pytest.mark.parametrize(
    "settings",
    ["", "bias_term: false", "transpose: true", "relu: true", "relu: true negative_slope: 0.1", "axis: 2", "axis: -1",
     "axis: 2 transpose: true bias_term: false"],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_inner_product(check, inputs_of, shape, settings):
    if "axis: 2" in settings and len(shape) < 3:
        pytest.skip("no such axis")
    check(inputs_of(x=shape) + product(f"num_output: 6 {settings}"))


def test_a_product_over_all_axes_fixes_the_batch(check, inputs_of):
    check(inputs_of(x=(2, 3)) + product("num_output: 6 axis: 0"), static=True)


def test_parameters_have_their_names_and_are_there_once(check, inputs_of):
    shared = 'param { name: "w" } param { name: "b" } inner_product_param { num_output: 4 }'
    text = inputs_of(x=(2, 4)) + "".join(
        f'layer {{ name: "{name}" type: "InnerProduct" bottom: "{bottom}" top: "{name}" {shared} }}'
        for name, bottom in (("one", "x"), ("two", "one"))
    )
    model = check(text)["onnxruntime"]
    assert [tensor.name for tensor in model.graph.initializer] == ["one.weight", "one.bias"]


@pytest.mark.parametrize("bias", ["true", "false"])
def test_embed(check, inputs_of, bias):
    settings = f"num_output: 3 input_dim: 7 bias_term: {bias}"
    text = f'layer {{ name: "e" type: "Embed" bottom: "x" top: "y" embed_param {{ {settings} }} }}'
    check(inputs_of(x=(2, 4)) + text, {"x": np.arange(8).reshape(2, 4) % 7})


def test_parameter(check, inputs_of):
    check(
        inputs_of(x=(2, 4))
        + 'layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 2 dim: 3 } } }'
        + product("num_output: 2")
    )


def test_dummy_data(check, inputs_of):
    dummy = 'layer {{ name: "d" type: "DummyData" top: "d" dummy_data_param {{ shape {{ dim: 2 dim: 3 }} {} }} }}'
    check(inputs_of(x=(2, 4)) + dummy.format("data_filler { value: 3 }") + product("num_output: 2"))
    with pytest.raises(WeightsError, match="'d': DummyData: makes new numbers for each run .gaussian.") as error:
        check(inputs_of(x=(2, 4)) + dummy.format('data_filler { type: "gaussian" }') + product("num_output: 2"))
    assert "--shape d=" in str(error.value)
