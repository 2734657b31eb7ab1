"""``benchmarks/two_branch.py``."""

import json
import re

TINY = ("--net", "shapes", "--rois", 60, "--batch-size", 16, "--height", 64, "--width", 80, "--repeats", 1)


def test_both_ways_give_the_same_gradients(benchmark):
    run = benchmark("two_branch", *TINY, "--no-memory")
    assert run.code == 0
    assert "the same 16 hard RoIs: yes" in run.out
    losses = re.findall(r"branch(?:es)? +│ +[\d.]+ s │ +- │ +([\d.]+)", run.out)
    assert len(losses) == 2 and losses[0] == losses[1]
    assert float(re.search(r"difference of a gradient ([\d.e+-]+),", run.out)[1]) < 1e-5


def test_a_process_that_measures_memory(benchmark):
    run = benchmark("two_branch", *TINY, "--way", "ohem")
    assert json.loads(run.out)["memory"] > 1e6


def test_mistakes(benchmark):
    for options, message in (
        (("--device", "abacus"), "--device abacus: "),
        (("--rois", 61), "--rois 61 cannot be shared by 2 images"),
        (("--repeats", 0), "--repeats must be at least 1"),
        (("--net", "lenet"), "no recipe 'lenet/ohem' in the zoo"),
        (("--rois", 2), "at least 3"),
    ):
        run = benchmark("two_branch", *TINY, *options)
        assert run.code == 2
        assert message in run.err
