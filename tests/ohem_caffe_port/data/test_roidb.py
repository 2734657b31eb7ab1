from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.data.roidb import add_bbox_regression_targets, filter_roidb, get_training_roidb, prepare_roidb
from ohem_caffe_port.errors import PortError

ROOT = Path(__file__).resolve().parents[3]
RUNS = ("e2e_fast_rcnn_small", "e2e_ohem_small", "fast_rcnn_vggm_small", "ohem_vggm_small_2im", "ohem_vggm_small_nonms")


def golden_roidb(path):
    if not path.exists():
        pytest.skip(f"{path} is absent")
    with np.load(path) as data:
        arrays = dict(data)
    keys = ("boxes", "gt_classes", "max_classes", "max_overlaps", "flipped")
    roidb = [
        {
            **{key: arrays[f"{key}_{i}"] for key in keys},
            "gt_overlaps": scipy.sparse.csr_matrix(arrays[f"gt_overlaps_{i}"]),
        }
        for i in range(int(arrays["n"]))
    ]
    return roidb, arrays


GOLDEN = [ROOT / "tests/data/roidb/ohem_vggm_small_b.npz"]
GOLDEN += [ROOT / "../shared/golden" / run / "roidb.npz" for run in RUNS]


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem if p.parent.name == "roidb" else p.parent.name)
def test_targets_of_the_original(path, make_cfg):
    """Bit for bit: computed in float64, kept in float32, normalised from float32."""
    roidb, arrays = golden_roidb(path)
    means, stds = add_bbox_regression_targets(roidb, make_cfg())
    np.testing.assert_array_equal(means, arrays["bbox_means"])
    np.testing.assert_array_equal(stds, arrays["bbox_stds"])
    for i, entry in enumerate(roidb):
        assert entry["bbox_targets"].dtype == np.float32
        np.testing.assert_array_equal(entry["bbox_targets"], arrays[f"bbox_targets_{i}"])


def test_flipped_entries_of_the_original():
    """Its second half mirrors its first: the overlaps stay, the boxes change places."""
    roidb, arrays = golden_roidb(GOLDEN[0])
    half = len(roidb) // 2
    assert [bool(e["flipped"]) for e in roidb] == [False] * half + [True] * half
    for a, b in zip(roidb[:half], roidb[half:], strict=True):
        np.testing.assert_array_equal(b["max_overlaps"], a["max_overlaps"])
        np.testing.assert_array_equal(b["boxes"][:, 2] - b["boxes"][:, 0], a["boxes"][:, 2] - a["boxes"][:, 0])
        assert len(np.unique(a["boxes"][:, 0].astype(int) + b["boxes"][:, 2])) == 1


def test_prepare(devkit, make_cfg):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    roidb = get_training_roidb(imdb, make_cfg())
    assert len(roidb) == 6
    entry = roidb[4]
    assert (entry["image"], entry["image_id"]) == (str(imdb.image_path_at(1)), "000002")
    assert (entry["width"], entry["height"], entry["flipped"]) == (60, 40, True)
    assert entry["max_classes"].tolist() == [8, 12, 8, 12]
    np.testing.assert_array_equal(entry["max_overlaps"], np.array([1, 1, 0.8, 0.4375], dtype=np.float32))
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    assert len(get_training_roidb(imdb, make_cfg(USE_FLIPPED=False))) == 3


def test_prepare_refuses_overlap_with_background(devkit):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    overlaps = imdb.roidb[1]["gt_overlaps"].tolil()
    overlaps[2, 0] = 0.9
    imdb.roidb[1]["gt_overlaps"] = overlaps.tocsr()
    with pytest.raises(PortError, match="'000002' has an overlap with the background"):
        prepare_roidb(imdb)


def test_filter(make_cfg):
    roidb = [{"max_overlaps": np.array(v, dtype=np.float32)} for v in ([0.5], [0.05], [0.1], [0.49], [], [0.05, 1])]

    def kept(**thresholds):
        entries = filter_roidb(roidb, make_cfg(**thresholds))
        return [k for k, entry in enumerate(roidb) if any(entry is e for e in entries)]

    assert kept() == [0, 1, 2, 3, 5]
    assert kept(BG_THRESH_LO=0.1) == [0, 2, 3, 5]
    assert kept(BG_THRESH_HI=0.1, BG_THRESH_LO=0.1) == [0, 5]
    with pytest.raises(PortError, match="none of the 2 images") as error:
        filter_roidb([roidb[1], roidb[4]], make_cfg(BG_THRESH_LO=0.1))
    assert error.value.hint


def training_roidb(devkit, cfg):
    return get_training_roidb(get_imdb("voc_2007_train", data_dir=devkit.data_dir), cfg)


def test_targets_not_normalised(devkit, make_cfg):
    cfg = make_cfg(BBOX_NORMALIZE_TARGETS=False, USE_FLIPPED=False)
    roidb = training_roidb(devkit, cfg)
    means, stds = add_bbox_regression_targets(roidb, cfg)
    targets = roidb[1]["bbox_targets"]
    # the third box is x 4..19 of the cat's 4..23: centre 2 to the right of 16 pixels, 20/16 as wide
    np.testing.assert_allclose(targets[2], [8, 2 / 16, 0, np.log(20 / 16), 0], rtol=1e-6)
    assert targets[0].tolist() == [8, 0, 0, 0, 0]
    assert targets[3].tolist() == [0, 0, 0, 0, 0]  # below BBOX_THRESH
    means, stds = means.reshape(21, 4), stds.reshape(21, 4)
    np.testing.assert_allclose(means[8], [1 / 16, 0, np.log(1.25) / 2, 0], rtol=1e-6)
    np.testing.assert_allclose(stds[8], [1 / 16, 0, np.log(1.25) / 2, 0], rtol=1e-6)
    assert not means[[0, 1]].any() and not stds[[0, 1]].any()


def test_targets_with_precomputed_statistics(devkit, make_cfg):
    cfg = make_cfg(BBOX_NORMALIZE_TARGETS_PRECOMPUTED=True, BBOX_NORMALIZE_MEANS=(0.5, 0, 0, 1), USE_FLIPPED=False)
    roidb = training_roidb(devkit, cfg)
    means, stds = add_bbox_regression_targets(roidb, cfg)
    np.testing.assert_array_equal(means, np.tile([0.5, 0, 0, 1], 21))
    np.testing.assert_array_equal(stds, np.tile([0.1, 0.1, 0.2, 0.2], 21))
    expected = [8, (2 / 16 - 0.5) / 0.1, 0, np.log(20 / 16) / 0.2, -1 / 0.2]
    np.testing.assert_allclose(roidb[1]["bbox_targets"][2], expected, rtol=1e-6)
    assert roidb[1]["bbox_targets"][3].tolist() == [0, 0, 0, 0, 0]


def test_one_box_for_all_classes(devkit, make_cfg):
    """py-R-FCN's AGNOSTIC: the statistics of all targets together are those of class 1."""
    cfg = make_cfg(AGNOSTIC=True, BBOX_NORMALIZE_TARGETS=False)
    roidb = training_roidb(devkit, cfg)
    means, stds = add_bbox_regression_targets(roidb, cfg)
    targets = np.concatenate([entry["bbox_targets"] for entry in roidb]).astype(np.float64)
    rows = targets[targets[:, 0] > 0]
    assert len(np.unique(rows[:, 0])) > 1, "classes themselves stay"
    assert means.shape == stds.shape == (8,)
    assert not means[:4].any()
    np.testing.assert_allclose(means[4:], rows[:, 1:].mean(0), atol=1e-6)
    np.testing.assert_allclose(stds[4:], rows[:, 1:].std(0), atol=1e-6)
    cfg = make_cfg(AGNOSTIC=True, BBOX_NORMALIZE_TARGETS_PRECOMPUTED=True, BBOX_NORMALIZE_MEANS=(0.5, 0, 0, 1))
    add_bbox_regression_targets(roidb, cfg)
    normalized = np.concatenate([entry["bbox_targets"] for entry in roidb])
    expected = (rows[:, 1:] - [0.5, 0, 0, 1]) / [0.1, 0.1, 0.2, 0.2]
    np.testing.assert_allclose(normalized[normalized[:, 0] > 0, 1:], expected, rtol=1e-5, atol=1e-6)


def test_an_image_without_ground_truth_has_no_targets(devkit, make_cfg):
    devkit.annotation("000003", "")
    cfg = make_cfg(BBOX_NORMALIZE_TARGETS=False)
    roidb = training_roidb(devkit, cfg)
    add_bbox_regression_targets(roidb, cfg)
    assert roidb[2]["bbox_targets"].shape == (2, 5)
    assert not roidb[2]["bbox_targets"].any()


def test_targets_that_cannot_be_normalised(devkit, make_cfg):
    """The original divides by 0 here and trains on NaN."""
    cfg = make_cfg(USE_FLIPPED=False)
    with pytest.raises(PortError, match="class .* are alike .std 0.") as error:
        add_bbox_regression_targets(training_roidb(devkit, cfg), cfg)
    assert "PRECOMPUTED" in error.value.hint


def test_targets_need_a_prepared_roidb(devkit, make_cfg):
    with pytest.raises(PortError, match="empty"):
        add_bbox_regression_targets([], make_cfg())
    with pytest.raises(PortError, match="not prepared"):
        add_bbox_regression_targets(get_imdb("voc_2007_train", data_dir=devkit.data_dir).roidb, make_cfg())
