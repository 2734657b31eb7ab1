"""Trained models by other people, and detectors as they were published, as ONNX: what the runtimes make of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port import python_layers  # noqa: F401  registers them
from ohem_caffe_port.inputs import reshape_inputs
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from


def test_outputs(real_model, check, run_onnx):
    """Our Net's outputs for the recorded input, and for several photos at once; real Caffe's for the former."""
    recorded = real_model.golden
    inputs = {key[3:]: recorded[key] for key in recorded.files if key.startswith("in/")}
    net = real_model.load(shapes={name: array.shape for name, array in inputs.items()})
    (name,) = net.inputs

    def feed(shapes, rng):
        return inputs if shapes[name] == inputs[name].shape else {name: real_model.photos(shapes[name])}

    # SqueezeNet's scores for a photo reach hundreds: their rounding is 1.4e-5 of a probability
    for model in check(net, feed, tolerance=5e-5).values():
        for output, ours in run_onnx(model, inputs).items():
            reference = recorded[f"out/{output}"].ravel()
            reference, padding = reference[: ours.size], reference[ours.size :]  # rows of zeros behind detections
            assert not padding.any()
            assert np.abs(ours.ravel() - reference).max() <= 1e-5 * np.abs(reference).max()


# ---- detectors as they were published, without their weights

CORPUS = Path(__file__).resolve().parents[3].parent / "shared" / "corpus"
DETECTORS = [
    "abhi2610__ohem/models/pascal_voc/VGG16/fast_rcnn/test.prototxt",
    "abhi2610__ohem/models/pascal_voc/VGG_CNN_M_1024/fast_rcnn/test.prototxt",
    "rbgirshick__py-faster-rcnn/models/pascal_voc/ZF/faster_rcnn_end2end/test.prototxt",
    "rbgirshick__py-faster-rcnn/models/pascal_voc/VGG16/faster_rcnn_end2end/test.prototxt",
    "rbgirshick__py-faster-rcnn/models/coco/VGG_CNN_M_1024/faster_rcnn_end2end/test.prototxt",
]


def thin(param) -> None:
    """Leaves one in sixteen channels and hidden units; what is counted in classes or anchors stays."""
    for layer in param.layer:
        for settings in (layer.convolution_param, layer.inner_product_param):
            if settings.num_output >= 64 and settings.num_output % 32 == 0:
                settings.num_output //= 16


@pytest.mark.parametrize("file", DETECTORS)
def test_published_detectors(check, file):
    if not CORPUS.is_dir():
        pytest.skip(f"needs {CORPUS}")
    param = prototxt.read_net(CORPUS / file)
    thin(param)
    shapes = {"data": (1, 3, 160, 224), **({"rois": (30, 5)} if "fast_rcnn/test" in file else {"im_info": (1, 3)})}
    reshape_inputs(param, shapes)
    net = Net(param, "TEST")
    with torch.no_grad():  # what the fillers of a net for testing leave at 0
        for learnable in net.learnable_params:
            learnable.blob.normal_(std=(2 / max(learnable.blob[0].numel(), 10)) ** 0.5)

    def inputs(shapes, rng):
        corners = rng.uniform(0, 1, (shapes.get("rois", (0,))[0], 2, 2)) * (223, 159)
        rois = np.concatenate([np.zeros((len(corners), 1)), corners.min(1), corners.max(1)], 1)
        return {"rois": rois, "im_info": np.array([[160, 224, 1.6]])}

    check(net, inputs, static="im_info" in shapes, repeats="im_info" in shapes)  # proposals are made for one image


# ---- small detectors that real Caffe has trained and run: golden arrays that are always here

SNAPSHOTS = {"rfcn_small": "unnormalized_iter_10.caffemodel", "ssd_small_ohem": "snap_iter_12.caffemodel"}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_small_detectors(golden_data, check, run_onnx, name):
    folder = golden_data / name
    golden, recorded = np.load(folder / "golden.npz"), np.load(folder / "inputs.npz")
    param = prototxt.read_net(folder / "test.prototxt")
    inputs = {"data": recorded["data_0"]} | ({"rois": recorded["all_rois_0"]} if "rfcn" in name else {})
    reshape_inputs(param, {key: array.shape for key, array in inputs.items()})
    net = Net(param, "TEST")
    copy_from(net, folder / SNAPSHOTS[name])
    for model in check(net, inputs).values():
        outputs = run_onnx(model, inputs)
        for key in (key for key in golden.files if key.startswith("test/0/") and key[7:] in outputs):
            reference = golden[key]
            assert np.abs(outputs[key[7:]] - reference).max() <= 1e-5 * np.abs(reference).max(), key
