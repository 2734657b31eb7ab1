"""The mean loss over all RoIs: train_from_prototxt.py --roi_loss, and tools/plot_roi_loss.py."""

import json
import re
from pathlib import Path

import pytest

RECORD = "new/tiny_roi_loss.json"
MEASURE = ("--roi_loss", "2", "--roi_loss_every", "1")


def points(path=RECORD):
    return dict(json.loads(Path(path).read_text())["points"])


@pytest.fixture
def plot(workspace):
    def run(*options):
        return workspace.run(workspace.tools.plot_roi_loss, [*map(str, options)])

    return run


def plotted(done) -> bool:
    """Where matplotlib is not installed, a note says so."""
    return ("note: no curves are drawn" in done.out) != any(name.endswith("roi_loss.png") for name in done.new)


def test_training_records_it(workspace):
    done = workspace.train(*MEASURE)
    assert done.code == 0, done.err
    assert RECORD in done.new
    assert list(points()) == [0, 1, 2, 3]
    lines = re.findall(r"iteration (\d): loss (\d\.\d{4}) over all (\d+) RoIs of 2 images", done.out)
    assert [(int(i), float(loss)) for i, loss, _ in lines] == [(i, round(loss, 4)) for i, loss in points().items()]
    about = json.loads(Path(RECORD).read_text())
    assert (about["net"], about["imdb"], about["images"]) == ("tiny", "shapes_train", 2)
    assert {str(about["rois"])} == {rois for _, _, rois in lines}


def test_training_goes_as_without(workspace):
    assert workspace.train(*MEASURE).code == 0
    assert workspace.train("--output", "plain").code == 0
    assert Path("new/tiny_iter_3.caffemodel").read_bytes() == Path("plain/tiny_iter_3.caffemodel").read_bytes()


def test_how_often(workspace):
    assert workspace.train("--roi_loss", "0", "--roi_loss_every", "2").code == 0
    assert list(points()) == [0, 2, 3]
    assert json.loads(Path(RECORD).read_text())["images"] == 8
    assert workspace.train("--roi_loss", "1", "--output", "b").code == 0
    assert list(points("b/tiny_roi_loss.json")) == [0, 1, 2, 3]  # a tenth of 3 iterations is less than one


def test_resuming_goes_on_with_the_curve(workspace):
    assert workspace.train(*MEASURE, "--iters", "4", "--output", "whole").code == 0
    whole = points("whole/tiny_roi_loss.json")
    snapshots = ("--set", "TRAIN.SNAPSHOT_ITERS", "2")
    assert workspace.train(*MEASURE, *snapshots).code == 0
    assert list(points()) == [0, 1, 2, 3]
    state = ("--resume", "new/tiny_iter_2.solverstate", "--iters", "4")
    assert workspace.train(*MEASURE, *state).code == 0
    assert points() == whole
    assert workspace.train(*MEASURE, *state, "--output", "elsewhere").code == 0
    assert points("elsewhere/tiny_roi_loss.json") == whole
    assert workspace.train(*state, "--output", "silent").code == 0
    assert not list(Path("silent").glob("*.json"))
    assert workspace.train(*MEASURE, "--resume", "snapshots/tiny_iter_2.solverstate", "--output", "late").code == 0
    assert list(points("late/tiny_roi_loss.json")) == [2, 3]
    done = workspace.train("--roi_loss", "3", *state)
    done.ended_in_one_message([RECORD, "its losses are of images 2, not 3", "remove the file"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--roi_loss", "-1"), ["--roi_loss must not be negative"]),
        (("--roi_loss_every", "5"), ["--roi_loss_every goes with --roi_loss"]),
        (("--roi_loss", "2", "--roi_loss_every", "0"), ["must be positive"]),
    ],
)
def test_wrong_options(workspace, options, words):
    workspace.train(*options).ended_in_one_message(words)


# ---- the plot


def test_recorded_runs(workspace, plot):
    for method in ("fast_rcnn", "ohem"):
        workspace.write_net(method=method)
        sampled = ("--set", "TRAIN.USE_OHEM", "False") if method == "fast_rcnn" else ()
        assert workspace.train(*MEASURE, "--output", method, *sampled).code == 0
    done = plot("fast_rcnn", "ohem/tiny_roi_loss.json", "--output", "figures")
    assert done.code == 0, done.err
    assert plotted(done)
    assert done.new <= {"figures/roi_loss.png"}
    for name in ("fast_rcnn", "ohem"):
        assert f"{name}/tiny" in done.out
        for loss in points(f"{name}/tiny_roi_loss.json").values():
            assert f"{loss:.4f}" in done.out
    assert "RoIs of 2 images of shapes_train" in done.out
    assert "do not compare" not in done.out
    assert workspace.train("--roi_loss", "1", "--output", "other").code == 0
    assert "do not compare" in plot("ohem", "other").out


def test_from_snapshots(workspace, plot):
    """The same numbers as measured in training, though the snapshots' box regression is un-normalised."""
    assert workspace.train(*MEASURE, "--set", "TRAIN.SNAPSHOT_ITERS", "1").code == 0
    recorded = points()
    Path(RECORD).unlink()
    common = ("--solver", "model/solver.prototxt", "--roi_loss", "2", "--gpu", "-1", "--data", "data")
    done = plot("new", *common)
    assert done.code == 0, done.err
    assert RECORD in done.new
    assert plotted(done)
    assert points() == pytest.approx({i: loss for i, loss in recorded.items() if i}, rel=1e-5)
    plot("new", *common, "--roi_loss", "3").ended_in_one_message(["its losses are of images 2, not 3"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["nowhere"], ["nowhere", "cannot be read"]),
        (["snapshots"], ["no *_roi_loss.json is there", "--solver"]),
        (["model/cfg.yml"], ["holds no losses over all RoIs"]),
        (["a", "b", "--solver", "model/solver.prototxt"], ["--solver takes one output folder"]),
        (["nowhere", "--solver", "model/solver.prototxt"], ["--solver takes one output folder"]),
        (["model", "--solver", "model/solver.prototxt", "--data", "data", "--gpu", "-1"],
         ["no snapshot tiny_iter_*.caffemodel is there"]),
        (["snapshots", "--solver", "nowhere.prototxt"], ["nowhere.prototxt"]),
        (["snapshots", "--roi_loss", "-1"], ["must not be negative"]),
    ],
)  # fmt: skip
def test_mistakes(workspace, plot, options, words):
    plot(*options).ended_in_one_message(words)


def test_other_weights_are_no_snapshot(workspace, plot):
    Path("other").mkdir()
    workspace.write_weights("other/tiny_iter_5.caffemodel", fc6=[(16, 72), (16,)])
    done = plot("other", "--solver", "model/solver.prototxt", "--data", "data", "--gpu", "-1")
    done.ended_in_one_message(["it is no snapshot of this net: layer conv1 is not in it"])
