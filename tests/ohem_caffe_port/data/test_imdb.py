import numpy as np
import pytest

from ohem_caffe_port.data.factory import get_imdb, list_imdbs, register_imdb
from ohem_caffe_port.errors import PortError


def slow_iou(a, b):
    """IoU of two boxes of inclusive pixels, by counting them."""
    pixels = [{(x, y) for x in range(p[0], p[2] + 1) for y in range(p[1], p[3] + 1)} for p in (a, b)]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


def test_roidb_is_ground_truth_then_proposals(devkit):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    entry = imdb.roidb[1]
    assert entry["boxes"].tolist() == [[4, 5, 23, 34], [30, 5, 59, 39], [4, 5, 19, 34], [0, 0, 59, 39]]
    assert entry["boxes"].dtype == np.uint16
    assert entry["gt_classes"].tolist() == [8, 12, 0, 0]
    assert entry["seg_areas"].tolist() == [600, 1050, 0, 0]
    expected = np.zeros((4, 21), dtype=np.float32)
    expected[0, 8] = expected[1, 12] = 1
    expected[2, 8] = slow_iou((4, 5, 19, 34), (4, 5, 23, 34))
    expected[3, 12] = slow_iou((0, 0, 59, 39), (30, 5, 59, 39))  # the better of the two objects only
    np.testing.assert_array_equal(entry["gt_overlaps"].toarray(), expected)


def test_flipping(devkit):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    before = [entry["boxes"].copy() for entry in imdb.roidb]
    imdb.append_flipped_images()
    assert imdb.num_images == len(imdb.roidb) == 6
    assert [entry["flipped"] for entry in imdb.roidb] == [False] * 3 + [True] * 3
    assert imdb.image_path_at(4) == imdb.image_path_at(1)
    # 60 pixels wide: [4, 23] is 4 from the left, so 4 from the right: [36, 55]
    assert imdb.roidb[4]["boxes"].tolist() == [[36, 5, 55, 34], [0, 5, 29, 39], [40, 5, 55, 34], [0, 0, 59, 39]]
    assert imdb.roidb[4]["boxes"].dtype == np.uint16
    assert imdb.roidb[4]["gt_overlaps"] is imdb.roidb[1]["gt_overlaps"]
    for entry, boxes in zip(imdb.roidb, before, strict=False):
        np.testing.assert_array_equal(entry["boxes"], boxes)
    imdb.append_flipped_images()
    assert imdb.num_images == len(imdb.roidb) == 6


def test_flipping_keeps_fractions(devkit, tmp_path):
    np.savez(tmp_path / "p.npz", **{i: np.array([[1.25, 2, 10.5, 12]]) for i in devkit.objects})
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir, proposals=tmp_path / "p.npz")
    imdb.append_flipped_images()
    assert imdb.roidb[3]["boxes"][1].tolist() == [60 - 10.5 - 1, 2, 60 - 1.25 - 1, 12]


def test_union_flips_part_by_part(devkit):
    devkit.image_set("val", ["000003"])
    devkit.proposals({"000003": devkit.cells["000003"]}, "voc_2007_val")
    imdb = get_imdb("voc_2007_train+voc_2007_val", data_dir=devkit.data_dir)
    assert imdb.name == "voc_2007_train+voc_2007_val"
    assert imdb.image_index == ["000001", "000002", "000003", "000003"]
    assert len(imdb.roidb) == len(imdb.gt_roidb()) == 4
    imdb.append_flipped_images()
    assert [entry["flipped"] for entry in imdb.roidb] == [False] * 3 + [True] * 3 + [False, True]
    assert imdb.image_index[-2:] == ["000003", "000003"]
    assert imdb.image_path_at(7).name == "000003.jpg"
    assert imdb.image_size_at(7) == (60, 40)


@pytest.mark.parametrize(
    "box", [(0, 0, 60, 20), (0, 0, 20, 40), (20, 0, 19, 20), (0, 20, 20, 19)], ids=["right", "below", "x", "y"]
)
def test_a_proposal_outside_its_image(devkit, box):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    boxes = [np.array([[0, 0, 9, 9], box], dtype=np.uint16)] * 3
    with pytest.raises(PortError, match="proposal 1 of '000001'.* 60 x 40"):
        imdb.create_roidb_from_box_list(boxes, None)


def test_wrong_number_of_images(devkit):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    with pytest.raises(PortError, match="2 lists of boxes for the 3 images"):
        imdb.create_roidb_from_box_list([np.zeros((0, 4))] * 2, None)
    with pytest.raises(PortError, match="3 and 2 images"):
        imdb.merge_roidbs(imdb.roidb, imdb.roidb[:2])


def test_recall(devkit):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    # 000001: found exactly; 000002: the cat at 0.8, the dog only by the whole image (0.4375); 000003: half the person
    result = imdb.evaluate_recall(thresholds=[0.4, 0.5, 0.75, 0.9])
    np.testing.assert_allclose(result["gt_overlaps"], [1050 / 2400, 0.5, 0.8, 1.0])
    np.testing.assert_allclose(result["recalls"], [1, 3 / 4, 2 / 4, 1 / 4])
    assert result["ar"] == pytest.approx(result["recalls"].mean())
    assert len(imdb.evaluate_recall()["thresholds"]) == 10
    # one proposal can serve one object only
    whole = [np.array([[0, 0, 59, 39]])] * 3
    assert len(imdb.evaluate_recall(whole)["gt_overlaps"]) == 3
    assert imdb.evaluate_recall(thresholds=[0.5], limit=0)["recalls"][0] == 0
    with pytest.raises(PortError, match="unknown area range 'tiny'"):
        imdb.evaluate_recall(area="tiny")
    with pytest.raises(PortError, match="no ground truth"):
        imdb.evaluate_recall(area="large")


def test_factory():
    assert "voc_2012_trainval" in list_imdbs()
    with pytest.raises(PortError, match="unknown imdb 'voc_2007_trainvl'") as error:
        get_imdb("voc_2007_trainvl", data_dir=".")
    assert "Did you mean 'voc_2007_trainval'?" in error.value.hint
    with pytest.raises(ValueError, match="twice"):
        register_imdb("voc_2007_test", None)
    with pytest.raises(PortError, match="has no devkit"):
        get_imdb("shapes_train", data_dir=".", devkit="somewhere")
