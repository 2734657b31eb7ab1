import cv2
import numpy as np
import pytest
import scipy.io

from ohem_caffe_port.boxes import bbox_overlaps
from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.data.grouping import colour_edge_proposals
from ohem_caffe_port.data.proposals import (
    build_proposals,
    clean_boxes,
    find_proposals,
    generate_proposals,
    load_npz,
    load_proposals,
    load_selective_search,
    save_npz,
)
from ohem_caffe_port.errors import PortError

IDS = ["000001", "000002", "000003"]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float64])
def test_mat_columns_are_y1_x1_y2_x2_from_one(devkit, dtype):
    boxes = load_selective_search(devkit.proposals(devkit.cells, dtype=dtype), IDS)
    # the repeated box and the one of 2 rows are gone; (y1 x1 y2 x2) = (11 16 30 35) became (x1 y1 x2 y2)
    assert boxes[0].tolist() == [[10, 10, 29, 29], [15, 10, 34, 29], [0, 0, 4, 4]]
    assert boxes[1].tolist() == [[4, 5, 19, 34], [0, 0, 59, 39]]
    assert all(b.dtype == np.uint16 for b in boxes)


def test_cleaning_keeps_first_occurrences_in_order():
    boxes = [[9, 9, 20, 20], [0, 0, 5, 5], [9, 9, 20, 20], [1, 1, 3, 9], [1, 1, 2, 9], [1, 1, 9, 3], [1, 1, 9, 4]]
    boxes = np.array(boxes)
    # a difference of 2 is enough in x but not in y, as in the original
    assert clean_boxes(boxes).tolist() == [[9, 9, 20, 20], [0, 0, 5, 5], [1, 1, 3, 9], [1, 1, 9, 4]]
    assert clean_boxes(boxes, min_size=9).tolist() == [[9, 9, 20, 20]]
    assert clean_boxes(boxes + 0.5).dtype == np.float32
    assert clean_boxes(np.zeros((0, 4))).shape == (0, 4)


def test_an_image_without_proposals(devkit):
    boxes = load_selective_search(devkit.proposals({**devkit.cells, "000002": []}), IDS)
    assert boxes[1].shape == (0, 4)
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir)
    assert len(imdb.roidb[1]["boxes"]) == 2


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"000001": [], "000002": []}, "boxes of 2 images, the image set has 3"),
        ({"000001": [], "000003": [], "000002": []}, "cell 1 belongs to image '000003'"),
        ({"000001": [], "000002": [(1, 1, 9, 9), (0, 1, 9, 9)], "000003": []}, "'000002': box 1 is .* not from 1"),
        ({"000001": [(9, 1, 8, 9)], "000002": [], "000003": []}, "'000001': box 0 is .*inverted"),
    ],
)
def test_mat_errors(devkit, cells, message):
    path = devkit.proposals(cells)
    with pytest.raises(PortError, match=message) as error:
        load_selective_search(path, IDS)
    assert error.value.file == path


def test_files_that_are_no_proposals(devkit, tmp_path):
    path = devkit.proposals({"000001": [], "000002": [], "000003": []}, images=False)
    assert len(load_proposals(path, IDS)) == 3
    (tmp_path / "a.mat").write_bytes(b"not MATLAB" * 50)
    with pytest.raises(PortError, match="not a readable .mat file"):
        load_proposals(tmp_path / "a.mat", IDS)
    scipy.io.savemat(tmp_path / "b.mat", {"boxes": np.zeros((3, 4))})
    with pytest.raises(PortError, match="no cell array 'boxes'"):
        load_proposals(tmp_path / "b.mat", IDS)
    (tmp_path / "c.npz").write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(PortError, match="not a readable .npz file"):
        load_proposals(tmp_path / "c.npz", IDS)
    for name in ("d.mat", "d.npz"):
        with pytest.raises(PortError, match="proposals not found"):
            load_proposals(tmp_path / name, IDS)
    with pytest.raises(PortError, match="kind '.pkl'"):
        load_proposals(tmp_path / "e.pkl", IDS)


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", **{"000001": np.array([{"a": 1}], dtype=object)})
    with pytest.raises(PortError, match="not a readable .npz file"):
        load_npz(tmp_path / "a.npz", IDS[:1])


def test_npz_forms_are_alike(tmp_path):
    boxes = [np.array([[0, 0, 9, 9], [3, 4, 30, 20]]), np.zeros((0, 4), int), np.array([[5, 5, 50, 30]])]
    with_scores = {i: np.hstack((b, np.full((len(b), 1), 0.5))) for i, b in zip(IDS, boxes, strict=True)}
    np.savez(tmp_path / "keys.npz", **with_scores)
    save_npz(tmp_path / "new" / "flat.npz", IDS, boxes)
    for path in (tmp_path / "keys.npz", tmp_path / "new" / "flat.npz"):
        read = load_npz(path, IDS[::-1])  # any order
        for got, expected in zip(read, boxes[::-1], strict=True):
            np.testing.assert_array_equal(got, expected)
            assert got.dtype == np.uint16
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["flat.npz"]


def test_npz_errors(tmp_path):
    np.savez(tmp_path / "a.npz", **{"000001": np.array([[0, 0, 9, 9]]), "000002": np.array([[-1, 0, 9, 9]])})
    with pytest.raises(PortError, match="no boxes for 1 of 3 images, the first '000003'"):
        load_npz(tmp_path / "a.npz", IDS)
    with pytest.raises(PortError, match="'000002': box 0 is .* not from 0"):
        load_npz(tmp_path / "a.npz", IDS[:2])
    np.savez(tmp_path / "b.npz", **{"000001": np.zeros((3, 3))})
    with pytest.raises(PortError, match=r"shape \(3, 3\)"):
        load_npz(tmp_path / "b.npz", IDS[:1])
    np.savez(tmp_path / "c.npz", **{"000001": np.array([[0, 0, np.nan, 9]])})
    with pytest.raises(PortError, match="box 0"):
        load_npz(tmp_path / "c.npz", IDS[:1])
    np.savez(tmp_path / "d.npz", images=IDS, boxes=np.zeros((5, 4)), offsets=[0, 2, 1, 5])
    with pytest.raises(PortError, match="offsets"):
        load_npz(tmp_path / "d.npz", IDS)


def test_where_proposals_are_looked_for(tmp_path):
    assert find_proposals("gt", "voc_2007_train", tmp_path) is None
    with pytest.raises(PortError, match="edge_boxes_data.voc_2007_train.mat"):
        find_proposals("edge_boxes", "voc_2007_train", tmp_path)
    (tmp_path / "edge_boxes_data").mkdir()
    file = tmp_path / "edge_boxes_data" / "voc_2007_train.npz"
    file.touch()
    assert find_proposals("edge_boxes", "voc_2007_train", tmp_path) == file
    assert find_proposals(tmp_path / "edge_boxes_data", "voc_2007_train", "elsewhere") == file
    assert find_proposals(str(file), "other", "elsewhere") == file
    photo = tmp_path / "photo.jpg"  # a file, not the name of a method
    photo.touch()
    with pytest.raises(PortError, match="kind '.jpg'"):
        load_proposals(find_proposals(photo, "other", "elsewhere"), IDS)


def blobs():
    image = np.full((120, 160, 3), (90, 120, 60), dtype=np.uint8)
    image += np.random.default_rng(0).integers(0, 12, image.shape, dtype=np.uint8)
    cv2.rectangle(image, (20, 30), (69, 89), (30, 40, 200), -1)
    cv2.rectangle(image, (100, 20), (139, 69), (220, 200, 30), -1)
    return image


def test_colour_edge_finds_coloured_rectangles():
    boxes = colour_edge_proposals(blobs())
    assert boxes.dtype == np.uint16
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    truth = np.array([[20, 30, 69, 89], [100, 20, 139, 69], [0, 0, 159, 119]], dtype=np.float64)
    assert (bbox_overlaps(boxes.astype(np.float64), truth).max(axis=0) > 0.85).all()
    np.testing.assert_array_equal(boxes, colour_edge_proposals(blobs()))
    np.testing.assert_array_equal(boxes[:10], generate_proposals(blobs(), "colour_edge", max_boxes=10))


@pytest.mark.skipif(not hasattr(cv2, "ximgproc"), reason="this OpenCV has no contrib module")
def test_selective_search_of_opencv():
    boxes = generate_proposals(blobs(), "auto").astype(np.float64)
    truth = np.array([[20, 30, 69, 89], [100, 20, 139, 69]], dtype=np.float64)
    assert (bbox_overlaps(boxes, truth).max(axis=0) > 0.85).all()
    assert (boxes[:, 2:] < (160, 120)).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 90), (20, 20), (40, 1500), (700, 500)])
def test_colour_edge_on_odd_images(shape):
    image = np.random.default_rng(1).integers(0, 255, (*shape, 3), dtype=np.uint8)
    for pixels in (image, np.zeros_like(image)):
        boxes = colour_edge_proposals(pixels).astype(np.int64)
        assert len(boxes) <= 2000
        assert ((boxes[:, :2] >= 0) & (boxes[:, 2:] < shape[::-1])).all()
        assert (boxes[:, 2:] - boxes[:, :2] >= 15).all()


def test_unknown_method():
    with pytest.raises(PortError, match="proposal method 'magic' is not one of: auto"):
        generate_proposals(blobs(), "magic")


@pytest.mark.parametrize("workers", [1, 2])
def test_build_proposals(devkit, tmp_path, workers, capsys):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir, proposals="gt")
    cv2.imwrite(str(imdb.image_path_at(1)), blobs())
    path = build_proposals(imdb, tmp_path / f"{workers}.npz", "colour_edge", workers=workers)
    boxes = load_npz(path, imdb.image_index)
    decoded = cv2.imread(str(imdb.image_path_at(1)))
    np.testing.assert_array_equal(boxes[1], colour_edge_proposals(decoded))
    assert "colour_edge proposals" in capsys.readouterr().err


def test_build_proposals_names_a_broken_image(devkit, tmp_path):
    imdb = get_imdb("voc_2007_train", data_dir=devkit.data_dir, proposals="gt")
    imdb.image_path_at(1).write_bytes(b"GIF")
    with pytest.raises(PortError, match="000002.jpg: not a readable image"):
        build_proposals(imdb, tmp_path / "a.npz", "colour_edge")
    assert not (tmp_path / "a.npz").exists()
