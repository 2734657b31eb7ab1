import cv2
import numpy as np
import pytest

from ohem_caffe_port.data.images import AS_STORED, COLOR, GRAY, decode_image, read_image
from ohem_caffe_port.errors import PortError

IMAGE = cv2.GaussianBlur(np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8), (3, 3), 0)


def encoded(kind, image=IMAGE):
    return cv2.imencode(kind, image)[1].tobytes()


def test_flags():
    grey = IMAGE[:, :, 0].copy()
    np.testing.assert_array_equal(decode_image(encoded(".png")), IMAGE)
    assert decode_image(encoded(".png"), GRAY).shape == (6, 8)
    np.testing.assert_array_equal(decode_image(encoded(".png", grey), COLOR), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(decode_image(encoded(".png", grey), AS_STORED), grey)


@pytest.mark.parametrize("flags", [COLOR, GRAY, AS_STORED])
def test_orientation_is_not_applied(flags):
    jpeg = encoded(".jpg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # rotate by 90 degrees
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    np.testing.assert_array_equal(decode_image(turned, flags), decode_image(jpeg, flags))


@pytest.mark.parametrize("content", [b"", b"no image", encoded(".jpg")[:-30], encoded(".png")[:20]])
def test_what_is_no_image(tmp_path, content):
    assert decode_image(content) is None
    (tmp_path / "image").write_bytes(content)
    with pytest.raises(PortError, match="not an image, or damaged"):
        read_image(tmp_path / "image")


@pytest.mark.parametrize("name", ["nothing.jpg", "", "with\0null"])
def test_what_cannot_be_read(tmp_path, name):
    with pytest.raises(PortError, match="cannot read the image"):
        read_image(f"{tmp_path}/{name}")
