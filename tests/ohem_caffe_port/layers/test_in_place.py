"""Layers that work in place change no result: memory is shared only where no gradient needs what lay there."""

import pytest
import torch

import prototxt
from ohem_caffe_port.layers import LAYERS
from ohem_caffe_port.net import Net

FAMILIES = {"batch_norm", "dropout", "neuron", "normalization", "rectifier", "scale"}
KINDS = [k for k, c in LAYERS.items() if c.__module__.split(".")[-1] in FAMILIES and c.num_bottoms[0] == 1]
KINDS = [k for k in KINDS if k not in ("AbsVal", "Threshold")]  # Caffe: not in place; no gradient
SETTINGS = {
    "Clip": "clip_param { min: -1 max: 1 }",
    "Log": "log_param { shift: 9 }",
    "ELU": "elu_param { lambda: 2 }",
    "Scale": "scale_param { bias_term: true }",
    "BN": "bn_param { slope_filler { value: 2 } }",
}


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("kind", KINDS)
def test_same_gradients(kind, phase):
    """Between a convolution and a ReLU, each of which may share the layer's memory."""

    def run(top):
        torch.manual_seed(0)
        net = Net(
            prototxt.parse_net(f"""
                layer {{ name: "in" type: "Input" top: "data"
                         input_param {{ shape {{ dim: 2 dim: 3 dim: 4 dim: 5 }} }} }}
                layer {{ name: "c" type: "Convolution" bottom: "data" top: "x" convolution_param {{
                         num_output: 3 kernel_size: 1 weight_filler {{ type: "gaussian" std: 1 }} }} }}
                layer {{ name: "it" type: "{kind}" bottom: "x" top: "{top}" {SETTINGS.get(kind, "")} }}
                layer {{ name: "r" type: "ReLU" bottom: "{top}" top: "{top}" }}
                layer {{ name: "l" type: "EuclideanLoss" bottom: "{top}" bottom: "data" top: "loss" }}
            """),
            phase,
        )
        net(data=torch.linspace(-2, 2, 120).view(2, 3, 4, 5))
        net.backward()
        return [net.loss.detach()] + [p.blob.grad for p in net.learnable_params]

    for ours, theirs in zip(run("x"), run("y"), strict=True):
        torch.testing.assert_close(ours, theirs)
