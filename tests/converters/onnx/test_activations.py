import numpy as np
import pytest

import prototxt
from converters.errors import WeightsError
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

WIDE = np.concatenate([np.linspace(-120, 120, 58), [0, -0.0]]).reshape(2, 3, 2, 5)
PLAIN = ["ReLU", "ReLU6", "ELU", "SeLU", "SeLu", "Sigmoid", "TanH", "AbsVal", "BNLL", "Softplus", "Softsign", "Swish",
         "Mish", "HardSwish", "HardSigmoid", "Threshold", "XLU", "Insanity", "Power", "Dropout", "SpatialDropout",
         "SeLUDropout", "SeLuDropout"]  # fmt: skip
POWER_OF_0 = "Power power_param { power: 0 }"


def net(*layers, shape=(2, 3, 4, 5)):
    """Layers side by side, each ``"Type settings"``."""
    sizes = " ".join(f"dim: {n}" for n in shape)
    text = f'layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ {sizes} }} }} }}\n'
    for i, layer in enumerate(layers):
        kind, _, settings = layer.partition(" ")
        text += f'layer {{ name: "{kind}_{i}" type: "{kind}" bottom: "x" top: "{kind}_{i}" {settings} }}\n'
    return text


@pytest.mark.parametrize("values", [None, {"x": WIDE}], ids=["normal", "wide"])
def test_with_default_settings(check, values):
    check(net(*PLAIN, "PReLU", shape=WIDE.shape), values)


@pytest.mark.parametrize(
    "layers",
    [
        [f"ReLU relu_param {{ {settings} }}" for settings in (
            "negative_slope: 0.1", "negative_slope: -0.5", "maximum: 0.5", "minimum: 0.2",
            "minimum: -0.2 negative_slope: 0.3 relu6: true")],
        ["XLU xlu_param { maximum: 0.7 negative_slope: 2 }", "ReLU6 relu6_param { negative_slope: 0.1 threshold: 0.5 }",
         "ELU elu_param { alpha: 0.5 lambda: 2 }", "ELU elu_param { alpha: -0.5 }",
         "SeLU selu_param { alpha: 0.7 lambda: 1.5 }", "Insanity insanity_param { lb: -3 ub: 1 }",
         "PReLU prelu_param { channel_shared: true }"],
        ["Swish swish_param { beta: 1.7 }", "Swish swish_param { beta: -1 }",
         "HardSigmoid hard_sigmoid_param { alpha: 0.7 beta: 0.1 }", "Threshold threshold_param { threshold: 0.5 }",
         "Clip clip_param { min: -0.3 max: 0.6 }", "Dropout dropout_param { dropout_ratio: 0.3 scale_train: false }"],
        ["Exp", "Exp exp_param { base: 2 scale: 0.5 shift: 1 }", "Log log_param { shift: 9 }",
         "Log log_param { base: 10 scale: 0.5 shift: 5 }"],
        [f"Power power_param {{ {settings} }}" for settings in (
            "scale: -2 shift: 1", "power: 2 scale: 3 shift: -1", "power: 3", "power: -1 shift: 9",
            "power: 0.5 shift: 9", "power: 3 scale: 0 shift: 2")] + [POWER_OF_0],
    ],
    ids=["ReLU", "rectifiers", "bounded", "exponents", "Power"],
)  # fmt: skip
def test_settings(check, layers):
    check(net(*layers))


@pytest.mark.parametrize("shape", [(4,), (2, 3), (2, 3, 4), (2, 3, 1, 2, 3)], ids=str)
def test_any_number_of_axes(check, shape):
    learned = [] if len(shape) == 1 else ["PReLU", "PReLU prelu_param { channel_shared: true }"]
    check(net(*PLAIN, POWER_OF_0, *learned, shape=shape))


def test_split_and_layers_in_place(check):
    check(
        net()
        + """layer { name: "s" type: "Split" bottom: "x" top: "t0" top: "t1" }
             layer { name: "a" type: "ReLU" bottom: "t0" top: "t0" }
             layer { name: "b" type: "TanH" bottom: "t1" top: "t1" }
             layer { name: "c" type: "Dropout" bottom: "t1" top: "t1" }"""
    )


def test_common_layers_are_one_operator():
    """Runtimes know what to do with these."""
    wanted = {"ReLU": "Relu", "Sigmoid": "Sigmoid", "TanH": "Tanh", "PReLU": "PRelu", "ELU": "Elu", "ReLU6": "Clip",
              "HardSwish": "HardSwish", "SeLU": "Selu", "BNLL": "Softplus"}  # fmt: skip
    model = to_onnx(Net(prototxt.parse_net(net(*wanted)), "TEST"))
    assert [node.op_type for node in model.graph.node] == list(wanted.values())


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("Dropout dropout_param { sample_weights_test: true }", "in testing too"),
        ("Dropout phase: TRAIN", "TRAIN phase"),
        ("SpatialDropout phase: TRAIN", "TRAIN phase"),
        ("Insanity phase: TRAIN", "TRAIN phase"),
    ],
)
def test_what_is_random_is_refused(layer, message):
    kind = layer.split()[0]
    with pytest.raises(WeightsError, match=f"(?s){kind}_0.*{kind}.*{message}"):
        to_onnx(Net(prototxt.parse_net(net(layer)), "TEST"))
