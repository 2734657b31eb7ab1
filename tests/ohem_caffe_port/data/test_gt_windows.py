import numpy as np
import pytest

from ohem_caffe_port.data.gt_windows import View, read_gt_windows
from ohem_caffe_port.errors import PortError

MSCNN = """# 0
one.png
3
60
80
2
1 0 5 6 24 35
2 1 40 10 59 29
1
0 0 9 9
# 7
two.png 3 50 70 0 0
"""


def write(tmp_path, text):
    path = tmp_path / "windows.txt"
    path.write_text(text)
    return str(path)


def test_mscnns_file(tmp_path):
    one, two = read_gt_windows(write(tmp_path, MSCNN), difficult=False)
    assert (one.path, one.height, one.width) == ("one.png", 60, 80)
    assert one.boxes.tolist() == [[5, 6, 24, 35], [40, 10, 59, 29]] and one.boxes.dtype == np.float32
    assert one.labels.tolist() == [1, 2] and one.ignored.tolist() == [False, True]
    assert one.difficult.tolist() == [False, False] and one.regions.tolist() == [[0, 0, 9, 9]]
    assert (two.height, two.width, two.boxes.shape, two.regions.shape) == (50, 70, (0, 4), (0, 4))


def test_cascades_file(tmp_path):
    (one,) = read_gt_windows(write(tmp_path, "# 0 a.png 3 60 80 1 5 0 1 2 3 4 5 0"), difficult=True)
    assert (one.labels.tolist(), one.ignored.tolist(), one.difficult.tolist()) == ([5], [False], [True])
    assert one.boxes.tolist() == [[2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", None, "is empty"),
        ("0\n", 1, "'#' should begin an image"),
        ("# 0\na.png\n3\n60\n80\n2\n1 0 1 2 3 4\n", 7, "ends in the middle"),
        ("# 0\na.png\n3\n60\n80\n1\n1 0 1 2 3.5 4\n0", 7, "'3.5' should be a whole number"),
        ("# 0\na.png\n3\n60\n80\n1\n0 0 1 2 3 4\n0", 7, "0 is background"),
        ("# 0\na.png\n1\n60\n80\n0\n0", 6, "1 channels"),
    ],
)
def test_bad_files(tmp_path, text, line, message):
    with pytest.raises(PortError, match=message) as caught:
        read_gt_windows(write(tmp_path, text), difficult=False)
    assert caught.value.line == line


def test_no_file(tmp_path):
    with pytest.raises(PortError, match=r"none.txt' cannot be read"):
        read_gt_windows(str(tmp_path / "none.txt"), difficult=False)


def view(boxes=((10, 20, 30, 50),)):
    """An image whose pixels say where they are: column in channel 0, row in channel 1."""
    image = np.zeros((100, 160, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(160), np.arange(100)[:, None]
    return View(image, np.array(boxes, np.float32), np.array([[0, 0, 16, 10]], np.float32))


def test_mirror():
    seen = view()
    seen.mirror()
    assert seen.image[0, 0].tolist() == [159, 0, 0]
    assert seen.boxes.tolist() == [[130, 20, 150, 50]] and seen.regions.tolist() == [[144, 0, 160, 10]]


def test_resize():
    seen = view()
    seen.resize(80, 300)
    assert seen.size == (80, 300)
    assert seen.boxes.tolist() == [[5, 60, 15, 150]] and seen.regions.tolist() == [[0, 0, 8, 30]]


def test_zoom_out_keeps_everything():
    seen = view()
    centre = seen.zoom((np.float32(0.5), np.float32(1.25)), (20, 35))
    assert seen.size == (80, 125) and centre.tolist() == [10, 43.75]
    assert seen.boxes.tolist() == [[5, 25, 15, 62.5]]


def test_zoom_in_keeps_what_is_around_the_centre():
    """By 2: first cut to 1.2 / 2 of the image, 96 x 60, around the centre as far as the image goes."""
    seen = view()
    centre = seen.zoom((np.float32(2), np.float32(2)), (20, 60))
    assert seen.size == (192, 120)
    assert seen.image[0, 0, :2].tolist() == [0, 30]
    assert seen.boxes.tolist() == [[20, -20, 60, 40]] and centre.tolist() == [40, 60]


def test_place_cuts_around_the_centre():
    seen, blob = view(), np.zeros((3, 40, 60), np.float32)
    seen.place(blob, (100, 50), (3, -4), np.float32([1, 2, 3])[:, None, None], 0.5)
    left, top = 100 + 3 - 30, 50 - 4 - 20
    np.testing.assert_array_equal(blob[0, 0], (np.arange(left, left + 60) - 1) / 2)
    np.testing.assert_array_equal(blob[1, :, 0], (np.arange(top, top + 40) - 2) / 2)
    assert (blob[2] == -1.5).all() and seen.area == (0, 0, 60, 40)
    assert seen.boxes.tolist() == [[10 - left, 20 - top, 30 - left, 50 - top]]


@pytest.mark.parametrize(("centre", "left", "top"), [((0, 0), 0, 0), ((159, 99), 100, 60)])
def test_place_stays_inside_the_image(centre, left, top):
    seen, blob = view(), np.zeros((3, 40, 60), np.float32)
    seen.place(blob, centre, (9, 9) if left else (-9, -9), None, 1)
    assert blob[:2, 0, 0].tolist() == [left, top]


@pytest.mark.parametrize(("noise", "x", "y"), [((0, 0), 20, 11), ((5, -3), 25, 8), ((99, -99), 40, 0)])
def test_place_pads_around_a_smaller_image(noise, x, y):
    seen, blob = view(), np.zeros((3, 121, 200), np.float32)
    seen.place(blob, (0, 0), noise, None, 1)
    assert seen.area == (x, y, 160, 100)
    np.testing.assert_array_equal(blob[0, y, x : x + 160], np.arange(160))
    assert blob[0].sum() == 100 * np.arange(160).sum()
    assert seen.boxes.tolist() == [[10 + x, 20 + y, 30 + x, 50 + y]]
