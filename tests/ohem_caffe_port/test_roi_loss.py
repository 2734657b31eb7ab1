"""The mean loss over all RoIs: its value against plain numpy, and that training does not notice it."""

import copy
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.roidb import get_training_roidb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.roi_loss import Curve, RoiLoss, load_unnormalized, scoring_net, snapshots
from ohem_caffe_port.solver import Solver
from ohem_caffe_port.test_nets import share_layers
from ohem_caffe_port.train import Trainer, save_unnormalized
from prototxt import parse_net, parse_solver
from prototxt.zoo.generate import ZOO

ORIGINALS = Path(__file__).resolve().parents[3] / "shared/corpus/abhi2610__ohem/models/pascal_voc"
METHODS = ("fast_rcnn", "ohem", "ohem_naive", "sohem", "focal", "rfcn")
ABOUT = {"net": "tiny", "imdb": "shapes_train", "images": 2, "rois": 9}


@pytest.fixture
def trained(detector, shapes_cfg, shapes_imdb, tmp_path):
    """``trained("ohem")``: a trainer of a tiny detector with random weights, and its roidb."""

    def make(method="ohem", dropout=0.0, **train):
        torch.manual_seed(1)
        cfg = shapes_cfg("fast_rcnn" if method == "fast_rcnn" else "ohem", **train)
        net = Net(parse_net(detector(method, dropout=dropout).train), cfg=cfg)
        with torch.no_grad():
            for param in net.learnable_params:
                param.blob.add_(torch.randn(param.blob.shape, generator=torch.Generator().manual_seed(2)) * 0.02)
        solver = Solver(parse_solver("base_lr: 0.01 lr_policy: 'fixed' max_iter: 4 snapshot_prefix: 'tiny'"), net)
        roidb = get_training_roidb(shapes_imdb("train"), cfg)
        return Trainer(solver, roidb, cfg, tmp_path), roidb

    return make


def mean_in_numpy(trainer, roidb, test_text, places) -> float:
    """RoI by RoI, with the scores of the test net and the paper's formulas."""
    net = Net(parse_net(test_text), "TEST", cfg=trainer.cfg)
    share_layers(net, trainer.net)
    total, count = 0.0, 0
    for i in places:
        entry = roidb[i]
        image = cv2.imread(entry["image"]).astype(np.float32) - np.array(trainer.cfg.PIXEL_MEANS)
        scale = 96 / min(image.shape[:2])
        if round(scale * max(image.shape[:2])) > 128:
            scale = 128 / max(image.shape[:2])
        image = cv2.resize(image.astype(np.float32), None, fx=scale, fy=scale)
        rois = np.hstack([np.zeros((len(entry["boxes"]), 1)), entry["boxes"] * scale])
        with torch.no_grad():
            found = net(data=image.transpose(2, 0, 1)[None], rois=rois.astype(np.float32))
        truth = np.flatnonzero(entry["gt_classes"] > 0)
        for r, box in enumerate(entry["boxes"].astype(float)):
            overlaps = entry["gt_overlaps"].toarray()[r]
            label = int(overlaps.argmax()) if overlaps.max() >= 0.5 else 0
            loss = -math.log(float(found["cls_prob"][r, label]))
            if label:
                best = max(truth, key=lambda g: overlap(box, entry["boxes"][g].astype(float)))
                target = np.array(deltas(box, entry["boxes"][best].astype(float)))
                means, stds = (v.reshape(-1, 4)[label] for v in (trainer.means, trainer.stds))
                error = found["bbox_pred"][r, 4 * label : 4 * label + 4].numpy() - (target - means) / stds
                loss += sum(0.5 * e * e if abs(e) < 1 else abs(e) - 0.5 for e in error)
            total, count = total + loss, count + 1
    return total / count


def sides(box):
    return box[2] - box[0] + 1, box[3] - box[1] + 1


def overlap(a, b) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    both = max(width, 0) * max(height, 0)
    return both / (math.prod(sides(a)) + math.prod(sides(b)) - both)


def deltas(box, truth):
    (w, h), (tw, th) = sides(box), sides(truth)
    x, y, tx, ty = box[0] + w / 2, box[1] + h / 2, truth[0] + tw / 2, truth[1] + th / 2
    return (tx - x) / w, (ty - y) / h, math.log(tw / w), math.log(th / h)


@pytest.mark.parametrize("method", METHODS)
def test_value(method, trained, detector):
    trainer, roidb = trained(method, dropout=0.5)
    roi_loss = RoiLoss(trainer.net, roidb, 3)
    assert (roi_loss.images, roi_loss.rois) == (3, sum(len(roidb[i]["boxes"]) for i in (0, 3, 7)))
    expected = mean_in_numpy(trainer, roidb, detector(method).test, (0, 3, 7))  # the first 8 are not mirrored
    assert roi_loss() == pytest.approx(expected, rel=1e-5)


def test_other_names(trained, detector):
    """The data layer's blobs may have any names."""
    trainer, roidb = trained("ohem")
    text = detector("ohem").train.replace('"rois"', '"regions"').replace('"data"', '"image"')
    net = Net(parse_net(text), cfg=trainer.cfg)
    share_layers(net, trainer.net)
    assert RoiLoss(net, roidb, 2)() == RoiLoss(trainer.net, roidb, 2)()


def test_it_follows_the_weights(trained):
    trainer, roidb = trained("ohem")
    roi_loss = RoiLoss(trainer.net, roidb)
    assert roi_loss.images == 8
    before = roi_loss()
    assert roi_loss() == before
    for _ in range(4):
        trainer.solver.step()
    assert roi_loss() < before


def test_it_does_not_depend_on_the_sampling(trained):
    """An image that ``BG_THRESH_LO`` leaves out of training is looked at nevertheless."""
    losses = []
    for method in ("ohem", "fast_rcnn"):
        trainer, roidb = trained(method)
        lonely = roidb[3]  # without ground truth
        lonely["max_overlaps"], lonely["max_classes"] = lonely["max_overlaps"] * 0, lonely["max_classes"] * 0
        lonely["bbox_targets"] = lonely["bbox_targets"] * 0
        if method == "fast_rcnn":
            del lonely["bbox_targets"]
        losses.append(RoiLoss(trainer.net, roidb, 3)())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    del roidb[0]["bbox_targets"]
    with pytest.raises(ValueError, match="no box targets"):
        RoiLoss(trainer.net, roidb, 3)


def test_several_scales_are_drawn_alike(trained):
    plans = []
    for method in ("ohem", "fast_rcnn"):
        trainer, roidb = trained(method, SCALES=[64, 96, 112])
        plans.append([plan.scales for plan in RoiLoss(trainer.net, roidb).plans])
    assert plans[0] == plans[1]
    assert len({scale for scales in plans[0] for scale in scales}) > 1


def test_without_box_regression(trained, detector, shapes_cfg, shapes_imdb):
    text = detector("fast_rcnn").train
    for blob in ("bbox_targets", "bbox_inside_weights", "bbox_outside_weights"):
        text = text.replace(f' top: "{blob}"', "")
    text = "\n".join(line for line in text.splitlines() if '"bbox_pred"' not in line)
    net = Net(parse_net(text), cfg=shapes_cfg("fast_rcnn", BBOX_REG=False))
    roi_loss = RoiLoss(net, get_training_roidb(shapes_imdb("train"), net.cfg), 2)
    with torch.no_grad():
        net.params["cls_score"][0].zero_()
    assert roi_loss() == pytest.approx(math.log(7), rel=1e-6)


def test_training_does_not_notice_it(trained):
    results = []
    for measure in (False, True):
        trainer, roidb = trained("ohem", dropout=0.5)
        roi_loss = RoiLoss(trainer.net, roidb, 2) if measure else lambda: None
        trainer.run(3, roi_loss)
        results.append([p.blob.detach().clone() for p in trainer.net.learnable_params])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("net", ["VGG16/fast_rcnn", "VGG16/fast_rcnn_ohem", "VGG_CNN_M_1024/fast_rcnn_ohem"])
def test_original_nets(net):
    path = ORIGINALS / net / "train.prototxt"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    train = Net(path, cfg=Config(), initialize=False)
    scoring, *names = scoring_net(train)
    assert names == [{"data": "data", "rois": "rois"}, "cls_score", "bbox_pred", 21]
    assert sorted(scoring.outputs) == ["bbox_pred", "cls_score"]
    released = Net(ORIGINALS / net.replace("_ohem", "") / "test.prototxt", "TEST", initialize=False)
    names = [layer.name for layer in released.layers if layer.type not in ("Input", "Softmax")]
    assert [layer.name for layer in scoring.layers if layer.type != "Input"] == names
    assert all(layer.blobs[0] is train.params[layer.name][0] for layer in scoring.layers if len(layer.blobs))


def test_other_nets(faster_rcnn):
    cfg = Config()
    with pytest.raises(PortError, match="makes its own proposals"):
        RoiLoss(Net(parse_net(faster_rcnn.train), cfg=cfg), [])
    cfg = Config()
    cfg.merge_file(ZOO / "a_fast_rcnn/asdn_pretrain/cfg.yml")
    with pytest.raises(PortError, match="no SoftmaxWithLoss layer takes the scores of 7 classes"):
        RoiLoss(Net(ZOO / "a_fast_rcnn/asdn_pretrain/train.prototxt", cfg=cfg, initialize=False), [])


def test_no_rois(trained):
    trainer, roidb = trained()
    empty = [copy.copy(entry) | {"boxes": np.zeros((0, 4))} for entry in roidb]
    with pytest.raises(PortError, match="no image of the training set has RoIs"):
        RoiLoss(trainer.net, empty)


# ---- snapshots


def test_snapshots_are_normalised_again(trained, tmp_path):
    trainer, roidb = trained("ohem")
    trainer.stds[:4] = 0  # as a class that the training set does not have
    expected = RoiLoss(trainer.net, roidb, 2)()
    save_unnormalized(trainer.net, tmp_path / "x_iter_7.caffemodel", trainer.means, trainer.stds, trainer.cfg)
    other, roidb = trained("ohem")
    with torch.no_grad():
        for param in other.net.learnable_params:
            param.blob.zero_()
    load_unnormalized(other.net, tmp_path / "x_iter_7.caffemodel", trainer.means, trainer.stds)
    for a, b in zip(trainer.net.params["bbox_pred"], other.net.params["bbox_pred"], strict=True):
        torch.testing.assert_close(b[4:], a[4:], rtol=1e-5, atol=1e-7)
        assert not b[:4].any()
    assert RoiLoss(other.net, roidb, 2)() == pytest.approx(expected, rel=1e-5)


def test_which_snapshots(tmp_path):
    for name in ("a_iter_20.caffemodel", "a_iter_3.caffemodel.h5", "a_iter_3.solverstate", "ba_iter_4.caffemodel",
                 "a_b_iter_5.caffemodel", "a_iter_x.caffemodel"):  # fmt: skip
        (tmp_path / name).write_bytes(b"")
    assert {i: path.name for i, path in snapshots(tmp_path, "a").items()} == {
        3: "a_iter_3.caffemodel.h5", 20: "a_iter_20.caffemodel",
    }  # fmt: skip
    assert list(snapshots(tmp_path, "a")) == [3, 20]


# ---- the file


def test_curve(tmp_path):
    path = tmp_path / "tiny_roi_loss.json"
    curve = Curve(path, ABOUT)
    curve.follow(path, 10)  # there is none yet
    for iteration, loss in ((0, 3.0), (10, 2.0), (20, 1.5)):
        curve.add(iteration, loss)
    again = Curve(path, ABOUT)
    again.follow(path, 15)
    assert again.points == {0: 3.0, 10: 2.0}
    again.add(15, 1.75)
    assert Curve.read(path).points == {0: 3.0, 10: 2.0, 15: 1.75}
    assert Curve.read(path).about == ABOUT
    with pytest.raises(PortError, match="its losses are of images 2, not 3"):
        Curve(path, ABOUT | {"images": 3}).follow(path, 15)


BROKEN = [{"points": []}, ABOUT | {"points": [[1]]}, ABOUT | {"points": []}]


@pytest.mark.parametrize("content", ["", "[]", "{}", *map(json.dumps, BROKEN)])
def test_curve_of_another_file(tmp_path, content):
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(PortError, match="holds no losses over all RoIs"):
        Curve.read(tmp_path / "x.json")
    with pytest.raises(PortError, match="cannot be read"):
        Curve.read(tmp_path / "y.json")
