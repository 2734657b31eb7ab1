"""Published numbers. ``pytest -m published`` computes those whose material is there:

    OHEM_VOCDEVKIT=VOCdevkit OHEM_WEIGHTS=weights pytest -m published             # tests published detectors
    OHEM_PUBLISHED_TRAIN=all OHEM_VOCDEVKIT=... OHEM_WEIGHTS=... pytest -m published     # trains, too
    OHEM_PUBLISHED_TRAIN=ohem-vgg16-07-repo ... pytest -m published               # one row, or several by commas

selective_search_data lies in $OHEM_DATA or beside the devkit. Runs go to $OHEM_PUBLISHED_OUTPUT or output/published and
are resumed. Only sourced totals are asserted on. Two more tests need no such material and run always.
"""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from ohem_caffe_port.data.pascal_voc import PascalVoc
from ohem_caffe_port.published import RUNS, SOURCED
from ohem_caffe_port.results import evaluate_results

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
TOOL = REPOSITORY / "tools" / "reproduce.py"
TOLERANCE = {"evaluate": 0.5, "train": 1.0}  # percent of mAP
ROWS = [name for name, run in RUNS.items() if run.published.standing == SOURCED and run.test_imdb == "voc_2007_test"]

pytestmark = pytest.mark.published


def run_tool(*options, **environment):
    done = subprocess.run(
        [sys.executable, TOOL, *map(str, options)],
        capture_output=True, text=True, check=False, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.fixture
def places(monkeypatch):
    """Options that name the devkit, the proposals and the weights; skips where no devkit is named."""
    devkit = os.environ.get("OHEM_VOCDEVKIT")
    if not devkit:
        pytest.skip("needs OHEM_VOCDEVKIT: the folder of the VOCdevkit, which holds VOC2007")
    data = os.environ.get("OHEM_DATA") or str(Path(devkit).resolve().parent)
    weights = os.environ.get("OHEM_WEIGHTS") or data
    return {"devkit": devkit, "data": data, "weights": weights}


def check(name: str, places: dict, how: str) -> None:
    """Runs the row, or skips with what is missing."""
    sys.path.insert(0, str(TOOL.parent))
    try:
        from _reproduction import Row
    finally:
        sys.path.remove(str(TOOL.parent))
    output = Path(os.environ.get("OHEM_PUBLISHED_OUTPUT") or REPOSITORY / "output" / "published")
    nothing = dict.fromkeys(("backbone", "train_imdb", "test_imdb", "proposals", "gpu", "workers"))
    evaluate = how == "evaluate"
    row = Row(RUNS[name], Namespace(**nothing, **places, scale=1.0, set=[], evaluate=evaluate, output=output))
    missing = row.missing_data({}) + row.missing_weights()
    if missing:
        pytest.skip("missing: " + "; ".join(missing))
    options = [word for key, value in places.items() for word in (f"--{key}", value)]
    run_tool(name, *options, "--output", output, *(["--evaluate"] if evaluate else []))
    result = json.loads((row.folder / "result.json").read_text())
    assert result["differences"] == []
    assert result["ours"] == pytest.approx(result["published"], abs=TOLERANCE[how])


@pytest.mark.parametrize("name", [name for name in ROWS if RUNS[name].detectors])
def test_a_published_detector_scores_what_is_published(name, places):
    check(name, places, "evaluate")


@pytest.mark.parametrize("name", ROWS)
def test_training_gives_what_is_published(name, places):
    wanted = os.environ.get("OHEM_PUBLISHED_TRAIN", "")
    if wanted != "all" and name not in wanted.split(","):
        pytest.skip(f"trains for hours; OHEM_PUBLISHED_TRAIN={name} asks for it, or all")
    check(name, places, "train")


def test_the_evaluator_on_published_detections(tmp_path):
    """YOLOv2 on the 4,952 images of VOC 2007 test: every class's AP as its authors' evaluation stored it."""
    folder = SHARED / "eval" / "voc2007_test"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}")
    (tmp_path / "VOC2007").symlink_to(folder)
    imdb = PascalVoc("voc_2007_test", tmp_path, "2007", "test")
    result = evaluate_results(folder / "detections", imdb)
    expected = json.loads((folder / "expected.json").read_text())["ap11"]
    assert result.mean == pytest.approx(expected.pop("mean"), abs=1e-4)
    assert result.ap == pytest.approx(expected, abs=1e-4)


SMALL = ("--set", "TRAIN.SCALES", "[120]", "TRAIN.MAX_SIZE", "160", "TEST.SCALES", "[120]", "TEST.MAX_SIZE", "160")


def test_the_shortened_recipe_on_real_images(tmp_path):
    """Ten iterations from real weights on eight real images, through the commands of a full run."""
    needed = [SHARED / "voc", SHARED / "weights" / "squeezenet_v1.1"]
    for folder in needed:
        if not folder.is_dir():
            pytest.skip(f"needs {folder}")
    row = "ohem-vgg16-07-repo"
    out = run_tool(
        row, "--backbone", "squeezenet_v1.1", "--train_imdb", "voc_2007_train", "--test_imdb", "voc_2007_val",
        "--data", needed[0], "--weights", needed[1], "--output", tmp_path, "--scale", "0.001", "--gpu", "-1", *SMALL,
        OHEM_VOCDEVKIT="",
    )  # fmt: skip
    assert "NOT comparable" in out
    (result,) = json.loads((tmp_path / "report.json").read_text())
    assert result["name"] == row
    assert result["published"] == 71.5
    assert result["images"] == 8
    assert 0 <= result["ours"] <= 100
    folder = tmp_path / f"{row}_squeezenet_v1.1_scale_0.001"
    assert (folder / "train" / "squeezenet_v1.1_ohem_iter_10.caffemodel").is_file()
