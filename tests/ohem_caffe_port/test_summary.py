"""A net's summary: counted by hand."""

import pytest

NET = """
layer { name: "conv" type: "Convolution" bottom: "x" top: "c" param { lr_mult: 0 } param { lr_mult: 0 }
        convolution_param { num_output: 4 kernel_size: 3 group: 1 } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "ip" type: "InnerProduct" bottom: "c" top: "y" param { name: "w" } inner_product_param { num_output: 5 } }
layer { name: "twin" type: "InnerProduct" bottom: "c" top: "z" param { name: "w" }
        inner_product_param { num_output: 5 } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""


@pytest.fixture
def summary(build, inputs_of):
    return build(inputs_of(x=(2, 3, 8, 8), t=(2, 5)) + NET).summary()


def test_counts(summary):
    rows = {row.name: row for row in summary.rows}
    assert list(rows) == ["x", "t", "conv", "relu", "ip", "twin", "loss"]
    assert rows["conv"].parameters == 4 * 3 * 9 + 4
    assert rows["conv"].tops == [("c", (2, 4, 6, 6))]
    assert rows["conv"].multiply_adds == 2 * 4 * 36 * 27
    assert rows["conv"].bytes == 2 * 4 * 36 * 4
    assert rows["relu"].bytes == 0  # it works in place
    assert rows["ip"].parameters == 5 * 144 + 5
    assert rows["ip"].multiply_adds == 2 * 5 * 144
    assert rows["twin"].parameters == 5  # its own bias
    assert rows["twin"].shares == "ip"
    assert summary.parameters == 112 + 725 + 5


def test_backward_and_why_not(summary):
    rows = {row.name: row for row in summary.rows}
    assert rows["ip"].backward
    assert rows["loss"].backward
    assert (rows["conv"].backward, rows["conv"].why_not) == (False, "nothing in it or below it learns")
    assert (rows["twin"].backward, rows["twin"].why_not) == (False, "no loss depends on it")
    assert summary.gradients == 725  # the twin's bias gets none


def test_readers_that_pass_nothing_down(build, inputs_of):
    text = NET.replace('bottom: "y" bottom: "t"', 'bottom: "y" bottom: "t" propagate_down: false propagate_down: false')
    rows = {row.name: row for row in build(inputs_of(x=(2, 3, 8, 8), t=(2, 5)) + text).summary().rows}
    assert rows["ip"].why_not == "its readers pass no gradient down"


def test_table_and_dict(summary):
    text = str(summary)
    assert "conv" in text
    assert "2x4x6x6" in text
    assert "no: no loss depends on it" in text
    assert "842" in text  # parameters in all
    as_dict = summary.as_dict()
    assert as_dict["parameters"] == summary.parameters
    assert as_dict["layers"][-1]["name"] == "loss"


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (
            'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 group: 2 }',
            (2, 4, 8, 8),
            2 * 6 * 36 * 2 * 9,
        ),
        (
            'type: "Deconvolution" convolution_param { num_output: 6 kernel_size: 2 stride: 2 }',
            (2, 4, 8, 8),
            2 * 4 * 64 * 24,
        ),
        ('type: "InnerProduct" inner_product_param { num_output: 6 axis: 2 }', (2, 4, 8), 8 * 6 * 8),
        ('type: "Local" local_param { num_output: 6 kernel_size: 3 }', (2, 4, 8, 8), 2 * 6 * 36 * 36),
        ('type: "ReLU"', (2, 4, 8, 8), 0),
    ],
)
def test_multiply_adds(build, inputs_of, layer, shape, expected):
    text = inputs_of(x=shape) + f'layer {{ name: "l" {layer} bottom: "x" top: "y" }}'
    assert build(text).summary().rows[-1].multiply_adds == expected


def test_multiply_adds_of_an_lstm(build, inputs_of):
    bottoms = 'bottom: "x" bottom: "cont" bottom: "s"'
    layer = f'layer {{ name: "l" type: "LSTM" {bottoms} top: "y" recurrent_param {{ num_output: 4 }} }}'
    text = inputs_of(x=(3, 2, 5), cont=(3, 2), s=(2, 7)) + layer
    assert build(text).summary().rows[-1].multiply_adds == 3 * 2 * (16 * 5 + 16 * 4) + 2 * 16 * 7
