"""Update rules are compared with Caffe's arrays in test_golden.py; here is everything around them."""

import math
import sys

import numpy as np
import pytest
import torch

import prototxt
from converters import CaffeModel, LayerWeights, SolverState, read_solverstate, write_caffemodel, write_solverstate
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver, find_net

NET = """
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
        inner_product_param { num_output: 2 weight_filler { type: "gaussian" std: 1 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }
"""
FIXED = "base_lr: 0.1 lr_policy: 'fixed' "


@pytest.fixture
def make_solver(feed):
    """``make_solver("momentum: 0.9", rows)``: a solver of a linear regression on ``rows`` of (x, t)."""

    def make(text=FIXED, rows=None, seed=0):
        rng = np.random.default_rng(5)
        xs, ts = (rng.standard_normal((6, 4, width)) for width in (3, 2)) if rows is None else rows
        torch.manual_seed(seed)
        net = Net(prototxt.parse_net(feed(x=xs, t=ts) + NET))
        return Solver(prototxt.parse_solver(f"train_net: 'net' {text}"), net)

    return make


def weights(solver):
    return [p.blob.detach().clone() for p in solver.net.learnable_params]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# ---- learning-rate policies

RATE = 0.0005
POLICIES = {
    "fixed": ("lr_policy: 'fixed'", lambda i: RATE),
    "step": ("lr_policy: 'step' gamma: 0.5 stepsize: 3", lambda i: RATE * 0.5 ** (i // 3)),
    "exp": ("lr_policy: 'exp' gamma: 0.75", lambda i: RATE * 0.75**i),
    "inv": ("lr_policy: 'inv' gamma: 0.5 power: 2", lambda i: RATE * (1 + 0.5 * i) ** -2),
    "multistep": (
        "lr_policy: 'multistep' gamma: 0.5 stepvalue: 2 stepvalue: 5 stepvalue: 6",
        lambda i: RATE * 0.5 ** sum(i >= s for s in (2, 5, 6)),
    ),
    "poly": ("lr_policy: 'poly' power: 2 max_iter: 10", lambda i: RATE * (1 - i / 10) ** 2),
    "sigmoid": ("lr_policy: 'sigmoid' gamma: -0.5 stepsize: 4", lambda i: RATE / (1 + math.exp(0.5 * (i - 4)))),
}


@pytest.mark.parametrize("policy", POLICIES)
def test_policies(make_solver, policy):
    text, closed_form = POLICIES[policy]
    solver = make_solver(f"base_lr: {RATE} {text}")
    rates = []
    for _ in range(10):
        rates.append(solver.lr)
        assert solver.lr == rates[-1]  # looking changes nothing
        solver.step()
    assert rates == pytest.approx([closed_form(i) for i in range(10)], rel=1e-7)


# ---- one iteration


def gradient(weight, bias, x, t):
    """Of half the mean squared distance of ``x @ weight.T + bias`` from ``t``."""
    error = (x @ weight.T + bias - t) / len(x)
    return error.T @ x, error.sum(0)


def test_momentum_multipliers_and_decay_by_hand(make_solver):
    rng = np.random.default_rng(5)
    xs, ts = (rng.standard_normal((6, 4, width)) for width in (3, 2))
    solver = make_solver(FIXED + "momentum: 0.5 weight_decay: 0.25", (xs, ts))
    weight, bias = (w.double().numpy() for w in weights(solver))
    vw, vb = 0, 0
    for i in range(3):
        dw, db = gradient(weight, bias, xs[i], ts[i])
        vw, vb = 0.5 * vw + 0.1 * (dw + 0.25 * weight), 0.5 * vb + 0.2 * db
        weight, bias = weight - vw, bias - vb
        solver.step()
    for ours, expected in zip(weights(solver), (weight, bias), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)


def test_iter_size_averages(make_solver):
    """Three passes of four rows are one pass of twelve."""
    rng = np.random.default_rng(6)
    xs, ts = (rng.standard_normal((3, 4, width)) for width in (3, 2))
    options = FIXED + "momentum: 0.9 weight_decay: 0.1 "
    split, whole = make_solver(options + "iter_size: 3", (xs, ts)), None
    split.step(2)
    whole = make_solver(options, (xs.reshape(1, 12, 3), ts.reshape(1, 12, 2)))
    whole.step(2)
    for a, b in zip(weights(split), weights(whole), strict=True):
        torch.testing.assert_close(a, b)
    assert split.loss == pytest.approx(whole.loss, rel=1e-6)
    assert split.losses["loss"] == pytest.approx(split.loss, rel=1e-6)


@pytest.mark.parametrize(("limit", "clipped"), [(0.01, True), (1e6, False)])
def test_clipping(make_solver, limit, clipped):
    """By the norm over all parameters together, before the division by iter_size and the decay."""
    steps = []
    for text in ("", f"clip_gradients: {limit} "):
        solver = make_solver(FIXED + "iter_size: 2 " + text)
        before = weights(solver)
        solver.step()
        steps.append([b - a for a, b in zip(before, weights(solver), strict=True)])
    raw = [step / m * 2 / -0.1 for step, m in zip(steps[0], (1, 2), strict=True)]  # summed gradients
    norm = math.sqrt(sum(float((g.double() ** 2).sum()) for g in raw))
    scale = limit / norm if clipped else 1
    for plain, cut in zip(*steps, strict=True):
        torch.testing.assert_close(cut, plain * scale, rtol=1e-3, atol=1e-7)


def test_clipping_counts_parameters_that_are_not_trained(feed):
    """force_backward computes their gradients, too, and Caffe's norm is over all of them."""
    x, t = np.ones((1, 2, 3), np.float32), np.zeros((1, 2, 2), np.float32)
    text = (
        feed(x=x, t=t)
        + """force_backward: true
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" param { lr_mult: 1 } param { lr_mult: 0 }
                inner_product_param { num_output: 2 weight_filler { value: 1 } bias_filler { value: 1 } } }
        layer { name: "loss" type: "EuclideanLoss" bottom: "y" bottom: "t" top: "loss" }"""
    )
    net = Net(prototxt.parse_net(text))
    Solver(prototxt.parse_solver("base_lr: 1 lr_policy: 'fixed' clip_gradients: 1"), net).step()
    weight, bias = net.params["ip"]
    # each output is 4 in both rows: a gradient of 4 for all 6 weights and 2 biases
    torch.testing.assert_close(weight.detach(), torch.full((2, 3), 1 - 4 / math.sqrt(8 * 16)))
    torch.testing.assert_close(bias.detach(), torch.ones(2))


def test_smoothed_loss(make_solver):
    solver = make_solver(FIXED + "average_loss: 3")
    losses = []
    for _ in range(5):
        shown = solver.step()
        losses.append(solver.loss)
        assert shown == pytest.approx(sum(losses[-3:]) / len(losses[-3:]))


def test_random_seed_decides_the_fillers(feed):
    nets = []
    feed(x=[np.zeros((1, 3))], t=[np.zeros((1, 2))])
    data = 'layer { name: "data" type: "Python" top: "x" top: "t" python_param { module: "tests" layer: "Feed" } }'
    for seed in (1, 1, 2):
        solver = prototxt.parse_solver(FIXED + f"random_seed: {seed}")
        solver.train_net_param.CopyFrom(prototxt.parse_net(data + NET))
        nets.append(weights(Solver(solver)))
    assert same(nets[0], nets[1])
    assert not same(nets[0], nets[2])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops(make_solver, value):
    rows = np.ones((2, 1, 3)), np.array([[[0.0, 0]], [[0, value]]])
    solver = make_solver(FIXED, rows)
    solver.step()
    before = weights(solver)
    with pytest.raises(PortError, match="the loss is (nan|inf) in iteration 1"):
        solver.step()
    assert same(before, weights(solver)), "the weights stay as they were"


# ---- the solver file


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("base_lr: 1 lr_policy: 'fixed' type: 'SDG'", "type", "unknown solver type 'SDG'; did you mean SGD?"),
        ("base_lr: 1 lr_policy: 'setp'", "lr_policy", "unknown policy 'setp'; did you mean 'step'?"),
        ("base_lr: 1", "lr_policy", "is needed"),
        ("lr_policy: 'fixed'", "base_lr", "is needed"),
        ("base_lr: 1 lr_policy: 'step' gamma: 0.1", "stepsize", "is needed"),
        ("base_lr: 1 lr_policy: 'step' gamma: 0.1 stepsize: 0", "stepsize", "must be positive"),
        ("base_lr: 1 lr_policy: 'sigmoid' gamma: 0.1 stepsize: 0", "stepsize", "must be positive"),
        ("base_lr: 1 lr_policy: 'exp' gamma: -0.1", "gamma", "must not be negative"),
        ("base_lr: 1 lr_policy: 'poly' power: 1", "max_iter", "is needed"),
        ("base_lr: 1 lr_policy: 'inv' gamma: 1", "power", "is needed"),
        (FIXED + "regularization_type: 'L3'", "regularization_type", "is L1 or L2, not 'L3'"),
        (FIXED + "iter_size: 0", "iter_size", "must be positive"),
        (FIXED + "type: 'AdaGrad' momentum: 0.9", "momentum", "cannot be used with AdaGrad"),
        (FIXED + "type: 'RMSProp' momentum: 0.9", "momentum", "cannot be used with RMSProp"),
        (FIXED + "type: 'RMSProp' rms_decay: 1.5", "rms_decay", "between 0 and 1"),
        (FIXED + "weight_decay: nan", "weight_decay", "must be a finite number"),
        (FIXED + "snapshot: -1", "snapshot", "must not be negative"),
        (FIXED, "train_net", "name one training net; given: none"),
        (FIXED + "net: 'a' train_net: 'b'", "train_net", "name one training net"),
    ],
)  # fmt: skip
def test_bad_settings(tmp_path, text, field, message):
    path = tmp_path / "solver.prototxt"
    path.write_text("\n" + text)
    with pytest.raises(PortError) as caught:
        Solver(path)
    assert message in str(caught.value)
    assert (caught.value.file, caught.value.field) == (str(path), field)
    assert caught.value.line == (2 if f"{field}:" in text else None)


def test_a_missing_hdf5_library_is_found_before_training(monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(PortError, match="needs the library h5py") as caught:
        Solver(prototxt.parse_solver(FIXED + "snapshot_format: HDF5"))
    assert caught.value.field == "snapshot_format"
    assert "pip install" in caught.value.hint


def test_unused_fields_are_listed(make_solver):
    """Those that ask for something, at the least."""
    warnings = make_solver(FIXED + "warmup_iter: 3").warnings
    assert any("warmup_iter" in warning for warning in warnings)
    assert make_solver(FIXED + "momentum: 0.9 display: 20").warnings == []


def test_stages_and_level_of_train_state(feed):
    feed(x=[np.zeros((1, 3))], t=[np.zeros((1, 2))])
    data = 'layer { name: "data" type: "Python" top: "x" top: "t" python_param { module: "tests" layer: "Feed" } }'
    param = prototxt.parse_solver(FIXED + 'train_state { stage: "s" level: 2 }')
    extra = 'layer { name: "r" type: "ReLU" bottom: "y" top: "r" include { stage: "s" min_level: 2 } }'
    param.net_param.CopyFrom(prototxt.parse_net(data + NET + extra))
    assert "r" in Solver(param).net.layer_by_name


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """``tree("models/a/net.prototxt", ...)``: files in an otherwise empty folder; works below ``elsewhere``."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        return tmp_path

    return make


@pytest.mark.parametrize(
    "places",
    [
        # the first of these that is there is taken
        ("elsewhere/models/a/net.prototxt", "models/a/models/a/net.prototxt", "models/a/net.prototxt"),
        ("models/a/models/a/net.prototxt", "models/models/a/net.prototxt", "models/a/net.prototxt"),
        ("models/models/a/net.prototxt", "models/a/net.prototxt"),
        ("models/a/net.prototxt",),
    ],
)
def test_where_a_net_is_looked_for(tree, places):
    top = tree(*places)
    found = find_net("models/a/net.prototxt", top / "models/a/solver.prototxt")
    assert found.read_text() == places[0]


def test_a_folder_that_was_copied_elsewhere(tree):
    top = tree("mine/net.prototxt")
    assert find_net("models/a/net.prototxt", top / "mine/solver.prototxt") == top / "mine/net.prototxt"


def test_a_net_that_is_nowhere(tree):
    top = tree()
    with pytest.raises(PortError, match="the solver's net 'models/net.prototxt' is not there") as caught:
        find_net("models/net.prototxt", top / "solver.prototxt")
    assert str(top / "models/net.prototxt") in caught.value.hint
    with pytest.raises(PortError):
        find_net(str(top / "absent"), top / "solver.prototxt")


def test_weights_of_the_solver_file(make_solver, tmp_path):
    blobs = [np.full((2, 3), 7, np.float32), np.full(2, 8, np.float32)]
    path = tmp_path / "w.caffemodel"
    write_caffemodel(path, CaffeModel("n", [LayerWeights("ip", "InnerProduct", blobs=blobs)]))
    solver = make_solver(FIXED + f"weights: '{path}'")
    assert [w.unique().tolist() for w in weights(solver)] == [[7], [8]]


# ---- snapshots

STATEFUL = {
    "SGD": "momentum: 0.9 lr_policy: 'multistep' gamma: 0.5 stepvalue: 1 stepvalue: 3",
    "Nesterov": "momentum: 0.9 lr_policy: 'fixed'",
    "AdaGrad": "lr_policy: 'step' gamma: 0.5 stepsize: 2",
    "RMSProp": "lr_policy: 'fixed' rms_decay: 0.9",
    "AdaDelta": "momentum: 0.9 lr_policy: 'fixed'",
    "Adam": "momentum: 0.9 momentum2: 0.99 lr_policy: 'fixed'",
}


@pytest.mark.parametrize("kind", STATEFUL)
def test_resuming_goes_on_bit_for_bit(make_solver, tmp_path, kind):
    text = f"type: '{kind}' base_lr: 0.1 iter_size: 2 weight_decay: 0.01 {STATEFUL[kind]}"
    straight = make_solver(text)
    straight.step(3)
    model, state = straight.snapshot(tmp_path / "out" / "snap")
    assert [p.name for p in (model, state)] == ["snap_iter_3.caffemodel", "snap_iter_3.solverstate"]
    straight.step(3)
    resumed = make_solver(text, seed=1)
    resumed.restore(state)
    assert resumed.iter == 3
    resumed.net.layers[0].step = 6
    resumed.step(3)
    assert same(weights(straight), weights(resumed))
    for ours, theirs in zip(straight.history, resumed.history, strict=True):
        assert same(ours, theirs)
    assert straight.lr == resumed.lr


def test_a_snapshot_that_moved(make_solver, tmp_path):
    """Its weights are looked for where the state says and beside it."""
    solver = make_solver()
    solver.step()
    model, state = solver.snapshot(tmp_path / "out" / "snap")
    (tmp_path / "moved").mkdir()
    for path in (model, state):
        path.rename(tmp_path / "moved" / path.name)
    other = make_solver(seed=1)
    other.restore(tmp_path / "moved" / state.name)
    assert same(weights(solver), weights(other))
    (tmp_path / "moved" / model.name).unlink()
    with pytest.raises(PortError, match="its weights .* are not there"):
        other.restore(tmp_path / "moved" / state.name)


def test_a_state_of_another_net(make_solver, tmp_path):
    path = tmp_path / "x.solverstate"
    write_solverstate(path, SolverState(3, "", [np.zeros((2, 2), np.float32)], 0))
    with pytest.raises(PortError, match="its 1 history blobs do not fit the net's 2"):
        make_solver().restore(path)


def test_the_state_is_caffes(make_solver, tmp_path):
    """Adam keeps all first moments, then all second moments."""
    solver = make_solver("type: 'Adam' momentum: 0.9 base_lr: 0.1 lr_policy: 'step' gamma: 0.1 stepsize: 1")
    solver.step(2)
    _, path = solver.snapshot(tmp_path / "snap")
    state = read_solverstate(path)
    assert (state.iter, state.current_step) == (2, 1)
    expected = [h[slot] for slot in (0, 1) for h in solver.history]
    assert [h.shape for h in state.history] == [(2, 3), (2,), (2, 3), (2,)]
    assert all(np.array_equal(a, b) for a, b in zip(state.history, expected, strict=True))


def test_a_loss_of_many_values_counts_as_their_sum(feed):
    xs = np.arange(6.0).reshape(1, 2, 3)
    text = feed(x=xs) + 'layer { name: "p" type: "Scale" bottom: "x" top: "y" loss_weight: 0.5 }'
    solver = Solver(prototxt.parse_solver(f"train_net: 'net' {FIXED}"), Net(prototxt.parse_net(text)))
    solver.step(1)
    assert (solver.loss, solver.losses) == (7.5, {"y": 15.0})
