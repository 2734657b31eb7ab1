"""``benchmarks/iteration.py``."""

import json
import re

import pytest
import torch

TINY = ("--rois", 60, "--height", 64, "--width", 80, "--repeats", 1, "--threads", 1)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_an_iteration_beside_its_products(benchmark):
    run = benchmark("iteration", "--recipes", "shapes/ohem", *TINY)
    assert run.code == 0
    assert re.search(r"1 +│ +shapes/ohem +│", run.out)
    assert float(re.search(r"largest relative difference ([\d.e+-]+)", run.out)[1]) < 1e-5


def test_the_products_are_those_of_the_net_with_their_gradients(benchmark):
    module, nets = benchmark.module("iteration"), benchmark.module("_nets")
    net = nets.build("shapes/ohem", rois=60, batch_size=16, height=64, width=80).net
    products = module.Products(net)
    names = [layer.name for layer, *_ in products.calls]
    assert names == [layer.name for layer in net.layers if layer.type in ("Convolution", "InnerProduct")]
    for layer, _, weights, wanted in products.calls:
        learns = "readonly" not in layer.name
        assert len(wanted) == (len(weights) + (layer.name != names[0]) if learns else 0), layer.name
    outputs = products.run(torch.nn.functional.linear)
    assert [y.requires_grad for y in outputs] == [False] * len(names)


def test_a_process_that_measures_memory(benchmark):
    run = benchmark("iteration", "--memory-of", "shapes/ohem", *TINY)
    assert json.loads(run.out)["bytes"] > 1e6


def test_mistakes(benchmark):
    for options, message in (
        (("--rois", 0), "--rois must be at least 1"),
        (("--threads", 0), "--threads must be at least 1"),
        (("--recipes", "lenet/ohem"), "no recipe 'lenet/ohem' in the zoo"),
    ):
        run = benchmark("iteration", *TINY, *options)
        assert run.code == 2
        assert message in run.err
