"""Proposals of MS-CNN and cascade-rcnn against loops written from their formulas, in float64."""

import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

BOUNDS = "field_whr: 2 field_xyr: 4"
NORM = (
    "bbox_reg_param { bbox_mean: 0 bbox_mean: 0.1 bbox_mean: 0 bbox_mean: -0.1"
    " bbox_std: 0.1 bbox_std: 0.2 bbox_std: 0.3 bbox_std: 0.4 }"
)
MEANS, STDS = (0, 0.1, 0, -0.1), (0.1, 0.2, 0.3, 0.4)


def decoded(deltas, field, stride, h, w, norm):
    """x1, y1, width, height."""
    means, stds = (MEANS, STDS) if norm else ((0,) * 4, (1,) * 4)
    bounds = (1 / 4, 1 / 4, math.log(2), math.log(2))
    x, y, dw, dh = (min(max(d * s + m, -b), b) for d, s, m, b in zip(deltas, stds, means, bounds, strict=True))
    width, height = field[0] * math.exp(dw), field[1] * math.exp(dh)
    return (
        x * field[0] + (w + 0.5) * stride - width / 2,
        y * field[1] + (h + 0.5) * stride - height / 2,
        width,
        height,
    )


def iou(a, b, pixel):
    w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) + pixel for i in (0, 1))
    if min(w, h) <= 0 or (pixel and (w < 1 or h <= 1)):
        return 0.0
    areas = [(x[2] - x[0] + pixel) * (x[3] - x[1] + pixel) for x in (a, b)]
    return w * h / (sum(areas) - w * h)


def survivors(rows, thresh, pixel, most, most_after):
    """Rows (box, score) by falling score, after NMS."""
    ranked = sorted(rows, key=lambda row: -row[4])[: most or None]
    kept = []
    for row in ranked:
        if all(iou(k, row, pixel) <= thresh for k in kept):
            kept.append(row)
    return kept[: most_after or None]


def slow_box_output(maps, fields, strides, *, fg_thr, min_size, most, most_after, norm):
    found = []
    for image in range(len(maps[0])):
        rows = []
        for blob, field, stride in zip(maps, fields, strides, strict=True):
            _, channels, height, width = blob.shape
            for h, w in np.ndindex(height, width):
                scores, deltas = blob[image, : channels - 4, h, w], blob[image, channels - 4 :, h, w]
                score = max(scores[1:]) - scores[0]
                x, y, bw, bh = decoded(deltas, field, stride, h, w, norm)
                x, y = max(x, 0), max(y, 0)
                bw, bh = min(bw, width * stride - x), min(bh, height * stride - y)
                if score >= fg_thr and bw >= min_size and bh >= min_size:
                    rows.append((x, y, x + bw, y + bh, score))
        found += [(image, *row) for row in survivors(rows, 0.4, 0, most, most_after)]
    return np.array(found)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("most", "most_after"), [(0, 0), (30, 0), (0, 5), (25, 7)])
def test_box_output(run_layer, norm, most, most_after):
    rng = np.random.RandomState(0)
    maps = [rng.randn(2, 7, 6, 8).astype(np.float32), rng.randn(2, 7, 3, 4).astype(np.float32)]
    settings = (
        "box_output_param { fg_thr: -0.5 iou_thr: 0.4 min_size: 14 field_w: 20 field_w: 40 field_h: 24 field_h: 30 "
        f"downsample_rate: 8 downsample_rate: 16 max_nms_num: {most} max_post_nms_num: {most_after} {BOUNDS} }}"
    )
    tops = run_layer("BoxOutput", settings + (NORM if norm else ""), *maps, tops=2, nominal=True)
    cuts = {"fg_thr": -0.5, "min_size": 14, "most": most, "most_after": most_after, "norm": norm}
    wanted = slow_box_output([m.astype(np.float64) for m in maps], [(20, 24), (40, 30)], [8, 16], **cuts)
    assert len(wanted) > 5
    np.testing.assert_allclose(tops[1].flatten(1), wanted, rtol=1e-5, atol=1e-4)
    assert torch.equal(tops[0], tops[1][:, :5]) and tops[0].shape == (len(wanted), 5, 1, 1)


def slow_box_group_output(heads, *, fg_thr, min_size, most, most_after):
    found = []
    for image in range(2):
        rows = []
        for prob, deltas, fields, stride in heads:
            _, _, height, width = prob.shape
            for k, field in enumerate(fields):
                for h, w in np.ndindex(height, width):
                    n = image * len(fields) + k
                    score = 1 - prob[n, 0, h, w]
                    x, y, bw, bh = decoded(deltas[n, :, h, w], field, stride, h, w, False)
                    x1, y1 = max(x, 0), max(y, 0)
                    x2, y2 = min(x + bw - 1, width * stride), min(y + bh - 1, height * stride)
                    if score >= fg_thr and x2 - x1 + 1 >= min_size and y2 - y1 + 1 >= min_size:
                        rows.append((x1, y1, x2, y2, score))
        found += [(image, *row) for row in survivors(rows, 0.5, 1, most, most_after)]
    return np.array(found)


@pytest.mark.parametrize(("most", "most_after"), [(0, 0), (40, 9)])
def test_box_group_output(run_layer, most, most_after):
    rng = np.random.RandomState(1)
    heads = []
    for fields, stride, shape in (([(20, 24), (30, 12)], 8, (5, 6)), ([(40, 30)], 16, (3, 3))):
        prob = rng.rand(2 * len(fields), 3, *shape).astype(np.float32)
        heads.append((prob, rng.randn(2 * len(fields), 4, *shape).astype(np.float32), fields, stride))
    groups = "".join(
        "box_group_param { " + "".join(f"field_w: {w} field_h: {h} " for w, h in fields) + f"stride: {stride} }} "
        for _, _, fields, stride in heads
    )
    settings = (
        f"box_group_output_param {{ {groups} fg_thr: 0.3 iou_thr: 0.5 min_size: 13 max_nms_num: {most} "
        f"max_post_nms_num: {most_after} {BOUNDS} }}"
    )
    bottoms = [blob for head in heads for blob in head[:2]]
    tops = run_layer("BoxGroupOutput", settings, *bottoms, tops=2, nominal=True)
    wanted = slow_box_group_output(heads, fg_thr=0.3, min_size=13, most=most, most_after=most_after)
    assert len(wanted) > 5
    np.testing.assert_allclose(tops[1].flatten(1), wanted, rtol=1e-5, atol=1e-4)
    assert torch.equal(tops[0], tops[1][:, :5])


def test_no_box(run_layer):
    """Caffe's stand-ins."""
    settings = "box_output_param { field_w: 20 field_h: 20 downsample_rate: 8 fg_thr: 9 }"
    tops = run_layer("BoxOutput", settings, np.zeros((1, 6, 2, 2)), tops=2)
    assert tops[0].flatten().tolist() == [0, 1, 1, 10, 10] and tops[1].flatten().tolist() == [0] * 6


def test_no_gradient(run_layer):
    settings = "box_output_param { field_w: 40 field_h: 40 downsample_rate: 16 fg_thr: -9 }"
    blob = torch.zeros(1, 6, 3, 3, requires_grad=True)
    assert not run_layer("BoxOutput", settings, blob, nominal=True)[0].requires_grad
    with pytest.raises(PortError, match="no gradient goes through"):
        run_layer("BoxOutput", settings + " propagate_down: true", blob, nominal=True)


FIELD = "field_w: 9 field_h: 9 "


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "message"),
    [
        ("BoxOutput", f"box_output_param {{ {FIELD} }}", [(1, 6, 2, 2)], "0 values for 1 bottoms"),
        ("BoxOutput", f"box_output_param {{ {FIELD} downsample_rate: 8 }}", [(1, 5, 2, 2)], "two classes at least"),
        ("BoxOutput", f"box_output_param {{ {FIELD} downsample_rate: 8 field_whr: 0 }}", [(1, 6, 2, 2)], "above 0"),
        ("BoxOutput", f"box_output_param {{ {FIELD} downsample_rate: 8 }} bbox_reg_param {{ bbox_std: 1 }}",
         [(1, 6, 2, 2)], "give four of each"),
        ("BoxGroupOutput", f"box_group_output_param {{ box_group_param {{ {FIELD} stride: 8 }} }}", [(1, 2, 2, 2)],
         "1 groups for 1 bottoms"),
        ("BoxGroupOutput", "box_group_output_param { box_group_param { field_w: 9 stride: 8 } }",
         [(1, 2, 2, 2), (1, 4, 2, 2)], "1 values of field_w and 0 of field_h"),
        ("BoxGroupOutput", f"box_group_output_param {{ box_group_param {{ {FIELD} stride: 8 }} }}",
         [(1, 2, 2, 2), (1, 4, 2, 3)], r"must be \[1, 2, H, W\]"),
    ],
)  # fmt: skip
def test_bad_settings(run_layer, kind, settings, shapes, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, settings, *map(np.zeros, shapes))
    assert caught.value.layer == "it"
