"""``benchmarks/fast_paths.py``."""

import numpy as np


def rows(out):
    return {line.split("│")[1].strip(): line.split("│")[2:-1] for line in out.splitlines() if line.startswith("│")}


def test_a_short_run(benchmark, golden_data):
    paths = ("faithful", "channels_last", "padded", "bf16", "tf32")
    folder = golden_data / "ohem_vggm_small_b"
    run = benchmark("fast_paths", "--folders", folder, "--iters", 1, "--paths", *paths)
    assert run.code in (0, None)
    found = rows(run.out)
    assert tuple(found) == paths
    for exact in ("faithful", "padded"):
        assert found[exact][1].strip() == found[exact][3].strip() == "0.0e+00"
    for name in ("faithful", "channels_last", "padded"):
        assert max(map(float, found[name][:4])) < 2e-6
        assert found[name][4].strip() == "64 of 64"
    assert 1e-5 < float(found["bf16"][0]) < 1e-2
    assert "tf32: not measured: precision tf32: TensorFloat-32 is for NVIDIA's GPUs" in run.out


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
