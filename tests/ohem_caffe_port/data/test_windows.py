"""R-CNN's window files, and warping a window."""

import cv2
import numpy as np
import pytest

from ohem_caffe_port.data.windows import read_windows, warped_window
from ohem_caffe_port.errors import PortError

TEXT = """# 0
/data/a picture.jpg
3
100
200
4
5 0.5 1 2 30 40
5 0.49999 3 4 50 60
7 1 5 6 70 80
2 0.1 0 0 9 9
# 1
b.jpg
3
10
20
1
0 0 1 1 2 2
"""


@pytest.fixture
def window_file(tmp_path):
    def write(text):
        (tmp_path / "windows.txt").write_text(text)
        return str(tmp_path / "windows.txt")

    return write


def test_foreground_and_background(window_file):
    windows = read_windows(window_file(TEXT), 0.5, 0.3)
    assert windows.images == ["/data/a picture.jpg", "b.jpg"]
    np.testing.assert_array_equal(windows.foreground, [[0, 5, 1, 2, 30, 40], [0, 7, 5, 6, 70, 80]])
    np.testing.assert_array_equal(windows.background, [[0, 0, 0, 0, 9, 9], [1, 0, 1, 1, 2, 2]])


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("# 1", "# 2", 11, "'# 2' should be '# 1'"),
        ("\n4\n", "\nfour\n", 6, "'four' should be a whole number"),
        ("\n4\n", "\n5\n", 11, "'# 1' should be  class overlap"),
        ("7 1 5 6 70 80", "7 1 5 6 70", 9, "should be  class overlap"),
        ("7 1 5 6 70 80", "7 nan 5 6 70 80", 9, "should be  class overlap"),
        ("7 1 5 6 70 80", "0 1 5 6 70 80", 1, "a class above 0"),
        ("jpg\n3\n", "jpg\n1\n", 1, "image of 1 channels"),
        ("0 0 1 1 2 2\n", "", None, "ends in the middle"),
    ],
)
def test_a_file_that_makes_no_sense(window_file, old, new, line, message):
    with pytest.raises(PortError, match=message) as caught:
        read_windows(window_file(TEXT.replace(old, new, 1)), 0.5, 0.5)
    assert caught.value.line == line


def test_empty_and_missing(window_file, tmp_path):
    with pytest.raises(PortError, match="is empty"):
        read_windows(window_file("\n"), 0.5, 0.5)
    with pytest.raises(PortError, match="cannot be read: No such file"):
        read_windows(str(tmp_path / "nothing"), 0.5, 0.5)


# ---- warping; numbers by hand

IMAGE = np.random.RandomState(0).randint(0, 256, (50, 80, 3)).astype(np.uint8)


def warp(box, **settings):
    return warped_window(
        IMAGE, box, **{"crop_size": 20, "context_pad": 0, "square": False, "mirror": False, **settings}
    )


def test_without_context():
    patch, y, x = warp((10, 5, 29, 44))
    np.testing.assert_array_equal(patch, cv2.resize(IMAGE[5:45, 10:30], (20, 20)))
    assert (y, x) == (0, 0)
    np.testing.assert_array_equal(warp((10, 5, 29, 44), mirror=True)[0], patch[:, ::-1])


def test_context_inside_the_image():
    # scale 20 / 12; centre (30, 25), half sides 6 and 12, grown to 10 and 20
    patch, y, x = warp((24, 13, 35, 36), context_pad=4)
    np.testing.assert_array_equal(patch, cv2.resize(IMAGE[5:46, 20:41], (20, 20)))
    assert (y, x) == (0, 0)


def test_context_outside_the_image():
    # centre (6, 6), half sides 6, grown to 10: from -4 to 16, of which 17 of 21 are inside
    patch, y, x = warp((0, 0, 11, 11), context_pad=4)
    np.testing.assert_array_equal(patch, cv2.resize(IMAGE[:17, :17], (16, 16)))
    assert (y, x) == (4, 4)  # round(4 * 20 / 21)
    mirrored, y, x = warp((0, 0, 11, 11), context_pad=4, mirror=True)
    np.testing.assert_array_equal(mirrored, patch[:, ::-1])
    assert (y, x) == (4, 0)
    # at the other corner: 66 to 86 and 36 to 56, of which 14 of 21 are inside
    patch, y, x = warp((70, 40, 81, 51), context_pad=4, mirror=True)
    np.testing.assert_array_equal(patch, cv2.resize(IMAGE[36:, 66:], (13, 13))[:, ::-1])
    assert (y, x) == (0, 7)  # 7 columns on the other side now


def test_square():
    # centre (30, 25), half sides 5 and 10: both 10
    patch, y, x = warp((25, 15, 34, 34), square=True)
    np.testing.assert_array_equal(patch, cv2.resize(IMAGE[15:36, 20:41], (20, 20)))
    assert (y, x) == (0, 0)


@pytest.mark.parametrize(
    ("box", "settings"),
    [((100, 0, 120, 20), {}), ((0, -1, 20, 9), {}), ((10, 10, 5, 20), {}), ((100, 0, 120, 20), {"context_pad": 4})],
)
def test_a_window_that_is_not_in_the_image(box, settings):
    with pytest.raises(PortError, match="lies outside the image of 80 x 50"):
        warp(box, **settings)
