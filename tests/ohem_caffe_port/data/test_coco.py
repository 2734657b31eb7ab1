"""COCO's image sets: annotations, crowds, proposals and where files are looked for."""

import json

import cv2
import numpy as np
import pytest
import scipy.io

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.coco import COCO_CLASSES
from ohem_caffe_port.data.coco_annotations import read_coco
from ohem_caffe_port.data.factory import get_imdb, list_imdbs
from ohem_caffe_port.data.minibatch import plan_minibatch
from ohem_caffe_port.data.roidb import add_bbox_regression_targets, get_training_roidb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.results import evaluate_results, write_results

CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}]
OBJECTS = [
    {"id": 1, "image_id": 42, "category_id": 90, "bbox": [10.6, 5.2, 20.9, 10], "area": 150.5, "iscrowd": 0},
    {"id": 2, "image_id": 42, "category_id": 3, "bbox": [-3, 30, 200, 20], "area": 700, "iscrowd": 1},
    {"id": 3, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 0},
    {"id": 4, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "area": 0, "iscrowd": 0},
    {"id": 5, "image_id": 7, "category_id": 3, "bbox": [60, 0, 9, 9], "area": 81, "iscrowd": 0},
]


class CocoFolder:
    """``<data_dir>/coco`` with two images of 60 x 40 pixels."""

    def __init__(self, data_dir):
        self.data_dir, self.folder = data_dir, data_dir / "coco"

    def write(self, set_year="val2014", kind="instances", ids=(42, 7), name="COCO_val2014_{:012d}.jpg", **changes):
        """An annotation file; ``changes`` replace its lists."""
        records = [{"id": i, "width": 60, "height": 40, "file_name": name.format(i)} for i in ids]
        objects = [obj for obj in OBJECTS if obj["image_id"] in ids and kind == "instances"]
        content = {"images": records, "categories": CATEGORIES, "annotations": objects, **changes}
        path = self.folder / "annotations" / f"{kind}_{set_year}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    def draw(self, folder, name="COCO_val2014_{:012d}.jpg", images=(42, 7)):
        (self.folder / folder).mkdir(parents=True)
        for i in images:
            cv2.imwrite(str(self.folder / folder / name.format(i)), np.zeros((40, 60, 3), np.uint8))

    def save_mat(self, path, boxes):
        path = self.data_dir / "coco_proposals" / path
        path.parent.mkdir(parents=True, exist_ok=True)
        scipy.io.savemat(path, {"boxes": np.array(boxes, np.uint16).reshape(-1, 4)})

    def save_npz(self, name="coco_2014_val", **boxes):
        (self.data_dir / "selective_search_data").mkdir(exist_ok=True)
        arrays = {i: np.array(rows) for i, rows in boxes.items()}
        np.savez(self.data_dir / "selective_search_data" / f"{name}.npz", **arrays)

    def open(self, name="coco_2014_val", **options):
        return get_imdb(name, data_dir=self.data_dir, **options)


@pytest.fixture
def coco(tmp_path):
    made = CocoFolder(tmp_path)
    made.write()
    return made


def test_names():
    years = {"2014": "train val trainval minival valminusminival", "2015": "test test-dev"}
    years["2017"] = "train val test test-dev"
    wanted = {f"coco_{year}_{split}" for year, splits in years.items() for split in splits.split()}
    assert {name for name in list_imdbs() if name.startswith("coco")} == wanted
    assert len(COCO_CLASSES) == 81 and len(set(COCO_CLASSES)) == 81
    assert [COCO_CLASSES.index(name) for name in ("person", "stop sign", "couch", "toothbrush")] == [1, 12, 58, 80]


def test_ground_truth(coco):
    imdb = coco.open(proposals="gt")
    assert imdb.classes == ("__background__", "cat", "dog")
    assert imdb.category_ids == [0, 3, 90]
    assert imdb.image_index == ["42", "7"]
    assert imdb.image_size_at(0) == (60, 40)
    first, second = imdb.roidb
    # 10.6 + (20.9 - 1) = 30.5; the crowd is clipped on the left, its width counted from there, then on the right
    assert first["boxes"].tolist() == [[10, 5, 30, 14], [0, 30, 59, 39]]
    assert first["boxes"].dtype == np.uint16
    assert first["gt_classes"].tolist() == [2, 1]
    assert first["gt_overlaps"].toarray().tolist() == [[0, 0, 1], [-1, -1, -1]]
    assert first["seg_areas"].tolist() == [150.5, 700]
    assert second["boxes"].tolist() == [[0, 0, 59, 39]], "without area, and outside the image"


def test_an_image_without_annotations(coco):
    coco.write(ids=(42, 8))
    entry = coco.open(proposals="gt").roidb[1]
    assert entry["boxes"].shape == (0, 4) and entry["gt_overlaps"].shape == (0, 3)


def crowded(coco):
    """Proposals of image 42: 8/10 and 7/10 of the height in the crowd (y 30 to 39), and one away from it."""
    coco.save_npz(**{"42": [[0, 28, 9, 37], [20, 27, 29, 36], [40, 0, 49, 9]], "7": [[0, 0, 9, 9]]})
    coco.draw("val2014")
    return coco.open()


def test_proposals_in_crowds_are_ignored(coco):
    overlaps = crowded(coco).roidb[0]["gt_overlaps"].toarray()
    assert overlaps[2].tolist() == [-1, -1, -1], "8/10 > 0.7"
    assert overlaps[3].tolist() == [0, pytest.approx(70 / (600 + 100 - 70)), 0], "7/10 is not"
    assert not overlaps[4].any()


@pytest.mark.parametrize("mines", [True, False])
def test_what_is_ignored_is_not_trained_on(coco, mines):
    cfg = Config()
    cfg.TRAIN.USE_OHEM, cfg.TRAIN.BG_THRESH_LO, cfg.TRAIN.USE_FLIPPED = mines, 0.0, False
    cfg.TRAIN.IMS_PER_BATCH, cfg.TRAIN.BBOX_NORMALIZE_TARGETS = 1, False
    roidb = get_training_roidb(crowded(coco), cfg)
    add_bbox_regression_targets(roidb, cfg)
    assert roidb[0]["bbox_targets"][:, 0].tolist() == [2, 0, 0, 0, 0]
    plan = plan_minibatch(roidb, [0], cfg, np.random.RandomState(0))
    assert sorted(plan.keep[0]) == [0, 3, 4], "neither the crowd nor the proposal in it"


@pytest.mark.parametrize(
    "name, folder, stem",
    [
        ("coco_2014_train", "images/train2014", "COCO_train2014_{:012d}"),
        ("coco_2014_minival", "images/val2014", "COCO_val2014_{:012d}"),
        ("coco_2014_valminusminival", "val2014", "COCO_val2014_{:012d}"),
        ("coco_2017_val", "val2017", "{:012d}"),
        ("coco_2015_test-dev", "images/test2015", "COCO_test2015_{:012d}"),
        ("coco_2017_test-dev", "test2017", "{:012d}"),
    ],
)
def test_where_images_lie(coco, name, folder, stem):
    _, year, image_set = name.split("_")
    kind = "image_info" if "test" in image_set else "instances"
    path = coco.write(f"{image_set}{year}", kind, name=stem + ".jpg")
    coco.draw(folder, stem + ".jpg")
    imdb = coco.open(name, proposals="gt")
    expected = coco.folder / folder / f"{stem.format(42)}.jpg"
    assert imdb.image_path_at(0) == expected and expected.is_file()
    content = json.loads(path.read_text())
    for record in content["images"]:
        del record["file_name"]
    path.write_text(json.dumps(content))
    assert coco.open(name, proposals="gt").image_path_at(0) == expected, "the usual name"
    assert imdb.has_ground_truth == (kind == "instances")


def test_hidden_ground_truth(coco, tmp_path):
    coco.write("test2015", "image_info", name="COCO_test2015_{:012d}.jpg")
    coco.draw("images/test2015", "COCO_test2015_{:012d}.jpg")
    coco.save_npz("coco_2015_test", **{"42": [[0, 0, 9, 9]], "7": [[1, 1, 9, 9]]})
    imdb = coco.open("coco_2015_test")
    assert imdb.gt_roidb() is None
    assert [entry["boxes"].tolist() for entry in imdb.roidb] == [[[0, 0, 9, 9]], [[1, 1, 9, 9]]]
    none = [np.zeros((0, 5))] * 2
    written = write_results(tmp_path / "results", [none] * 3, imdb)
    assert [path.name for path in written] == ["detections_test2015_results.json"]
    assert evaluate_results(tmp_path / "results", imdb) is None
    with pytest.raises(PortError, match="has no ground truth: it needs proposals"):
        _ = coco.open("coco_2015_test", proposals="gt").roidb


HOSANG = "COCO_val2014_0/COCO_val2014_000000000/COCO_val2014_{:012d}.mat"


@pytest.mark.parametrize(
    "method, place, columns",
    [
        ("MCG", "MCG/mat/" + HOSANG, (1, 0, 3, 2)),
        ("MCG", "MCG/COCO_val2014_{:012d}.mat", (1, 0, 3, 2)),
        ("selective_search", "selective_search/mat/" + HOSANG, (0, 1, 2, 3)),
        ("edge_boxes_70", "edge_boxes_70/mat/" + HOSANG, (0, 1, 2, 3)),
    ],
)
def test_proposals_of_one_file_for_an_image(coco, method, place, columns):
    boxes = np.array([[11, 6, 31, 16], [1, 1, 60, 40], [11, 6, 31, 16], [5, 5, 6, 30]])  # x1 y1 x2 y2, from 1
    coco.save_mat(place.format(42), boxes[:, columns])
    coco.save_mat(place.format(7), [])
    for proposals in (method, coco.data_dir / "coco_proposals" / method):
        found = coco.open(proposals=proposals).proposal_boxes()
        assert found[0].tolist() == [[10, 5, 30, 15], [0, 0, 59, 39]], "no repetition, none that is too small"
        assert found[1].shape == (0, 4)


def test_the_best_proposals_of_an_image(coco):
    boxes = [[x, y, x + 20, y + 20] for x in range(39) for y in range(19)] * 4
    boxes += [[x, y, x + 10, y + 15] for x in range(49) for y in range(24)]
    boxes += [[x, y, x + 12, y + 9] for x in range(47) for y in range(30)]
    coco.save_npz(**{"42": boxes, "7": boxes[:1]})
    found = coco.open().proposal_boxes()
    assert [len(boxes) for boxes in found] == [2000, 1]


def test_proposals_of_2014_serve_2017(coco):
    coco.write("val2017", name="{:012d}.jpg")
    coco.save_mat("MCG/mat/" + HOSANG.format(42), [[6, 11, 16, 31]])
    coco.save_mat("MCG/mat/COCO_train2014/COCO_train2014_0000000/COCO_train2014_000000000007.mat", [[1, 1, 40, 60]])
    found = coco.open("coco_2017_val", proposals="MCG").proposal_boxes()
    assert [boxes.tolist() for boxes in found] == [[[10, 5, 30, 15]], [[0, 0, 59, 39]]]


def test_joined(coco):
    coco.write("train2014", ids=(7,), name="COCO_train2014_{:012d}.jpg")
    imdb = coco.open("coco_2014_train+coco_2014_val", proposals="gt")
    assert imdb.image_index == ["7", "42", "7"] and len(imdb.roidb) == 3
    assert imdb.image_size_at(2) == (60, 40), "known without the image"
    imdb.append_flipped_images()
    assert len(imdb.roidb) == 6
    assert imdb.roidb[3]["boxes"].tolist() == [[0, 0, 59, 39]]
    assert imdb.parts[1].roidb[2]["boxes"][0].tolist() == [29, 5, 49, 14]
    assert coco.open("coco_2014_trainval", proposals="gt").name == imdb.name
    with pytest.raises(PortError, match="several data sets"):
        write_results(coco.data_dir / "results", [], imdb)


def test_ground_truth_as_detections_is_perfect(coco, tmp_path):
    imdb = coco.open(proposals="gt")
    all_boxes = [[np.zeros((0, 5), np.float32) for _ in range(2)] for _ in range(3)]
    for i, entry in enumerate(imdb.roidb):
        for box, cls in zip(entry["boxes"], entry["gt_classes"], strict=True):
            all_boxes[cls][i] = np.array([[*box, 0.9]], np.float32)
    write_results(tmp_path / "results", all_boxes, imdb)
    result = evaluate_results(tmp_path / "results", imdb)
    assert result.names == ["cat", "dog"]
    assert result.ap50["dog"] == pytest.approx(1)
    assert result.ap50["cat"] == pytest.approx(34 / 101), "one of the three that the annotations count; a crowd"


def test_devkit_is_the_folder_of_coco(coco, tmp_path):
    assert get_imdb("coco_2014_val", data_dir="nowhere", devkit=coco.folder, proposals="gt").num_images == 2
    with pytest.raises(PortError, match="looked for nowhere/coco/annotations"):
        get_imdb("coco_2014_val", data_dir="nowhere", proposals="gt")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"images": 3}, "the lists 'images' and 'categories'"),
        ({"categories": [{"id": 3, "name": "cat"}]}, "annotation 1: category_id 90 is not in the file"),
        ({"categories": [CATEGORIES[0]] * 2}, "categories: id 3 is there twice"),
        ({"categories": [{"id": 3, "name": "cat"}, {"id": 90, "name": "cat"}]}, "a name of its own"),
        ({"images": [{"id": 42, "width": 60, "height": 40}]}, "annotation 3: image_id 7 is not in the file"),
        ({"images": [{"id": "42"}]}, "images: number 1 has no id"),
        ({"images": [], "annotations": []}, "has no images"),
        ({"annotations": {}}, "annotations: must be a list"),
        ({"annotations": [{**OBJECTS[0], "bbox": [1, 2, 3]}]}, "annotation 1: bbox is"),
        ({"annotations": [{**OBJECTS[0], "bbox": [1, 2, 3, float("inf")]}]}, "annotation 1: bbox is"),
        ({"annotations": [{**OBJECTS[0], "area": "12"}]}, "annotation 1: area is 12"),
        ({"annotations": [{**OBJECTS[0], "iscrowd": 2}]}, "iscrowd is 2"),
        ({"annotations": [OBJECTS[0], OBJECTS[0]]}, "annotations: id 1 is there twice"),
    ],
    ids=["lists", "category", "twice", "name", "image", "id", "empty", "dict", "box", "inf", "area", "crowd", "same"],
)
def test_bad_annotations(coco, changes, words):
    coco.write(**changes)
    with pytest.raises(PortError, match=words):
        coco.open(proposals="gt")


def test_what_annotations_may_leave_out(coco):
    obj = {key: OBJECTS[0][key] for key in ("id", "image_id", "category_id", "bbox")}
    annotation = read_coco(coco.write(annotations=[{**obj, "segmentation": [[1, 2, 3, 4, 5, 6]]}])).anns[1]
    assert annotation == {**obj, "area": 20.9 * 10, "iscrowd": 0}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100000])
def test_no_annotations(coco, content):
    path = coco.write()
    path.write_bytes(content)
    with pytest.raises(PortError, match="not JSON|no annotations of COCO's form"):
        read_coco(path)


def test_missing_files(coco):
    with pytest.raises(PortError, match="instances_train2014.json: not found"):
        coco.open("coco_2014_train", proposals="gt")
    with pytest.raises(PortError, match=r"(?s)no proposals for 'coco_2014_val'.*coco_proposals/MCG/mat"):
        coco.open(proposals="MCG")
    with pytest.raises(PortError, match=r"no proposals for 'coco_2014_val'; looked for nowhere/p.npz\n"):
        coco.open(proposals="nowhere/p.npz")
    with pytest.raises(PortError, match="no images of 'coco_2014_val' found; looked for .*images/val2014"):
        coco.open(proposals="gt").image_path_at(0)
    coco.save_mat("MCG/mat/" + HOSANG.format(42), [[1, 1, 40, 60]])
    with pytest.raises(PortError, match="no proposals of image 7"):
        coco.open(proposals="MCG").proposal_boxes()
    coco.save_mat("MCG/mat/" + HOSANG.format(7), [[1, 1, 90, 60]])
    with pytest.raises(PortError, match=r"proposal 0 of '7' is \[0, 0, 59, 89\], the image 60 x 40"):
        coco.draw("val2014")
        _ = coco.open(proposals="MCG").roidb


def test_an_image_without_a_size(coco):
    path = coco.write()
    content = json.loads(path.read_text())
    del content["images"][1]["width"]
    path.write_text(json.dumps(content))
    with pytest.raises(PortError, match="image 7 has no width and height"):
        _ = coco.open(proposals="gt").roidb
