"""Precisions: faithful float32 is what it was, and what the others round stays within what they promise."""

import json
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import LAYERS
from ohem_caffe_port.net import Net
from ohem_caffe_port.precision import CARRIERS, CONVOLUTIONS, PRODUCTS, Precision
from ohem_caffe_port.segments import PURE
from ohem_caffe_port.solver import Solver

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NET = """
layer { name: "in" type: "Input" top: "data" top: "rois" top: "label"
        input_param { shape { dim: [1, 3, 24, 32] } shape { dim: [6, 5] } shape { dim: 6 } } }
layer { name: "c1" type: "Convolution" bottom: "data" top: "c1"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "r1" type: "ReLU" bottom: "c1" top: "c1" }
layer { name: "n1" type: "LRN" bottom: "c1" top: "n1" lrn_param { local_size: 5 } }
layer { name: "p1" type: "Pooling" bottom: "n1" top: "p1" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
layer { name: "c2" type: "Convolution" bottom: "p1" top: "c2"
        convolution_param { num_output: 8 kernel_size: 3 pad: 1 weight_filler { type: "msra" } } }
layer { name: "roi" type: "ROIPooling" bottom: "c2" bottom: "rois" top: "pooled"
        roi_pooling_param { pooled_h: 3 pooled_w: 3 spatial_scale: 0.5 } }
layer { name: "fc" type: "InnerProduct" bottom: "pooled" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "msra" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 16, (6, 2))
    rois = np.hstack([np.zeros((6, 1)), corners, corners + rng.integers(4, 8, (6, 2))])
    return {"data": rng.normal(0, 1, (1, 3, 24, 32)), "rois": rois, "label": rng.integers(0, 5, 6)}


@pytest.fixture
def trained(build, batch):
    """``trained(precision)``: the net after forward and backward, with the same weights each time."""

    def make(precision):
        torch.manual_seed(3)
        net = build(NET, precision=precision)
        net(**batch)
        net.backward()
        return net

    return make


def gap(ours, reference) -> float:
    return float((ours - reference).detach().abs().max() / reference.detach().abs().max())


def gaps(net, reference) -> tuple[float, float]:
    """The largest difference of losses and outputs, and of gradients, relative to the largest number of each blob."""
    outputs = max(gap(net.loss, reference.loss), gap(net.blobs["prob"], reference.blobs["prob"]))
    pairs = zip(net.learnable_params, reference.learnable_params, strict=True)
    return outputs, max(gap(a.blob.grad, b.blob.grad) for a, b in pairs)


def test_fp32_is_what_it_was_without_being_asked_for(trained, build, batch):
    torch.manual_seed(3)
    net = build(NET)
    net(**batch)
    net.loss.backward()
    assert net.precision.name == "fp32"
    assert not net.precision.converts
    assert gaps(trained("fp32"), net) == (0, 0)
    assert all(layer.form is None for layer in net.layers)


def test_channels_last_changes_nothing_but_rounding(trained):
    net = trained(Precision("fp32", channels_last=True))
    assert max(gaps(net, trained("fp32"))) < 1e-6
    assert net.blobs["c2"].is_contiguous(memory_format=torch.channels_last)
    assert net.blobs["n1"].is_contiguous()  # a layer that has not been seen with another layout


def test_bf16_rounds(trained):
    outputs, gradients = gaps(trained("bf16"), trained("fp32"))
    assert 1e-5 < outputs < 1e-2
    assert gradients < 0.15  # of values that rounding makes equal, another maximum gets the gradient


def test_bf16_computes_products_in_bfloat16_and_all_else_in_float32(build, batch):
    net, seen = build(NET, precision="bf16"), {}
    for layer in net.layers[1:]:
        layer.register_forward_hook(
            lambda layer, args, tops: seen.update({layer.name: ([b.dtype for b in args[0]], [t.dtype for t in tops])})
        )
    net(**batch)
    half, full = torch.bfloat16, torch.float32
    assert seen == {
        "c1": ([half], [half]), "r1": ([half], [half]), "n1": ([full], [full]), "p1": ([full], [full]),
        "c2": ([half], [half]), "roi": ([half, full], [half]), "fc": ([half], [half]), "prob": ([full], [full]),
        "loss": ([full, full], [full]),
    }  # fmt: skip
    assert {blob.dtype for blob in net.blobs.values()} == {full}
    net.backward()
    assert {p.blob.grad.dtype for p in net.learnable_params} == {full}
    assert {p.blob.dtype for p in net.learnable_params} == {full}


def test_layers_of_both_kinds_are_known():
    assert set(LAYERS) >= (PRODUCTS | CARRIERS | PURE)
    assert not CONVOLUTIONS & CARRIERS


@pytest.fixture
def cases(golden_data):
    """``(base name of a layer case, its index entry)`` of real Caffe: the first two of each layer."""
    found, counts = [], Counter()
    for name in ("layers", "layers_more", "layers_rfcn", "layers_ssd"):
        for case, entry in json.loads((golden_data / name / "index.json").read_text()).items():
            counts[case.partition("__")[0]] += 1
            if counts[case.partition("__")[0]] <= 2:
                found.append((golden_data / name / entry["file"], entry))
    return found


@pytest.mark.parametrize(("precision", "limit"), [(Precision("bf16"), 1e-2), (Precision(channels_last=True), 1e-5)])
def test_every_layer_works(cases, precision, limit):
    """Outputs of Caffe's layer cases; detections are a choice, and other boxes may win."""
    for base, entry in cases:
        arrays = np.load(f"{base}.npz")
        net = Net(prototxt.read_net(f"{base}.prototxt"), entry.get("phase", "TRAIN"), precision=precision)
        if any(layer.type in ("DetectionOutput", "Dropout") for layer in net.layers):
            continue
        with torch.no_grad():
            for name in (key for key in arrays.files if key.startswith("param/")):
                _, layer, j = name.split("/")
                blob = net.params[layer][int(j)]
                blob.copy_(torch.from_numpy(arrays[name].reshape(blob.shape)))
            for _ in range(entry.get("forwards", 3 if base.name.endswith("_fwd3") else 1)):
                net(**{name: arrays[f"in/{name}"] for name in net.inputs})
        for name in (key for key in arrays.files if key.startswith("out/")):
            ours, reference = net.blobs[name[4:]].flatten(), torch.from_numpy(arrays[name]).flatten()
            difference = (ours - reference).abs()[reference.isfinite()]
            scale = reference.abs()[reference.isfinite()].max() if len(difference) else 1
            assert (difference <= limit * max(float(scale), 1e-6)).all(), (base.name, name, float(difference.max()))


def test_a_bf16_training_stays_close(build, feed, batch):
    """Four iterations; the losses stay within a hundredth."""
    text = feed(**{name: [blob] for name, blob in batch.items()}) + NET[NET.index('layer { name: "c1"') :]
    solver = prototxt.caffe_pb2.SolverParameter(base_lr=0.01, lr_policy="fixed", momentum=0.9, type="SGD")
    losses = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(3)
        run = Solver(solver, build(text, precision=precision))
        losses.append([(run.step(), run.loss)[1] for _ in range(4)])
    assert losses[0][3] < losses[0][0]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
    assert losses[1] != losses[0]


# ---- torch's switches, and messages


@pytest.mark.parametrize("name", ["fp32", "tf32", "bf16"])
@pytest.mark.parametrize("fails", [False, True])
def test_switches_are_restored(name, fails):
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def switches():
        return matmul.allow_tf32, cudnn.allow_tf32, matmul.allow_bf16_reduced_precision_reduction

    before = switches()
    with pytest.raises(ZeroDivisionError) if fails else nullcontext(), Precision(name).in_force(CUDA):
        assert switches() == (name == "tf32", name == "tf32", False)
        if fails:
            _ = 1 / 0
    assert switches() == before


def test_switches_are_left_alone_on_a_cpu():
    before = torch.backends.cudnn.allow_tf32
    with Precision("tf32").in_force(CPU):
        assert torch.backends.cudnn.allow_tf32 == before


def test_messages(build, monkeypatch):
    with pytest.raises(PortError, match="unknown precision 'bf61'") as error:
        build(NET, precision="bf61")
    assert "bf16" in error.value.hint
    with pytest.raises(PortError, match="tf32: TensorFloat-32 is for NVIDIA's GPUs, not for 'cpu'"):
        build(NET, precision="tf32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(PortError, match="Tesla T4 has no bfloat16"):
        Precision("bf16").check(CUDA)
    Precision("fp32").check(CUDA)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    Precision("bf16").check(CUDA)
    Precision("tf32").check(CUDA)


def test_names():
    assert str(Precision()) == "fp32"
    assert str(Precision("bf16")) == "bf16, channels last"
    assert str(Precision("bf16", channels_last=False)) == "bf16"
