"""Compiled runs of layers give what the layers give one by one; the compiler's own code is left out, for it is slow."""

import json

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.segments import PURE, Segment, compile_net, compile_update, is_pure
from ohem_caffe_port.solver import Solver

FILL = 'weight_filler { type: "msra" }'
NET = f"""
layer {{ name: "in" type: "Input" top: "data" top: "label"
         input_param {{ shape {{ dim: [2, 3, 16, 16] }} shape {{ dim: 2 }} }} }}
layer {{ name: "c1" type: "Convolution" bottom: "data" top: "c1" param {{ lr_mult: 0 }} param {{ lr_mult: 0 }}
         convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 {FILL} }} }}
layer {{ name: "r1" type: "ReLU" bottom: "c1" top: "c1" }}
layer {{ name: "c2" type: "Convolution" bottom: "c1" top: "c2"
         convolution_param {{ num_output: 8 kernel_size: 3 {FILL} }} }}
layer {{ name: "r2" type: "ReLU" bottom: "c2" top: "c2" }}
layer {{ name: "p2" type: "Pooling" bottom: "c2" top: "p2" pooling_param {{ pool: AVE kernel_size: 3 }} }}
layer {{ name: "g" type: "Pooling" bottom: "p2" top: "g" pooling_param {{ pool: AVE global_pooling: true }} }}
layer {{ name: "n" type: "LRN" bottom: "g" top: "n" }}
layer {{ name: "fc" type: "InnerProduct" bottom: "n" top: "fc" inner_product_param {{ num_output: 4 {FILL} }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }}
"""


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture
def pair(build):
    """``pair(**options)``: a net, and the same compiled."""

    def make(backend="eager", **options):
        nets = [build(NET, **options) for _ in range(2)]
        nets[1].load_state_dict(nets[0].state_dict())
        for net in nets:
            net.keep_blobs = False
        compile_net(nets[1], backend=backend)
        return nets

    return make


def batch(size=16):
    rng = np.random.default_rng(size)
    return {"data": rng.normal(0, 1, (2, 3, size, size)), "label": rng.integers(0, 4, 2)}


def gradients(net, blobs):
    for p in net.learnable_params:
        p.blob.grad = None
    net(**blobs)
    net.backward()
    return [net.loss.detach()] + [p.blob.grad for p in net.learnable_params if p.blob.grad is not None]


def test_runs_end_where_a_layer_is_not_pure_or_backward_begins(build):
    net = build(NET)
    segments = compile_net(net, backend="eager")
    names = [[net.layers[i].name for i in range(s.first, s.last + 1)] for s in segments]
    assert names == [["c1", "r1"], ["c2", "r2", "p2"], ["fc"]]
    assert [s.step.runs_backward for s in segments] == [False, True, True]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_same_losses_and_gradients(pair, precision):
    plain, compiled = pair("aot_eager", precision=precision)
    for size in (16, 20, 12):
        ours, reference = gradients(compiled, batch(size)), gradients(plain, batch(size))
        assert len(ours) == len(reference) == 5  # c1 learns nothing
        for a, b in zip(ours, reference, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_new_shapes_are_not_compiled_without_end(pair):
    _, compiled = pair()
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    graphs = []
    for size in (16, 20, 12, 18):
        compiled(**batch(size))
        graphs.append(counts["unique_graphs"])
    assert graphs[-1] == graphs[1]


def test_where_one_function_does_not_serve_the_layers_run_as_they_are(build, monkeypatch):
    net, calls = build(NET), []
    segment = compile_net(net, backend="eager")[0]

    class FailOnRecompileLimitHit(torch._dynamo.exc.TorchDynamoException):
        pass

    def limit(bottoms):
        calls.append(1)
        raise FailOnRecompileLimitHit

    monkeypatch.setattr(segment, "run", limit)
    net.keep_blobs = False
    for _ in range(2):
        net(**batch())
    assert len(calls) == 1


def test_blobs_inside_a_run_can_be_asked_for(pair):
    plain, compiled = pair()
    ours, reference = (net(**batch(), blobs=["c1", "c2", "p2"]) for net in (compiled, plain))
    for name in ("c1", "c2", "p2"):
        torch.testing.assert_close(ours[name], reference[name])
    compiled.keep_blobs = True
    compiled(**batch())
    assert "c2" in compiled.blobs


def test_a_part_of_the_net(pair):
    plain, compiled = pair()
    ends = [net(data=batch()["data"], end="r2")["c2"] for net in (compiled, plain)]
    torch.testing.assert_close(*ends)


def test_what_is_given_is_not_overwritten(build):
    """A run that begins with a layer in place."""
    net = build(NET.replace('type: "LRN" bottom: "g" top: "n"', 'type: "ReLU" bottom: "g" top: "g"').replace(
        'bottom: "n" top: "fc"', 'bottom: "g" top: "fc"'))  # fmt: skip
    net.keep_blobs = False
    compile_net(net, backend="eager")
    given = torch.tensor([[-1.0] * 8, [2.0] * 8]).view(2, 8, 1, 1)
    before = given.clone()
    net(start="n", end="fc", g=given)
    assert torch.equal(given, before)


def test_a_wrong_shape_names_a_layer(pair):
    _, compiled = pair()
    with pytest.raises(PortError, match="layer 'c1'"):
        compiled(data=np.zeros((2, 4, 16, 16)), label=np.zeros(2))


def test_what_the_compiler_says_becomes_a_message(build):
    net = build(NET)
    net.keep_blobs = False

    def broken(graph, inputs):
        raise RuntimeError("no compiler on this machine")

    compile_net(net, backend=broken)
    with pytest.raises(PortError, match="layer 'c1': cannot be compiled: .*no compiler on this machine") as error:
        net(**batch())
    assert error.value.hint == "it runs without compiling"


def test_a_net_without_products(build):
    text = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 } } }'
    with pytest.raises(PortError, match="nothing to compile"):
        compile_net(build(text + 'layer { name: "r" type: "ReLU" bottom: "x" top: "y" }'))


def test_every_pure_layer_can_be_followed_by_the_compiler(golden_data):
    """``fullgraph``: a layer that it cannot follow is an error."""
    seen = set()
    index = json.loads((golden_data / "layers" / "index.json").read_text())
    index = {golden_data / "layers" / entry["file"]: entry for entry in index.values()}
    more = json.loads((golden_data / "layers_ssd" / "index.json").read_text())
    index |= {golden_data / "layers_ssd" / entry["file"]: entry for entry in more.values()}
    for base, entry in index.items():
        param = prototxt.read_net(f"{base}.prototxt")
        types = {layer.type for layer in param.layer} & PURE
        if not types - seen or "Dropout" in types:
            continue
        torch._dynamo.reset()
        net, arrays = Net(param, entry.get("phase", "TRAIN")), np.load(f"{base}.npz")
        inputs = {name: arrays[f"in/{name}"] for name in net.inputs}
        with torch.no_grad():
            reference = net(**inputs)
            net.keep_blobs = False
            for i, layer in enumerate(net.layers):
                if is_pure(layer) and not any(v in net.loss_weights for v in net.steps[i].tops):
                    net.segments[i] = Segment(net, i, i, backend="eager")
            ours = net(**inputs)
        seen |= types
        for name, blob in reference.items():
            torch.testing.assert_close(ours[name], blob)
    assert seen >= PURE - {"Dropout", "DepthwiseConvolution", "ConvolutionDepthwise"}


@pytest.mark.parametrize("rule", ["SGD", "Adam"])
def test_a_compiled_update(build, feed, rule):
    rng = np.random.default_rng(0)
    text = feed(data=[rng.normal(0, 1, (2, 3, 16, 16))], label=[[1, 3]]) + NET[NET.index('layer { name: "c1"') :]
    param = prototxt.caffe_pb2.SolverParameter(
        type=rule, base_lr=0.01, lr_policy="inv", gamma=0.1, power=0.5, momentum=0.9, weight_decay=0.1, iter_size=2
    )
    results = []
    for compiled in (False, True):
        torch.manual_seed(1)
        solver = Solver(param, build(text))
        if compiled:
            compile_update(solver, backend="eager")
        solver.step(4)
        results.append([p.blob.detach() for p in solver.net.learnable_params])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_large_product(build):
    """One that goes to a routine of its own on a CPU; see ``ops/linear.py``."""
    shape = "input_param { shape { dim: [16, 512] } }"
    product = f"inner_product_param {{ num_output: 256 {FILL} }}"
    net = build(f"""layer {{ name: "in" type: "Input" top: "x" {shape} }}
        layer {{ name: "fc" type: "InnerProduct" bottom: "x" top: "y" {product} }}""")
    x = torch.randn(16, 512)
    reference = net(x=x)["y"]
    net.keep_blobs = False
    compile_net(net, backend="eager")
    torch.testing.assert_close(net(x=x)["y"], reference, rtol=1e-5, atol=1e-5)
