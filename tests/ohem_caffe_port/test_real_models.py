"""Trained Caffe models run as in Caffe: recorded inputs in, every recorded blob compared."""

from pathlib import Path

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.layers import LAYERS
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from

WEIGHTS = Path(__file__).resolve().parents[2].parent / "shared" / "weights"
MODELS = {
    "squeezenet_v1.0": "squeezenet_v1.0.caffemodel",
    "squeezenet_v1.1": "squeezenet_v1.1.caffemodel",
    "bvlc_googlenet": "bvlc_googlenet.caffemodel",
}


@pytest.mark.parametrize("folder", MODELS)
def test_outputs_are_caffes(folder):
    if not WEIGHTS.is_dir():
        pytest.skip(f"needs {WEIGHTS}")
    deploy = WEIGHTS / folder / "deploy.prototxt"
    unknown = {layer.type for layer in prototxt.read_net(deploy).layer} - set(LAYERS)
    if unknown:
        pytest.skip(f"layer types that are not there yet: {unknown}")
    net = Net(deploy, "TEST")
    report = copy_from(net, WEIGHTS / folder / MODELS[folder])
    assert {verdict for _, _, verdict in report.rows} <= {"loaded", "not in the net"}
    recorded = np.load(WEIGHTS / folder / "golden.npz")
    with torch.no_grad():
        net(**{key[3:]: recorded[key] for key in recorded.files if key.startswith("in/")})
    compared = [key for key in recorded.files if key.startswith(("out/", "mid/"))]
    assert compared
    for key in compared:
        ours, reference = net.blobs[key[4:]].numpy(), recorded[key]
        assert np.abs(ours - reference).max() <= 1e-5 * np.abs(reference).max(), key


RELEASE = WEIGHTS.parent / "corpus" / "abhi2610__ohem" / "models" / "pascal_voc"
NETS = [
    (net, method, phase)
    for net in ("VGG16", "VGG_CNN_M_1024")
    for method, phase in (("fast_rcnn", "TRAIN"), ("fast_rcnn", "TEST"), ("fast_rcnn_ohem", "TRAIN"))
]


@pytest.mark.parametrize(("name", "method", "phase"), NETS)
def test_released_nets_build(name, method, phase, monkeypatch):
    """The OHEM release's own files: shapes, sharing and gradient flow, without spending memory on weights."""
    if not RELEASE.is_dir():
        pytest.skip(f"needs {RELEASE}")
    monkeypatch.setattr("ohem_caffe_port.net.filled", lambda shape, filler: torch.empty(tuple(shape)))
    net = Net(RELEASE / name / method / f"{phase.lower()}.prototxt", phase)
    assert net.warnings == []
    assert net.params["fc6"][0].shape == (4096, 512 * (7 * 7 if name == "VGG16" else 6 * 6))
    backward = {layer.name for layer, step in zip(net.layers, net.steps, strict=True) if step.runs_backward}
    if method == "fast_rcnn_ohem":
        readonly = [layer for layer in net.params if layer.endswith("_readonly")]
        assert len(readonly) == 4
        assert all(a is b for n in readonly for a, b in zip(net.params[n], net.params[n[:-9]], strict=True))
        assert not any("readonly" in n or n == "hard_roi_mining" for n in backward)
        assert {"fc6", "roi_pool5", "loss_cls", "loss_bbox"} <= backward
    frozen = {p.owner for p in net.learnable_params if not p.blob.requires_grad}
    first = ("conv1_1", "conv1_2", "conv2_1", "conv2_2") if name == "VGG16" else ("conv1",)
    if phase == "TRAIN":
        assert frozen == {f"{n}[{j}]" for n in first for j in (0, 1)}
