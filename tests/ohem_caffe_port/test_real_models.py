"""Trained Caffe models run as in Caffe: recorded inputs in, every recorded blob compared."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ohem_caffe_port.inputs import reshape_inputs
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from
from prototxt import read_net

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def forward(net, inputs):
    with torch.no_grad():
        net(**inputs)
    return net.blobs


def assert_close(ours, reference, tolerance, what):
    assert ours.size == reference.size, what
    if ours.size:
        assert np.abs(ours.reshape(reference.shape) - reference).max() <= tolerance * np.abs(reference).max(), what


def detections(blob):
    """The rows that say something, ordered: SSD's Caffe has a row of label -1 where nothing is found, and orders those
    of an image by label; OpenCV has rows of zeros, and orders by score."""
    if blob.ndim != 4 or blob.shape[3] != 7:
        return blob
    rows = blob[0, 0][blob[0, 0, :, 1] > 0]
    return rows[np.lexsort((-rows[:, 2], rows[:, 1], rows[:, 0]))]


def test_outputs_are_caffes(real_model):
    recorded = real_model.golden
    blobs = forward(real_model.load(), {key[3:]: recorded[key] for key in recorded.files if key.startswith("in/")})
    compared = [key for key in recorded.files if key.startswith(("out/", "mid/"))]
    assert compared
    for key in compared:
        assert_close(detections(blobs[key[4:]].numpy()), detections(recorded[key]), 1e-5, key)


def test_single_precision_differs_by_the_rounding_alone(real_weights):
    """HyperLPR's network was published twice; half the precision, and outputs within 1 %."""
    folder = real_weights / "hyperlpr_fp16"
    recorded = np.load(folder / "golden.npz")
    net = Net(folder / "HorizonalFinemapping.prototxt", "TEST")
    copy_from(net, folder / "HorizonalFinemapping_fp32.caffemodel")
    assert_close(forward(net, {"data": recorded["in/data"]})["dense"].numpy(), recorded["out/dense"], 1e-2, "dense")


@pytest.mark.parametrize("photos", [0, 1, 2])
def test_outputs_are_opencvs(real_model, opencv4, photos):
    """OpenCV 4 reads the same two files by itself, and sees the recorded input or the same photos."""
    if real_model.weights.suffix == ".h5":
        pytest.skip("OpenCV reads no HDF5")
    net = real_model.load()
    (name,), (shape, *_) = net.inputs, net.shapes
    inputs = {name: real_model.photos((photos, *shape[1:])) if photos else real_model.golden[f"in/{name}"]}
    blobs = forward(net, inputs)
    theirs = opencv4(net, real_model.prototxt, real_model.weights, inputs)
    for output in net.outputs:
        ours, reference = (detections(blob) for blob in (blobs[output].numpy(), theirs[output]))
        assert_close(ours, reference, 1e-4, output)


@pytest.mark.parametrize("name", ["rfcn_small", "ssd_small_ohem"])
def test_small_detectors_are_opencvs(golden_data, name, request):
    """Nets of this project that real Caffe trained. OpenCV 4.14's outputs are recorded: it need not be installed."""
    folder = golden_data / name
    recorded = np.load(golden_data.parent / "opencv4.npz")
    inputs = np.load(folder / "inputs.npz")
    inputs = {"data": inputs["data_0"]} | ({"rois": inputs["all_rois_0"]} if name == "rfcn_small" else {})
    param = read_net(folder / "test.prototxt")
    reshape_inputs(param, {key: array.shape for key, array in inputs.items()})
    net = Net(param, "TEST")
    weights = sorted(folder.glob("*_iter_1[02].caffemodel"))[-1]
    copy_from(net, weights)
    blobs = forward(net, inputs)
    live = {}
    if "OPENCV4_PYTHON" in os.environ:
        live = request.getfixturevalue("opencv4")(net, folder / "test.prototxt", weights, inputs)
    for output in net.outputs:
        reference = detections(recorded[f"{name}/{output}"])
        assert_close(detections(blobs[output].numpy()), reference, 1e-5, output)
        if live:
            assert_close(detections(live[output]), reference, 1e-5, output)


RELEASE = SHARED / "corpus" / "abhi2610__ohem" / "models" / "pascal_voc"
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
