"""PVANet's and synopsys-caffe's Proposal, against loops in float64."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

RATIOS, SCALES = (0.5, 1.0, 2.0), (2.0, 4.0)
PVANET = """proposal_param { feat_stride: 8 base_size: 8 min_size: 6 ratio: 0.5 ratio: 1 ratio: 2 scale: 2 scale: 4
            pre_nms_topn: 60 post_nms_topn: 12 nms_thresh: 0.6 }"""
SYNOPSYS = "proposal_param { feat_stride: 16 max_rois: 10 rpn_min_size: 20 rpn_nms_thresh: 0.5 pre_nms_topn: 100 }"


def slow_anchors(base, ratios, scales):
    centre = (base - 1) / 2
    for ratio in ratios:
        width = math.floor(math.sqrt(base * base / ratio) + 0.5)
        height = math.floor(width * ratio + 0.5)
        for scale in scales:
            half = (width * scale - 1) / 2, (height * scale - 1) / 2
            yield centre - half[0], centre - half[1], centre + half[0], centre + half[1]


def slow_boxes(scores, deltas, anchors, stride, height, width):
    """``(score, box)`` of every anchor, cell by cell."""
    found = []
    for y in range(scores.shape[1]):
        for x in range(scores.shape[2]):
            for a, anchor in enumerate(anchors):
                x1, y1, x2, y2 = (v + stride * (x, y)[i % 2] for i, v in enumerate(anchor))
                w, h = x2 - x1 + 1, y2 - y1 + 1
                dx, dy, dw, dh = deltas[4 * a : 4 * a + 4, y, x]
                cx, cy = x1 + 0.5 * w + dx * w, y1 + 0.5 * h + dy * h
                pw, ph = math.exp(dw) * w, math.exp(dh) * h
                corners = (cx - 0.5 * pw, cy - 0.5 * ph, cx + 0.5 * pw, cy + 0.5 * ph)
                limits = (width, height, width, height)
                box = [min(max(c, 0), limit - 1) for c, limit in zip(corners, limits, strict=True)]
                found.append((scores[len(anchors) + a, y, x], box))
    return found


def overlap(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    inter = max(w, 0) * max(h, 0)
    return inter / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - inter)


def suppressed(found, thresh, count):
    kept = []
    for score, box in sorted(found, key=lambda each: -each[0]):
        if len(kept) < count and all(overlap(box, other) <= thresh for _, other in kept):
            kept.append((score, box))
    return kept


def inputs(anchors, height, width, images=1, seed=0):
    rng = np.random.default_rng(seed)
    scores = rng.permutation(images * 2 * anchors * height * width).reshape(images, -1, height, width)
    return scores.astype(np.float32), rng.normal(0, 0.3, (images, 4 * anchors, height, width)).astype(np.float32)


def is_small(box, wide, high):
    return box[2] - box[0] + 1 < wide or box[3] - box[1] + 1 < high


@pytest.mark.parametrize("im_info", [[[60, 80, 1.5]], [[60, 80, 1.5, 2.0]], [[60, 80, 1.5, 2.0, 1.5, 2.0]]])
def test_pvanet(run_layer, im_info):
    scores, deltas = inputs(6, 8, 10)
    rois, each = run_layer("Proposal", PVANET, scores, deltas, im_info, tops=2)
    high, wide = 6 * im_info[0][2], 6 * im_info[0][min(3, len(im_info[0]) - 1)]
    found = slow_boxes(scores[0], deltas[0], list(slow_anchors(8, RATIOS, SCALES)), 8, 60, 80)
    found = [(0 if is_small(box, wide, high) else score, box) for score, box in found]
    expected = suppressed(sorted(found, key=lambda e: -e[0])[:60], 0.6, 12)
    assert each.tolist() == [score for score, _ in expected]
    assert not rois[:, 0].any()
    np.testing.assert_allclose(rois[:, 1:], [box for _, box in expected], rtol=1e-5, atol=1e-4)


def test_pvanet_takes_several_images(run_layer):
    scores, deltas = inputs(6, 8, 10, images=2)
    im_info = [[60.0, 80, 1, 1], [50, 70, 1, 1]]
    rois, each = run_layer("Proposal", PVANET, scores, deltas, im_info, tops=2)
    for n in range(2):
        alone = run_layer("Proposal", PVANET, scores[n : n + 1], deltas[n : n + 1], im_info[n : n + 1], tops=2)
        assert torch.equal(rois[rois[:, 0] == n, 1:], alone[0][:, 1:])
        assert torch.equal(each[rois[:, 0] == n], alone[1])


def test_synopsys(run_layer):
    scores, deltas = inputs(9, 6, 8)
    rois, each = run_layer("Proposal", SYNOPSYS, scores, deltas, [[96, 128, 1.5]], tops=2)
    found = slow_boxes(scores[0], deltas[0], list(slow_anchors(16, RATIOS, (8, 16, 32))), 16, 96, 128)
    found = [(s, box) for i, (s, box) in enumerate(found) if not is_small(box, 30, 30) or i == len(found) - 1]
    expected = suppressed(found, 0.5, 10)
    assert len(expected) == 10
    assert each.tolist() == [[score] for score, _ in expected]
    np.testing.assert_allclose(rois[:, 1:], [box for _, box in expected], rtol=1e-5, atol=1e-4)


def test_equal_scores_in_synopsys(run_layer):
    """Of equal scores the last in the order anchor, y, x goes first."""
    one = "proposal_param { anchor_scale: 1 anchor_ratio: 1 anchor_base_size: 1 max_rois: 2 rpn_nms_thresh: 0.999 }"
    scores, deltas = np.ones((1, 2, 3, 4), np.float32), np.zeros((1, 4, 3, 4), np.float32)
    (rois,) = run_layer("Proposal", one, scores, deltas, [[500, 500, 1]])
    centres = (rois[:, 1:3] + rois[:, 3:5]) / 2
    assert (centres[0] > centres[1]).tolist() == [True, False], "the last cell, then the one to its left"


def test_no_gradient(build, inputs_of):
    text = inputs_of(s=(1, 12, 4, 4), d=(1, 24, 4, 4), i=(1, 3)) + (
        'layer { name: "c" type: "Convolution" bottom: "d" top: "c" convolution_param { num_output: 24 kernel_size: 1 '
        'weight_filler { type: "xavier" } } }'
        f'layer {{ name: "p" type: "Proposal" bottom: "s" bottom: "c" bottom: "i" top: "rois" {PVANET} }}'
        'layer { name: "l" type: "Reduction" bottom: "rois" top: "l" loss_weight: 1 }'
    )
    net = build(text)
    scores, deltas = inputs(6, 4, 4)
    net(s=scores, d=deltas, i=[[60, 80, 1]])
    net.backward()
    assert net.params["c"][0].grad is None


@pytest.mark.parametrize(
    ("settings", "shapes", "message"),
    [
        (PVANET, [(1, 10, 4, 4), (1, 24, 4, 4), (1, 3)], "6 anchors need 12 channels; 'b0' has shape"),
        (PVANET, [(1, 12, 4, 4), (1, 12, 4, 4), (1, 3)], "6 anchors need 24 channels; 'b1' has shape"),
        (PVANET, [(1, 12, 4, 4), (1, 24, 4, 4), (1, 2)], "must be rows"),
        (PVANET.replace("nms_thresh", "max_rois: 3 nms_thresh"), [], "fields of two layers"),
        (PVANET.replace("scale: 2 scale: 4", ""), [], "must be positive"),
        (PVANET.replace("ratio: 2", "ratio: -1"), [], "must be positive"),
        (PVANET.replace("post_nms_topn: 12", "post_nms_topn: 0"), [], "numbers of proposals"),
        (SYNOPSYS, [(2, 18, 4, 4), (2, 36, 4, 4), (2, 3)], "takes one image, not 2"),
    ],
)
def test_errors(run_layer, settings, shapes, message):
    shapes = shapes or [(1, 12, 4, 4), (1, 24, 4, 4), (1, 3)]
    with pytest.raises(PortError, match=message) as caught:
        run_layer("Proposal", settings, *(np.ones(shape, np.float32) for shape in shapes))
    assert caught.value.layer == "it"
