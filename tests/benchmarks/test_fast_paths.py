"""``benchmarks/fast_paths.py``."""

import numpy as np
import pytest
import torch.distributed as dist


def rows(out):
    return {line.split("│")[1].strip(): line.split("│")[2:-1] for line in out.splitlines() if line.startswith("│")}


def test_a_short_run(benchmark, golden_data):
    paths = ("faithful", "plain_pooling", "one_dnn_products", "channels_last", "padded", "bf16", "tf32")
    folder = golden_data / "ohem_vggm_small_b"
    run = benchmark("fast_paths", "--folders", folder, "--iters", 1, "--paths", *paths)
    assert run.code in (0, None)
    found = rows(run.out)
    assert tuple(found) == paths
    for exact in ("faithful", "plain_pooling", "padded"):
        assert found[exact][1].strip() == found[exact][3].strip() == "0.0e+00"
    for name in paths[:5]:
        assert max(map(float, found[name][:4])) < 2e-6
        assert found[name][4].strip() == "64 of 64"
    assert 1e-5 < float(found["bf16"][0]) < 1e-2
    assert "tf32: not measured: precision tf32: TensorFloat-32 is for NVIDIA's GPUs" in run.out


@pytest.mark.parametrize("name", ["ohem_vggm_small_b", "e2e_ohem_small"])
def test_two_processes_share_the_passes(benchmark, golden_data, name):
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this PyTorch has no gloo")
    run = benchmark("fast_paths", "--folders", golden_data / name, "--iters", 2, "--paths", "two_processes")
    assert run.code in (0, None)
    found = rows(run.out)["two_processes"]
    assert max(map(float, (found[0], found[1], found[3]))) < 1e-6
    assert found[4].split() == ["128", "of", "128"]


def test_one_pass_is_not_shared(benchmark, golden_data):
    run = benchmark("fast_paths", "--folders", golden_data / "ssd_small_ohem", "--iters", 1, "--paths", "two_processes")
    assert "two_processes: not measured: iter_size is 1, for 2 processes" in run.out


def test_differences(benchmark):
    module = benchmark.module("fast_paths")
    reference = module.Run([[1.0, 2.0]], [np.array([1, 2, 3])], {"a/0": np.array([4.0, -8]), "a/1": np.array([0.5])})
    run = module.Run([[1.1, 2.0]], [np.array([1, 3, 9])], {"a/0": np.array([4.0, -8]), "a/1": np.array([1.5])})
    assert module.differences(run, reference) == ("1.0e-01", "1.2e-01")  # the bias beside its layer's weights
    assert module.same_rois(run, reference) == "2 of 3"


def test_mistakes(benchmark, tmp_path):
    for options, message in (
        (("--iters", 0), "--iters must be positive"),
        (("--folders", tmp_path), "is no training run of Caffe"),
        (("--paths", "fp16"), "invalid choice: 'fp16'"),
    ):
        run = benchmark("fast_paths", *options)
        assert run.code == 2
        assert message in run.err
