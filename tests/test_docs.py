"""What the documentation shows works as it is shown."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import prototxt
from converters import CaffeModel, LayerWeights, write_caffemodel
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import LAYERS, Layer, register
from ohem_caffe_port.net import Net

DOCS = Path(__file__).resolve().parents[1] / "docs"
INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }\n'
GAIN = 'layer { name: "g" type: "ChannelGain" bottom: "x" top: "y" loss_weight: 1 scale_param { %s } }'


@pytest.fixture
def page():
    """The code of docs/adding-a-layer.md: ``(first class, line of test data, second class, prototxt)``."""
    text = (DOCS / "adding-a-layer.md").read_text()
    first, line, second = re.findall(r"```python\n(.*?)```", text, re.S)
    return first, line, second, re.search(r"```\n(layer .*?)```", text, re.S)[1]


@pytest.fixture
def defined(page):
    """Registers the page's layers for the time of a test."""
    names = {"register": register, "Layer": Layer, "torch": torch}
    for code in (page[0], page[2]):
        exec(code, names)
    yield page
    for name in ("Gelu", "ChannelGain"):
        LAYERS.pop(name)


def test_the_first_layer(defined):
    x = np.array([-5.0, -2, -0.5, 0, 0.5, 2])
    ((kind, settings, expected),) = eval(defined[1], {"X": x, "np": np, "math": math})
    assert (kind, settings) == ("Gelu", "")
    net = Net(prototxt.parse_net(INPUT + defined[3]))
    net(x=x.reshape(2, 3))
    np.testing.assert_allclose(net.blobs["y"].flatten(), expected, atol=1e-6)


def test_other_fields_are_refused(defined):
    with pytest.raises(PortError, match="ChannelGain layer"):
        Net(
            prototxt.parse_net(
                INPUT + 'layer { name: "g" type: "ChannelGain" bottom: "x" top: "y" scale_param { axis: 1 } }'
            )
        )


def test_the_second_layer(defined):
    layer = GAIN % "filler { value: 3 }"
    net = Net(prototxt.parse_net(INPUT + layer))
    x = torch.arange(6.0).view(2, 3)
    net(x=x)
    torch.testing.assert_close(net.blobs["y"], 3 * x)
    net.backward()
    torch.testing.assert_close(net.params["g"][0].grad, x.sum(0))
    with pytest.raises(PortError, match="needs channels"):
        Net(prototxt.parse_net(INPUT.replace("dim: 3", "") + layer))


NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 } } }
layer { name: "conv1" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }
"""


def test_converting_in_python(tmp_path, monkeypatch, capsys):
    """The code of docs/converter.md, on files of the names that it uses."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    blobs = [np.ones((2, 3), np.float32), np.zeros(2, np.float32)]
    write_caffemodel("model.caffemodel", CaffeModel("n", [LayerWeights("conv1", "InnerProduct", blobs=blobs)]))
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "converter.md").read_text(), re.S)
    names = {}
    exec(code, names)
    assert list(names["named"].arrays) == ["conv1.weight", "conv1.bias"]
    assert names["net"].params["conv1"][0].sum() == 6
    assert "1 layers loaded" in capsys.readouterr().out
