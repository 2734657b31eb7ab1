import numpy as np
import pytest

import prototxt
from converters.errors import WeightsError
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net


def net(*shapes, layers):
    text = ""
    for name, shape in shapes:
        sizes = " ".join(f"dim: {n}" for n in shape)
        text += f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {sizes} }} }} }}\n'
    return text + "".join(layers)


def rois(smallest, largest, count=7):
    """Boxes with sides between these; the first has none."""
    rng = np.random.RandomState(3)
    corner, size = rng.uniform(0, 50, (count, 2)), rng.uniform(smallest, largest, (count, 2))
    size[0] = -5
    return np.concatenate([np.zeros((count, 1)), corner, corner + size], 1)


@pytest.mark.parametrize("sides", [(10, 90), (1, 5), (200, 300)], ids=["mixed", "small", "large"])
@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 1, 1)], ids=str)
def test_scale_route(check, shape, sides):
    limits = ["low_scale: 30 high_scale: 60", "high_scale: 40", "low_scale: 50", ""]
    layers = [
        f"""layer {{ name: "l{i}" type: "ScaleRoute" bottom: "r" bottom: "x" top: "r{i}" top: "x{i}"
                     scale_route_param {{ {limit} }} }}"""
        for i, limit in enumerate(limits)
    ]
    check(net(("r", shape), ("x", (7, 3, 2)), layers=layers), {"r": rois(*sides).reshape(shape)}, repeats=True)


BRIDGE = """layer { name: "it" type: "Python" bottom: "r" bottom: "deltas" bottom: "scores" bottom: "info" top: "t"
                    python_param { module: "pylayer.stage_bridge_layer" layer: "StageBridgeLayer" } }"""


@pytest.mark.parametrize("tail", [(), (1, 1)], ids=["2 axes", "4 axes"])
def test_stage_bridge(check, tail):
    shapes = [("r", (7, 5)), ("deltas", (7, 12, *tail)), ("scores", (7, 3, *tail)), ("info", (1, 3))]
    inputs = {"r": rois(10, 90), "info": [[70, 90, 1.5]]}
    check(net(*shapes, layers=[BRIDGE]), inputs)


def test_stage_bridge_of_training_is_refused():
    bottoms = ["r", "deltas", "scores", "gt", "masks", "info", "mask_info"]
    shapes = [(7, 5), (7, 12), (7, 3), (2, 5), (2, 9, 9), (1, 3), (2, 2)]
    layer = f"""layer {{ name: "it" type: "Python" phase: TRAIN
                {" ".join(f'bottom: "{b}"' for b in bottoms)} {" ".join(f'top: "t{i}"' for i in range(8))}
                python_param {{ module: "pylayer.stage_bridge_layer" layer: "StageBridgeLayer"
                                param_str: "'num_classes': 3" }} }}"""
    built = Net(prototxt.parse_net(net(*zip(bottoms, shapes, strict=True), layers=[layer])), "TEST")
    with pytest.raises(WeightsError, match="(?s)'it'.*StageBridgeLayer.*TRAIN phase"):
        to_onnx(built)
