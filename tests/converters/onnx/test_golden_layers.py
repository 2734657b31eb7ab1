"""Exported layers against the arrays that real Caffe computed."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net

GOLDEN = Path(__file__).resolve().parents[2] / "data" / "golden"
TYPES = [
    "AbsVal", "ArgMax", "BNLL", "BatchNorm", "Bias", "Clip", "Concat", "Convolution", "Crop", "Deconvolution",
    "DetectionOutput", "Dropout", "DummyData", "ELU", "Eltwise", "Embed", "Exp", "Filter", "Flatten", "Im2col",
    "InnerProduct", "LRN", "LSTM", "Log", "MVN", "Net", "Normalize", "PReLU", "PSROIPooling", "Parameter", "Permute",
    "Pooling", "Power", "PriorBox", "RNN", "ROIPooling", "ReLU", "Reduction", "Reshape", "SPP", "Scale", "Sigmoid",
    "Slice", "Slice_Silence", "Softmax", "Split", "Swish", "TanH", "Threshold", "Tile",
]  # fmt: skip
# what a graph of the TEST phase cannot give: statistics of the batch, and a threshold that follows from the boxes
EXCEPTIONS = {"BatchNorm__train", "BatchNorm__train_fwd3", "BatchNorm__eps", "BatchNorm__2d", "DetectionOutput__eta"}


def find_cases() -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for index in sorted(GOLDEN.glob("layers*/index.json")):
        for name, entry in json.loads(index.read_text()).items():
            if name not in EXCEPTIONS:
                found.setdefault(entry["file"].split("/")[0], []).append(index.parent / entry["file"])
    return found


CASES = find_cases()


@pytest.mark.parametrize("kind", TYPES)
def test_against_caffe(kind, runtimes, compare):
    compared = 0
    for case in CASES[kind]:
        arrays = np.load(f"{case}.npz")
        inputs, wanted, params = (
            {key.split("/", 1)[1]: arrays[key] for key in arrays.files if key.split("/", 1)[0] == group}
            for group in ("in", "out", "param")
        )
        net = Net(prototxt.read_net(f"{case}.prototxt"), "TEST")
        with torch.no_grad():
            for name, value in params.items():
                layer, j = name.rsplit("/", 1)
                blob = net.params[layer][int(j)]
                blob.copy_(torch.from_numpy(value.reshape(blob.shape)))
        for target, run in runtimes.items():
            got = run(to_onnx(net, target=target), inputs)
            judged = {name: wanted[name] for name in got if name in wanted}
            compare({name: got[name] for name in judged}, judged, 1e-6, f"{case.name}, {target}", shapes=False)
            compared += len(judged)
    assert compared >= len(CASES[kind])
