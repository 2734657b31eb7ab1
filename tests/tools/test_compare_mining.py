import json
from dataclasses import replace

import pytest

from prototxt.zoo.generate import FAMILIES
from prototxt.zoo.layers import conv

SMALL = ("--set", "TRAIN.SCALES", "[96]", "TRAIN.MAX_SIZE", "128", "TEST.SCALES", "[96]", "TEST.MAX_SIZE", "128")
COMMAND = ("--gpu", "-1", "--data", "data", "--output", "out", "--iters", "2", "--seeds", "1", "--probe", "2", *SMALL)


@pytest.fixture
def compare(workspace, monkeypatch):
    """Runs the tool on a tiny net of the family shapes."""
    tiny = replace(
        FAMILIES["shapes"],
        backbone=lambda: (conv("conv1", "data", 8, 8, stride=8, init='type: "gaussian" std: 0.01'), "conv1", 8),
        head={"pooled": 3, "hidden": (16,)},
    )
    monkeypatch.setitem(FAMILIES, "shapes", tiny)

    def run(*options):
        return workspace.run(workspace.tools.compare_mining, [*COMMAND, *options])

    return run


def results(workspace):
    return json.loads((workspace.folder / "out" / "results.json").read_text())


def test_it_trains_tests_and_shows(compare, workspace):
    done = compare("--methods", "fast_rcnn,ohem,ohem_naive,focal", "--markdown", "table.md")
    assert done.code == 0, done.err
    found = {run["method"]: run for run in results(workspace)}
    assert list(found) == ["fast_rcnn", "ohem", "ohem_naive", "focal"]
    for run in found.values():
        assert 0 <= run["ap"]["0.7"]["mean"] <= run["ap"]["0.5"]["mean"] <= 1
        assert [point["iter"] for point in run["curve"]] == [0, 1, 2]
        assert run["curve"][0]["roi_loss"] == pytest.approx(found["ohem"]["curve"][0]["roi_loss"], rel=1e-5)
        assert 0 < run["foreground"] < 1
        assert run["megabytes"] > 0
    table = (workspace.folder / "table.md").read_text()
    for name in found:
        assert f"\n| {name} |" in table
        assert name in done.out
    assert {"out/results.json", "table.md", "out/ohem/seed0/result.json"} <= done.new
    assert ("out/curves.png" in done.new) != ("no curves are drawn" in done.out)


def test_two_branches_and_one_are_the_same_training(compare, workspace):
    assert compare("--methods", "ohem,ohem_naive").code == 0
    two, one = results(workspace)
    for a, b in zip(two["curve"], one["curve"], strict=True):
        assert a == pytest.approx(b, rel=1e-4)
    assert one["megabytes"] > two["megabytes"]


def test_what_is_done_is_not_done_again(compare, workspace, monkeypatch):
    assert compare("--methods", "rfcn").code == 0
    (first,) = results(workspace)
    done = compare("--methods", "rfcn,all")
    assert done.code == 0
    assert "---- all" in done.out
    assert "---- rfcn" not in done.out
    assert results(workspace)[0] == first
    assert "---- rfcn, seed 0" in compare("--methods", "rfcn", "--iters", "1").out  # another budget
    done = compare("--methods", "ssd,all", "--report")
    assert done.code == 0
    assert [run["method"] for run in results(workspace)] == ["all"]
    workspace.write("out/rfcn/seed0/result.json", "{")
    assert "---- rfcn, seed 0" in compare("--methods", "rfcn", "--iters", "1").out  # half a file


def test_a_training_that_diverges_is_a_result(compare, workspace, monkeypatch):
    monkeypatch.setitem(
        FAMILIES, "shapes", replace(FAMILIES["shapes"], solver="type: 'Adam' momentum2: 0.999 base_lr: 1e30")
    )
    done = compare("--methods", "all", "--markdown", "table.md")
    assert done.code == 0, done.err
    assert "failed" in (workspace.folder / "table.md").read_text()
    assert results(workspace)[0]["failed"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "ohem,fokal"], ["unknown method 'fokal'", "did you mean focal"]),
        (["--iters", "0"], ["--iters must be positive"]),
        (["--seeds", "-1"], ["--seeds must be positive"]),
        (["--imdb", "shape_train"], ["unknown imdb"]),
        (["--report"], ["no run is done there"]),
    ],
)
def test_errors(compare, workspace, options, words):
    done = compare("--methods", "all", *options)
    done.ended_in_one_message(words)
