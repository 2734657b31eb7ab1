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
    """They are stored once, with a link from each further layer, which Caffe leaves out; loading gives them to all."""
    shared = """
    layer { name: "a" type: "InnerProduct" bottom: "x" top: "a" param { name: "w" } param { name: "b" }
            inner_product_param { num_output: 3 weight_filler { type: "gaussian" std: 1 } } }
    layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { name: "w" } param { name: "other" }
            inner_product_param { num_output: 3 bias_filler { type: "constant" value: 2 } } }
    """
    net = build(inputs_of(x=(1, 3)) + shared)
    write_caffemodel(tmp_path / "m.h5", to_caffemodel(net))
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        assert file["data/a/0"] == file["data/b/0"]
        del file["data/b/0"]
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


def test_debug_info_of_test_nets(make_solver):
    """Every forward of theirs, without backward, after the line that announces the net."""
    solver = make_solver("max_iter: 1 test_iter: 2 test_interval: 1 debug_info: true snapshot_after_train: false")
    weight = solver.net.learnable_params[0].blob.detach().numpy().copy()
    solver.solve()
    lines = [line.strip() for line in solver.lines]
    start = lines.index("Iteration 0, Testing net (#0)")
    until = next(i for i in range(start, len(lines)) if "Test net output" in lines[i])
    shown = [line for line in lines[start:until] if "Layer ip, top blob y" in line]
    assert shown == [f"[Forward] Layer ip, top blob y data: {np.abs(x @ weight.T).mean():.6g}" for x in XS[:2]]
    assert not any("[Backward]" in line for line in lines)


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


def test_multifixed_of_intel(make_solver):
    """A rate holds in the iteration that ends it, too."""
    text = "train_net: 'x' lr_policy: 'multifixed' stagelr: 0.1 stageiter: 1 stagelr: 0.01 "
    net, rates = make_solver().net, []
    solver = Solver(prototxt.parse_solver(text + "stageiter: 3"), net)
    for _ in range(6):
        rates.append(solver.lr)
        solver.step()
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.01, 0.01])
    with pytest.raises(PortError, match="2 rates and 1 stageiter; as many of each") as caught:
        Solver(prototxt.parse_solver(text), net)
    assert caught.value.field == "stagelr"


# ---- lr_policy: "plateau" (SSD)

LOSSES = [5, 4, 4.5, 4.2, 4.1, 3, 3.5, 3.4, 3.2, 3.3, 3.1, 2.9, 3, 3, 3, 3]
PLATEAU = "lr_policy: 'plateau' base_lr: 0.1 gamma: 0.5 plateau_winsize: 3 plateau_winsize: 2 snapshot_prefix: '%s/s' "


@pytest.fixture
def plateau(feed, tmp_path):
    """A solver whose losses are LOSSES, and the lines that it logs."""

    def make(text=""):
        param = prototxt.parse_solver(PLATEAU % tmp_path + text)
        loss = 'layer { name: "loss" type: "Reduction" bottom: "l" top: "loss" loss_weight: 1 }'
        param.net_param.CopyFrom(prototxt.parse_net(feed(l=np.array(LOSSES)[:, None]) + loss))
        solver, lines = Solver(param), []
        solver.log = lines.append
        return solver, lines

    return make


def rates_of(solver, count):
    rates = []
    for _ in range(count):
        solver.step()
        rates.append(solver.lr)
    return rates


@pytest.mark.parametrize("average", [1, 3])
def test_plateau_step_by_step(plateau, average):
    least, event, step, expected = np.inf, 0, 0, []
    for i in range(len(LOSSES)):
        smoothed = np.mean(LOSSES[max(0, i + 1 - average) : i + 1])
        if smoothed < least:
            least, event = smoothed, i
        if step < 2 and i >= event + (3, 2)[step]:
            step, event = step + 1, i
        expected.append(0.1 * 0.5**step)
    solver, _ = plateau(f"average_loss: {average}")
    assert rates_of(solver, len(LOSSES)) == pytest.approx(expected)
    assert len(set(expected)) == (3 if average == 1 else 1)  # the mean of three goes on falling


def test_plateau_in_caffes_words(plateau):
    """The least loss before the first step is 4 of iteration 1, before the second 3 of iteration 5."""
    solver, lines = plateau("display: 4")
    solver.step(8)
    status = [line for line in lines if line.startswith(("Plateau", "Iteration"))]
    assert status == [
        "Iteration 0, loss = 5",
        "Plateau Status: Iteration 0, current minimum_loss = 5",
        "Iteration 0, lr = 0.1",
        "Iteration 4, loss = 4.1",
        "Plateau Status: Iteration 4, step = 1",
        "Plateau Status: Iteration 4, current minimum_loss = 4",
        "Iteration 4, lr = 0.05",
        "Plateau Status: Iteration 7, step = 2",
    ]


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
def test_a_plateau_goes_on_after_a_snapshot(plateau, form):
    whole, _ = plateau()
    expected = rates_of(whole, len(LOSSES))
    first, _ = plateau(f"snapshot_format: {form}")
    first.step(3)
    _, path = first.snapshot()
    state = read_solverstate(path)
    assert (state.minimum_loss, state.iter_last_event, state.current_step) == (4, 1, 0)
    resumed, _ = plateau()
    resumed.restore(path)
    resumed.net.layers[0].step = 3
    assert rates_of(resumed, len(LOSSES) - 3) == expected[3:]


def test_other_states_have_no_minimum(make_solver):
    _, path = make_solver("momentum: 0.9").snapshot()
    assert read_solverstate(path).minimum_loss is None


# ---- eval_type: "detection" (SSD)

ROWS = np.array([[[[-1, 1, 2, -1, -1], [-1, 2, 1, -1, -1], [0, 1, 0.9, 1, 0], [0, 2, 0.4, 0, 1]]],
                 [[[-1, 1, 1, -1, -1], [-1, 2, 0, -1, -1], [1, 1, 0.8, 0, 1], [1, 1, 0.7, 1, 0]]]])  # fmt: skip


def test_detections_are_judged_over_all_batches(feed):
    text = "test_iter: 2 test_interval: 1 max_iter: 1 snapshot_after_train: false base_lr: 1 lr_policy: 'fixed' "
    text += "eval_type: 'detection' show_per_class_result: true test_initialization: false ap_version: '11point'"
    param = prototxt.parse_solver(text)
    param.net_param.CopyFrom(prototxt.parse_net(feed(rows=ROWS)))
    solver, lines = Solver(param), []
    solver.log = lines.append
    solver.solve()
    ap = (4 * 1 + 3 * 2 / 3) / 11  # label 1: right, wrong, right of 3: recall 1/3 at precision 1, 2/3 at 2/3
    assert lines[-4:] == [
        "Iteration 1, Testing net (#0)",
        f"class1: {ap:.6g}",
        "class2: 0",
        f"    Test net output #0: rows = {ap / 2:.6g}",
    ]


def test_every_output_has_its_classes(feed):
    """The second is of cascade-rcnn's form; nothing was found of its label 2."""
    other = ROWS[:, 0, :3].reshape(2, 3, 5, 1, 1)
    text = "test_iter: 2 test_interval: 1 base_lr: 1 lr_policy: 'fixed' eval_type: 'detection' ap_version: 'Integral' "
    param = prototxt.parse_solver(text + "max_iter: 1 snapshot_after_train: false test_initialization: false")
    param.net_param.CopyFrom(prototxt.parse_net(feed(first=ROWS, second=other)))
    first, second = (1 + 2 / 3) / 3, 1 / 3
    for show in (False, True):
        param.show_per_class_result = show
        solver, lines = Solver(param), []
        solver.log = lines.append
        solver.solve()
        assert lines[1:] == [
            *([f"class1: {first:.6g}", "class2: 0"] if show else []),
            f"    Test net output #0: first = {first / 2:.6g}",
            *([f"class1: {second:.6g}"] if show else []),
            "Missing true_pos for label: 2",
            f"    Test net output #1: second = {second / 2:.6g}",
        ]
        assert solver.test_results[0].classes["second"] == {1: pytest.approx(second), 2: None}


@pytest.mark.parametrize(
    ("settings", "rows", "message"),
    [
        ("eval_type: 'segmentation'", ROWS, "is classification or detection"),
        ("eval_type: 'detection' ap_version: 'best'", ROWS, "is one of 11point"),
        ("eval_type: 'detection'", ROWS[..., :3], r"takes rows of 5 values"),
        ("", [np.zeros(3), np.zeros(4)], "'rows' of the test net has 3 values in one batch and 4 in the next"),
    ],
)
def test_outputs_that_cannot_be_tested(feed, settings, rows, message):
    param = prototxt.parse_solver(f"test_iter: 2 test_interval: 1 base_lr: 1 lr_policy: 'fixed' {settings}")
    param.net_param.CopyFrom(prototxt.parse_net(feed(rows=rows)))
    with pytest.raises(PortError, match=message):
        Solver(param).solve(1)
