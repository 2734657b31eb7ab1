"""ProposalTarget: what is not random by hand and by formula, and what the random part must keep to."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

# two images of 200 x 100; the boxes have 40 x 20 pixels
TRUTH = np.array([[0, 10, 10, 49, 29, 3, 0], [1, 60, 40, 99, 59, 1, 0], [1, 120, 60, 159, 79, 2, 1]], np.float64)
# shifted by 8 of 40 pixels a box keeps an IoU of 32 / 48 = 2/3, by 20: 20 / 60 = 1/3, by 35: 5 / 75 = 1/15
ROIS = np.array(
    [
        [0, 18, 10, 57, 29],  # 2/3 with box 0
        [0, 30, 10, 69, 29],  # 1/3
        [0, 45, 10, 84, 29],  # 1/15
        [0, 60, 40, 99, 59],  # none: box 1 is in the other image
        [1, 60, 40, 99, 59],  # 1 with box 1
        [1, 128, 60, 167, 79],  # 2/3 with box 2, which is ignored
        [1, 140, 60, 179, 79],  # 1/3 with it
    ],
    np.float64,
)
SETTINGS = {"cls_num": 4, "num_img_per_batch": 2, "fg_thr": 0.5, "bg_thr_lw": 0.1, "img_width": 200, "img_height": 100}
NAMES = ["rois", "labels", "targets", "inside", "outside", "matched", "weights"]


def text_of(settings):
    """``settings`` is text; it replaces what :data:`SETTINGS` says."""
    changes = dict(zip(*[iter(settings.replace(":", "").split())] * 2, strict=True))
    return "proposal_target_param { " + " ".join(f"{k}: {v}" for k, v in (SETTINGS | changes).items()) + " } "


def run(run_layer, settings="", rois=ROIS, truth=TRUTH, norm="", cascade=False, seed=0):
    if cascade:
        truth = np.column_stack((truth, np.zeros(len(truth))))
    text = text_of(settings) + f"bbox_reg_param {{ {norm} }}"
    tops = run_layer("ProposalTarget", text, rois[:, :, None, None], truth, tops=7, nominal=True, seed=seed)
    assert all(t.shape[2:] == (1, 1) and len(t) == len(tops[0]) for t in tops)
    return {name: t.flatten(1).numpy() for name, t in zip(NAMES, tops, strict=True)}


@pytest.mark.parametrize("cascade", [False, True])
def test_all_of_them(run_layer, cascade):
    """``batch_size: -1``: every foreground row, then every background row; nothing is drawn."""
    found = run(run_layer, "batch_size: -1", norm="bbox_mean: 0 bbox_mean: 0 bbox_mean: 0 bbox_mean: 0 "
                "bbox_std: 0.1 bbox_std: 0.1 bbox_std: 0.2 bbox_std: 0.2", cascade=cascade)  # fmt: skip
    foreground = [ROIS[0], ROIS[4], TRUTH[0, :5], TRUTH[1, :5]]
    np.testing.assert_array_equal(found["rois"], [*foreground, ROIS[1], ROIS[6]])
    assert found["labels"].flatten().tolist() == [3, 1, 3, 1, 0, 0]
    targets = np.zeros((6, 16))
    targets[0, 12] = -8 / 40 / 0.1
    np.testing.assert_allclose(found["targets"], targets, atol=1e-6)
    weights = np.zeros((6, 16))
    for row, label in enumerate([3, 1, 3, 1]):
        weights[row, 4 * label : 4 * label + 4] = 1
    np.testing.assert_array_equal(found["inside"], weights)
    np.testing.assert_array_equal(found["outside"], weights)
    matched = [[3, *TRUTH[0, 1:5], 2 / 3], [1, *TRUTH[1, 1:5], 1], [3, *TRUTH[0, 1:5], 1], [1, *TRUTH[1, 1:5], 1]]
    np.testing.assert_allclose(found["matched"], [*matched, [0] * 6, [0] * 6], rtol=1e-6)
    # 4 and 2 rows share the weight of 6 one to three
    np.testing.assert_allclose(found["weights"].flatten(), [0.25 * 6 / 4] * 4 + [0.75 * 6 / 2] * 2, rtol=1e-6)


def test_iou_weighted(run_layer):
    found = run(run_layer, "batch_size: -1 iou_weighted: true fg_fraction: 0.5")
    shares = np.array([2 / 3, 1, 1, 1])
    np.testing.assert_allclose(found["weights"].flatten(), [*shares * 3 / shares.sum(), 1.5, 1.5], rtol=1e-6)


def test_targets_of_another_size(run_layer):
    rois = np.array([[0, 6, 8, 55, 32]])  # 50 x 25 around (31, 20.5), the box's centre (30, 20)
    found = run(run_layer, "batch_size: -1 append_gtbox: false", rois=rois, norm="cls_aware: false")
    wanted = [0, 0, 0, 0, -1 / 50, -0.5 / 25, np.log(40 / 50), np.log(20 / 25)]
    np.testing.assert_allclose(found["targets"], [wanted], rtol=1e-4)


def test_overlaps_that_regression_learns_from(run_layer):
    found = run(run_layer, "batch_size: -1 bbox_thr_lw: 0.6 bbox_thr_hg: 0.9", cascade=True)
    assert found["inside"].sum(1).tolist() == [4, 0, 0, 0, 0, 0]
    assert found["targets"][0, 12] != 0


@pytest.mark.parametrize("cascade", [False, True])
def test_sampling(run_layer, cascade):
    """Two of four foreground rows, then both background rows and the two that are neither, in their order."""
    drawn = set()
    for seed in range(20):
        found = run(run_layer, "batch_size: 6 fg_fraction: 0.3", cascade=cascade, seed=seed)
        assert (found["labels"].flatten() > 0).tolist() == [True] * 2 + [False] * 4
        np.testing.assert_array_equal(found["rois"][2:], ROIS[[1, 6, 2, 3]])
        drawn.add(tuple(sorted(map(tuple, found["rois"][:2]))))
        again = run(run_layer, "batch_size: 6 fg_fraction: 0.3", cascade=cascade, seed=seed)
        np.testing.assert_array_equal(again["rois"], found["rois"])
    assert len(drawn) >= 4


def test_too_much_background(run_layer):
    drawn = {run(run_layer, "batch_size: 4 fg_fraction: 0.75", seed=s)["rois"][3, 1] for s in range(20)}
    assert drawn == {30, 140}


def test_mscnn_fills_the_batch_with_random_boxes(run_layer):
    found = run(run_layer, "batch_size: 40")
    x1, y1, x2, y2 = found["rois"][8:, 1:].T
    assert len(found["rois"]) == 40 and (found["labels"][4:] == 0).all()
    assert (x1 >= 0).all() and (x1 < 168).all() and (x2 - x1 + 1 >= 32).all() and (y2 - y1 + 1 >= 32).all()
    assert ((x2 < 200) | (x2 - x1 == 31)).all() and set(found["rois"][8:, 0]) == {0, 1}


def test_cascade_makes_a_smaller_batch(run_layer):
    assert len(run(run_layer, "batch_size: 40", cascade=True)["rois"]) == 8
    assert len(run(run_layer, "batch_size: 40 pickup_discard: false", cascade=True)["rois"]) == 6


def test_nothing_to_learn_from(run_layer):
    """cascade-rcnn gives one random box, MS-CNN none with ``batch_size: -1``."""
    none = np.array([[-1.0] * 7])
    settings = "batch_size: -1 append_gtbox: false bg_thr_lw: 0.2"
    found = run(run_layer, settings, truth=none, cascade=True)
    assert found["rois"].shape == (1, 5) and found["labels"].tolist() == [[0]]
    assert run(run_layer, settings, rois=ROIS[:1], truth=TRUTH[1:2])["rois"].shape == (0, 5)


@pytest.mark.parametrize(
    ("settings", "rois", "truth", "message"),
    [
        ("batch_size: 0", ROIS, TRUTH, "must be positive, or -1"),
        ("fg_thr: 0.4", ROIS, TRUTH, "above fg_thr"),
        ("cls_num: 1", ROIS, TRUTH, "1 classes"),
        ("", ROIS[:, :4], TRUTH, r"proposals \[R, 5\] and ground truth"),
        ("", ROIS, TRUTH[:, :6], r"\[G, 7\] or \[G, 8\]"),
        ("", ROIS + 1, TRUTH, "image 2, in a batch of 2"),
        ("cls_num: 3", ROIS, TRUTH, "label 3 among 3 classes"),
        ("", ROIS, TRUTH * [1, 1, 1, 1, 1, 0, 1], "label 0 or less"),
        ("img_width: 32", ROIS, TRUTH, "over 32 pixels, not 32 x 100"),
    ],
)
def test_bad_input(run_layer, settings, rois, truth, message):
    with pytest.raises(PortError, match=message) as caught:
        run_layer("ProposalTarget", text_of(settings), rois, truth, tops=6, nominal=True)
    assert caught.value.layer == "it"


def test_no_gradient(run_layer):
    rois = torch.tensor(ROIS, dtype=torch.float32, requires_grad=True)
    tops = run_layer("ProposalTarget", text_of("batch_size: 4"), rois, TRUTH, tops=6)
    assert not any(t.requires_grad for t in tops)
