import numpy as np
import pytest

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.data.minibatch import prep_image
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import Context, create_layer

TEXT = """layer { name: "data" type: "Python" top: "data" top: "label" python_param {
    module: "ohem_caffe_port.python_layers" layer: "GtBoxDataLayer" param_str: "'num_classes': 4" } }"""
IMAGES = [np.random.default_rng(i).integers(0, 256, shape).astype(np.uint8) for i, shape in
          enumerate(((40, 60, 3), (40, 50, 3)))]  # fmt: skip


def entry(i, boxes, classes, flipped=False):
    classes = np.array(classes, np.int32)
    return {
        "image": f"{i}.png", "width": IMAGES[i].shape[1], "height": IMAGES[i].shape[0], "flipped": flipped,
        "boxes": np.array(boxes, np.uint16).reshape(-1, 4), "gt_classes": classes, "max_classes": classes,
        "max_overlaps": np.ones(len(classes)),
    }  # fmt: skip


@pytest.fixture
def layer(tmp_path, monkeypatch):
    """``layer(entries, text, **train)``: the layer with these images, both in every batch."""
    import cv2

    for i, image in enumerate(IMAGES):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
    monkeypatch.chdir(tmp_path)

    def make(entries=(), text=TEXT, **train):
        cfg = Config()
        cfg.merge({"TRAIN": {"SCALES": [20], "MAX_SIZE": 100, **train}}, source="test")
        made = create_layer(prototxt.parse_net(text).layer[0], Context("TRAIN", cfg, np.random.RandomState(0)))
        made.setup([])
        assert [tuple(t.shape) for t in made.infer([])] == [(cfg.TRAIN.IMS_PER_BATCH, 3, 20, 100), (1, 1, 1, 8)]
        if entries:
            made.set_roidb(list(entries))
        return made

    return make


def test_rows(layer):
    """Both images scaled by a half, the narrower one padded; boxes end where the next pixel begins."""
    made = layer([entry(0, [[0, 0, 59, 39], [10, 20, 29, 29]], [1, 3]), entry(1, [[4, 0, 9, 9]], [2])] * 2)
    seen = set()
    for _ in range(4):
        data, label = made([])
        assert data.dtype == label.dtype
        widths = [25 if not data[n, :, :, 25:].any() else 30 for n in range(2)]
        assert data.shape[2] == 20
        assert data.shape[3] == max(widths)
        expected = []
        for n, width in enumerate(widths):
            i = int(width == 25)
            blob = prep_image(IMAGES[i], made.context.cfg, 20, made.context.cfg.TRAIN)[0]
            np.testing.assert_allclose(data[n, :, :, :width].permute(1, 2, 0), blob)
            boxes = [(1, 0, 0, 30, 20), (3, 5, 10, 15, 15)] if i == 0 else [(2, 2, 0, 5, 5)]
            expected += [[n, c, 0, x1 / max(widths), y1 / 20, x2 / max(widths), y2 / 20, 0]
                         for c, x1, y1, x2, y2 in boxes]  # fmt: skip
        np.testing.assert_allclose(label[0, 0], expected, rtol=1e-6)
        seen.add(tuple(widths))
    assert seen


def test_no_objects(layer):
    made = layer([entry(1, [], [])] * 2, IMS_PER_BATCH=1)
    data, label = made([])
    assert label.flatten().tolist() == [-1] * 8
    assert data.shape == (1, 3, 20, 25)


def test_settings_that_are_not_stated(layer):
    made = layer()
    train = made.context.cfg.TRAIN
    assert (train.PROPOSAL_METHOD, train.BBOX_REG, train.BG_THRESH_LO, train.ASPECT_GROUPING) == ("gt", False, 0, False)
    assert "TRAIN.BBOX_REG False" in made.warnings[0]
    assert layer(BBOX_REG=True).context.cfg.TRAIN.BBOX_REG


def test_bad_input(layer):
    with pytest.raises(PortError, match="tops are data and label"):
        layer(text=TEXT.replace('top: "label"', ""))
    with pytest.raises(PortError, match="call set_roidb"):
        layer()([])
    with pytest.raises(PortError, match="the data set has class 5"):
        layer([entry(0, [[0, 0, 5, 5]], [5])] * 3)
