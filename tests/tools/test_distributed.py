"""train_from_prototxt.py and test_from_prototxt.py as several processes, started by torchrun and as it would."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from converters import read_caffemodel, read_solverstate

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TEST = ("--def", "model/test.prototxt", "--net", "snapshots/tiny_iter_2.caffemodel", "--gpu", "-1", "--data", "data")
RPN_CFG = """\
EXP_DIR: tiny
TRAIN: {IMDB: shapes_train, SCALES: [96], MAX_SIZE: 128, BATCH_SIZE: 16, RPN_BATCHSIZE: 32}
"""
# the tool on the workspace's small data set
SCRIPT = """
import functools, runpy, sys
from ohem_caffe_port.data import shapes
shapes.ensure_shapes = functools.partial(shapes.ensure_shapes, num_train=8, num_test=4)
sys.path.insert(0, sys.argv[1])
tool = sys.argv[1] + "/" + sys.argv.pop(2)
del sys.argv[1]
runpy.run_path(tool, run_name="__main__")
"""


def blobs(path):
    return {f"{layer.name}/{i}": blob for layer in read_caffemodel(path).layers for i, blob in enumerate(layer.blobs)}


@pytest.mark.usefixtures("several")
def test_two_trained_by_torchrun_are_one_with_twice_the_minibatches(workspace):
    """Also resumed with another number of processes; and what is written and printed is one process's."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["model/solver.prototxt", "--gpu", "-1", "--data", "data", "--output", "two", "--iters", "4"]
    workspace.write("script.py", SCRIPT)
    before = workspace.files()
    ended = subprocess.run(
        [*torchrun, "script.py", str(TOOLS), "train_from_prototxt.py", *options, "--roi_loss", "3"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    kinds = ("_iter_4.caffemodel", "_iter_4.solverstate", "_iter_4.resume.npz", "_roi_loss.json")
    assert workspace.files() - before == {f"two/tiny{kind}" for kind in kinds}
    assert ended.stdout.count("2 processes, each on the CPU") == 1
    assert len(re.findall(r"iteration 3: loss \S+ \(loss_cls", ended.stdout)) == 1

    workspace.replace("model/solver.prototxt", "display: 1", "display: 1 iter_size: 2")
    assert workspace.train("--output", "one", "--iters", "2").code == 0
    one = workspace.train("--output", "one", "--iters", "4", "--resume", "one/tiny_iter_2.solverstate")
    assert one.code == 0
    shown = [line for line in ended.stdout.splitlines() if line.startswith("iteration 4: loss")]
    assert shown[0].split(", ")[0] in one.out
    theirs, ours = blobs("two/tiny_iter_4.caffemodel"), blobs("one/tiny_iter_4.caffemodel")
    assert theirs.keys() == ours.keys()
    for name, blob in ours.items():
        np.testing.assert_allclose(theirs[name], blob, rtol=0, atol=1e-7, err_msg=name)
    for a, b in zip(*(read_solverstate(f"{n}/tiny_iter_4.solverstate").history for n in ("one", "two")), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-7)

    # the data go on where all processes together stopped
    for name in ("one", "two"):
        resumed = ("--iters", "6", "--resume", f"{name}/tiny_iter_4.solverstate", "--output", f"{name}_more")
        assert workspace.train(*resumed).code == 0
    theirs, ours = blobs("two_more/tiny_iter_6.caffemodel"), blobs("one_more/tiny_iter_6.caffemodel")
    for name, blob in ours.items():
        np.testing.assert_allclose(theirs[name], blob, rtol=0, atol=1e-6, err_msg=name)


def test_two_testing_find_what_one_finds(workspace, several):
    assert workspace.test("--output", "one", "--vis", "3").code == 0
    workspace.write("script.py", SCRIPT)
    argv = ["script.py", TOOLS, "test_from_prototxt.py", *TEST, "--output", "two", "--vis", "3"]
    ended = several(argv, workspace.folder)
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert "average precision on shapes_test" in ended[0][1]
    assert ended[1][1:] == ("", "")
    ours = {p.relative_to("one"): p.read_bytes() for p in Path("one").rglob("*") if p.is_file()}
    theirs = {p.relative_to("two"): p.read_bytes() for p in Path("two").rglob("*") if p.is_file()}
    assert ours.keys() == theirs.keys()
    for name, content in ours.items():
        if name.suffix != ".npz":  # those hold the time
            assert theirs[name] == content, name
    with np.load("one/detections.npz") as one, np.load("two/detections.npz") as two:
        for name in one.files:
            np.testing.assert_array_equal(two[name], one[name])


def test_an_image_that_only_the_second_process_reads(workspace, several):
    workspace.cut("data/shapes/VOCdevkit2007/VOC2007/JPEGImages/500002.jpg")
    workspace.write("script.py", SCRIPT)
    ended = several(["script.py", TOOLS, "test_from_prototxt.py", *TEST, "--output", "two"], workspace.folder)
    assert [code for code, _, _ in ended] == [2, 2], ended
    errors = "".join(err for _, _, err in ended)
    assert errors.count("error: ") == 1
    assert "500002.jpg" in errors
    assert not Path("two/detections.npz").exists()


def test_two_sample_the_regions_that_one_samples(workspace, faster_rcnn, several):
    """A net whose layers draw random numbers, with those of each pass seeded by its number."""
    workspace.write("model/train.prototxt", faster_rcnn.train)
    workspace.write("model/cfg.yml", RPN_CFG)
    workspace.write("script.py", SCRIPT)
    options = ["model/solver.prototxt", "--gpu", "-1", "--data", "data", "--iters", "3"]
    ended = several(
        ["script.py", TOOLS, "train_from_prototxt.py", *options, "--output", "two", "--workers", "1"], workspace.folder
    )
    assert [code for code, _, _ in ended] == [0, 0], ended
    workspace.replace("model/solver.prototxt", "display: 1", "display: 1 iter_size: 2")
    seeded = ("--iters", "3", "--set", "TRAIN.SEED_PASSES", "True")
    assert workspace.train("--output", "one", *seeded).code == 0
    theirs, ours = blobs("two/tiny_iter_3.caffemodel"), blobs("one/tiny_iter_3.caffemodel")
    for name, blob in ours.items():
        np.testing.assert_allclose(theirs[name], blob, rtol=0, atol=1e-6, err_msg=name)
