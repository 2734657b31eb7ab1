"""Replays what real Caffe computed and measures the difference.

    python tests/golden.py FOLDER [FOLDER ...]

A folder is a training run (``inputs.npz``), an end-to-end run (``info.json`` with ``sequence``), a solver case (or a
folder of them), an index of layers or of Python layers, or a selection index. Prints one JSON object for each folder
with the largest absolute and relative difference of each kind, and exits with 1 when one is above its tolerance.
Relative differences are taken against the largest magnitude of the reference array; losses are compared one by one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

# This folder has subfolders named like the packages; the packages come first.
_TESTS = Path(__file__).resolve().parent
sys.path[:] = [str(_TESTS.parent), *(p for p in sys.path if p != str(_TESTS)), str(_TESTS)]

from replays.end_to_end import replay_end_to_end
from replays.layer import replay_layer, replay_layers  # noqa: F401  replay_layer is for test_golden.py
from replays.python_layer import replay_python_layer, replay_python_layers, unknown_python_layers  # noqa: F401
from replays.selection import replay_selection
from replays.solver import replay_solver
from replays.training import replay_training

from prototxt import CaffePortError


def replay(folder) -> dict:
    """Replays a folder of any of these forms; see the module's docstring.

    Raises:
        CaffePortError: a folder of no known form.
    """
    folder = Path(folder)
    if (folder / "inputs.npz").exists():
        return replay_training(folder)
    index = {}
    if (folder / "index.json").exists():
        index = json.loads((folder / "index.json").read_text())
    first = next(iter(index.values()), {})
    if "file" in first:
        return replay_layers(folder)
    if "np_seed" in first:
        return replay_python_layers(folder)
    if "batch" in first and "use_nms" in first:
        return replay_selection(folder)
    if (folder / "info.json").exists() and "sequence" in json.loads((folder / "info.json").read_text()):
        return replay_end_to_end(folder)
    if (folder / "golden.npz").exists() and (folder / "solver.prototxt").exists():
        return replay_solver(folder)
    cases = sorted(p.parent for p in folder.glob("*/solver.prototxt"))
    if cases and (folder / "data.npz").exists():
        results = {case.name: replay_solver(case) for case in cases}
        return {"ok": all(r["ok"] for r in results.values()), "cases": results}
    raise CaffePortError("holds none of the forms that can be replayed", file=folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", metavar="FOLDER")
    status = 0
    for folder in parser.parse_args().folders:
        try:
            result = replay(folder)
        except CaffePortError as error:
            result = {"ok": False, "error": str(error)}
        except (KeyError, OSError) as error:
            result = {"ok": False, "error": f"the folder lacks what its form needs: {error}"}
        print(json.dumps({"folder": os.fspath(folder), **result}, indent=1, default=float))
        status |= not result["ok"]
    return status


if __name__ == "__main__":
    sys.exit(main())
