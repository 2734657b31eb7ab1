"""docs/layers.md says what the registry says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ohem_caffe_port.layers import LAYERS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_tool():
    """In a process of its own: other tests register Python layers in this one."""

    def run(*options):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        command = [sys.executable, "tools/list_layers.py", *options]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8", env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_page_is_up_to_date(run_tool):
    page = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    assert page == run_tool("--markdown"), "run: python tools/list_layers.py --markdown > docs/layers.md"


def test_every_type_has_a_row(run_tool):
    page = run_tool("--markdown")
    for kind in LAYERS:
        assert f"| `{kind}` |" in page
    for layer in ("RoIDataLayer", "OHEMDataLayer", "OHEMMaskLayer"):
        assert f"| `{layer}` |" in page


def test_the_table(run_tool):
    text = run_tool()
    assert "Convolution" in text
    assert "hard_roi_mining" in text
    assert "`" not in text
