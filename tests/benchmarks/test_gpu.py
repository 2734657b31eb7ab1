"""``benchmarks/gpu.py``, as far as a CPU goes."""

import re
from types import SimpleNamespace

import pytest

import prototxt
from ohem_caffe_port.net import Net

TINY = ("--device", "cpu", "--recipe", "shapes/ohem", "--scale", 32, "--repeats", 1)


def test_runs_on_a_cpu(benchmark):
    run = benchmark("gpu", *TINY, "--ways", 1, 2, 4, "--profile")
    assert run.code in (0, None)
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in run.out.splitlines() if line.startswith("│")}
    assert list(rows) == ["fp32 (faithful)", "tf32", "bf16, channels last"]
    assert [row[-1].strip() for row in rows.values()][:2] == ["0.0e+00", "-"]
    assert 0 < float(rows["bf16, channels last"][-1]) < 0.1
    assert "tf32\nnot measured: RuntimeError: for CUDA alone" in run.out
    assert {"convolution", "inner product", "RoI pooling", "mining", "update"} <= set(
        re.findall(r"^  (.+?) +\d+\.\d%", run.out, re.M)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no CUDA device here; --device cpu --scale 16"),
        (("--device", "tpu"), "--device is cuda or cpu, not tpu"),
        ((*TINY, "--repeats", "0"), "--repeats must be at least 1"),
        ((*TINY, "--ways", "11"), "--ways are numbers from 1 to 10"),
        ((*TINY, "--recipe", "lenet/x"), "no recipe 'lenet/x' in the zoo"),
    ],
)
def test_mistakes(benchmark, monkeypatch, options, message):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    run = benchmark("gpu", *options)
    assert run.code == 2
    assert message in run.err


def test_operations(benchmark):
    """Forward once; backward twice where bottom and weights want a gradient, once for weights alone, else not."""
    product = 'type: "InnerProduct" inner_product_param { num_output: %d bias_term: false }'
    frozen = "param { lr_mult: 0 }"
    text = (
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [3, 5] } } }'
        f'layer {{ name: "a" bottom: "x" top: "a" {frozen} {product % 7} }}'
        f'layer {{ name: "b" bottom: "a" top: "b" {product % 11} }}'
        f'layer {{ name: "c" bottom: "b" top: "c" {product % 13} }}'
        f'layer {{ name: "d" bottom: "c" top: "d" {frozen} {product % 2} loss_weight: 1 }}'
    )
    net = Net(prototxt.parse_net(text))
    forward = net.forward
    net.forward = lambda: forward(x=[[1.0] * 5] * 3)
    macs = [3 * 5 * 7, 3 * 7 * 11, 3 * 11 * 13, 3 * 13 * 2]
    found = benchmark.module("gpu").count_operations(net)
    assert found == 2 * (macs[0] + 2 * macs[1] + 3 * macs[2] + 2 * macs[3])


def test_busy_time_is_that_of_the_union(benchmark):
    assert benchmark.module("_gpu_profile").union([(0, 4), (1, 2), (3, 6), (8, 9)]) == 7
    assert benchmark.module("_gpu_profile").union([]) == 0


@pytest.mark.parametrize(
    ("names", "group"),
    [
        (["aten::mm", "autograd::engine::evaluate_function: AddmmBackward0"], "inner product"),
        (["aten::add_", "layer Python"], "mining"),
        (["aten::copy_", "aten::to", "layer Convolution"], "casts and copies"),
        (["aten::mul_", "update"], "update"),
        (["aten::relu", "layer ReLU"], "other (ReLU, pooling, ...)"),
        (["aten::cudnn_convolution", "layer Convolution"], "convolution"),
    ],
)
def test_groups(benchmark, names, group):
    event = None
    for name in reversed(names):
        event = SimpleNamespace(name=name, cpu_parent=event)
    assert benchmark.module("_gpu_profile").group_of(event) == group
