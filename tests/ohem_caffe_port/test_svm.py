"""ohem_caffe_port.svm: the optimum of an SVM against other solvers, and mining against the original's trainer."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.optimize
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.imdb import Imdb, one_per_row
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.svm import ClassSvm, SvmSettings, SvmTrainer, train_svm
from prototxt import parse_net

# What train_svms.py of py-faster-rcnn computed on Blocks: its SVMTrainer, translated to Python 3, with a LinearSVC of
# tol 1e-10, retrain_limit 60, a feature scale of 10 images, on the features and scores of the Net below.
ORIGINAL = Path(__file__).resolve().parents[1] / "data" / "svm" / "original.json"
MINING = SvmSettings(retrain_after=60, norm_images=10)
NET = """
layer { name: "in" type: "Input" top: "data" top: "rois"
        input_param { shape { dim: 1 dim: 3 dim: 32 dim: 32 } shape { dim: 1 dim: 5 } } }
layer { name: "pool" type: "ROIPooling" bottom: "data" bottom: "rois" top: "pool"
        roi_pooling_param { pooled_h: 3 pooled_w: 3 spatial_scale: 1 } }
layer { name: "fc7" type: "InnerProduct" bottom: "pool" top: "fc7" inner_product_param { num_output: 12 } }
layer { name: "relu" type: "ReLU" bottom: "fc7" top: "fc7" }
layer { name: "cls_score" type: "InnerProduct" bottom: "fc7" top: "cls_score"
        inner_product_param { num_output: 4 } }
layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }
"""


class Blocks(Imdb):
    """Images of noise, 40 x 48, with a bright block of blue, green or red in each (``classes``), and 60 proposals."""

    def __init__(self, folder: Path, images=8):
        super().__init__("blocks", ["__background__", "blue", "green", "red"], [str(i) for i in range(images)])
        self.folder, rng = folder, np.random.RandomState(7)
        self.objects, self.boxes = [], []
        for i in range(images):
            image = rng.randint(0, 120, (40, 48, 3)).astype(np.uint8)
            x, y, w, h = rng.randint(2, 20), rng.randint(2, 16), rng.randint(8, 20), rng.randint(8, 18)
            image[y : y + h, x : x + w, i % 3] += 100
            self.objects.append(np.array([[x, y, x + w - 1, y + h - 1]], np.uint16))
            corners = rng.randint(0, (36, 28), (60, 2))
            self.boxes.append(np.hstack([corners, corners + rng.randint(4, 12, (60, 2))]).astype(np.uint16))
            cv2.imwrite(str(folder / f"{i}.png"), image)

    def image_path_at(self, i):
        return self.folder / f"{self.image_index[i]}.png"

    def gt_roidb(self):
        return [
            {"boxes": box, "gt_classes": np.full(1, 1 + i % 3, np.int32), "flipped": False,
             "gt_overlaps": one_per_row(np.ones(1), np.full(1, 1 + i % 3), 4), "seg_areas": np.ones(1, np.float32)}
            for i, box in enumerate(self.objects)
        ]  # fmt: skip

    def proposal_boxes(self):
        return self.boxes


def net_and_config(text=NET):
    cfg = Config()
    cfg.TEST.SCALES, cfg.TEST.MAX_SIZE = (40,), 60
    net = Net(parse_net(text), "TEST", cfg=cfg)
    rng = np.random.RandomState(3)
    with torch.no_grad():
        for blobs in net.params.values():
            for blob in blobs:
                blob.copy_(torch.from_numpy(rng.standard_normal(tuple(blob.shape)) * 0.01))
    return net, cfg


@pytest.fixture
def blocks(tmp_path):
    return Blocks(tmp_path)


@pytest.fixture
def examples():
    """Overlapping classes of 15 and 40 examples with 6 features of mean norm near 3: ``(positives, negatives)``."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((15, 6)) + 0.8, rng.standard_normal((40, 6)) - 0.3


def objective(weights, bias, positives, negatives, settings):
    """Written down as liblinear's documentation has it, the bias as a weight like the others."""
    hinge = np.maximum(0, 1 - (positives @ weights + bias)).sum() * settings.pos_weight
    hinge += np.maximum(0, 1 + (negatives @ weights + bias)).sum()
    return 0.5 * np.square([*weights, bias / settings.bias]).sum() + settings.C * hinge


# ---- one SVM


def test_three_points():
    """The solution on paper: x = 2 against 0 and -3, which is easy. B = 1, so that the bias costs what a weight does.

    C large: the shortest (w, b) with 2 w + b >= 1 and -b >= 1 is (1, -1). C small: both are inside the margin, and
    w = C (2 p - 0 + 3 q), b = C (p - 1 - q), where p = 3 weighs the positive and q = 1, for -3 is inside, too.
    """
    pytest.importorskip("sklearn")
    positives, negatives = np.array([[2.0]]), np.array([[0.0], [-3.0]])
    weights, bias, _ = train_svm(positives, negatives, SvmSettings(C=100, bias=1, pos_weight=1))
    np.testing.assert_allclose([*weights, bias], [1, -1], atol=1e-5)
    weights, bias, _ = train_svm(positives, negatives, SvmSettings(C=0.01, bias=1, pos_weight=3))
    np.testing.assert_allclose([*weights, bias], [0.09, 0.01], atol=1e-9)


@pytest.mark.parametrize("settings", [SvmSettings(), SvmSettings(C=0.1), SvmSettings(C=5, bias=2, pos_weight=0.5)])
def test_the_optimum(examples, settings):
    """Against a general solver on the same problem as a quadratic programme with slacks (to 1e-6 of the objective) and
    against the dual: its box-constrained problem has the same value at the optimum, no other does."""
    pytest.importorskip("sklearn")
    positives, negatives = examples
    weights, bias, converged = train_svm(positives, negatives, settings)
    assert converged
    found = objective(weights, bias, positives, negatives, settings)
    rows = np.vstack([positives, negatives])
    signs = np.repeat([1.0, -1.0], [len(positives), len(negatives)])
    z = signs[:, None] * np.hstack([rows, np.full((len(rows), 1), settings.bias)])
    upper = settings.C * np.where(signs > 0, settings.pos_weight, 1.0)

    def primal(v):  # weights, then slacks
        return 0.5 * v[:7] @ v[:7] + upper @ v[7:]

    rule = {"type": "ineq", "fun": lambda v: z @ v[:7] + v[7:] - 1, "jac": lambda v: np.hstack([z, np.eye(len(z))])}
    start = np.concatenate([np.zeros(7), np.ones(len(z))])
    slsqp = scipy.optimize.minimize(
        primal, start, jac=lambda v: np.concatenate([v[:7], upper]), method="SLSQP", constraints=rule,
        bounds=[(None, None)] * 7 + [(0, None)] * len(z), options={"maxiter": 500, "ftol": 1e-14},
    )  # fmt: skip
    assert abs(found - slsqp.fun) <= 1e-6 * found

    def dual(a):
        w = z.T @ a
        return 0.5 * w @ w - a.sum(), z @ w - 1

    done = scipy.optimize.minimize(
        dual, np.zeros(len(z)), jac=True, method="L-BFGS-B", bounds=np.c_[np.zeros(len(z)), upper],
        options={"maxiter": 20000, "maxfun": 40000, "ftol": 1e-16, "gtol": 1e-10},
    )  # fmt: skip
    assert found >= -done.fun - 1e-9
    assert abs(found + done.fun) <= 1e-5 * found


def test_no_convergence(examples, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("ohem_caffe_port.svm.one_class._MAX_EPOCHS", 3)
    assert not train_svm(*examples, SvmSettings(C=5))[2]


def test_examples_of_one_kind():
    none = np.zeros((0, 3))
    for positives, negatives, expected in ((np.ones((4, 3)), none, 1), (none, np.ones((4, 3)), -1)):
        weights, bias, _ = train_svm(positives, negatives, SvmSettings())
        assert (weights.tolist(), bias) == ([0, 0, 0], expected)


def test_features_that_are_not_finite():
    with pytest.raises(PortError, match="not finite"):
        train_svm(np.ones((1, 2)), np.full((1, 2), np.nan), SvmSettings())


# ---- the cache of a class


def test_hard_negatives():
    svm = ClassSvm("x", np.ones((1, 2), np.float32), scale=1.0)
    scores, overlaps = np.array([0, -1.0001, -1, 5, 5]), np.array([0, 0, 0.29, 0.3, 1])
    assert svm.hard(scores, overlaps).tolist() == [0, 2]
    without = ClassSvm("x", np.zeros((0, 2), np.float32), scale=1.0)
    assert (len(without.hard(scores, overlaps)), without.bias) == (0, -1)


def test_training_when_enough_are_new():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    svm = ClassSvm("x", rng.normal(2, 0.1, (10, 2)).astype(np.float32), 1.0, SvmSettings(retrain_after=20, C=0.1))
    near, far = (rng.normal(m, 0.001, (n, 2)).astype(np.float32) for m, n in ((1, 12), (-9, 9)))
    assert [svm.add(near), svm.add(far)] == [False, True], "21 are more than 20"
    (first,) = svm.rounds
    assert (first.positives, first.negatives, first.kept, svm.mined) == (10, 21, 12, 21), "those far off have left"
    assert not svm.add(far[:3])
    svm.train()
    assert (svm.rounds[1].negatives, svm.rounds[1].kept) == (15, 12)
    last = svm.rounds[1]
    value = objective(svm.weights, svm.bias, svm.positives, np.concatenate([near, far[:3]]), svm.settings)
    assert last.objective == pytest.approx(value, rel=1e-6)
    assert last.objective == pytest.approx(first.objective, rel=1e-5), "what left had no loss"


def test_the_scale_of_features():
    """Weights are for the net's own features: those of the scaled problem, scaled."""
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(2)
    positives, negatives = (rng.normal(m, 1, (20, 3)).astype(np.float32) for m in (1, -1))
    svm = ClassSvm("x", positives, 0.25)
    svm.add(negatives)
    svm.train()
    weights, bias, _ = train_svm(positives * np.float32(0.25), negatives * np.float32(0.25), SvmSettings())
    np.testing.assert_allclose(svm.weights, 0.25 * weights, rtol=1e-12)
    assert svm.bias == bias


# ---- a whole training


def test_the_original(blocks):
    """Cached examples, rounds, losses and the SVMs that the original's trainer ends with."""
    pytest.importorskip("sklearn")
    expected = json.loads(ORIGINAL.read_text())
    net, cfg = net_and_config()
    blocks.append_flipped_images()
    trainer = SvmTrainer(net, blocks, cfg, MINING)
    svms = trainer.run()
    assert trainer.scale == pytest.approx(expected["scale"], rel=1e-5)
    weight, bias = (blob.detach().numpy() for blob in net.params["cls_score"])
    np.testing.assert_allclose(weight, expected["weight"], atol=1e-4 * np.abs(expected["weight"]).max())
    np.testing.assert_allclose(bias, expected["bias"], atol=1e-4)
    for svm in svms:
        theirs = expected["classes"][svm.name]
        counts = [[r.positives, r.negatives, r.kept] for r in svm.rounds]
        assert counts == theirs["cache"]
        assert len(counts) > 2, "it was trained again and again"
        losses = [[r.pos_loss, r.neg_loss] for r in svm.rounds]
        np.testing.assert_allclose(losses, np.array(theirs["losses"])[:, 1:3], rtol=1e-4, atol=1e-6)


def test_the_report(blocks):
    pytest.importorskip("sklearn")
    net, cfg = net_and_config()
    trainer = SvmTrainer(net, blocks, cfg, MINING)
    trainer.run()
    report = json.loads(json.dumps(trainer.report()))
    assert (report["feature"], report["images"], report["settings"]["C"]) == ("fc7", 8, 0.001)
    assert [entry["positives"] for entry in report["classes"].values()] == [3, 3, 2]
    for svm in trainer.svms:
        entry = report["classes"][svm.name]
        assert entry["mined"] == svm.mined > 60
        assert len(entry["rounds"]) == len(svm.rounds)


def test_a_transposed_layer(blocks):
    pytest.importorskip("sklearn")
    rows = []
    for setting in ("", "transpose: true"):
        net, cfg = net_and_config(NET.replace("num_output: 4", f"num_output: 4 {setting}"))
        with torch.no_grad():
            net.params["fc7"][0].copy_(net_and_config()[0].params["fc7"][0])
        SvmTrainer(net, blocks, cfg, MINING).run()
        weight = net.params["cls_score"][0].detach()
        rows.append(weight.t() if setting else weight)
    np.testing.assert_array_equal(*rows)


def test_a_class_without_objects(blocks):
    pytest.importorskip("sklearn")
    blocks.image_index, blocks.objects, blocks.boxes = ["0", "1"], blocks.objects[:2], blocks.boxes[:2]
    net, cfg = net_and_config()
    svms = SvmTrainer(net, blocks, cfg, MINING).run()
    assert [len(svm.rounds) > 0 for svm in svms] == [True, True, False]
    weight, bias = net.params["cls_score"]
    assert (weight[3].abs().max(), bias[3], weight[0].abs().max(), bias[0]) == (0, -1, 0, 0)


def test_no_objects_at_all(blocks):
    for entry in blocks.roidb:
        entry["gt_classes"][:] = 0
    net, cfg = net_and_config()
    with pytest.raises(PortError, match="no objects to learn from"):
        SvmTrainer(net, blocks, cfg, MINING).run()


def test_features_of_zero(blocks):
    net, cfg = net_and_config()
    with torch.no_grad():
        for blob in net.params["fc7"]:
            blob.zero_()
    with pytest.raises(PortError, match="mean norm 0"):
        SvmTrainer(net, blocks, cfg, MINING).run()


CONV = """layer { name: "cls_score" type: "Convolution" bottom: "fc7" top: "cls_score"
          convolution_param { num_output: 4 kernel_size: 1 } }"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('top: "cls_score"', 'top: "scores"', "blob cls_score"),
        ('"rois"', '"boxes"', "inputs data and rois"),
        ("num_output: 4", "num_output: 5", "the net scores 5 classes, blocks has 4"),
        ("num_output: 4", "num_output: 4 bias_term: false", "has no bias"),
        ('type: "InnerProduct" bottom: "fc7" top: "cls_score"\n        inner_product_param { num_output: 4 }',
         'type: "Convolution" bottom: "pool" top: "cls_score"\n convolution_param { num_output: 4 kernel_size: 3 }',
         "is a Convolution layer"),
    ],
)  # fmt: skip
def test_nets_that_do_not_fit(blocks, old, new, words):
    net, cfg = net_and_config(NET[: NET.index('layer { name: "cls_prob"')].replace(old, new))
    with pytest.raises(PortError, match=words):
        SvmTrainer(net, blocks, cfg)


@pytest.mark.parametrize(("feature", "words"), [("pool", "has 27 values for a RoI"), ("fc8", "is not in the net")])
def test_features_that_do_not_fit(blocks, feature, words):
    net, cfg = net_and_config()
    with pytest.raises(PortError, match=words):
        SvmTrainer(net, blocks, cfg, feature=feature)
