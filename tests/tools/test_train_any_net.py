"""``tools/train_from_prototxt.py`` on a net that is no detector: what ``caffe train`` does."""

import re

import cv2
import numpy as np
import pytest

from converters import read_caffemodel, read_solverstate

NET = """
name: "grey"
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TRAIN }
        image_data_param { source: "train.txt" batch_size: 4 is_color: false } transform_param { scale: 0.00390625 } }
layer { name: "data" type: "ImageData" top: "data" top: "label" include { phase: TEST }
        image_data_param { source: "test.txt" batch_size: 4 is_color: false } transform_param { scale: 0.00390625 } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" test_iter: 2 test_interval: 20 base_lr: 0.1 momentum: 0.9 lr_policy: "fixed" display: 20
max_iter: 40 snapshot: 20 snapshot_prefix: "out/grey" random_seed: 1
"""


@pytest.fixture
def train(workspace):
    """Pictures that are dark (class 0) or bright (class 1), a net and its solver; ``train(*options)``."""
    rng = np.random.default_rng(0)
    for name in ("train", "test"):
        lines = []
        for i in range(8):
            label = i % 2
            image = rng.integers(0, 100, (6, 6), dtype=np.uint8) + np.uint8(120 * label)
            path = workspace.folder / f"{name}_{i}.png"
            cv2.imwrite(str(path), image)
            lines.append(f"{path} {label}")
        workspace.write(f"{name}.txt", "\n".join(lines) + "\n")
    workspace.write("net.prototxt", NET)
    workspace.write("solver.prototxt", SOLVER)
    (workspace.folder / "out").mkdir()
    return lambda *options: workspace.run(
        workspace.tools.train_from_prototxt, ("solver.prototxt", "--gpu", "-1", *options)
    )


def test_trains_tests_and_saves(train):
    run = train()
    assert run.code == 0, run.err
    assert run.new == {f"out/grey_iter_{n}.{kind}" for n in (20, 40) for kind in ("caffemodel", "solverstate")}
    tested = re.findall(r"^Iteration (\d+), Testing net \(#0\)$", run.out, re.M)
    assert tested == ["0", "20", "40"]
    accuracies = [float(x) for x in re.findall(r"Test net output #0: accuracy = (\S+)", run.out)]
    assert accuracies[-1] == 1
    losses = [float(x) for x in re.findall(r"^Iteration \d+, loss = (\S+)$", run.out, re.M)]
    assert len(losses) == 3
    assert losses[-1] < 0.5 * losses[0]
    assert "Iteration 20, lr = 0.1" in run.out


def test_resuming(train, workspace):
    train()
    whole = (workspace.folder / "out/grey_iter_40.caffemodel").read_bytes()
    run = train("--resume", "out/grey_iter_20.solverstate", "--iters", "40", "--output", "again")
    assert run.new == {f"again/grey_iter_40.{kind}" for kind in ("caffemodel", "solverstate")}
    # 20 batches of 4 from 8 images: the order begins anew where it would have gone on
    resumed = read_caffemodel(workspace.folder / "again/grey_iter_40.caffemodel")
    (workspace.folder / "whole.caffemodel").write_bytes(whole)
    by_name = {layer.name: layer.blobs for layer in resumed.layers}
    for layer in read_caffemodel(workspace.folder / "whole.caffemodel").layers:
        for a, b in zip(layer.blobs, by_name[layer.name], strict=True):
            np.testing.assert_array_equal(a, b)


def test_hdf5(train, workspace):
    workspace.replace("solver.prototxt", "random_seed", "snapshot_format: HDF5 random_seed")
    run = train()
    assert run.new == {f"out/grey_iter_{n}.{kind}.h5" for n in (20, 40) for kind in ("caffemodel", "solverstate")}
    assert read_solverstate(workspace.folder / "out/grey_iter_40.solverstate.h5").iter == 40
    assert train("--weights", "out/grey_iter_40.caffemodel.h5", "--iters", "1").code == 0


def test_fine_tuning_by_the_solver(train, workspace):
    train()
    workspace.replace("solver.prototxt", "random_seed", 'weights: "out/grey_iter_40.caffemodel" random_seed')
    run = train("--output", "tuned", "--iters", "1")
    assert float(re.search(r"Test net output #0: accuracy = (\S+)", run.out)[1]) == 1


def test_debug_info(train, workspace):
    workspace.replace("solver.prototxt", "random_seed", "debug_info: true random_seed")
    out = train("--iters", "1").out
    assert "[Forward] Layer ip, top blob ip data: " in out
    assert "[Backward] All net params (data, diff): L1 norm = (" in out


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("net.prototxt", "train.txt", "absent.txt", ["net.prototxt:", "layer 'data'", "absent.txt"]),
        ("net.prototxt", "test.txt", "absent.txt", ["net.prototxt:", "layer 'data'", "absent.txt"]),
        ("solver.prototxt", "test_interval: 20", "", ["solver.prototxt", "test_interval", "must be positive"]),
        ("solver.prototxt", "max_iter: 40", "", ["solver.prototxt", "max_iter", "how many"]),
        (
            "solver.prototxt",
            "test_iter: 2",
            'test_iter: 2 test_net: "nix"',
            ["test net 'nix' is not there"],
        ),
    ],
)
def test_mistakes(train, workspace, file, old, new, words):
    workspace.replace(file, old, new)
    train().ended_in_one_message(words)


def test_no_place_for_snapshots(train, workspace):
    workspace.write("file", "")
    workspace.replace("solver.prototxt", "out/grey", "file/grey")
    train().ended_in_one_message(["results cannot be written there"])


def test_notes(train, workspace):
    train("--iters", "1")
    run = train("--resume", "out/grey_iter_1.solverstate", "--weights", "nothing", "--iters", "2")
    assert run.code == 0
    assert "note: --weights has no effect" in run.out
    workspace.replace("net.prototxt", 'layer { name: "loss"', 'layer { name: "loss" include { phase: TEST }')
    assert "note: no layer of the net has a loss" in train("--iters", "1").out
