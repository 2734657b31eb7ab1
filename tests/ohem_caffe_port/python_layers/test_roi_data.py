import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

NAMES = ("data", "rois", "labels", "bbox_targets", "bbox_inside_weights", "bbox_outside_weights")


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
            assert torch.equal(blobs[name], torch.from_numpy(expected[name]))


def test_the_net_has_one_random_stream_seeded_by_the_configuration(build, shapes_cfg):
    net = build(text(), cfg=shapes_cfg())
    assert net.layers[0].context.rng.randint(1 << 30) == np.random.RandomState(3).randint(1 << 30)


def test_without_box_regression(build, shapes_cfg, shapes_roidb):
    cfg = shapes_cfg()
    roidb = shapes_roidb(cfg)
    cfg.TRAIN.BBOX_REG = False
    net = build(text(NAMES[:3]), cfg=cfg)
    net.layers[0].set_roidb(roidb)
    assert list(net()) == list(NAMES[:3])


@pytest.mark.parametrize(
    ("train", "tops", "param_str", "message"),
    [
        ({}, NAMES[:3], "'num_classes': 7", "its tops are data, rois, labels, bbox_targets"),
        ({"BBOX_REG": False}, NAMES, "'num_classes': 7", "its tops are data, rois, labels$"),
        ({"HAS_RPN": True}, NAMES, "'num_classes': 7", "HAS_RPN is not supported"),
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
