"""Replays all that real Caffe computed: every folder and index entry, here and in ../shared, is a test of its own."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import prototxt
from ohem_caffe_port.layers import LAYERS
from prototxt import CaffePortError

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parents[1] / "shared" / "golden"

_spec = importlib.util.spec_from_file_location("golden", TESTS / "golden.py")
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)


def find_cases() -> dict[str, tuple[Path, dict | None]]:
    """``{id: (path, entry)}``: a folder with entry None, or the base name of a layer case with its index entry."""
    found = {}
    for root in (TESTS / "data" / "golden", SHARED):
        for folder in sorted(root.iterdir()) if root.is_dir() else ():
            index = json.loads((folder / "index.json").read_text()) if (folder / "index.json").exists() else {}
            solvers = sorted(folder.glob("*/solver.prototxt"))
            if solvers:
                cases = {f"{folder.name}/{path.parent.name}": (path.parent, None) for path in solvers}
            elif any("file" in entry or "np_seed" in entry for entry in index.values()):
                cases = {
                    f"{folder.name}/{name}": (folder / entry.get("file", name), entry) for name, entry in index.items()
                }
            else:
                cases = {folder.name: (folder, None)}
            found = cases | found  # what is here already goes before the same in ../shared
    return dict(sorted(found.items()))


CASES = find_cases()


@pytest.mark.parametrize("case", CASES)
def test_replay(case):
    path, entry = CASES[case]
    if entry and "file" not in entry:
        if missing := golden.unknown_python_layers(path, entry):
            pytest.skip(f"Python layers that are not supported: {', '.join(sorted(missing))}")
        result = golden.replay_python_layer(path, entry)
        assert result["ok"], json.dumps(result, indent=1, default=float)
        return
    nets = [f"{path}.prototxt"] if entry else set(path.glob("t*.prototxt"))
    unknown = {layer.type for net in nets for layer in prototxt.read_net(net).layer} - set(LAYERS)
    if unknown:
        pytest.skip(f"layer types that are not supported: {', '.join(sorted(unknown))}")
    if entry:
        result = golden.replay_layer(path, entry)
    else:
        try:
            result = golden.replay(path)
        except CaffePortError as error:
            if "none of the forms" not in error.message:
                raise
            pytest.skip("tests/golden.py cannot replay this form")
    assert result["ok"], json.dumps(result, indent=1, default=float)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/golden beside the checkout: only tests/data/golden")
def test_shared_folders_are_replayed_too():
    assert {folder.name for folder in SHARED.iterdir()} <= {case.split("/")[0] for case in CASES}


# ---- the replay itself can fail


def copy_of(source: Path, target: Path, change: dict) -> Path:
    """A copy of a folder whose ``golden.npz``-like files have ``change[file][key]`` added to one array."""
    target.mkdir(parents=True)
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    for name, additions in change.items():
        arrays = dict(np.load(target / name))
        for key, addition in additions.items():
            arrays[key] = arrays[key] + addition
        np.savez(target / name, **arrays)
    return target


@pytest.fixture
def solver_case(golden_data, tmp_path):
    """``solver_case(change)``: a folder of one solver case."""

    def make(change):
        folder = copy_of(golden_data / "solvers" / "SGD_fixed_L1", tmp_path / "case", change)
        (folder / "data.npz").write_bytes((golden_data / "solvers" / "data.npz").read_bytes())
        return folder

    return make


@pytest.fixture
def run_main(monkeypatch, capsys):
    def run(*folders):
        monkeypatch.setattr(sys, "argv", ["golden.py", *map(str, folders)])
        status = golden.main()
        return status, capsys.readouterr().out

    return run


def test_an_unchanged_copy_passes(solver_case, run_main):
    status, text = run_main(solver_case({}))
    assert status == 0
    assert json.loads(text)["ok"] is True


@pytest.mark.parametrize(
    ("key", "addition", "kind"),
    [("w/3/ip/0", 1e-5, "weights"), ("loss_sub", 1e-4, "losses"), ("lr", 1e-6, "rate"), ("history/0", 1e-3, "history")],
)
def test_a_perturbed_solver_case_fails(solver_case, run_main, key, addition, kind):
    arrays = np.load(CASES["solvers/SGD_fixed_L1"][0] / "golden.npz")
    key = key if key in arrays else next(k for k in arrays.files if k.startswith(key.split("/ip")[0] + "/"))
    status, text = run_main(solver_case({"golden.npz": {key: addition}}))
    report = json.loads(text)
    assert status == 1
    assert report["ok"] is False
    assert [name for name, entry in report["differences"].items() if not entry["ok"]][0] == kind


@pytest.mark.parametrize("addition", [np.nan, np.inf])
def test_a_number_that_is_not_finite_fails(solver_case, addition):
    assert golden.replay(solver_case({"golden.npz": {"loss_sub": addition}}))["ok"] is False


def test_a_perturbed_selection_fails(golden_data, tmp_path, run_main):
    folder = tmp_path / "select"
    folder.mkdir()
    source = golden_data / "ohem_select"
    arrays = dict(np.load(source / "fewer_than_batch.npz"))
    arrays["hard_inds"][:2] = arrays["hard_inds"][1::-1]  # the two hardest change places
    np.savez(folder / "fewer_than_batch.npz", **arrays)
    index = json.loads((source / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps({"fewer_than_batch": index["fewer_than_batch"]}))
    assert run_main(folder)[0] == 1


@pytest.mark.parametrize("key", ["out/y", "din/x", "dparam/conv/0"])
def test_a_perturbed_layer_fails(golden_data, tmp_path, key):
    path, entry = CASES["layers/Convolution__k3"]
    folder = copy_of(path.parent, tmp_path / "layer", {})
    arrays = dict(np.load(folder / f"{path.name}.npz"))
    key = key if key in arrays else next(k for k in arrays if k.startswith(key.split("/")[0] + "/"))
    arrays[key] = arrays[key] * 1.01
    np.savez(folder / f"{path.name}.npz", **arrays)
    assert golden.replay_layer(folder / path.name, entry)["ok"] is False


@pytest.mark.parametrize(
    ("name", "key"),
    [("Loss__joint", "din/2/mask_pred"), ("Loss__joint", "loss/3"), ("Data__joint", "out/2/mask_thres"),
     ("PretrainLoss__dropneg", "np_next_randint"), ("OhemRatio__rand", "hard_inds")],
)  # fmt: skip
def test_a_perturbed_call_fails(tmp_path, name, key):
    path, entry = CASES[f"asdn/{name}"]
    folder = copy_of(path.parent, tmp_path / "asdn", {})
    arrays = dict(np.load(folder / f"{name}.npz"))
    arrays[key] = arrays[key] + 1
    np.savez(folder / f"{name}.npz", **arrays)
    assert golden.replay_python_layer(folder / name, entry)["ok"] is False


@pytest.mark.parametrize("files", [(), ("index.json",), ("info.json",)])
def test_a_folder_of_no_known_form(tmp_path, run_main, files):
    for name in files:
        (tmp_path / name).write_text("{}")
    status, text = run_main(tmp_path)
    assert status == 1
    assert "holds none of the forms that can be replayed" in json.loads(text)["error"]
    assert str(tmp_path) in text


def test_runs_as_a_script(golden_data):
    """From the repository's top folder, as its docstring says: tests/prototxt must not hide the package prototxt."""
    command = [sys.executable, "tests/golden.py", str(golden_data / "solvers" / "SGD_fixed_L1")]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True)
    assert "ImportError" not in done.stderr, done.stderr
    assert done.returncode == 0, done.stdout + done.stderr
