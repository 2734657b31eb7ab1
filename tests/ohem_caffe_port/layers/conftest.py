import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.layers import Context, create_layer


@pytest.fixture(scope="session")
def run_layer():
    """``run_layer("ReLU", "relu_param { ... }", bottom, ...)``: the tops of one layer, through a net of its own."""

    def run(kind, settings, *bottoms, phase="TRAIN", tops=1, params=(), cfg=None):
        bottoms = [torch.as_tensor(np.asarray(b, np.float32)) if not torch.is_tensor(b) else b for b in bottoms]
        names = "".join(f'bottom: "b{i}" ' for i in range(len(bottoms)))
        names += "".join(f'top: "t{i}" ' for i in range(tops))
        text = f'layer {{ name: "it" type: "{kind}" {names} {settings} }}'
        layer = create_layer(prototxt.parse_net(text).layer[0], Context(phase, cfg or Config()))
        layer.setup([b.to("meta") for b in bottoms])
        inferred = layer.infer([b.to("meta") for b in bottoms])
        for j, values in enumerate(params):
            layer.blobs[j] = torch.nn.Parameter(torch.as_tensor(np.asarray(values, np.float32)))
        results = layer(bottoms)
        assert [tuple(t.shape) for t in inferred] == [tuple(t.shape) for t in results], "inferred shapes must be true"
        return results

    return run
