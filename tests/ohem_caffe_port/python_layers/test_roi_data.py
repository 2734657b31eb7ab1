import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

NAMES = ("data", "rois", "labels", "bbox_targets", "bbox_inside_weights", "bbox_outside_weights")
RPN_NAMES = ("data", "im_info", "gt_boxes")


def text(tops=NAMES, param_str="'num_classes': 7"):
    tops = " ".join(f'top: "{top}"' for top in tops)
    python = f'module: "roi_data_layer.layer" layer: "RoIDataLayer" param_str: "{param_str}"'
    return f'layer {{ name: "data" type: "Python" {tops} python_param {{ {python} }} }}'


def test_gives_the_loaders_minibatches(build, shapes_cfg, shapes_roidb):
    cfg = shapes_cfg()
    roidb = shapes_roidb(cfg)
    nets = [build(text(), cfg=cfg) for _ in range(2)]
    for net in nets:
        net.layers[0].set_roidb(roidb)
    for _ in range(3):
        blobs = nets[0]()
        expected = nets[1].layers[0].loader.next_minibatch()
        assert set(blobs) == set(expected) == set(NAMES)
        for name in NAMES:
            assert torch.equal(blobs[name], expected[name])


def test_the_net_has_one_random_stream_seeded_by_the_configuration(build, shapes_cfg):
    net = build(text(), cfg=shapes_cfg())
    assert net.layers[0].context.rng.randint(1 << 30) == np.random.RandomState(3).randint(1 << 30)


def test_without_box_regression(build, shapes_cfg, shapes_roidb):
    cfg = shapes_cfg()
    roidb = shapes_roidb(cfg)
    cfg.TRAIN.BBOX_REG = False
    net = build(text(NAMES[:3]), cfg=cfg)
    net.layers[0].set_roidb(roidb)
    assert list(net()) == sorted(NAMES[:3])


@pytest.mark.parametrize(
    ("train", "tops", "param_str", "message"),
    [
        ({}, NAMES[:3], "'num_classes': 7", "its tops are data, rois, labels, bbox_targets"),
        ({"BBOX_REG": False}, NAMES, "'num_classes': 7", "its tops are data, rois, labels$"),
        ({"HAS_RPN": True}, NAMES, "'num_classes': 7", "with TRAIN.HAS_RPN its tops are data, im_info, gt_boxes"),
        ({"HAS_RPN": False}, RPN_NAMES, "'num_classes': 7", "its tops are data, rois, labels, bbox_targets"),
        ({}, NAMES, "'classes': 7", "'num_classes' is missing"),
    ],
)
def test_errors(build, shapes_cfg, train, tops, param_str, message):
    with pytest.raises(PortError, match=message):
        build(text(tops, param_str), cfg=shapes_cfg(**train))


def test_no_data_set(build, shapes_cfg):
    with pytest.raises(PortError, match="no data set was given") as caught:
        build(text(), cfg=shapes_cfg())()
    assert "set_roidb" in caught.value.hint


def test_too_few_classes(build, shapes_cfg, shapes_roidb):
    cfg = shapes_cfg()
    net = build(text(param_str="'num_classes': 2"), cfg=cfg)
    with pytest.raises(PortError, match="num_classes 2"):
        net.layers[0].set_roidb(shapes_roidb(cfg))


# ---- region proposal networks


def test_feeds_a_region_proposal_network(build, shapes_cfg, shapes_roidb):
    """What is not stated about a net with im_info follows py-faster-rcnn's faster_rcnn_end2end.yml."""
    cfg = shapes_cfg("fast_rcnn")
    cfg.explicit -= {"TRAIN.IMS_PER_BATCH", "TRAIN.BG_THRESH_LO"}  # of the zoo's cfg.yml
    net = build(text(RPN_NAMES), cfg=cfg)
    train = cfg.TRAIN
    assert (train.HAS_RPN, train.IMS_PER_BATCH, train.PROPOSAL_METHOD) == (True, 1, "gt")
    assert (train.BBOX_NORMALIZE_TARGETS_PRECOMPUTED, train.BG_THRESH_LO) == (True, 0.0)
    assert "TRAIN.IMS_PER_BATCH 1" in net.warnings[0]
    roidb = shapes_roidb(cfg)
    net.layers[0].set_roidb(roidb)
    blobs = net()
    assert list(blobs) == sorted(RPN_NAMES)
    _, _, height, width = blobs["data"].shape
    assert blobs["im_info"][0, :2].tolist() == [height, width]
    gt_boxes, scale = blobs["gt_boxes"].numpy(), blobs["im_info"][0, 2].item()
    boxes = [e["boxes"][e["gt_classes"] > 0] * scale for e in roidb]
    assert any(b.shape == gt_boxes[:, :4].shape and np.allclose(b, gt_boxes[:, :4], rtol=1e-5) for b in boxes)
    assert gt_boxes[:, 4].min() >= 1


def test_what_is_stated_about_a_region_proposal_network_stays(build, shapes_cfg):
    cfg = shapes_cfg(BG_THRESH_LO=0.1, IMS_PER_BATCH=1, HAS_RPN=True)
    cfg.explicit -= {"TRAIN.PROPOSAL_METHOD"}
    net = build(text(RPN_NAMES), cfg=cfg)
    assert cfg.TRAIN.BG_THRESH_LO == 0.1
    assert cfg.TRAIN.PROPOSAL_METHOD == "selective_search"
    assert net.warnings == []
    cfg = shapes_cfg(BG_THRESH_LO=0.1)
    build(text(RPN_NAMES), cfg=cfg)
    assert (cfg.TRAIN.BG_THRESH_LO, cfg.TRAIN.HAS_RPN) == (0.1, True)


def test_one_image_at_a_time(build, shapes_cfg, shapes_roidb):
    cfg = shapes_cfg(IMS_PER_BATCH=2, HAS_RPN=True)
    net = build(text(RPN_NAMES), cfg=cfg)
    with pytest.raises(PortError, match="takes one image at a time") as caught:
        net.layers[0].set_roidb(shapes_roidb(cfg))
    assert caught.value.field == "TRAIN.IMS_PER_BATCH"


@pytest.mark.parametrize("has_rpn", [True, False])
def test_the_axes_of_py_r_fcn(build, shapes_cfg, shapes_roidb, has_rpn):
    cfg = shapes_cfg(AGNOSTIC=True, HAS_RPN=has_rpn, IMS_PER_BATCH=1)
    net = build(text(RPN_NAMES if has_rpn else NAMES), cfg=cfg)
    net.layers[0].set_roidb(shapes_roidb(cfg))
    inferred = {value.name: shape for value, shape in zip(net.values, net.shapes, strict=True)}
    for name, blob in net().items():
        assert blob.dim() == (2 if name == "im_info" else 4)
        assert blob.shape[1:] == inferred[name][1:] or name == "data"
    if not has_rpn:
        assert net.blobs["bbox_targets"].shape[1] == 8
