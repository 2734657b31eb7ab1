import numpy as np
import pytest
import scipy.io

from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError

RPN_NAMES = ("data", "im_info", "gt_boxes", "gt_masks", "mask_info")
CFM_NAMES = ("data", "rois", "masks", "box_label", "mask_label", "bbox_targets", "mask_targets", "bbox_inside_weights",
             "bbox_outside_weights", "mask_weight")  # fmt: skip


def text(layer, tops):
    tops = " ".join(f'top: "{top}"' for top in tops)
    module = {"MNCDataLayer": "mnc_data_layer", "CFMDataLayer": "cfm_data_layer"}[layer]
    python = f'module: "pylayer.{module}" layer: "{layer}" param_str: "{{num_classes: 7}}"'
    return f'layer {{ name: "data" type: "Python" {tops} python_param {{ {python} }} }}'


def with_masks(roidb):
    rng = np.random.default_rng(0)
    for entry in roidb:
        boxes = entry["boxes"][entry["gt_classes"] > 0].astype(int)
        entry["gt_masks"] = [rng.random((y2 - y1 + 1, x2 - x1 + 1)) < 0.7 for x1, y1, x2, y2 in boxes]
    return roidb


@pytest.mark.parametrize("count", [3, 5])
def test_objects_and_masks(build, shapes_cfg, shapes_roidb, count):
    cfg = shapes_cfg("fast_rcnn")
    cfg.explicit -= {"TRAIN.IMS_PER_BATCH", "TRAIN.BATCH_SIZE"}
    net = build(text("MNCDataLayer", RPN_NAMES[:count]), cfg=cfg)
    assert (cfg.TRAIN.HAS_RPN, cfg.TRAIN.IMS_PER_BATCH) == (True, 1)
    expected = (64, (0.85, 0.15)) if count == 5 else (128, (1.0,))
    assert expected == (cfg.TRAIN.BATCH_SIZE, cfg.TRAIN.BG_FRACTION)
    roidb = with_masks(shapes_roidb(cfg))
    net.layers[0].set_roidb(roidb)
    blobs = net()
    assert list(blobs) == sorted(RPN_NAMES[:count])
    if count == 5:
        entry = roidb[net.layers[0].loader._perm[0]]
        assert blobs["gt_masks"].shape[0] == len(blobs["gt_boxes"]) == len(entry["gt_masks"])
        for page, (height, width), mask in zip(blobs["gt_masks"], blobs["mask_info"], entry["gt_masks"], strict=True):
            np.testing.assert_array_equal(page[: int(height), : int(width)], mask)
            assert page.sum() == mask.sum()


@pytest.mark.parametrize(("damage", "words"), [("missing", "are missing"), ("size", "do not have the sizes")])
def test_masks_that_do_not_fit(build, shapes_cfg, shapes_roidb, damage, words):
    cfg = shapes_cfg("fast_rcnn")
    net = build(text("MNCDataLayer", RPN_NAMES), cfg=cfg)
    roidb = shapes_roidb(cfg)
    if damage == "size":
        with_masks(roidb)[2]["gt_masks"][0] = np.ones((1, 1), bool)
    with pytest.raises(PortError, match=words) as caught:
        net.layers[0].set_roidb(roidb)
    assert "voc_2012_seg_train" in caught.value.hint


@pytest.mark.parametrize(
    ("layer", "tops", "train", "message"),
    [
        ("MNCDataLayer", RPN_NAMES[:4], {}, "its tops are data, im_info, gt_boxes, and for masks"),
        ("MNCDataLayer", RPN_NAMES, {"HAS_RPN": False}, "TRAIN.HAS_RPN must be True"),
        ("CFMDataLayer", CFM_NAMES[:5], {}, "its tops are data, rois, masks, box_label"),
    ],
)
def test_errors(build, layer, tops, train, message):
    cfg = Config()
    cfg.merge({"TRAIN": train}, source="test")
    with pytest.raises(PortError, match=message):
        build(text(layer, tops), cfg=cfg)


def test_no_data_set(build):
    for layer, tops in (("MNCDataLayer", RPN_NAMES), ("CFMDataLayer", CFM_NAMES)):
        with pytest.raises(PortError, match="no data set was given") as caught:
            build(text(layer, tops), cfg=Config())()
        assert "set_roidb" in caught.value.hint


# ---- masks of proposals


@pytest.fixture
def cfm_roidb(shapes_roidb, tmp_path):
    """``cfm_roidb(cfg, as_files)``: with random masks, as arrays or as MNC's .mat files."""

    def make(cfg, as_files):
        rng, roidb = np.random.default_rng(0), shapes_roidb(cfg)
        for i, entry in enumerate(roidb):
            count = len(entry["boxes"])
            masks, targets = rng.random((2, count, 21, 21)) < 0.5
            overlaps = rng.random(count)
            if as_files:
                entry["mask_file"] = str(tmp_path / f"{i}.mat")
                mat = {"masks": masks, "mask_targets": targets, "seg_overlap": overlaps[:, None]}
                scipy.io.savemat(entry["mask_file"], mat)
            else:
                entry |= {"masks": masks, "mask_targets": targets, "seg_overlaps": overlaps}
        return roidb

    return make


@pytest.mark.parametrize("as_files", [False, True])
def test_masks_of_proposals(build, shapes_cfg, cfm_roidb, as_files):
    cfg = shapes_cfg("fast_rcnn", IMS_PER_BATCH=1, BATCH_SIZE=40)
    net = build(text("CFMDataLayer", CFM_NAMES), cfg=cfg)
    roidb = cfm_roidb(cfg, as_files)
    net.layers[0].set_roidb(roidb)
    plans = []
    layer = net.layers[0]
    plan = layer.loader.plan
    layer.loader.plan = lambda *args: plans.append(plan(*args)) or plans[-1]
    for _ in range(4):
        blobs = {name: blob.numpy() for name, blob in net().items()}
        entry, keep, num_fg = roidb[plans[-1].roidb_inds[0]], plans[-1].keep[0], plans[-1].num_fg[0]
        assert (entry["max_overlaps"][keep[:num_fg]] >= 0.5).all()
        assert (entry["max_overlaps"][keep[num_fg:]] < 0.5).all()
        source = scipy.io.loadmat(entry["mask_file"]) if as_files else entry
        overlaps = np.ravel(source["seg_overlap" if as_files else "seg_overlaps"])[keep]
        labels = np.where(np.arange(len(keep)) < num_fg, entry["max_classes"][keep], 0)
        np.testing.assert_array_equal(blobs["box_label"][:, 0], labels)
        np.testing.assert_array_equal(blobs["mask_label"][:, 0], np.where(overlaps < 0.5, 0, labels))
        np.testing.assert_array_equal(blobs["mask_targets"][:, 0], source["mask_targets"][keep])
        np.testing.assert_array_equal(blobs["mask_weight"].all((1, 2, 3)), np.arange(len(keep)) < num_fg)
        assert blobs["masks"].shape == (len(keep), 1, 14, 14)
        assert set(np.unique(blobs["masks"])) <= {0, 1}
        scale = blobs["data"].shape[3] / entry["width"]
        np.testing.assert_allclose(blobs["rois"][:, 1:], entry["boxes"][keep] * scale, rtol=0.03, atol=0.5)
        rows = np.flatnonzero(labels)
        columns = 4 * labels[rows, None] + np.arange(4)
        np.testing.assert_array_equal(
            blobs["bbox_targets"][rows[:, None], columns], entry["bbox_targets"][keep[rows], 1:]
        )
        assert not blobs["bbox_inside_weights"][labels == 0].any()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "no masks of its proposals"),
        ("garbage", "not a readable .mat file"),
        ("other", "holds no masks"),
        ("short", "has masks of 3 RoIs"),
    ],
)
def test_proposals_without_masks(build, shapes_cfg, cfm_roidb, tmp_path, damage, words):
    cfg = shapes_cfg("fast_rcnn", IMS_PER_BATCH=1)
    net = build(text("CFMDataLayer", CFM_NAMES), cfg=cfg)
    roidb = cfm_roidb(cfg, as_files=True)
    for entry in roidb:
        if damage == "missing":
            del entry["mask_file"]
        else:
            entry["mask_file"] = str(tmp_path / "x.mat")
    (tmp_path / "x.mat").write_bytes(b"garbage")
    if damage == "other":
        scipy.io.savemat(tmp_path / "x.mat", {"boxes": np.zeros((3, 4))})
    if damage == "short":
        scipy.io.savemat(tmp_path / "x.mat", {k: np.zeros(3) for k in ("masks", "mask_targets", "seg_overlap")} |
                         {"masks": np.zeros((3, 21, 21)), "mask_targets": np.zeros((3, 21, 21))})  # fmt: skip
    net.layers[0].set_roidb(roidb)
    with pytest.raises(PortError, match=words):
        net()
