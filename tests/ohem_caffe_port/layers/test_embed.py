import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from prototxt import parse_net


@pytest.mark.parametrize("bias", [True, False])
def test_embed(run_layer, bias):
    table, offset = np.random.default_rng(0).standard_normal((5, 3)), np.arange(3.0) * bias
    index = np.array([[4, 0, 4], [1, 2, 2]])
    settings = f"embed_param {{ input_dim: 5 num_output: 3 bias_term: {str(bias).lower()} }}"
    (out,) = run_layer("Embed", settings, index, params=(table, offset) if bias else (table,))
    np.testing.assert_allclose(out.detach(), table[index] + offset, rtol=1e-6)


def test_each_use_of_a_row_adds_to_its_gradient():
    text = """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 3 } } }
        layer { name: "e" type: "Embed" bottom: "x" top: "y" loss_weight: 1
                embed_param { input_dim: 4 num_output: 2 } }"""
    net = Net(parse_net(text))
    net(x=np.array([3, 0, 3]))
    net.backward()
    assert net.params["e"][0].grad.tolist() == [[1, 1], [0, 0], [0, 0], [2, 2]]
    assert net.params["e"][1].grad.tolist() == [3, 3]


@pytest.mark.parametrize("index", [5, -1, 1.5])
def test_rows_that_the_table_has_not(run_layer, index):
    with pytest.raises(PortError, match="a table of 5 rows is asked for rows") as caught:
        run_layer(
            "Embed", "embed_param { input_dim: 5 num_output: 3 }", np.array([0, index]), params=(np.ones((5, 3)),)
        )
    assert caught.value.layer == "it"


@pytest.mark.parametrize("settings", ["num_output: 3", "input_dim: 3"])
def test_sizes_are_needed(run_layer, settings):
    with pytest.raises(PortError, match="must be positive"):
        run_layer("Embed", f"embed_param {{ {settings} }}", np.zeros(2))


def test_a_parameter_is_its_top():
    text = """layer { name: "p" type: "Parameter" top: "w"
                      parameter_param { shape { dim: [2, 3] } blob_filler { type: "constant" value: -2 } } }
        layer { name: "r" type: "ReLU" bottom: "w" top: "w" relu_param { negative_slope: 0.5 } loss_weight: 1 }"""
    net = Net(parse_net(text))
    net()
    net.backward()
    assert net.blobs["w"].tolist() == [[-1, -1, -1]] * 2
    assert net.params["p"][0].tolist() == [[-2, -2, -2]] * 2, "a layer that works in place must not change it"
    assert net.params["p"][0].grad.tolist() == [[0.5, 0.5, 0.5]] * 2


def test_a_parameter_needs_a_shape(run_layer):
    (empty,) = run_layer("Parameter", "parameter_param { shape { } }", params=[np.array(3.0)])
    assert torch.equal(empty, torch.tensor(3.0))
    with pytest.raises(PortError, match="is no shape"):
        run_layer("Parameter", "parameter_param { shape { dim: -2 } }")
