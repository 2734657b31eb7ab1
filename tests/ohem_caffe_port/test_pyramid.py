import cv2
import numpy as np
import pytest
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.minibatch import image_scale, images_to_blob, prep_image
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.pyramid import FeaturePyramid, project_rois, rois_split, scale_groups, unique_rois

# what is pooled is largest at the edges, unless another convolution's bias is around them
NET = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 40 dim: 60 } } }
layer { name: "rois" type: "Input" top: "rois" input_param { shape { dim: 1 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 5 pad: 2 stride: 2 weight_filler { type: "gaussian" std: 0.1 }
                            bias_filler { type: "constant" value: 20 } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "conv2" type: "Convolution" bottom: "conv" top: "conv2"
        convolution_param { num_output: 4 kernel_size: 5 pad: 2 weight_filler { type: "constant" value: -0.1 } } }
layer { name: "pool" type: "ROIPooling" bottom: "conv2" bottom: "rois" top: "pool"
        roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0.5 } }
layer { name: "flat" type: "Flatten" bottom: "pool" top: "flat" }
"""
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def config(**test):
    cfg = Config()
    cfg.merge({"TEST": {"SCALES": [40, 80, 400], **test}}, source="test")
    return cfg


def boxes_in(number, width=60, height=40, seed=0):
    corners = np.random.default_rng(seed).integers(0, [width, height], (2, number, 2))
    return np.hstack([corners.min(0), corners.max(0)]).astype(np.uint16)


def test_a_level_for_each_roi():
    """The level at which a box comes closest to 224 x 224 pixels."""
    boxes = np.array([[0, 0, 21, 21], [0, 0, 59, 39], [0, 0, 111, 111], [0, 0, 223, 223]])
    rois = project_rois(boxes, np.array([1.0, 2, 10]))
    assert rois.dtype == np.float32
    assert rois.tolist() == [[2, 0, 0, 210, 210], [1, 0, 0, 118, 78], [1, 0, 0, 222, 222], [0, 0, 0, 223, 223]]


def test_unique_rois():
    rois = np.array([[0, 16, 16, 80, 80], [0, 17, 15, 81, 79], [0, 64, 16, 80, 80], [1, 16, 16, 80, 80]], np.float32)
    index, inverse = unique_rois(rois, 1 / 16)
    assert inverse[0] == inverse[1]
    assert len(index) == 3, "the same coordinates on another level are another place"
    np.testing.assert_array_equal(rois[index][inverse][[0, 2, 3]], rois[[0, 2, 3]])


@pytest.mark.parametrize("multiple", [1, 16])
def test_sizes_are_those_of_the_scaled_images(multiple):
    rng, cfg = np.random.default_rng(1), config(SCALE_MULTIPLE_OF=multiple, MAX_SIZE=120)
    for height, width in rng.integers(20, 90, (40, 2)):
        image = np.zeros((height, width, 3), np.uint8)
        for target in (30, 77, 101):
            x, y = image_scale(image.shape, target, cfg.TEST)
            assert prep_image(image, cfg, target, cfg.TEST)[0].shape[:2] == (np.round(height * y), np.round(width * x))


def test_groups():
    cfg = config(SCALES=[80, 40, 400, 500], MAX_SIZE=300)
    assert scale_groups(IMAGE.shape, cfg) == [(80, 40, 400, 500)]
    cfg.TEST.SCALE_USE = "all"
    assert scale_groups(IMAGE.shape, cfg) == [(40,), (80,), (400,)], "500 is 400: both become 300 pixels wide"


def test_where_a_net_turns_to_its_rois(build, faster_rcnn):
    assert rois_split(build(NET, "TEST")) == ("conv2", "pool", ["conv2"])
    assert rois_split(build(faster_rcnn.test, "TEST")) == ("proposal", "pool", ["conv1"])
    with pytest.raises(PortError, match="no layer reads the blob rois"):
        rois_split(build(faster_rcnn.rpn, "TEST"))


@pytest.mark.parametrize("size", [1000, 300])
def test_the_same_as_one_blob_of_all_levels(build, size):
    """The original's way: all levels padded in one data blob, rois of every level in one forward."""
    image = np.random.default_rng(2).integers(0, 256, (100, 140, 3)).astype(np.uint8)
    cfg, net = config(SCALES=[180, 240, 600], MAX_SIZE=size), build(NET, "TEST")
    boxes = np.vstack([boxes_in(100, 140, 100), [[0, 0, 139, 99], [20, 5, 139, 99]]])
    cfg.DEDUP_BOXES = 0.0
    with torch.no_grad():
        pyramid = FeaturePyramid(net, image, cfg, cfg.TEST.SCALES, ["flat"])
        (ours,) = pyramid.score_rois(project_rois(boxes, pyramid.scales))
        assert net.blobs["data"].shape == (1, 3, *pyramid.size), "one level in memory, of the size of the largest"
        levels = [prep_image(image, cfg, target, cfg.TEST) for target in cfg.TEST.SCALES]
        scales = np.array([scale for _, scale in levels])
        np.testing.assert_array_equal(pyramid.scales, scales)
        rois = project_rois(boxes, scales)
        assert len(np.unique(rois[:, 0])) == len(np.unique(scales))
        theirs = net(data=images_to_blob([level for level, _ in levels]), rois=rois)["flat"].numpy()
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(theirs).max())
        first = rois[:, 0] == 0
        unpadded = net(data=images_to_blob([levels[0][0]]), rois=rois[first])["flat"].numpy()
        assert np.abs(unpadded - theirs[first]).max() > 1, "padding counts"


def test_the_image_part_runs_once_for_each_level(build):
    net, cfg, ran = build(NET, "TEST"), config(), []
    pyramid = FeaturePyramid(net, IMAGE, cfg, cfg.TEST.SCALES, ["flat"])
    net.watch = lambda step, layer, tops: ran.append(layer.name)
    net.keep_blobs = False
    small, large = np.array([[0, 0, 4, 4]]), np.array([[0, 0, 59, 39]])
    with torch.no_grad():
        pyramid.score_boxes(small)
        assert (ran.count("conv"), ran.count("pool")) == (1, 1), "no box is on the other levels"
        pyramid.score_boxes(np.vstack([small, large]))
        assert (ran.count("conv"), ran.count("pool")) == (2, 3)
        pyramid.score_boxes(large)
    assert (ran.count("conv"), ran.count("pool")) == (2, 4)
    assert set(net.blobs) == {"conv2", "flat"}


def test_many_rois_go_through_in_parts(build, monkeypatch):
    net, cfg, boxes = build(NET, "TEST"), config(), boxes_in(50)
    with torch.no_grad():
        pyramid = FeaturePyramid(net, IMAGE, cfg, [40], ["flat", "pool"])
        whole = pyramid.score_boxes(boxes)
        monkeypatch.setattr("ohem_caffe_port.pyramid._ROIS_AT_A_TIME", 7)
        parts = pyramid.score_boxes(boxes)
    assert 0 < len(net.blobs["rois"]) <= 7
    assert whole[1][0].shape == (50, 16)
    for one, other in zip([whole[0], *whole[1]], [parts[0], *parts[1]], strict=True):
        np.testing.assert_array_equal(one, other)


def test_pixels_become_floats_as_in_the_original():
    cfg = config()
    cfg.PIXEL_STDS = (57.375, 57.12, 58.395)
    expected = IMAGE.astype(np.float32)
    expected -= np.asarray(cfg.PIXEL_MEANS)
    expected /= np.asarray(cfg.PIXEL_STDS)
    expected = cv2.resize(expected, None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(prep_image(IMAGE, cfg, 80, cfg.TEST)[0], expected)
    np.testing.assert_array_equal(prep_image(IMAGE[:, ::-1], cfg, 40, cfg.TEST)[0][:, ::-1],
                                  prep_image(IMAGE, cfg, 40, cfg.TEST)[0])  # fmt: skip
