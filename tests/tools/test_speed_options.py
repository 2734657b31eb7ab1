"""--precision, --channels_last and --compile of the tools that train and test: what they say, and what they change."""

import numpy as np
import pytest
import torch

from converters import read_caffemodel
from ohem_caffe_port import segments

NAME = "snapshots2/tiny_iter_2.caffemodel"


def weights(path):
    return {layer.name: [np.array(blob) for blob in layer.blobs] for layer in read_caffemodel(path).layers}


def gap(ours, reference) -> float:
    pairs = [(a, b) for name in reference for a, b in zip(ours[name], reference[name], strict=True)]
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in pairs)


@pytest.mark.parametrize(
    ("options", "note", "least", "most"),
    [
        ((), None, 0, 0),
        (("--precision", "fp32"), None, 0, 0),
        (("--channels_last",), "precision fp32, channels last: not Caffe's numbers", 0, 1e-5),
        (("--precision", "bf16"), "precision bf16, channels last: not Caffe's numbers", 1e-6, 0.5),
    ],
)
def test_training(workspace, options, note, least, most):
    done = workspace.train("--iters", "2", "--output", "snapshots2", *options)
    assert done.code == 0
    assert (note in done.out) if note else ("not Caffe's numbers" not in done.out)
    assert least <= gap(weights(NAME), weights("snapshots/tiny_iter_2.caffemodel")) <= most


def test_compiling(workspace, monkeypatch):
    used = []

    def compiler(graph, inputs):
        used.append(graph)
        return graph.forward

    compile_net = segments.compile_net
    monkeypatch.setattr(segments, "compile_net", lambda net: compile_net(net, backend=compiler))
    torch._dynamo.reset()
    done = workspace.train("--iters", "1", "--output", "snapshots2", "--compile")
    torch._dynamo.reset()
    assert done.code == 0
    assert "layers are compiled at their first use" in done.out
    assert used


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--precision", "tf32"), ["precision tf32: TensorFloat-32 is for NVIDIA's GPUs, not for 'cpu'", "fp32"]),
        (("--precision", "fp16"), ["--precision: invalid choice: 'fp16'"]),
    ],
)
def test_mistakes(workspace, options, words):
    workspace.train(*options).ended_in_one_message(words)
    workspace.test(*options).ended_in_one_message(words)
