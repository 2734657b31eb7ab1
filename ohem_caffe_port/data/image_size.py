"""Width and height of an image file from its header, without decoding the pixels."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2

from ..errors import PortError


def image_size(path) -> tuple[int, int]:
    """``(width, height)`` in pixels of the image file ``path``.

    JPEG and PNG headers are parsed; any other format is decoded by OpenCV. As in the original (which asked PIL), an
    EXIF orientation is not applied: read such images with ``cv2.IMREAD_IGNORE_ORIENTATION``.

    Raises:
        PortError: the file is missing or is no image.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = _size_from_header(file)
    except FileNotFoundError:
        raise PortError(
            "image not found", file=path, hint="Put the image there or take it out of the image set."
        ) from None
    except (struct.error, IndexError):  # the header ends before the size
        size = None
    if size is None:
        image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image is None:
            raise PortError(
                "not a readable image", file=path, hint="Replace the file: it is cut off or of another kind."
            )
        size = image.shape[1], image.shape[0]
    return size


def _size_from_header(file) -> tuple[int, int] | None:
    start = file.read(2)
    if start == b"\xff\xd8":
        return _jpeg_size(file)
    if start == b"\x89P":
        file.seek(16)  # IHDR is always the first chunk
        return struct.unpack(">II", file.read(8))
    return None


def _jpeg_size(file) -> tuple[int, int] | None:
    """Walks the segments up to the first start of frame (ITU T.81, B.2.2)."""
    while True:
        marker = file.read(1)
        if marker != b"\xff":
            return None
        while marker == b"\xff":  # any number of fill bytes
            marker = file.read(1)
        length = struct.unpack(">H", file.read(2))[0]
        if 0xC0 <= marker[0] <= 0xCF and marker[0] not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">xHH", file.read(5))
            return (width, height) if height else None  # height 0: given later by a DNL marker
        file.seek(length - 2, 1)
