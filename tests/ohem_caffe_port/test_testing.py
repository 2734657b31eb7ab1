import numpy as np
import pytest

import prototxt
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.net import Net
from ohem_caffe_port.testing import test_net as run_test_net


@pytest.fixture
def test_detector(detector):
    def make(**options):
        return Net(prototxt.parse_net(detector(**options).test), "TEST")

    return make


def test_every_image_is_tested(shapes_imdb, shapes_cfg, test_detector):
    imdb, cfg, seen = shapes_imdb("test"), shapes_cfg(), []
    all_boxes = run_test_net(
        test_detector(), imdb, cfg, thresh=0.0, max_per_image=20,
        on_image=lambda i, image, dets: seen.append((i, image.shape, [len(d) for d in dets])),
    )  # fmt: skip
    assert [len(rows) for rows in all_boxes] == [imdb.num_images] * imdb.num_classes
    assert [i for i, _, _ in seen] == list(range(imdb.num_images))
    assert [lengths for _, _, lengths in seen] == [[len(rows[i]) for rows in all_boxes] for i in range(4)]
    for i, shape, lengths in seen:
        assert lengths[0] == 0
        assert sum(lengths) >= 20
        boxes = np.concatenate([rows[i] for rows in all_boxes])
        assert boxes[:, :4].min() >= 0
        assert boxes[:, [0, 2]].max() <= shape[1] - 1
        assert boxes[:, [1, 3]].max() <= shape[0] - 1


def test_proposals_only(shapes_imdb, shapes_cfg, test_detector):
    """Ground truth boxes of the roidb never reach the net."""
    imdb, net = shapes_imdb("test"), test_detector()
    cfg, rows = shapes_cfg(), []
    cfg.DEDUP_BOXES = 0.0
    run_test_net(net, imdb, cfg, on_image=lambda i, image, dets: rows.append(len(net.blobs["rois"])))
    assert rows == [int((entry["gt_classes"] == 0).sum()) for entry in imdb.roidb]
    assert all(n < len(entry["boxes"]) for n, entry in zip(rows, imdb.roidb, strict=True))


def test_another_number_of_classes(shapes_imdb, shapes_cfg, test_detector):
    with pytest.raises(PortError, match="the net scores 5 classes, shapes_test has 7"):
        run_test_net(test_detector(classes=5), shapes_imdb("test"), shapes_cfg())


def test_an_image_without_proposals(shapes_imdb, shapes_cfg, test_detector):
    imdb = shapes_imdb("test")
    imdb.proposals = None
    with pytest.raises(PortError, match="has no proposals"):
        run_test_net(test_detector(), imdb, shapes_cfg())
