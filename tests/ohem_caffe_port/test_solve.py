"""``Solver.solve``: the schedule of ``caffe train`` with its tests, displays and snapshots."""

import h5py
import numpy as np
import pytest
import torch

import prototxt
from converters import WeightsError, read_caffemodel, read_solverstate, write_caffemodel
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.solver import Solver, state_path
from ohem_caffe_port.weights import copy_from, to_caffemodel

# y = x w + b against t; in TEST the difference itself is an output, too
NET = """
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
        inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" loss_weight: 2 }
layer { name: "sum" type: "Eltwise" bottom: "y" bottom: "t" top: "sum" include { phase: TEST not_stage: "quiet" } }
"""
XS, TS = (np.random.default_rng(5).standard_normal((6, 4, width)).astype(np.float32) for width in (3, 2))


@pytest.fixture
def make_solver(feed, tmp_path):
    """``make_solver(text)``: a solver whose ``net`` is a file; the lines it logs are in ``solver.lines``."""
    path = tmp_path / "net.prototxt"
    path.write_text(feed(x=XS, t=TS) + NET)

    def make(text=""):
        torch.manual_seed(0)
        settings = f"net: '{path}' base_lr: 0.1 lr_policy: 'fixed' snapshot_prefix: '{tmp_path}/s' {text}"
        solver = Solver(prototxt.parse_solver(settings))
        solver.lines = []
        solver.log = solver.lines.append
        return solver

    return make


def expected_test(solver, batches=2):
    """Means over the first batches, from the formula."""
    weight, bias = (p.blob.detach().numpy() for p in solver.net.learnable_params)
    sums, losses = [], []
    for x, t in zip(XS[:batches], TS[:batches], strict=True):
        y = x @ weight.T + bias
        sums.append((y + t).ravel())
        losses.append(((y - t) ** 2).sum() / len(x) / 2)
    return np.mean(losses), np.mean(sums, 0)


def test_tests_on_the_weights_of_the_moment(make_solver):
    solver = make_solver(
        "test_iter: 2 test_interval: 2 max_iter: 4 snapshot_after_train: false test_compute_loss: true"
    )
    seen = []

    def look():  # solver.test_results are of the weights before this iteration where it was tested
        seen.append(solver.iter)

    loss_before, sums_before = expected_test(solver)
    solver.solve(max_iter=1, on_iteration=look)
    (result,) = solver.test_results
    assert result.loss == pytest.approx(2 * loss_before, rel=1e-6)
    assert result.scores[0] == ("loss", pytest.approx(loss_before, rel=1e-6), 2.0)
    assert [name for name, _, _ in result.scores[1:]] == ["sum"] * 8
    np.testing.assert_allclose([value for _, value, _ in result.scores[1:]], sums_before, rtol=1e-5)
    assert seen == [1]


def test_what_is_tested_when(make_solver):
    def tested(text):
        solver = make_solver(f"max_iter: 4 snapshot_after_train: false {text}")
        solver.solve()
        return [line for line in solver.lines if "Testing" in line]

    schedule = "test_iter: 1 test_interval: 2 "
    assert tested(schedule) == [f"Iteration {i}, Testing net (#0)" for i in (0, 2, 4)]
    assert tested(schedule + "test_initialization: false") == [f"Iteration {i}, Testing net (#0)" for i in (2, 4)]
    assert tested("test_iter: 1 test_interval: 3") == [f"Iteration {i}, Testing net (#0)" for i in (0, 3)]
    assert tested("") == []
    two = tested(schedule + 'test_iter: 1 test_state { stage: "quiet" } test_state { }')
    assert two[:2] == ["Iteration 0, Testing net (#0)", "Iteration 0, Testing net (#1)"]


def test_stages_of_test_nets(make_solver):
    solver = make_solver(
        'max_iter: 1 test_iter: 1 test_iter: 1 test_interval: 1 test_state { stage: "quiet" } test_state { }'
    )
    solver.solve()
    names = [{name for name, _, _ in result.scores} for result in solver.test_results]
    assert names == [{"loss"}, {"loss", "sum"}]


def test_separate_test_nets_come_first(make_solver, tmp_path, feed):
    (tmp_path / "other.prototxt").write_text(feed(x=XS, t=TS) + NET.replace('"sum"', '"other"'))
    solver = make_solver(
        f"max_iter: 1 test_iter: 1 test_iter: 1 test_interval: 1 test_net: '{tmp_path}/other.prototxt'"
    )
    solver.solve()
    names = [{name for name, _, _ in result.scores} for result in solver.test_results]
    assert names == [{"loss", "other"}, {"loss", "sum"}]


def test_caffes_words(make_solver):
    solver = make_solver("test_iter: 1 test_interval: 4 max_iter: 4 display: 2 snapshot_after_train: false")
    first_loss = expected_test(solver, batches=1)[0]
    solver.solve()
    lines = solver.lines
    assert lines[0] == "Iteration 0, Testing net (#0)"
    assert lines[1] == f"    Test net output #0: loss = {first_loss:.6g} (* 2 = {2 * first_loss:.6g} loss)"
    train = lines.index(f"Iteration 0, loss = {2 * first_loss:.6g}")
    assert lines[train + 1] == f"    Train net output #0: loss = {first_loss:.6g} (* 2 = {2 * first_loss:.6g} loss)"
    assert lines[train + 2] == "Iteration 0, lr = 0.1"
    displayed = [line.split(",")[0] for line in lines if ", loss" in line]
    assert displayed == ["Iteration 0", "Iteration 2", "Iteration 4"]  # the last is a forward pass of its own


def test_testing_leaves_training_as_it_is(make_solver):
    tested, untested = make_solver("test_iter: 3 test_interval: 1 max_iter: 4"), make_solver("max_iter: 4")
    for solver in (tested, untested):
        solver.net.layers[0].step = 0
    # both nets read the same arrays, each from its first
    tested.solve()
    untested.solve()
    for a, b in zip(tested.net.learnable_params, untested.net.learnable_params, strict=True):
        assert torch.equal(a.blob, b.blob)


@pytest.mark.parametrize(
    ("text", "iterations"),
    [("snapshot: 2", [2, 4, 5]), ("snapshot: 2 snapshot_after_train: false", [2, 4]), ("", [5]), ("snapshot: 5", [5])],
)
def test_snapshots(make_solver, tmp_path, text, iterations):
    paths = make_solver(f"max_iter: 5 {text}").solve()
    assert paths == [tmp_path / f"s_iter_{i}.caffemodel" for i in iterations]
    assert all(path.is_file() and state_path(path).is_file() for path in paths)


def test_hdf5_snapshots(make_solver, tmp_path):
    text = "momentum: 0.9 max_iter: 4 snapshot: 2 snapshot_format: HDF5"
    whole = make_solver(text)
    whole.solve()
    model, state = tmp_path / "s_iter_2.caffemodel.h5", tmp_path / "s_iter_2.solverstate.h5"
    with h5py.File(model) as file:
        assert file["data/ip/0"].shape == (2, 3)
    assert read_solverstate(state).learned_net == str(model)
    assert not list(tmp_path.glob("*.caffemodel"))
    resumed = make_solver(text)
    resumed.restore(state)
    resumed.net.layers[0].step = 2
    resumed.solve()
    for a, b in zip(whole.net.learnable_params, resumed.net.learnable_params, strict=True):
        assert torch.equal(a.blob, b.blob)


def test_shared_tensors_in_hdf5(tmp_path, build, inputs_of):
    """Caffe stores them under the first layer; loading gives them to all."""
    shared = """
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } param { name: "b" }
            inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 1 } } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { name: "other" }
            inner_product_param { num_output: 3 bias_filler { type: "constant" value: 2 } } }
    """
    net = build(inputs_of(x=(1, 3)) + shared)
    write_caffemodel(tmp_path / "m.h5", to_caffemodel(net))
    by_name = {layer.name: layer.blobs for layer in read_caffemodel(tmp_path / "m.h5").layers}
    assert by_name["b"][0] is None
    again = build(inputs_of(x=(1, 3)) + shared)
    copy_from(again, tmp_path / "m.h5")
    for a, b in zip(net.learnable_params, again.learnable_params, strict=True):
        assert torch.equal(a.blob, b.blob)
    other = build(inputs_of(x=(1, 3)) + shared.replace('param { name: "w" }', "param { lr_mult: 1 }"))
    with pytest.raises(WeightsError, match="has 2 parameters"):
        copy_from(other, tmp_path / "m.h5")


def test_debug_info(make_solver):
    solver = make_solver("max_iter: 1 display: 1 debug_info: true snapshot_after_train: false")
    weight = solver.net.learnable_params[0].blob.detach().numpy().copy()
    solver.solve()
    y = XS[0] @ weight.T
    lines = [line.strip() for line in solver.lines]
    assert f"[Forward] Layer ip, top blob y data: {np.abs(y).mean():.6g}" in lines
    assert f"[Forward] Layer ip, param blob 0 data: {np.abs(weight).mean():.6g}" in lines
    gradient = 2 * (y - TS[0]) / 4
    found = [line for line in lines if line.startswith("[Backward] Layer loss, bottom blob y diff: ")]
    assert float(found[0].split()[-1]) == pytest.approx(np.abs(gradient).mean(), rel=1e-4)
    found = [line for line in lines if line.startswith("[Backward] Layer ip, param blob 0 diff: ")]
    assert float(found[0].split()[-1]) == pytest.approx(np.abs(gradient.T @ XS[0]).mean(), rel=1e-4)
    totals = next(line for line in lines if line.startswith("[Backward] All net params (data, diff): L1 norm = ("))
    assert float(totals.split("(")[2].split(",")[0]) == pytest.approx(np.abs(weight).sum(), rel=1e-4)


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("test_iter: 1", "test_interval", "must be positive"),
        ("test_iter: 1 test_interval: 1 test_state {} test_state {}", "test_state", "2 given for 1 test nets"),
        ("test_interval: 1 test_net: 'a' test_net: 'b' test_iter: 1", "test_iter", "1 given for 2 test nets"),
    ],
)
def test_errors(make_solver, tmp_path, text, field, message):
    (tmp_path / "a").write_text((tmp_path / "net.prototxt").read_text())
    (tmp_path / "b").write_text((tmp_path / "net.prototxt").read_text())
    text = text.replace("'a'", f"'{tmp_path}/a'").replace("'b'", f"'{tmp_path}/b'")
    with pytest.raises(PortError, match=message) as caught:
        make_solver(f"max_iter: 1 {text}").solve()
    assert caught.value.field == field


def test_no_end(make_solver):
    with pytest.raises(PortError, match="how many iterations"):
        make_solver().solve()


def test_a_test_net_of_other_shapes(make_solver, tmp_path, feed):
    text = feed(x=XS, t=TS) + NET.replace("num_output: 2", "num_output: 5").replace('bottom: "t"', 'bottom: "y"')
    (tmp_path / "other.prototxt").write_text(text)
    solver = make_solver(f"max_iter: 1 test_iter: 1 test_interval: 1 test_net: '{tmp_path}/other.prototxt'")
    with pytest.raises(PortError, match="its parameters have shapes") as caught:
        solver.solve()
    assert caught.value.layer == "ip"


def test_vstep_of_spp_net(make_solver):
    text = "train_net: 'x' lr_policy: 'vstep' vstep_lr: 0.1 vstep_size: 2 vstep_lr: 0.01 "
    net = make_solver().net
    solver = Solver(prototxt.parse_solver(text + "vstep_size: 1"), net)
    rates = []
    for _ in range(5):
        rates.append(solver.lr)
        solver.step()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.01])
    with pytest.raises(PortError, match="as many of each"):
        Solver(prototxt.parse_solver(text), net)
