import numpy as np
import pytest
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.detect import (
    detections_by_class,
    im_detect,
    im_proposals,
    vote_boxes,
)
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.ops import bbox_overlaps, bbox_transform_inv, clip_boxes
from ohem_caffe_port.pyramid import FeaturePyramid, project_rois

# pools the one cell under each RoI, and scores 3 classes by its first channel
NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 40 dim: 60 } } }
layer { name: "rois" type: "Input" top: "rois" input_param { shape { dim: 1 dim: 5 } } }
layer { name: "pool" type: "ROIPooling" bottom: "data" bottom: "rois" top: "pool"
        roi_pooling_param { pooled_h: 1 pooled_w: 1 spatial_scale: 1 } }
layer { name: "cls_score" type: "InnerProduct" bottom: "pool" top: "cls_score" inner_product_param { num_output: 3 } }
layer { name: "bbox_pred" type: "InnerProduct" bottom: "pool" top: "bbox_pred" inner_product_param { num_output: 12 } }
layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }
"""
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
BOXES = np.array([[5, 5, 24, 14], [30, 20, 59, 39], [5, 5, 24, 14], [0, 0, 9, 9]], np.uint16)


def config(**test):
    cfg = Config()
    cfg.merge({"TEST": {"SCALES": [40], "MAX_SIZE": 100, **test}, "DEDUP_BOXES": 1.0}, source="test")
    return cfg


@pytest.fixture
def net(build):
    net = build(NET, "TEST")
    with torch.no_grad():
        net.params["cls_score"][0].copy_(torch.tensor([[0.0, 0, 0], [0.02, 0, 0], [0, 0.02, 0]]))
        net.params["bbox_pred"][1][4:8] = torch.tensor([0.1, -0.2, np.log(2.0), 0])
    return net


def expected_scores(boxes):
    blob = IMAGE.astype(np.float64) - Config().PIXEL_MEANS
    best = np.array([blob[y1 : y2 + 1, x1 : x2 + 1].max((0, 1)) for x1, y1, x2, y2 in boxes.astype(int)])
    return np.stack([np.zeros(len(boxes)), 0.02 * best[:, 0], 0.02 * best[:, 1]], 1)


def test_scores_and_boxes(net):
    scores, boxes = im_detect(net, IMAGE, BOXES, config())
    logits = expected_scores(BOXES)
    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(scores, prob, rtol=1e-4)
    # 20 x 10 pixels, centre (15, 10): moves by (2, -2) and doubles its width
    np.testing.assert_allclose(boxes[0, 4:8], [17 - 20, 8 - 5, 17 + 20, 8 + 5] * np.array([0, 1, 1, 1]), rtol=1e-5)
    np.testing.assert_allclose(boxes[1, :4], [30, 20, 59, 39], rtol=1e-6)  # one pixel more, clipped to the image
    np.testing.assert_allclose(boxes[3, 8:], [0, 0, 10, 10], rtol=1e-6)


def test_svm_scores_come_before_the_softmax(net):
    scores, _ = im_detect(net, IMAGE, BOXES, config(SVM=True))
    np.testing.assert_allclose(scores, expected_scores(BOXES), rtol=1e-4, atol=1e-5)


def test_without_box_regression(net):
    _, boxes = im_detect(net, IMAGE, BOXES, config(BBOX_REG=False))
    np.testing.assert_array_equal(boxes, np.tile(BOXES, (1, 3)))


@pytest.mark.parametrize("dedup", [1.0, 0.0])
def test_equal_rois_go_through_the_net_once(net, dedup):
    cfg = config()
    cfg.DEDUP_BOXES = dedup
    scores, boxes = im_detect(net, IMAGE, BOXES, cfg)
    assert len(net.blobs["rois"]) == (3 if dedup else 4)
    assert np.array_equal(scores[0], scores[2])
    assert np.array_equal(boxes[0], boxes[2])
    assert scores.shape == (4, 3)


def test_boxes_of_two_levels_are_two_boxes(net):
    """With a scale of 1 and one of 2, (100, 100, 323, 323) and (50, 50, 161, 161) get the same coordinates."""
    image = np.random.default_rng(1).integers(0, 256, (400, 400, 3)).astype(np.uint8)
    cfg = config(SCALES=[400, 800], MAX_SIZE=1000)
    boxes = np.array([[100, 100, 323, 323], [50, 50, 161, 161]])
    rois = project_rois(boxes, np.array([1.0, 2.0]))
    assert rois[:, 0].tolist() == [0, 1]
    cfg.DEDUP_BOXES = 1 / 16
    assert len(np.unique(np.round(rois[:, 1:] / 16), axis=0)) == 1
    moved = im_detect(net, image, boxes, cfg)[1]
    np.testing.assert_allclose(moved[:, :4], boxes + [0, 0, 1, 1], rtol=1e-5)


# ---- all scales, and box regression in rounds


def test_every_roi_at_every_scale(net):
    cfg = config(SCALES=[80, 40, 60], SCALE_USE="all", MAX_SIZE=90)
    scores, boxes = im_detect(net, IMAGE, BOXES, cfg)
    assert (scores.shape, boxes.shape) == ((8, 3), (8, 12)), "60 and 80 are one scale"
    for part, scale in ((slice(0, 4), 40), (slice(4, 8), 60)):
        one = im_detect(net, IMAGE, BOXES, config(SCALES=[scale], MAX_SIZE=90))
        np.testing.assert_array_equal(scores[part], one[0])
        np.testing.assert_array_equal(boxes[part], one[1])


def test_a_second_round_by_hand(net):
    """Class 1 moves by a tenth of the width and two tenths of the height, and doubles its width."""
    scores, boxes = im_detect(net, IMAGE, BOXES[:1], config(BBOX_ITERS=2))
    assert (scores.shape, boxes.shape) == ((2, 3), (2, 12))
    # 20 x 10 pixels, centre (15, 10): to (17, 8) with 40 x 10, which is (-3, 3, 37, 13)
    np.testing.assert_allclose(boxes[0, 4:8], [0, 3, 37, 13], rtol=1e-5)
    # 38 x 11 pixels, centre (19, 8.5): to (22.8, 6.3) with 76 x 11, which is (-15.2, 0.8, 60.8, 11.8)
    np.testing.assert_allclose(boxes[1, 4:8], [0, 0.8, 59, 11.8], rtol=1e-5)
    logits = expected_scores(np.array([[0, 3, 37, 13]]))[0]
    np.testing.assert_allclose(scores[1, 1], np.exp(logits[1]) / np.exp(logits).sum(), rtol=1e-4)
    np.testing.assert_allclose(boxes[1, 8:], [5, 5, 26, 16], rtol=1e-5)  # class 2 stays, but for a pixel each round
    assert scores[1, 0] == -np.inf, "background is no object"


TWO_ROUNDS = [{}, {"SVM": True}, {"SCALES": [40, 80, 400]}, {"SCALES": [40, 80], "SCALE_USE": "all"}]


@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("test", TWO_ROUNDS)
def test_rounds_are_detections_of_detections(build, test, agnostic):
    """The slow way: every box of every class is a proposal of its own."""
    net = build(NET.replace("num_output: 12", "num_output: 8") if agnostic else NET, "TEST")
    torch.nn.init.normal_(net.params["bbox_pred"][0], std=0.002)
    torch.nn.init.normal_(net.params["cls_score"][0], std=0.02)
    torch.nn.init.constant_(net.params["cls_score"][1], 9)
    cfg = config(**{"MAX_SIZE": 1000, **test})
    cfg.DEDUP_BOXES = 0.0
    image, count = IMAGE[:30, :55], len(BOXES)
    first = im_detect(net, image, BOXES, cfg)
    cfg.TEST.BBOX_ITERS, least = 2, float(np.median(first[0][:, 1:]))
    scores, boxes = im_detect(net, image, BOXES, cfg, thresh=least)
    groups = len(first[0]) // count
    assert len(scores) == 2 * len(first[0])
    scores, boxes = (a.reshape(groups, 2, count, -1) for a in (scores, boxes))
    cfg.TEST.BBOX_ITERS = 1
    again = 0
    for g in range(groups):
        np.testing.assert_array_equal(scores[g, 0], first[0][g * count :][:count])
        for i, cls in np.ndindex(count, 3):
            column = 4 if agnostic else 4 * cls
            score = scores[g, 1, i, cls]
            if cls == 0 or scores[g, 0, i, cls] <= least:
                assert score == -np.inf
                continue
            expected = im_detect(net, image, boxes[g, 0, i, None, column : column + 4], cfg)
            np.testing.assert_allclose(score, expected[0][g, cls], rtol=1e-5)
            np.testing.assert_allclose(boxes[g, 1, i, column : column + 4], expected[1][g, column : column + 4], 1e-4)
            again += 1
    assert again > 2


def test_which_boxes_are_scored_again(net):
    first, _ = im_detect(net, IMAGE, BOXES, config())
    foreground = np.where([False, True, True], first, -np.inf)
    some = np.sort(foreground.ravel())[-3]
    for options, thresh, expected in (
        ({}, -np.inf, foreground > 0),
        ({}, float(some), foreground > some),
        ({"BBOX_ITER_THRESH": float(some)}, 0.0, foreground >= some),
        ({"BBOX_ITER_THRESH": 1.0}, 0.0, foreground > 1),
    ):
        scores, _ = im_detect(net, IMAGE, BOXES, config(BBOX_ITERS=2, **options), thresh=thresh)
        np.testing.assert_array_equal(scores[4:] > -np.inf, expected)


def test_rounds_run_the_image_part_once_and_equal_boxes_once(net):
    ran, heads = [], []
    net.watch = lambda step, layer, tops: (ran if layer.name == "data" else heads).append((layer.name, len(tops[0])))
    scores, _ = im_detect(net, IMAGE, BOXES, config(BBOX_ITERS=3))
    assert ran == [("data", 1)]
    pooled = [rois for name, rois in heads if name == "pool"]
    assert pooled[0] == 3
    assert all(rois <= 6 for rois in pooled[1:]), "two classes of three different boxes"
    assert np.array_equal(scores[0::4], scores[2::4])
    assert len(scores) == 12


def test_no_proposals(net):
    scores, boxes = im_detect(net, IMAGE, BOXES[:0], config(BBOX_ITERS=2))
    assert (scores.shape, boxes.shape) == ((0, 3), (0, 12))


@pytest.mark.parametrize("test", [{}, {"SCALES": [60, 80], "SCALE_USE": "all"}])
def test_rounds_of_own_proposals(build, faster_rcnn, test):
    net = build(faster_rcnn.test, "TEST", cfg=rpn_config(BBOX_ITERS=2, **test))
    scores, boxes = im_detect(net, IMAGE, None, net.cfg)
    scales = net.cfg.TEST.SCALES
    assert len(scores) == 2 * 9 * len(scales)
    net.cfg.TEST.BBOX_ITERS = 1
    for k, scale in enumerate(scales):
        net.cfg.TEST.SCALES = (scale,)
        one = im_detect(net, IMAGE, None, net.cfg)
        np.testing.assert_array_equal(scores[18 * k :][:9], one[0])
        pyramid = FeaturePyramid(net, IMAGE, net.cfg, [scale], ["cls_prob"])
        with torch.no_grad():
            (prob,) = pyramid.score_rois(project_rois(one[1][:, 8:12], pyramid.scales))
        np.testing.assert_allclose(scores[18 * k + 9 :][:9, 2], prob[:, 2], rtol=1e-3)


def test_rounds_without_box_regression(net):
    with pytest.raises(PortError, match="TEST.BBOX_ITERS: without box regression"):
        im_detect(net, IMAGE, BOXES, config(BBOX_ITERS=2, BBOX_REG=False))


@pytest.mark.parametrize(
    ("change", "test", "message"),
    [
        (('top: "cls_prob"', 'top: "prob"'), {}, "blobs bbox_pred, cls_prob"),
        (('top: "bbox_pred"', 'top: "boxes"'), {}, "blobs bbox_pred, cls_prob"),
        (('"rois"', '"regions"'), {}, "inputs data and rois"),
        (("", ""), {"HAS_RPN": True}, "TEST.HAS_RPN is True, but the net has no input im_info"),
        (("", ""), {"AGNOSTIC": True}, "TEST.AGNOSTIC is True, but the net has 12 box outputs"),
        (("num_output: 12", "num_output: 8"), {"AGNOSTIC": False}, "but the net has 8 box outputs for 3 classes"),
    ],
)
def test_a_net_that_is_no_detector(build, change, test, message):
    with pytest.raises(PortError, match=message):
        im_detect(build(NET.replace(*change), "TEST"), IMAGE, BOXES, config(**test))


def test_svm_needs_no_softmax(build):
    net = build(NET[: NET.index('layer { name: "cls_prob"')], "TEST")
    assert im_detect(net, IMAGE, BOXES, config(SVM=True))[0].shape == (4, 3)


@pytest.mark.parametrize("stated", [{}, {"AGNOSTIC": True}])
def test_one_box_for_all_classes(build, stated):
    net = build(NET.replace("num_output: 12", "num_output: 8"), "TEST")
    with torch.no_grad():
        net.params["bbox_pred"][1][4:8] = torch.tensor([0.1, -0.2, np.log(2.0), 0])
    cfg = config(NMS=0.9, **stated)
    scores, boxes = im_detect(net, IMAGE, BOXES, cfg)
    assert (scores.shape, boxes.shape) == ((4, 3), (4, 8))
    _, first, second = detections_by_class(scores, boxes, cfg, thresh=0.0)
    assert len(first)
    np.testing.assert_array_equal(first[:, :4], second[:, :4])
    assert {tuple(box) for box in first[:, :4]} <= {tuple(box) for box in boxes[:, 4:].astype(np.float32)}


# ---- nets that make their own proposals


def rpn_config(**test):
    return config(**{"SCALES": [80], "MAX_SIZE": 1000, "RPN_POST_NMS_TOP_N": 9, "RPN_MIN_SIZE": 4, **test})


@pytest.mark.parametrize("stated", [{}, {"HAS_RPN": True}])
def test_own_proposals(build, faster_rcnn, stated):
    net = build(faster_rcnn.test, "TEST", cfg=rpn_config(**stated))
    scores, boxes = im_detect(net, IMAGE, None, net.cfg)
    assert net.blobs["im_info"].tolist() == [[80, 120, 2]]
    rois = net.blobs["rois"][:, 1:].numpy()
    assert (scores.shape, boxes.shape) == ((9, 7), (9, 28))
    deltas = net.blobs["bbox_pred"].numpy()
    expected = clip_boxes(bbox_transform_inv(rois / 2, deltas), IMAGE.shape)
    np.testing.assert_allclose(boxes, expected, rtol=1e-6)
    proposals, order = im_proposals(net, IMAGE, net.cfg)
    np.testing.assert_array_equal(proposals, rois / 2)
    assert (np.diff(order) <= 0).all()


def test_proposals_alone(build, faster_rcnn):
    net = build(faster_rcnn.rpn, "TEST", cfg=rpn_config())
    assert im_proposals(net, IMAGE, net.cfg)[0].shape == (9, 4)
    net = build(faster_rcnn.rpn.replace('top: "scores"', ""), "TEST", cfg=rpn_config())
    assert im_proposals(net, IMAGE, net.cfg)[1].shape == (0,)


def test_sides_cut_to_multiples(build, faster_rcnn):
    """40 x 60 pixels at 0.9 are 36 x 54, cut to 32 x 48: x and y get scales of their own."""
    cfg = rpn_config(SCALES=[36], SCALE_MULTIPLE_OF=16, RPN_MIN_SIZE=0)
    net = build(faster_rcnn.test, "TEST", cfg=cfg)
    im_detect(net, IMAGE, None, cfg)
    np.testing.assert_allclose(net.blobs["im_info"], [[32, 48, 0.8, 0.8, 0.8, 0.8]])
    cfg = config(SCALES=[36], SCALE_MULTIPLE_OF=32)
    scales = FeaturePyramid(net, IMAGE, cfg, cfg.TEST.SCALES, ["cls_prob"]).scales
    np.testing.assert_allclose(scales, [[32 / 60, 32 / 40] * 2])
    np.testing.assert_allclose(project_rois(BOXES[:1], scales), [[0, 8 / 3, 4, 12.8, 11.2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"HAS_RPN": False}, "TEST.HAS_RPN is False, but the net has an input im_info"),
        ({"SCALES": [40, 80]}, "tested at one scale, or at all"),
    ],
)
def test_settings_that_own_proposals_cannot_have(build, faster_rcnn, test, message):
    cfg = rpn_config(**test)
    with pytest.raises(PortError, match=message):
        im_detect(build(faster_rcnn.test, "TEST", cfg=cfg), IMAGE, None, cfg)


def test_a_net_without_proposals(net):
    with pytest.raises(PortError, match="proposals need inputs data and im_info"):
        im_proposals(net, IMAGE, config())


# ---- from scores to detections


def scored(*rows):
    """Scores and boxes of 3 classes from rows ``(x1, cat, dog)``: boxes of 10 x 10 pixels at ``x1``."""
    scores = np.array([[1 - cat - dog, cat, dog] for _, cat, dog in rows], np.float32)
    boxes = np.array([[x, 0, x + 9, 9] * 3 for x, _, _ in rows], np.float32)
    return scores, boxes


def found(by_class):
    return [[(d[0], round(float(d[4]), 3)) for d in dets] for dets in by_class]


def test_nms_works_within_a_class():
    scores, boxes = scored((0, 0.9, 0.05), (1, 0.8, 0.1), (50, 0.3, 0.6), (0, 0.04, 0.9))
    by_class = detections_by_class(scores, boxes, config(), thresh=0.05)
    assert found(by_class) == [[], [(0, 0.9), (50, 0.3)], [(0, 0.9), (50, 0.6)]]
    assert all(dets.dtype == np.float32 and dets.shape[1] == 5 for dets in by_class)


def test_the_threshold_itself_does_not_count():
    scores, boxes = scored((0, 0.5, 0.25), (50, 0.25, 0.5))
    assert found(detections_by_class(scores, boxes, config(), thresh=0.25)) == [[], [(0, 0.5)], [(50, 0.5)]]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (0, [[], [(0, 0.75), (50, 0.5), (100, 0.25)], [(100, 0.5), (50, 0.25)]]),
        (1, [[], [(0, 0.75)], []]),
        (2, [[], [(0, 0.75), (50, 0.5)], [(100, 0.5)]]),  # the second best ties
        (4, [[], [(0, 0.75), (50, 0.5), (100, 0.25)], [(100, 0.5), (50, 0.25)]]),
        (99, [[], [(0, 0.75), (50, 0.5), (100, 0.25)], [(100, 0.5), (50, 0.25)]]),
    ],
)
def test_max_per_image(limit, expected):
    scores, boxes = scored((0, 0.75, 0.0), (50, 0.5, 0.25), (100, 0.25, 0.5))
    assert found(detections_by_class(scores, boxes, config(), max_per_image=limit)) == expected


def test_nothing_found():
    assert [d.shape for d in detections_by_class(*scored((0, 0.01, 0.01)), config())] == [(0, 5)] * 3


def test_scores_of_the_second_round_join_the_first():
    """R_F: NMS and voting see the boxes of both rounds; what was not scored again is left out."""
    scores = np.array([[0, 0.6, 0], [0, 0.1, 0], [-np.inf, 0.9, -np.inf], [-np.inf] * 3], np.float32)
    boxes = np.array([[[0, 0, 19, 9]], [[50, 0, 69, 9]], [[2, 0, 21, 9]], [[50, 0, 69, 9]]], np.float32)
    boxes = np.tile(boxes.reshape(4, 4), (1, 3))
    cfg = config(BBOX_VOTE=True)
    first = detections_by_class(scores, boxes, cfg)[1]
    shift = (0.6 * 0 + 0.9 * 2) / 1.5
    np.testing.assert_allclose(first, [[shift, 0, 19 + shift, 9, 0.9], [50, 0, 69, 9, 0.1]], rtol=1e-6)
    cfg.TEST.BBOX_VOTE_THRESH = 0.9  # 18 of 22 columns are not enough
    np.testing.assert_allclose(detections_by_class(scores, boxes, cfg)[1][0], [2, 0, 21, 9, 0.9])


def test_votes_by_hand_at_the_threshold():
    """IoU of exactly a half counts; of each survivor only its own neighbours."""
    dets = np.array([[0, 0, 9, 9, 0.5], [0, 0, 9, 19, 0.25], [0, 0, 9, 20, 0.25], [100, 0, 109, 9, 0.1]], np.float32)
    voted = vote_boxes(dets[[0, 3]], dets, config(BBOX_VOTE=True))
    np.testing.assert_allclose(voted, [[0, 0, 9, (0.5 * 9 + 0.25 * 19) / 0.75, 0.5], dets[3]], rtol=1e-6)


def test_scores_below_zero_have_no_vote():
    dets = np.array([[0, 0, 9, 9, 1], [1, 0, 10, 9, -3], [50, 0, 59, 9, -1]], np.float32)
    voted = vote_boxes(dets[[0, 2]], dets, config(BBOX_VOTE=True, SVM=True, BBOX_VOTE_N_WEIGHTED_SCORE=2))
    np.testing.assert_array_equal(voted[:, :4], dets[[0, 2], :4])
    np.testing.assert_allclose(voted[:, 4], [0.75, -1])


def test_many_votes_in_parts(monkeypatch):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 40, (300, 2))
    dets = np.hstack([corners, corners + rng.uniform(5, 40, (300, 2)), rng.random((300, 1))]).astype(np.float32)
    kept, cfg = dets[:40], config(BBOX_VOTE=True)
    whole = vote_boxes(kept, dets, cfg)
    for box, row in zip(kept, whole, strict=True):
        near = dets[bbox_overlaps(box[None, :4].astype(float), dets[:, :4].astype(float))[0] >= 0.5]
        np.testing.assert_allclose(row[:4], np.average(near[:, :4], 0, near[:, 4]), rtol=1e-5)
    for pairs in (1, 700, 5000):
        monkeypatch.setattr("ohem_caffe_port.detect._PAIRS_AT_A_TIME", pairs)
        np.testing.assert_allclose(vote_boxes(kept, dets, cfg), whole, rtol=1e-6)
    assert vote_boxes(kept[:0], dets[:0], cfg).shape == (0, 5)


@pytest.mark.parametrize(("number", "share"), [(1, 0.5), (3, 0.25), (2, 0.5)])
def test_votes(number, share):
    """Every survivor becomes the mean of the boxes it overlaps by half or more, weighted by their scores."""
    dets = np.array([[0, 0, 19, 9, 0.9], [1, 0, 20, 9, 0.6], [3, 0, 22, 9, 0.3], [60, 0, 79, 9, 0.5]], np.float32)
    cfg = config(BBOX_VOTE=True, BBOX_VOTE_N_WEIGHTED_SCORE=number, BBOX_VOTE_WEIGHT_EMPTY=share)
    voted = vote_boxes(dets[[0, 3]], dets, cfg)
    shift = (0.9 * 0 + 0.6 * 1 + 0.3 * 3) / 1.8
    np.testing.assert_allclose(voted[0, :4], [shift, 0, 19 + shift, 9], rtol=1e-5)
    np.testing.assert_array_equal(voted[1, :4], dets[3, :4])
    first = {1: 0.9, 2: 0.75, 3: 0.6}[number]
    second = 0.5 * (1 + (number - 1) * share) / number  # the others are missing
    np.testing.assert_allclose(voted[:, 4], [first, second], rtol=1e-5)
    scores = np.zeros((4, 2), np.float32)
    scores[:, 1] = dets[:, 4]
    found = detections_by_class(scores, np.tile(dets[:, :4], (1, 2)), cfg)[1]
    np.testing.assert_array_equal(found, voted[np.argsort(-dets[[0, 3], 4])])
