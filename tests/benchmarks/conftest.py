"""Benchmarks at tiny sizes: whether they run, and whether both ways give the same. Never how long they take."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch, capsys, tmp_path):
    """``benchmark(name, *options)``: the script's ``main()``, in an empty folder; exit code, output and errors.

    ``benchmark.module(name)`` is the script itself.
    """
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.chdir(tmp_path)

    def run(name, *options):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, options)])
        code = 0
        try:
            importlib.import_module(name).main()
        except SystemExit as end:
            code = end.code
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), capsys.readouterr(), strict=True)))

    run.module = importlib.import_module
    return run
