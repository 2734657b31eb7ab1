import cv2
import numpy as np
import pytest
import scipy.io

from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.errors import PortError


def write_segmentation(folder, kind, array, image="a"):
    (folder / kind).mkdir(exist_ok=True)
    scipy.io.savemat(folder / kind / f"{image}.mat", {f"GT{kind}": {"Segmentation": array}})


@pytest.fixture
def sbd(tmp_path):
    """A data folder with one image of two objects: a cat (class 8) and a dog (12) with a hole."""
    folder = tmp_path / "VOCdevkitSDS"
    (folder / "img").mkdir(parents=True)
    (folder / "train.txt").write_text("a\n")
    cv2.imwrite(str(folder / "img" / "a.jpg"), np.zeros((20, 30, 3), np.uint8))
    instances, classes = np.zeros((2, 20, 30), np.uint8)
    instances[2:7, 3:12], classes[2:7, 3:12] = 1, 12
    instances[4, 5:8] = classes[4, 5:8] = 0
    instances[10:20, 20:30], classes[10:20, 20:30] = 4, 8
    write_segmentation(folder, "inst", instances)
    write_segmentation(folder, "cls", classes)
    return tmp_path


def test_objects_and_masks(sbd):
    (entry,) = get_imdb("voc_2012_seg_train", data_dir=sbd).roidb
    assert entry["boxes"].tolist() == [[3, 2, 11, 6], [20, 10, 29, 19]]
    assert entry["gt_classes"].tolist() == [12, 8]
    assert entry["gt_overlaps"].toarray()[[0, 1], [12, 8]].tolist() == [1, 1]
    assert [mask.shape for mask in entry["gt_masks"]] == [(5, 9), (10, 10)]
    assert [int(mask.sum()) for mask in entry["gt_masks"]] == [42, 100]
    assert entry["seg_areas"].tolist() == [42, 100]


def test_mirrored_masks(sbd):
    imdb = get_imdb("voc_2012_seg_train", data_dir=sbd)
    for _ in range(2):  # the second time nothing happens
        imdb.append_flipped_images()
    plain, mirrored = imdb.roidb
    assert mirrored["boxes"].tolist() == [[18, 2, 26, 6], [0, 10, 9, 19]]
    for one, other in zip(plain["gt_masks"], mirrored["gt_masks"], strict=True):
        np.testing.assert_array_equal(one, other[:, ::-1])


def test_an_instance_of_two_classes(sbd):
    classes = np.zeros((20, 30), np.uint8)
    classes[:6], classes[6:] = 3, 4
    write_segmentation(sbd / "VOCdevkitSDS", "cls", classes)
    with pytest.raises(PortError, match=r"instance 1 is of the classes \[3, 4\]"):
        _ = get_imdb("voc_2012_seg_train", data_dir=sbd).roidb


@pytest.mark.parametrize("damage", ["missing", "garbage", "other"])
def test_damaged_files(sbd, damage):
    path = sbd / "VOCdevkitSDS" / "inst" / "a.mat"
    if damage == "missing":
        path.unlink()
    elif damage == "garbage":
        path.write_bytes(b"garbage")
    else:
        scipy.io.savemat(path, {"x": 1})
    with pytest.raises(PortError) as caught:
        _ = get_imdb("voc_2012_seg_train", data_dir=sbd).roidb
    assert caught.value.file == path
