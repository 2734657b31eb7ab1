"""Inputs of other shapes, or in the place of data layers."""

import pytest

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.inputs import reshape_inputs
from ohem_caffe_port.net import Net

DATA = 'layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } }'
SUM = 'layer { name: "s" type: "Eltwise" bottom: "a" bottom: "b" top: "s" }'


def test_other_shapes_of_inputs():
    net = prototxt.parse_net(
        'layer { name: "i" type: "Input" top: "a" top: "b" input_param { shape { dim: 1 dim: 2 } } }' + SUM
    )
    reshape_inputs(net, {"b": (1, 2)})
    assert [list(s.dim) for s in net.layer[0].input_param.shape] == [[1, 2], [1, 2]]
    reshape_inputs(net, {"a": (4, 7), "b": (4, 7)})
    assert Net(net).blobs == {}
    assert Net(net).shapes[-1] == (4, 7)


def test_in_the_place_of_data():
    net = prototxt.parse_net(DATA + DATA.replace("TRAIN", "TEST").replace('"data" type', '"data2" type'))
    reshape_inputs(net, {"data": (2, 3, 8, 8), "label": (2,)})
    assert [layer.type for layer in net.layer] == ["Input", "Input"]
    assert net.layer[0].include[0].phase == 0  # the rules stay
    assert Net(net, "TEST").shapes == [(2, 3, 8, 8), (2,)]


def test_errors():
    with pytest.raises(PortError, match="no input or data layer makes 'dat'; they make data, label"):
        reshape_inputs(prototxt.parse_net(DATA), {"dat": (1,)})
    with pytest.raises(PortError, match="its top 'label' needs a shape, too"):
        reshape_inputs(prototxt.parse_net(DATA), {"data": (1, 3, 8, 8)})
