"""What a report of a weight file says, and the comparison of two."""

import math

import numpy as np
import pytest
from rich.console import Console

from converters import CaffeModel, LayerWeights, SolverState, WeightsError
from converters.diff import compare
from converters.named import NamedArrays
from converters.report import describe, short, statistics


def _text(table) -> str:
    console = Console(width=160, color_system=None)
    with console.capture() as capture:
        console.print(table, markup=False)
    return capture.get()


def _model(**layers) -> CaffeModel:
    """``ip=[array, ...]``: layers of type InnerProduct, after one without weights."""
    made = [LayerWeights("data", "Input")]
    return CaffeModel("tiny", made + [LayerWeights(n, "InnerProduct", blobs=blobs) for n, blobs in layers.items()])


def _numbers(*shape, start=1.0) -> np.ndarray:
    return np.arange(start, start + math.prod(shape), dtype=np.float32).reshape(shape)


# ---- reports


def test_a_report_counts_layers_parameters_and_bytes():
    report = describe(_model(a=[_numbers(3, 2), _numbers(3)], b=[_numbers(4).astype(np.float64)]), kind="caffemodel")
    assert (report.layers, len(report.rows), report.parameters, report.bytes) == (3, 2, 13, 9 * 4 + 4 * 8)
    first = report.as_dict()["layers"][0]
    assert (first["name"], first["type"]) == ("a", "InnerProduct")
    assert first["blobs"][0] == {"name": "0", "shape": [3, 2], "dtype": "float32", "count": 6, "shared": False}
    assert report.headline() == "caffemodel, net tiny, 2 of 3 layers with weights"
    text = _text(report.table())
    for words in ("3x2", "4 float64", "13", "68 B"):
        assert words in text


def test_a_shared_tensor_counts_once():
    weight, bias = _numbers(3, 2), _numbers(3)
    model = _model(a=[weight, bias], b=[weight, _numbers(3)])
    assert describe(model, kind="caffemodel").parameters == 12
    copy = _model(a=[weight, bias], b=[weight.copy(), bias.copy()])
    assert describe(copy, kind="caffemodel").parameters == 18
    copy.layers[1].params = copy.layers[2].params = ["shared_w"]  # the second blobs stay two
    report = describe(copy, kind="caffemodel")
    assert report.parameters == 12
    assert "3x2 (shared)" in _text(report.table())
    elsewhere = _model(a=[weight], b=[None])  # as in HDF5
    assert describe(elsewhere, kind="caffemodel.h5").parameters == 6


def test_reports_of_other_content():
    state = SolverState(iter=7, learned_net="a.caffemodel", history=[_numbers(2, 3)], minimum_loss=0.5)
    report = describe(state, kind="solverstate")
    assert report.facts["iter"] == 7
    assert report.rows[0].name == "history[0]"
    expected = "solverstate, iter 7, learned net a.caffemodel, current step 0, minimum loss 0.5, iter last event 0"
    assert report.headline() == f"{expected}, 1 array"
    assert describe(_numbers(1, 3, 4, 4), kind="binaryproto").parameters == 48
    named = NamedArrays({"a.b.weight": _numbers(2), "a.b.bias": _numbers(1), "c.weight": _numbers(2)}, {"net": "n"})
    report = describe(named, kind="safetensors")
    assert [(row.name, [a.name for a in row.arrays]) for row in report.rows] == [
        ("a.b", ["weight", "bias"]),
        ("c", ["weight"]),
    ]
    state = NamedArrays({"history.0": _numbers(2), "history.1": _numbers(2)}, {"kind": "solverstate", "iter": "7"})
    report = describe(state, kind="npz")
    assert report.headline() == "npz, holds solverstate, iter 7, 2 arrays"
    assert [row.name for row in report.rows] == ["history.0", "history.1"]


def test_names_cannot_steer_the_terminal():
    model = CaffeModel("", [LayerWeights("a\x1b[2Jb", "[bold]", blobs=[_numbers(2)])])
    text = _text(describe(model, kind="caffemodel").table())
    assert "\x1b" not in text
    for words in (r"a\x1b[2Jb", "[bold]"):
        assert words in text


def test_statistics_of_values_in_many_chunks():
    values = np.random.RandomState(0).randn(3, 200_000).astype(np.float32)
    values[1, 5], values[2, 7], values[2, 8] = np.nan, np.inf, -np.inf
    finite = values[np.isfinite(values)].astype(np.float64)
    stats = statistics(values)
    assert (stats.nan, stats.inf) == (1, 2)
    assert (stats.min, stats.max) == (finite.min(), finite.max())
    assert stats.mean == pytest.approx(finite.mean(), rel=1e-9)
    assert statistics(np.zeros((0, 3), np.float32)).mean is None


def test_warnings_of_values_that_look_wrong():
    broken = np.array([1, np.nan, np.inf, np.nan], np.float32)
    report = describe(_model(a=[broken, np.zeros(3, np.float32)], b=[_numbers(2)]), kind="caffemodel", stats=True)
    assert report.warnings == [
        "layer 'a': array 0 (4): 2 NaN",
        "layer 'a': array 0 (4): 1 infinite",
        "layer 'a': array 1 (3): all zero",
    ]
    assert "1.5" in _text(report.table())  # the mean of b
    assert describe(_model(a=[broken]), kind="caffemodel").warnings == []  # values are not read


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (138_357_544, "138 MB"), (15.5e9, "15.5 GB"), (5.5e14, "550 TB")],
)
def test_short_numbers(number, text):
    assert short(number, "B") == text


# ---- differences


def test_identical_models():
    model = _model(a=[_numbers(3, 2), np.array([np.nan, 1], np.float32)])
    same = _model(a=[_numbers(3, 2), np.array([np.nan, 1], np.float32)])
    diff = compare(model, same)
    assert diff.identical
    assert diff.summary() == "1 layer identical"


def test_every_kind_of_difference():
    first = _model(same=[_numbers(2)], moved=[_numbers(2, 2), _numbers(2)], cut=[_numbers(4)], gone=[_numbers(1)])
    second = _model(same=[_numbers(2)], moved=[_numbers(2, 2), _numbers(2)], cut=[_numbers(5)], new=[_numbers(1)])
    second.layers[2].blobs[0] = second.layers[2].blobs[0] + np.array([[0, 0.5], [0, -1]], np.float32)
    diff = compare(first, second)
    assert {layer.name: layer.verdict for layer in diff.layers} == {
        "same": "identical",
        "moved": "different",
        "cut": "shapes differ",
        "gone": "only in the first",
        "new": "only in the second",
    }
    moved = diff.layers[1].arrays
    assert [(a.verdict, a.max_abs, a.relative) for a in moved] == [("different", 1.0, 0.25), ("identical", 0.0, 0.0)]
    text = _text(diff.table())
    assert "same" not in text
    assert "0.25" in text
    assert not diff.as_dict()["identical"]


def test_old_shapes_and_types_in_a_comparison():
    first, second = _model(a=[_numbers(1, 1, 3, 2)]), _model(a=[_numbers(3, 2)])
    assert compare(first, second).identical
    second.layers[1].type = ""  # HDF5 files tell none
    assert compare(first, second).identical
    second.layers[1].type = "Convolution"
    assert not compare(first, second).identical


def test_arrays_that_hdf5_keeps_elsewhere_are_not_compared():
    first = _model(a=[_numbers(2), _numbers(3)], b=[_numbers(2), _numbers(3)])
    second = CaffeModel("", [LayerWeights("a", "", blobs=[_numbers(2), _numbers(3)]), LayerWeights("b", "")], True)
    assert compare(first, second).identical
    second.layers[1].blobs = [None, _numbers(3, start=2)]
    assert [a.name for a in compare(first, second).layers[1].arrays] == ["1"]


def test_values_that_are_no_numbers_in_one_file_only():
    first, second = np.array([1, 2], np.float32), np.array([1, np.nan], np.float32)
    array = compare(_model(a=[first]), _model(a=[second])).layers[0].arrays[0]
    assert (array.verdict, array.max_abs) == ("different", None)


def test_solver_states_differ_in_their_counters_too():
    first, second = (SolverState(i, "a", [_numbers(3)]) for i in (5, 6))
    diff = compare(first, second)
    assert diff.facts == {"iter": (5, 6)}
    assert not diff.identical
    assert "iter 5 and 6" in diff.summary()


def test_files_of_two_kinds_are_not_compared():
    with pytest.raises(WeightsError, match="a model and a solver state cannot be compared"):
        compare(_model(), SolverState())
