"""``benchmarks/scaling.py``."""

import json
import re
import subprocess

import pytest

TINY = ("--net", "shapes", "--base", 40, 64, 1, 3, "--rois", 20, 40, 80, "--side", 64, 128, 256, "--images", 1, 2,
        "--classes", 3, 6)  # fmt: skip


@pytest.fixture
def costs(benchmark, monkeypatch):
    """Puts a cost ``(rois, side, images, classes) -> seconds`` in the place of measuring; memory is a GB times that."""
    asked = []

    def install(cost):
        def in_own_process(script, *options):
            point = options[options.index("--point") + 1 :]
            asked.append(point)
            return {"seconds": cost(*point), "memory": 1e9 * cost(*point)}

        monkeypatch.setattr(benchmark.module("scaling"), "in_own_process", in_own_process)
        return asked

    return install


def exponents(out: str) -> dict[str, list[str]]:
    """The rows of the last table."""
    lines = out[out.index("exponents over") :].splitlines()
    rows = [re.split(r" *│ *", line.strip("│ ")) for line in lines if line.startswith("│")]
    return {row[0]: row[1:] for row in rows}


def test_exponents_and_picture(benchmark, costs):
    asked = costs(lambda rois, side, images, classes: 1 + 0.01 * rois + 1e-4 * side**2 + images * images + classes)
    run = benchmark("scaling", *TINY)
    assert run.code == 0
    assert len(asked) == len(set(asked)) == 7  # the base is measured once
    found = exponents(run.out)
    # beside a fixed part each further RoI and pixel costs the same
    assert [found[name][1] for name in ("RoIs of an image", "pixels of an image")] == ["1.00", "1.00"]
    assert float(found["RoIs of an image"][0]) < 0.2
    assert found["images of a batch"][1] == "-"  # of two points there is one growth, and no line
    assert "64 x 64" in run.out
    assert "output/scaling.png" in run.out


def test_cost_that_grows_faster(benchmark, costs):
    costs(lambda rois, side, images, classes: 1e-3 * rois**2)
    run = benchmark("scaling", *TINY, "--axis", "rois")
    assert exponents(run.out) == {"RoIs of an image": ["2.00", "1.46", "2.00", "2.00", "2.00"]}


def test_points_are_kept_and_those_that_fail_left_out(benchmark, costs, tmp_path):
    def cost(rois, side, images, classes):
        if rois == 80:
            raise subprocess.CalledProcessError(137, "python")
        return rois / 100

    asked = costs(cost)
    options = (*TINY, "--axis", "rois", "--points", "points.json")
    run = benchmark("scaling", *options)
    assert run.code == 0 and len(asked) == 3
    assert "the process for 80 rois, 64 side, 1 images, 3 classes ended with 137; it is left out" in run.out + run.err
    assert len(json.loads((tmp_path / "points.json").read_text())["points"]) == 2
    benchmark("scaling", *options)
    assert len(asked) == 4  # only that one once more
    (tmp_path / "points.json").write_text('{"setting": "another machine", "points": {}}')
    run = benchmark("scaling", *options)
    assert run.code == 2 and "points.json is of 'another machine'" in run.err
    (tmp_path / "points.json").write_text("[]")
    run = benchmark("scaling", *options)
    assert run.code == 2 and "points.json: not a file of this script's points" in run.err


def test_a_point(benchmark):
    run = benchmark("scaling", "--net", "shapes", "--seconds", 0, "--point", 40, 64, 2, 5)
    found = json.loads(run.out)
    assert found["seconds"] > 0 and found["memory"] > 1e6


def test_mistakes(benchmark):
    for options, message in (
        (("--device", "abacus"), "--device abacus: "),
        (("--rois", 2), "rois must be at least 3"),
        (("--seconds", -1), "--seconds must not be negative"),
        (("--net", "lenet"), "no recipe 'lenet/ohem' in the zoo"),
        (("--axis", "depth"), "invalid choice: 'depth'"),
    ):
        run = benchmark("scaling", *TINY, *options)
        assert run.code == 2
        assert message in run.err
