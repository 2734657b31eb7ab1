"""``benchmarks/data_pipeline.py``."""

import re

import numpy as np

TINY = ("--images", 3, "--rois", 100, "--minibatches", 2, "--rate", 1000)


def test_every_way_is_measured(benchmark):
    run = benchmark("data_pipeline", *TINY, "--workers", 0, 2)
    assert run.code == 0
    assert run.out.startswith("3 JPEGs of 433 x 433 pixels")
    for way in ("without workers", "threads: 2", "processes: 2"):
        assert len(re.findall(rf"{way} +[\d.]+ +[\d.]+ +[\d.]+% +[\d.]+", run.out)) == 2
    assert len(re.findall(r"will keep busy a device that takes 1000 images/s", run.out)) == 2


def test_both_ways_give_the_same_minibatches(benchmark, tmp_path):
    module = benchmark.module("data_pipeline")
    roidb = module.random_roidb(module.drawn(tmp_path, 3), 100)
    cfg = module.config("ohem", workers=1, scale=60)
    threads = module.MinibatchStream(roidb, cfg, "cpu")
    processes = module.ProcessStream(roidb, cfg, "cpu")
    ours, theirs = threads.next(), processes.next()
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name])
    threads.close(), processes.close()


def test_mistakes(benchmark):
    for options, message in (
        (("--workers", -1), "--workers must not be negative"),
        (("--rate", 0), "--rate must be positive"),
        (("--images", 1), "--images must be at least 2"),
        (("--data", "absent"), "VOCdevkit2007"),
        (("--imdb", "voc", "--data", "."), "voc"),
    ):
        run = benchmark("data_pipeline", *TINY, *options)
        assert run.code == 2
        assert message in run.err
