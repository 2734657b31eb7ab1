import cv2
import numpy as np
import pytest

from ohem_caffe_port.data.image_size import image_size
from ohem_caffe_port.errors import PortError


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp"])
def test_size_of_an_image_file(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    cv2.imwrite(str(path), np.zeros((37, 91, 3), dtype=np.uint8))
    assert image_size(path) == (91, 37)


def test_progressive_jpeg_with_a_long_comment_before_the_frame(tmp_path):
    image = np.zeros((37, 91, 3), dtype=np.uint8)
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
    comment = b"\xff\xff\xfe" + (60000).to_bytes(2, "big") + b"\xff\xc0" * 29999  # looks like frames inside
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded[:2] + comment + encoded[2:])
    assert image_size(path) == (91, 37)


def test_real_images_agree_with_the_decoded_size(shared_voc):
    for path in sorted(shared_voc.glob("VOCdevkit2007/VOC2007/JPEGImages/*.jpg"))[:20]:
        height, width = cv2.imread(str(path)).shape[:2]
        assert image_size(path) == (width, height)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\x89PNG", b"text", b"\xff\xd8\xff\xe0\x00\x10JFIF"]
)
def test_no_image(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(PortError, match="not a readable image") as error:
        image_size(path)
    assert error.value.file == path


def test_missing_image(tmp_path):
    with pytest.raises(PortError, match="image not found"):
        image_size(tmp_path / "a.jpg")
