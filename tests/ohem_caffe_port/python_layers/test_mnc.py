"""MNC's layers, against the formulas of its Python code in loops."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError

IM_INFO = [[96, 128, 2]]
GT_BOXES = np.array([[10, 10, 58, 48, 2], [70, 20, 108, 88, 5]], np.float32)
GT_MASKS, MASK_INFO = np.zeros((2, 35, 25), np.float32), np.array([[20, 25], [35, 20]], np.float32)
GT_MASKS[0, :20, :25], GT_MASKS[1, :35, :20] = 1, 1  # of the boxes halved: 25 x 20 and 20 x 35


def config(**train):
    cfg = Config()
    cfg.merge({"TRAIN": {"RPN_MIN_SIZE": 8, "RPN_POST_NMS_TOP_N": 20, "BATCH_SIZE": 16, **train}}, source="test")
    return cfg


@pytest.fixture
def run(build, inputs_of):
    """``run("mask_layer", "MaskLayer", bottoms, tops=2)``: the net of one layer, its input tensors, and its tops."""

    def make(module, layer, bottoms, tops, param_str="", phase="TRAIN", cfg=None, seed=0):
        bottoms = [torch.tensor(np.asarray(b, np.float32)) for b in bottoms]
        text = inputs_of(**{f"b{i}": b.shape for i, b in enumerate(bottoms)})
        names = "".join(f'bottom: "b{i}" ' for i in range(len(bottoms))) + "".join(f'top: "t{i}" ' for i in range(tops))
        python = f'module: "pylayer.{module}" layer: "{layer}" param_str: "{param_str}"'
        text += f'layer {{ name: "it" type: "Python" {names} python_param {{ {python} }} }} force_backward: true'
        net = build(text, phase, cfg=cfg or config(), rng=np.random.RandomState(seed))
        net._as_blob = lambda value: value
        for b in bottoms:
            b.requires_grad_()
        net(**{f"b{i}": b for i, b in enumerate(bottoms)})
        return net.layer_by_name["it"], bottoms, [net.blobs[f"t{i}"] for i in range(tops)]

    return make


def gradient(top, seed=0):
    """A gradient for ``top``, already handed back."""
    grad = np.random.default_rng(seed).normal(0, 1, tuple(top.shape)).astype(np.float32)
    top.backward(torch.from_numpy(grad))
    return grad


# ---- proposals


def rpn_maps(seed=0, scale=0.1):
    rng = np.random.default_rng(seed)
    return rng.random((1, 18, 6, 8)), rng.normal(0, scale, (1, 36, 6, 8))


@pytest.mark.parametrize("clip", [{}, {"use_clip": 1, "clip_base": 4}, {"use_clip": 1}])
def test_gradient_of_proposals(run, clip):
    settings = {"feat_stride": 32, "scales": [1, 2], **clip}
    bottoms = [*rpn_maps(), [[192, 256, 1]]]
    layer, inputs, (rois, index) = run("proposal_layer", "ProposalLayer", bottoms, 2, str(settings))
    assert len(layer.anchors) == 9, "scales of param_str are not read"
    grad = gradient(rois)
    deltas, expected = inputs[1].detach().numpy()[0], np.zeros((36, 6, 8))
    passed = 0
    for row, (anchor_index, roi) in enumerate(zip(index[0].long().tolist(), rois.detach().numpy(), strict=True)):
        a, x, y = anchor_index % 9, anchor_index // 9 % 8, anchor_index // 9 // 8
        anchor = layer.anchors[a] + 32 * np.array([x, y, x, y])
        d = deltas[4 * a : 4 * a + 4, y, x]
        w, h = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
        cx, cy = anchor[0] + 0.5 * w + d[0] * w, anchor[1] + 0.5 * h + d[1] * h
        half = np.exp(d[2]) * w / 2, np.exp(d[3]) * h / 2
        box = np.array([cx - half[0], cy - half[1], cx + half[0], cy + half[1]])
        np.testing.assert_allclose(np.clip(box, 0, [255, 191, 255, 191]), roi[1:], rtol=1e-4, atol=1e-3)
        if any(b[0] < 0 or b[1] < 0 or b[2] > 255 or b[3] > 191 for b in (box, anchor)):
            continue
        passed += 1
        g1, g2, g3, g4 = grad[row, 1:]
        w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
        each = [(g1 + g3) * w, (g2 + g4) * h, 0.5 * (g3 - g1) * np.exp(d[2]) * w, 0.5 * (g4 - g2) * np.exp(d[3]) * h]
        limit = 1 / clip.get("clip_base", 256) if clip else np.inf
        expected[4 * a : 4 * a + 4, y, x] = np.clip(each, -limit, limit)
    assert 0 < passed < len(rois)
    np.testing.assert_allclose(inputs[1].grad[0], expected, rtol=1e-4, atol=1e-5)
    assert inputs[0].grad is None


def test_anchors_whose_boxes_train(run):
    """fg_inds are positive and bg_inds negative, whatever they were."""
    score, settings = np.zeros((1, 18, 6, 8)), "{feat_stride: 32}"
    bottoms = [score, [[40, 40, 150, 150, 3]], [[192, 256, 1]]]
    cfg = config(RPN_BATCHSIZE=8)
    _, _, plain = run("anchor_target_layer", "AnchorTargetLayer", bottoms, 4, settings, cfg=cfg)
    ignored = np.flatnonzero(plain[0].view(9, 6, 8).permute(1, 2, 0).flatten() == -1)
    layer, _, _ = run("anchor_target_layer", "AnchorTargetLayer", [*bottoms, score], 4, settings, cfg=cfg)
    everything = layer.anchors + 32 * np.array([[x, y, x, y] for y in range(6) for x in range(8)])[:, None]
    inside = (everything >= 0).all(-1) & (everything[..., 2] < 256) & (everything[..., 3] < 192)
    changed = [i for i in ignored if inside.ravel()[i]][:5]
    outside = np.flatnonzero(~inside.ravel())[:1]
    forced = [changed[:2] + outside.tolist(), changed[2:]]
    _, _, mixed = run("anchor_target_layer", "AnchorTargetLayer", [*bottoms, *forced], 4, settings, cfg=cfg)
    labels = [blobs[0].view(9, 6, 8).permute(1, 2, 0).flatten().numpy() for blobs in (plain, mixed)]
    assert labels[1][changed].tolist() == [1, 1, 0, 0, 0]
    assert labels[1][outside] == -1
    others = np.setdiff1d(np.arange(9 * 48), changed)
    np.testing.assert_array_equal(labels[0][others], labels[1][others])


# ---- targets of proposals


def proposals():
    """Around the first object, the second, and elsewhere."""
    rng = np.random.default_rng(1)
    boxes = [GT_BOXES[i % 2, :4] + rng.integers(-4, 5, 4) for i in range(12)]
    boxes += [[x, y, x + 20, y + 20] for x, y in rng.integers(0, 70, (20, 2))]
    return np.hstack([np.zeros((32, 1)), np.maximum(boxes, 0)])


def overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(w, 0) * max(h, 0)
    return inter / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - inter)


@pytest.mark.parametrize("bp_all", [0, 1])
def test_targets_of_proposals(run, bp_all):
    rois, index = proposals(), np.arange(32)[None] * 3
    bottoms = [rois, GT_BOXES, IM_INFO, GT_MASKS, MASK_INFO, index]
    settings = f"{{num_classes: 7, bp_all: {bp_all}}}"
    _, inputs, tops = run("proposal_target_layer", "ProposalTargetLayer", bottoms, 10, settings, seed=5)
    found, labels, targets, inside, outside, masks, weight, info, fg_inds, bg_inds = (t.detach().numpy() for t in tops)
    everything = np.vstack([rois[:, 1:], GT_BOXES[:, :4]])
    table = np.array([[overlap(box, gt) for gt in GT_BOXES] for box in everything])
    best, rng = table.max(1), np.random.RandomState(5)
    is_fg = np.flatnonzero(best >= 0.5)
    fg = np.sort(rng.choice(is_fg, min(len(is_fg), 5), replace=False))  # 0.3 of 16
    bg = np.zeros(0, int)
    for fraction, low, high in ((0.85, 0.1, 0.5), (0.15, 0.0, 0.1)):
        group = np.flatnonzero((best >= low) & (best <= high))
        count = min(len(group), round((16 - len(fg)) * fraction))
        bg = np.union1d(bg, rng.choice(group, count, replace=False))
    keep = np.append(fg, bg).astype(int)
    np.testing.assert_allclose(found[:, 1:], everything[keep], rtol=1e-6)
    expected = GT_BOXES[table.argmax(1)[keep], 4] * (np.arange(len(keep)) < len(fg))
    np.testing.assert_array_equal(labels, expected)
    np.testing.assert_array_equal(inside.sum(1), 4 * (labels > 0))
    np.testing.assert_array_equal(outside, inside)
    assert targets[labels == 0].any() == False  # noqa: E712
    assert weight[: len(fg)].all()
    assert not weight[len(fg) :].any()
    for row, i in enumerate(fg):
        gt = int(table[i].argmax())
        halves = [np.around(box / 2) for box in (everything[i], GT_BOXES[gt, :4])]
        np.testing.assert_array_equal(info[row], [gt, *MASK_INFO[gt], labels[row], *halves[0], *halves[1]])
        assert masks[row].mean() > 0.5, "these boxes lie mostly on their object"
    assert (info[len(fg) :] == -1).all()
    np.testing.assert_array_equal(fg_inds, 3 * fg[fg < 32])
    np.testing.assert_array_equal(bg_inds, 3 * bg)
    grad, back = gradient(tops[0]), np.zeros((32, 5), np.float32)
    for row, i in enumerate(keep):
        if i < 32 and (bp_all or row < len(fg)):
            back[i] = grad[row]
    np.testing.assert_array_equal(inputs[0].grad, back)


def test_without_masks(run):
    _, _, tops = run("proposal_target_layer", "ProposalTargetLayer", [proposals(), GT_BOXES, IM_INFO], 5,
                     "{num_classes: 7}")  # fmt: skip
    assert [tuple(t.shape[1:]) for t in tops] == [(5,), (), (28,), (28,), (28,)]


# ---- masks


def mask_inputs():
    """Four RoIs: on the object, beside it, background, and on the object with a mask that is empty."""
    info = np.full((4, 12), -1.0)
    info[0] = [0, 20, 25, 2, 5, 5, 29, 24, 5, 5, 29, 24]
    info[1] = [0, 20, 25, 2, 25, 5, 49, 24, 5, 5, 29, 24]
    info[3] = info[0]
    masks = np.full((4, 441), 0.9)
    masks[3] = 0.1
    return masks, GT_MASKS, info


def test_labels_of_masks(run):
    _, inputs, (masks, labels) = run("mask_layer", "MaskLayer", mask_inputs(), 2)
    assert labels.flatten().tolist() == [2, 0, 0, 0]
    np.testing.assert_array_equal(masks.detach().view(4, -1), inputs[0].detach())
    grad = gradient(masks).reshape(4, 441)
    np.testing.assert_array_equal(inputs[0].grad[0], grad[0])
    assert not inputs[0].grad[1:].any()


def test_masks_when_testing(run):
    _, _, (masks,) = run("mask_layer", "MaskLayer", mask_inputs()[:1], 1, phase="TEST")
    assert masks.shape == (4, 1, 21, 21)


# ---- the bridge


def bridge_inputs(seed=0, rows=6):
    rng = np.random.default_rng(seed)
    rois = np.hstack([np.zeros((rows, 1)), GT_BOXES[np.arange(rows) % 2, :4] + rng.integers(-3, 4, (rows, 4))])
    rois[-1, 1:] = [100, 60, 127, 95]  # leaves the image
    deltas = rng.normal(0, 0.1, (rows, 28))
    deltas[-1] = 0.3
    return rois, deltas, rng.random((rows, 7))


def moved(roi, d):
    w, h = roi[3] - roi[1] + 1, roi[4] - roi[2] + 1
    cx, cy = roi[1] + 0.5 * w + d[0] * w, roi[2] + 0.5 * h + d[1] * h
    w, h = np.exp(d[2]) * w / 2, np.exp(d[3]) * h / 2
    return np.array([cx - w, cy - h, cx + w, cy + h])


@pytest.mark.parametrize("clip", [{"use_clip": 0}, {"use_clip": 1, "clip_base": 8}])
def test_bridge(run, clip):
    rois, deltas, scores = bridge_inputs()
    bottoms = [rois, deltas, scores, GT_BOXES, GT_MASKS, IM_INFO, MASK_INFO]
    _, inputs, tops = run("stage_bridge_layer", "StageBridgeLayer", bottoms, 8, str({"num_classes": 7, **clip}))
    best = scores[:, 1:].argmax(1) + 1
    chosen = np.array([deltas[i, 4 * c : 4 * c + 4] for i, c in enumerate(best)])
    boxes = np.array([moved(roi, d) for roi, d in zip(rois, chosen, strict=True)])
    clipped = np.vstack([np.clip(boxes, 0, [127, 95, 127, 95]), GT_BOXES[:, :4]])
    table = np.array([[overlap(box, gt) for gt in GT_BOXES] for box in clipped])
    is_fg = table.max(1) >= 0.5
    keep = np.append(np.flatnonzero(is_fg), np.flatnonzero(~is_fg))
    assert 2 < is_fg.sum() < 8
    np.testing.assert_allclose(tops[0].detach()[:, 1:], clipped[keep], rtol=1e-4, atol=1e-3)
    labels = np.where(is_fg, GT_BOXES[table.argmax(1), 4], 0)[keep]
    np.testing.assert_array_equal(tops[1], labels)
    assert [tuple(t.shape) for t in tops[2:]] == [(8, 1, 21, 21)] * 2 + [(8, 12)] + [(8, 28)] * 3
    grad = gradient(tops[0])
    of_rois, of_deltas = np.zeros((6, 5)), np.zeros((6, 28))
    limit = 1 / clip["clip_base"] if clip["use_clip"] else np.inf
    for row, i in enumerate(keep):
        if i >= 6:
            continue
        d, c = chosen[i], 4 * best[i]
        x, y, w, h = grad[row, 1:]
        of_rois[i, 1:] = [x, y, w * (d[0] + np.exp(d[2])), h * (d[1] + np.exp(d[3]))]
        if (boxes[i] >= 0).all() and boxes[i, 2] <= 127 and boxes[i, 3] <= 95:
            old = rois[i, 2] - rois[i, 0], rois[i, 3] - rois[i, 1]  # the original's columns
            each = [x * old[0], y * old[1], w * np.exp(d[2]) * old[0], h * np.exp(d[3]) * old[1]]
            of_deltas[i, c : c + 4] = np.clip(each, -limit, limit)
    np.testing.assert_allclose(inputs[0].grad, of_rois, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inputs[1].grad, of_deltas, rtol=1e-4, atol=1e-4)
    assert not of_deltas[5].any()


def test_bridge_when_testing(run):
    """The best class may be background, whose box is moved too."""
    rois, deltas, scores = bridge_inputs()
    scores[0, 0] = 2
    _, _, (found,) = run("stage_bridge_layer", "StageBridgeLayer", [rois, deltas, scores, IM_INFO], 1, phase="TEST")
    for i, c in enumerate(scores.argmax(1)):
        expected = np.clip(moved(rois[i], deltas[i, 4 * c : 4 * c + 4]), 0, [127, 95, 127, 95])
        np.testing.assert_allclose(found[i, 1:], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("module", "layer", "bottoms", "tops", "settings", "phase", "message"),
    [
        ("proposal_layer", "ProposalLayer", [*rpn_maps(), IM_INFO], 1, "{feat_stride: 32, clip_base: 0}", "TRAIN",
         "'clip_base' must be positive"),
        ("proposal_target_layer", "ProposalTargetLayer", [proposals(), GT_BOXES, IM_INFO], 8, "{num_classes: 7}",
         "TRAIN", "with masks 8 of 5"),
        ("proposal_target_layer", "ProposalTargetLayer", [proposals(), GT_BOXES, IM_INFO], 5, "{num_classes: 5}",
         "TRAIN", "num_classes is 5, an object has class 5"),
        ("proposal_target_layer", "ProposalTargetLayer", [proposals(), GT_BOXES, IM_INFO, GT_MASKS, MASK_INFO + 1], 8,
         "{num_classes: 7}", "TRAIN", "the mask of object"),
        ("mask_layer", "MaskLayer", [np.zeros((2, 400))], 1, "", "TEST", "must be rows of 21.2"),
        ("mask_layer", "MaskLayer", mask_inputs()[:1], 1, "", "TRAIN", "takes 3 bottoms and gives 2 tops"),
        ("stage_bridge_layer", "StageBridgeLayer", [*bridge_inputs(), IM_INFO], 1, "", "TRAIN", "takes 7 bottoms"),
        ("stage_bridge_layer", "StageBridgeLayer", [*bridge_inputs()[:2], np.zeros((6, 5)), IM_INFO], 1, "", "TEST",
         "5 classes need 20 box outputs"),
        ("stage_bridge_layer", "StageBridgeLayer", [*bridge_inputs(), GT_BOXES, GT_MASKS, IM_INFO, MASK_INFO], 8,
         "{num_classes: 8}", "TRAIN", "num_classes differs"),
    ],
)  # fmt: skip
def test_errors(run, module, layer, bottoms, tops, settings, phase, message):
    with pytest.raises(PortError, match=message) as caught:
        run(module, layer, bottoms, tops, settings, phase)
    assert caught.value.layer == "it"
