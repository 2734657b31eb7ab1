"""Detections of a net whose predictions are constants: one anchor, one box, known scores."""

import numpy as np
import pytest

from ohem_caffe_port.config import Config
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.single_shot import detection_layer, im_detect_rows, rows_by_class

NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 20 dim: 40 } } }
layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "loc" type: "InnerProduct" bottom: "pool" top: "loc" inner_product_param { num_output: 4 } }
layer { name: "conf" type: "InnerProduct" bottom: "pool" top: "conf" inner_product_param { num_output: 3
        bias_filler { type: "constant" value: 0.4 } } }
layer { name: "priors" type: "PriorBox" bottom: "pool" bottom: "data" top: "priors"
        prior_box_param { min_size: 10 variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2 } }
layer { name: "out" type: "DetectionOutput" bottom: "loc" bottom: "conf" bottom: "priors" top: "detections"
        detection_output_param { num_classes: 3 confidence_threshold: THRESHOLD code_type: CENTER_SIZE
                                 nms_param { nms_threshold: 0.5 } } }
"""
IMAGE = np.zeros((40, 60, 3), np.uint8)


def config(**test):
    cfg = Config()
    cfg.merge({"TEST": test}, source="test")
    return cfg


@pytest.mark.parametrize(("test", "size"), [({}, (20, 40)), ({"SCALES": [20], "MAX_SIZE": 100}, (20, 30))])
def test_rows(build, test, size):
    """The anchor, 10 x 10 in the middle of the net's image, in pixels of the picture: stretched to the net's size, or
    scaled to TEST.SCALES."""
    net = build(NET.replace("THRESHOLD", "0.1"), "TEST")
    rows = im_detect_rows(net, IMAGE, config(**test))
    assert net.blobs["data"].shape[2:] == size
    half = np.array([60 / size[1], 40 / size[0]]) * 5
    box = [30 - half[0], 20 - half[1], 30 + half[0] - 1, 20 + half[1] - 1]
    np.testing.assert_allclose(rows, [[1, 0.4, *box], [2, 0.4, *box]], rtol=1e-5)


def test_nothing_found(build):
    assert im_detect_rows(build(NET.replace("THRESHOLD", "0.9"), "TEST"), IMAGE, config()).shape == (0, 6)


def test_by_class():
    rows = np.array([[1, 0.3, 1, 2, 3, 4], [2, 0.9, 5, 6, 7, 8], [1, 0.5, 2, 2, 3, 4], [0, 1, 0, 0, 1, 1]], np.float32)
    empty, ones, twos = rows_by_class(rows, 3)
    assert empty.shape == (0, 5)
    np.testing.assert_allclose(ones, [[2, 2, 3, 4, 0.5], [1, 2, 3, 4, 0.3]])
    np.testing.assert_allclose(twos, [[5, 6, 7, 8, 0.9]])
    assert [len(dets) for dets in rows_by_class(rows[:3], 3, max_per_image=1)] == [0, 0, 1]
    assert [len(dets) for dets in rows_by_class(rows[:3], 3, thresh=0.4, max_per_image=0)] == [0, 1, 1]


def test_other_nets(build):
    assert detection_layer(build(NET.replace("THRESHOLD", "0.1"), "TEST")).name == "out"
    assert detection_layer(build(NET[: NET.index('layer { name: "out"')], "TEST")) is None


def test_one_scale(build):
    net = build(NET.replace("THRESHOLD", "0.1"), "TEST")
    with pytest.raises(PortError, match="one scale"):
        im_detect_rows(net, IMAGE, config(SCALES=[20, 40]))
