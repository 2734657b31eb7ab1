import numpy as np
import pytest
import torch

import prototxt
from converters import read_caffemodel
from ohem_caffe_port.config import Config
from ohem_caffe_port.data.roidb import get_training_roidb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.train import Trainer, load_weights, save_unnormalized, settle_mining

SOLVER = "train_net: 'x' base_lr: 0.002 lr_policy: 'step' gamma: 0.5 stepsize: 4 momentum: 0.9 weight_decay: 0.0005 " \
         "iter_size: 2 average_loss: 4 snapshot_prefix: 'tiny' "  # fmt: skip


@pytest.fixture
def trainer_of(shapes_imdb, tmp_path):
    """``trainer_of(prototxt, cfg, seed, output)``: trains that net on the small data set."""

    def make(text, cfg, seed, output):
        torch.manual_seed(seed)
        solver = Solver(prototxt.parse_solver(SOLVER), Net(prototxt.parse_net(text), cfg=cfg))
        return Trainer(solver, get_training_roidb(shapes_imdb("train"), cfg), cfg, tmp_path / output)

    return make


@pytest.fixture
def make_trainer(trainer_of, detector, shapes_cfg):
    """``make_trainer("ohem", dropout=0.5, seed=0, output="run", **train)``: a tiny detector on the small data set."""

    def make(method="ohem", dropout=0.0, seed=0, output="run", **train):
        cfg = shapes_cfg("fast_rcnn" if method == "fast_rcnn" else "ohem", **train)
        return trainer_of(detector(method, dropout).train, cfg, seed, output)

    return make


def state_of(trainer):
    """All weights and history blobs, by name."""
    solver = trainer.solver
    state = {p.owner: p.blob.detach().clone() for p in solver.net.learnable_params}
    for name, blobs in zip(list(state), solver.history, strict=True):
        state |= {f"history of {name} {i}": blob for i, blob in enumerate(blobs)}
    return state


# ---- mining and sampling fit together


@pytest.mark.parametrize(
    ("method", "stated", "use_ohem", "bg_lo", "lines"),
    [
        ("ohem", {}, True, 0.0, ["all RoIs of an image go into the net", "BG_THRESH_LO 0.0"]),
        ("ohem_naive", {}, True, 0.0, ["all RoIs of an image go into the net", "BG_THRESH_LO 0.0"]),
        ("ohem", {"USE_OHEM": True, "BG_THRESH_LO": 0.0}, True, 0.0, []),
        ("ohem", {"USE_OHEM": True}, True, 0.0, ["BG_THRESH_LO 0.0"]),
        ("ohem", {"USE_OHEM": False}, False, 0.1, ["mines among sampled RoIs only"]),
        ("fast_rcnn", {}, False, 0.1, []),
        ("fast_rcnn", {"USE_OHEM": True}, True, 0.0, ["BG_THRESH_LO 0.0", "no layer of the net mines"]),
    ],
)
def test_settle_mining(build, detector, method, stated, use_ohem, bg_lo, lines):
    cfg = Config()
    cfg.merge({"TRAIN": stated}, source="test")
    done = settle_mining(build(detector(method).train, cfg=cfg), cfg)
    assert (use_ohem, bg_lo) == (cfg.TRAIN.USE_OHEM, cfg.TRAIN.BG_THRESH_LO)
    assert len(done) == len(lines)
    for line, part in zip(done, lines, strict=True):
        assert part in line


@pytest.mark.parametrize("stated", [{"BG_THRESH_LO": 0.1}, {"BG_THRESH_LO": 0.2, "USE_OHEM": True}])
def test_mining_with_a_lower_bound_for_background(build, detector, stated):
    cfg = Config()
    cfg.merge({"TRAIN": stated}, source="test")
    with pytest.raises(PortError, match="mining takes every background RoI"):
        settle_mining(build(detector("ohem").train, cfg=cfg), cfg)


# ---- un-normalised snapshots

MEANS, STDS = np.linspace(-1, 1, 28), np.linspace(0.5, 2, 28)


def test_save_unnormalized(build, detector, tmp_path):
    net, path = build(detector("ohem").train, cfg=Config()), tmp_path / "net.caffemodel"
    with torch.no_grad():
        net.params["bbox_pred"][1].uniform_(-1, 1)
    before = {p.owner: p.blob.detach().clone() for p in net.learnable_params}
    save_unnormalized(net, path, MEANS, STDS, Config())
    for p in net.learnable_params:
        assert torch.equal(p.blob, before[p.owner]), "the net goes on as it was"
    saved = {layer.name: layer.blobs for layer in read_caffemodel(path).layers}
    weight, bias = (p.detach().double().numpy() for p in net.params["bbox_pred"])
    for name in ("bbox_pred", "bbox_pred_readonly"):
        np.testing.assert_allclose(saved[name][0], weight * STDS[:, None], rtol=1e-6)
        np.testing.assert_allclose(saved[name][1], bias * STDS + MEANS, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(saved["fc6"][0], before["fc6_readonly[0]"])


@pytest.mark.parametrize("off", [{"BBOX_REG": False}, {"BBOX_NORMALIZE_TARGETS": False}])
def test_nothing_to_undo(build, detector, tmp_path, off):
    net, path, cfg = build(detector("ohem").train, cfg=Config()), tmp_path / "net.caffemodel", Config()
    cfg.merge({"TRAIN": off}, source="test")
    save_unnormalized(net, path, MEANS, STDS, cfg)
    saved = {layer.name: layer.blobs for layer in read_caffemodel(path).layers}
    np.testing.assert_array_equal(saved["bbox_pred"][0], net.params["bbox_pred"][0].detach())


def test_the_net_is_restored_when_writing_fails(build, detector, tmp_path):
    net = build(detector("ohem").train, cfg=Config())
    before = net.params["bbox_pred"][0].detach().clone()
    with pytest.raises(prototxt.CaffePortError):
        save_unnormalized(net, tmp_path / "no" / "such" / "folder.caffemodel", MEANS, STDS, Config())
    assert torch.equal(net.params["bbox_pred"][0], before)


def test_statistics_of_another_data_set(build, detector, tmp_path):
    with pytest.raises(PortError, match="'bbox_pred' has 28 outputs, the data set 84 box targets"):
        save_unnormalized(build(detector().train, cfg=Config()), tmp_path / "x", np.zeros(84), np.ones(84), Config())


def normalized_net(build, inputs_of, rfcn_outputs=24):
    """py-R-FCN's layers: 3 anchors, and box outputs of two classes for each cell of a grid."""
    conv = "convolution_param {{ num_output: {} kernel_size: 1 weight_filler {{ type: 'xavier' }} }}"
    text = inputs_of(x=(1, 2, 3, 3)) + "".join(
        f'layer {{ name: "{name}" type: "Convolution" bottom: "x" top: "{name}" {conv.format(outputs)} }}'
        for name, outputs in (("rpn_bbox_pred", 12), ("rfcn_bbox", rfcn_outputs))
    )
    return build(text, cfg=Config())


def test_py_r_fcns_layers_are_unnormalized(build, inputs_of, tmp_path):
    net, cfg, path = normalized_net(build, inputs_of), Config(), tmp_path / "net.caffemodel"
    cfg.merge({"TRAIN": {"AGNOSTIC": True, "RPN_NORMALIZE_TARGETS": True,
                         "RPN_NORMALIZE_MEANS": [0.1, 0.2, 0.3, 0.4]}}, source="test")  # fmt: skip
    means, stds = np.arange(8) / 10, np.arange(8) + 1.0
    save_unnormalized(net, path, means, stds, cfg)
    saved = {layer.name: layer.blobs for layer in read_caffemodel(path).layers}
    weights = {name: blobs[0].detach().numpy() for name, blobs in net.params.items()}
    for c in range(24):  # every target thrice, cell after cell
        np.testing.assert_allclose(saved["rfcn_bbox"][0][c], weights["rfcn_bbox"][c] * stds[c // 3], rtol=1e-6)
        np.testing.assert_allclose(saved["rfcn_bbox"][1][c], means[c // 3], rtol=1e-6)
    for c in range(12):  # four targets, anchor after anchor
        std, mean = ((0.1, 0.1, 0.2, 0.2)[c % 4], (0.1, 0.2, 0.3, 0.4)[c % 4])
        np.testing.assert_allclose(saved["rpn_bbox_pred"][0][c], weights["rpn_bbox_pred"][c] * std, rtol=1e-6)
        np.testing.assert_allclose(saved["rpn_bbox_pred"][1][c], mean, rtol=1e-6)


def test_a_grid_that_does_not_fit(build, inputs_of, tmp_path):
    with pytest.raises(PortError, match="'rfcn_bbox' has 20 outputs, the data set 8 box targets"):
        save_unnormalized(normalized_net(build, inputs_of, 20), tmp_path / "x", np.zeros(8), np.ones(8), Config())


# ---- training

RESUMED = {
    "ohem": {"method": "ohem"},
    "dropout": {"method": "ohem", "dropout": 0.5},
    "prefetched": {"method": "ohem", "dropout": 0.5, "USE_PREFETCH": True, "PREFETCH_WORKERS": 2},
    "sampled": {"method": "fast_rcnn", "dropout": 0.5, "IMS_PER_BATCH": 2, "ASPECT_GROUPING": True,
                "SCALES": [64, 96], "BG_THRESH_LO": 0.0},
    "moving average": {"method": "ghm"},
    "a stream of the method's own": {"method": "ratio"},
}  # fmt: skip


@pytest.mark.parametrize("kind", RESUMED)
def test_resuming_goes_on_bit_for_bit(make_trainer, kind):
    options = RESUMED[kind]
    straight = make_trainer(**options)
    straight.run(6)
    first = make_trainer(output="first", **options)
    (model,) = first.run(3)
    torch.manual_seed(99)  # whatever happens in between
    resumed = make_trainer(seed=7, output="second", **options)
    assert resumed.resume(model.with_suffix(".solverstate")) == []
    assert resumed.solver.iter == 3
    losses = []
    resumed.run(6, lambda: losses.append(resumed.solver.loss))
    expected, found = state_of(straight), state_of(resumed)
    assert expected.keys() == found.keys()
    for name, blob in expected.items():
        assert torch.equal(blob, found[name]), name
    assert resumed.solver.smoothed_loss == straight.solver.smoothed_loss
    assert len(losses) == 3
    assert any(not torch.equal(blob, expected[name]) for name, blob in state_of(first).items())


def test_prefetching_changes_nothing(make_trainer):
    states = []
    for prefetch in ({}, {"USE_PREFETCH": True, "PREFETCH_WORKERS": 2}):
        trainer = make_trainer(dropout=0.5, **prefetch)
        trainer.solver.step(4)
        states.append(state_of(trainer))
    for name, blob in states[0].items():
        assert torch.equal(blob, states[1][name]), name


@pytest.mark.parametrize(("infix", "name"), [("", "tiny_iter_{}"), ("x", "tiny_x_iter_{}")])
def test_snapshots(make_trainer, tmp_path, infix, name):
    trainer, done = make_trainer(SNAPSHOT_ITERS=2, SNAPSHOT_INFIX=infix), []
    paths = trainer.run(5, lambda: done.append(trainer.solver.iter))
    assert done == [1, 2, 3, 4, 5]
    assert paths == [tmp_path / "run" / f"{name.format(i)}.caffemodel" for i in (2, 4, 5)]
    written = {p.name for p in (tmp_path / "run").iterdir()}
    suffixes = (".caffemodel", ".solverstate", ".resume.npz")
    assert written == {name.format(i) + suffix for i in (2, 4, 5) for suffix in suffixes}
    assert trainer.run(5) == []


def test_snapshots_predict_plain_deltas(make_trainer):
    trainer = make_trainer()
    (path,) = trainer.run(1)
    saved = {layer.name: layer.blobs for layer in read_caffemodel(path).layers}
    weight = trainer.net.params["bbox_pred"][0].detach().numpy()
    assert trainer.stds.max() > 0
    np.testing.assert_allclose(saved["bbox_pred"][0], weight * trainer.stds[:, None], rtol=1e-5)


def test_a_state_that_caffe_wrote(make_trainer):
    """Weights, history and iteration are restored; what is lost is said."""
    trainer = make_trainer()
    (model,) = trainer.run(2)
    model.with_suffix(".resume.npz").unlink()
    resumed = make_trainer(seed=1)
    (said,) = resumed.resume(model.with_suffix(".solverstate"))
    assert "tiny_iter_2.resume.npz" in said
    assert resumed.solver.iter == 2
    for name, blob in state_of(trainer).items():
        assert torch.equal(blob, state_of(resumed)[name]) or name.startswith("bbox_pred"), name


@pytest.mark.parametrize("damage", ["cut", "garbage", "key", "other"])
def test_a_damaged_resume_file(make_trainer, damage):
    (model,) = make_trainer().run(1)
    extra = model.with_suffix(".resume.npz")
    if damage == "cut":
        extra.write_bytes(extra.read_bytes()[:200])
    elif damage == "garbage":
        extra.write_bytes(b"garbage")
    else:
        arrays = dict(np.load(extra))
        arrays = {k: v for k, v in arrays.items() if k != "torch_rng"} if damage == "key" else {"x": np.zeros(3)}
        np.savez(extra, **arrays)
    with pytest.raises(PortError) as caught:
        make_trainer().resume(model.with_suffix(".solverstate"))
    assert str(caught.value.file) == str(extra)


def test_a_net_without_a_data_layer(feed, build, shapes_cfg, tmp_path):
    text = feed(x=[[[1.0]]], t=[[[1.0]]]) + 'layer { name: "l" type: "EuclideanLoss" bottom: "x" bottom: "t" }'
    solver = Solver(prototxt.parse_solver(SOLVER), build(text))
    with pytest.raises(PortError, match="no layer of the net takes images with RoIs"):
        Trainer(solver, [], shapes_cfg(), tmp_path)


def test_load_several_weights(make_trainer):
    trainer = make_trainer()
    (path,) = trainer.run(1)
    net = make_trainer(seed=1).net
    lines = load_weights(net, f"{path}, {path}")
    assert len(lines) == 2
    assert all("layers loaded" in line for line in lines)
    assert torch.equal(net.params["fc6"][0], trainer.net.params["fc6"][0])


# ---- region proposal networks


@pytest.fixture
def make_rpn_trainer(trainer_of, faster_rcnn, shapes_cfg):
    """``make_rpn_trainer(seed=0, output="run", **train)``: a tiny Faster R-CNN on the small data set."""

    def make(seed=0, output="run", **train):
        cfg = shapes_cfg("fast_rcnn", **{"IMS_PER_BATCH": 1, "RPN_BATCHSIZE": 32, "RPN_POST_NMS_TOP_N": 60,
                                         "RPN_MIN_SIZE": 4, "BG_THRESH_LO": 0.0, **train})  # fmt: skip
        return trainer_of(faster_rcnn.train, cfg, seed, output)

    return make


def test_training_a_region_proposal_network(make_rpn_trainer):
    trainer = make_rpn_trainer()
    losses = []
    trainer.solver.param.base_lr = 0.02
    trainer.run(40, lambda: losses.append(dict(trainer.solver.losses)))
    for name in ("rpn_cls_loss", "loss_cls"):
        values = [each[name] for each in losses]
        assert np.mean(values[-10:]) < 0.8 * np.mean(values[:5]), name


@pytest.mark.parametrize("prefetch", [{}, {"USE_PREFETCH": True, "PREFETCH_WORKERS": 2}])
def test_resuming_a_net_that_samples_goes_on_bit_for_bit(make_rpn_trainer, prefetch):
    """Its layers draw from the random stream too; and anchors are normalised, so its snapshots are not the net."""
    settings = {"RPN_NORMALIZE_TARGETS": True, **prefetch}
    straight = make_rpn_trainer(**settings)
    straight.run(4)
    (model,) = make_rpn_trainer(output="first", **settings).run(2)
    saved = {layer.name: layer.blobs for layer in read_caffemodel(model).layers}
    resumed = make_rpn_trainer(seed=7, output="second", **settings)
    resumed.resume(model.with_suffix(".solverstate"))
    weight = resumed.net.params["rpn_bbox_pred"][0].detach().numpy()
    scale = np.tile([0.1, 0.1, 0.2, 0.2], 9)[:, None, None, None]
    np.testing.assert_allclose(saved["rpn_bbox_pred"][0], weight * scale, rtol=1e-6)
    resumed.run(4)
    for name, blob in state_of(straight).items():
        assert torch.equal(blob, state_of(resumed)[name]), name


def test_statistics_cannot_be_computed_for_own_proposals(make_rpn_trainer):
    with pytest.raises(PortError, match="have no statistics") as caught:
        make_rpn_trainer(HAS_RPN=True)
    assert caught.value.field == "TRAIN.BBOX_NORMALIZE_TARGETS_PRECOMPUTED"


@pytest.mark.parametrize("use_ohem", [True, False])
def test_settle_mining_leaves_own_proposals_alone(build, faster_rcnn, use_ohem):
    cfg = Config()
    cfg.TRAIN.USE_OHEM = use_ohem
    cfg.TRAIN.BG_THRESH_LO = 0.1
    net = build(faster_rcnn.train, cfg=cfg)
    before = cfg.to_dict()
    done = settle_mining(net, cfg)
    assert len(done) == use_ohem
    assert cfg.to_dict() == before
