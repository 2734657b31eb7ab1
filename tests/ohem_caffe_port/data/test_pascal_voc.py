import numpy as np
import pytest

from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.data.pascal_voc import VOC_CLASSES, find_devkit, read_annotation
from ohem_caffe_port.errors import PortError


def test_ground_truth_is_zero_based_without_difficult_objects(devkit):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir, proposals="gt")
    assert (imdb.num_classes, imdb.num_images, imdb.image_id_at(1)) == (21, 3, "000002")
    assert imdb.image_path_at(1) == devkit.voc / "JPEGImages" / "000002.jpg"
    first, second, _ = imdb.roidb
    assert first["boxes"].tolist() == [[10, 10, 29, 29]]
    assert first["boxes"].dtype == np.uint16
    assert first["gt_classes"].tolist() == [VOC_CLASSES.index("dog")]
    assert first["gt_classes"].dtype == np.int32
    assert second["boxes"].tolist() == [[4, 5, 23, 34], [30, 5, 59, 39]]
    assert second["seg_areas"].tolist() == [20 * 30, 30 * 35]
    overlaps = second["gt_overlaps"]
    assert overlaps.format == "csr"
    assert overlaps.dtype == np.float32
    assert overlaps.shape == (2, 21)
    assert np.argwhere(overlaps.toarray() == 1).tolist() == [
        [0, VOC_CLASSES.index("cat")],
        [1, VOC_CLASSES.index("dog")],
    ]
    assert second["flipped"] is False


def test_use_diff_keeps_difficult_objects(devkit):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir, proposals="gt", use_diff=True)
    assert imdb.roidb[0]["boxes"].tolist() == [[10, 10, 29, 29], [0, 0, 59, 39]]


def test_an_image_without_objects(devkit):
    devkit.annotation("000001", "")
    entry = get_imdb("voc_2007_train", data_dir=devkit.data_dir).roidb[0]
    assert entry["gt_overlaps"].nnz == 0
    assert entry["gt_overlaps"].shape == (len(entry["boxes"]), 21)


def test_read_annotation(devkit):
    assert read_annotation(devkit.voc / "Annotations" / "000001.xml") == [
        {"name": "dog", "bbox": (11, 11, 30, 30), "difficult": False, "truncated": True, "pose": "Left"},
        {"name": "person", "bbox": (1, 1, 60, 40), "difficult": True, "truncated": True, "pose": "Left"},
    ]


def test_read_annotation_with_the_optional_parts_absent_and_fractions(tmp_path):
    path = tmp_path / "a.xml"
    box = "<bndbox><xmin>45.7</xmin><ymin>2</ymin><xmax>60.2</xmax><ymax>9</ymax></bndbox>"
    path.write_text(f"<a><object><name> Dog </name>{box}<part><name>head</name>{box}</part></object></a>")
    assert read_annotation(path) == [
        {"name": "dog", "bbox": (45, 2, 60, 9), "difficult": False, "truncated": False, "pose": "Unspecified"}
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.one_object("000002", "doge"), "object 1: class 'doge' .*\n.*'dog'"),
        (lambda d: d.one_object("000002", "__background__"), "class '__background__' is not among"),
        (lambda d: d.one_object("000002", box=(0, 1, 20, 20)), "object 1: box .* begins before pixel 1"),
        (lambda d: d.one_object("000002", box=(21, 1, 20, 20)), "object 1: box .* is inverted"),
        (lambda d: d.one_object("000002", box=(1, 1, 61, 20)), "object 1 .*outside the 60 x 40 image"),
        (lambda d: d.one_object("000002", box=(1, 1, 60, 41)), "object 1 .*outside the 60 x 40 image"),
        (lambda d: d.one_object("000002", box=(1, 1, "x", 20)), "xmax: object 1: 'x' is not a number"),
        (lambda d: d.one_object("000002", box=(1, 1, "inf", 20)), "xmax: object 1: 'inf' is not a number"),
        (lambda d: d.one_object("000002", ""), "object 1: no class name"),
        (lambda d: d.annotation("000002", "<object><name>dog</name></object>"), "bndbox/xmin: object 1: missing"),
        (lambda d: d.annotation("000002", "<object>"), r"000002.xml:2: broken XML"),
        (lambda d: (d.voc / "Annotations" / "000002.xml").unlink(), "annotation not found"),
        (lambda d: (d.voc / "JPEGImages" / "000002.jpg").unlink(), "image not found"),
        (lambda d: (d.voc / "JPEGImages" / "000002.jpg").write_bytes(b"GIF"), "not a readable image"),
    ],
)
def test_errors_name_the_file(devkit, change, message):
    change(devkit)
    with pytest.raises(PortError, match=message) as error:
        get_imdb("voc_2007_train", data_dir=devkit.data_dir).roidb  # noqa: B018
    assert "000002" in str(error.value.file)
    assert error.value.hint


def test_devkit_lookup(tmp_path):
    (tmp_path / "VOCdevkit" / "VOC2012").mkdir(parents=True)
    assert find_devkit("2012", tmp_path) == tmp_path / "VOCdevkit"
    (tmp_path / "VOCdevkit2012" / "VOC2012").mkdir(parents=True)
    assert find_devkit("2012", tmp_path) == tmp_path / "VOCdevkit2012"
    assert find_devkit("2012", "elsewhere", tmp_path / "VOCdevkit") == tmp_path / "VOCdevkit"
    with pytest.raises(PortError, match="VOCdevkit2007.VOC2007, .*VOCdevkit.VOC2007") as error:
        find_devkit("2007", tmp_path)
    assert "Unpack" in error.value.hint


def test_the_folder_of_one_year_may_be_named(devkit, tmp_path):
    """VOC2007 itself, or its content in a folder of another name; not that of another year."""
    names = {"data_dir": "nowhere", "proposals": "gt"}
    roidb = get_imdb("voc_2007_train", devkit=devkit.voc.parent, **names).roidb
    renamed = tmp_path / "mine"
    renamed.symlink_to(devkit.voc)
    for folder in (devkit.voc, renamed):
        same = get_imdb("voc_2007_train", devkit=folder, **names).roidb
        assert [entry["boxes"].tolist() for entry in same] == [entry["boxes"].tolist() for entry in roidb]
    with pytest.raises(PortError, match="no VOC 2012 devkit found"):
        get_imdb("voc_2012_train", devkit=devkit.voc, **names)


def test_annotations_have_difficult_objects(devkit):
    found = get_imdb("voc_2007_train", data_dir=devkit.data_dir, proposals="gt").annotations()
    assert list(found) == ["000001", "000002", "000003"]
    assert [(obj["name"], obj["bbox"], obj["difficult"]) for obj in found["000001"]] == [
        ("dog", (11, 11, 30, 30), False),
        ("person", (1, 1, 60, 40), True),
    ]


def test_missing_and_empty_image_set(devkit):
    with pytest.raises(PortError, match="image set not found") as error:
        get_imdb("voc_2007_test", data_dir=devkit.data_dir, proposals="gt")
    assert "train" in error.value.hint
    devkit.image_set("val", [])
    with pytest.raises(PortError, match="image set is empty"):
        get_imdb("voc_2007_val", data_dir=devkit.data_dir, proposals="gt")


def test_a_test_set_after_2007_has_proposals_only(devkit):
    (devkit.data_dir / "VOCdevkit2007").rename(devkit.data_dir / "VOCdevkit2012")
    voc = devkit.data_dir / "VOCdevkit2012" / "VOC2012"
    (voc.parent / "VOC2007").rename(voc)
    (voc / "ImageSets" / "Main" / "train.txt").rename(voc / "ImageSets" / "Main" / "test.txt")
    devkit.proposals(devkit.cells, "voc_2012_test")
    imdb = get_imdb("voc_2012_test", data_dir=devkit.data_dir)
    assert not imdb.use_07_metric
    assert imdb.gt_roidb() is None
    assert all((entry["gt_classes"] == 0).all() and entry["gt_overlaps"].nnz == 0 for entry in imdb.roidb)
    with pytest.raises(PortError, match="needs proposals"):
        get_imdb("voc_2012_test", data_dir=devkit.data_dir, proposals="gt").roidb  # noqa: B018


def test_real_images(shared_voc):
    train, val = (get_imdb(f"voc_2007_{part}", data_dir=shared_voc) for part in ("train", "val"))
    assert (train.num_images, val.num_images) == (480, 280)
    recall = val.evaluate_recall(thresholds=[0.5])["recalls"][0]
    assert recall > 0.9  # boxes of another image or in another column order would miss nearly all
