"""Decoding image files: one home for how pixels come from bytes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from ..errors import PortError
from .image_size import is_cut_off

COLOR = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
GRAY = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
AS_STORED = cv2.IMREAD_UNCHANGED  # grey stays grey, transparency and 16 bits stay too


def decode_image(encoded: bytes, flags: int = COLOR) -> np.ndarray | None:
    """The bytes of an image file as ``[H, W]`` or ``[H, W, C]`` BGR, as stored (no EXIF rotation); None when they are
    no image or a JPEG that was cut off."""
    if not encoded or is_cut_off(encoded):
        return None
    try:
        return cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), flags)
    except cv2.error:  # more pixels than OpenCV takes
        return None


def read_image(path, flags: int = COLOR) -> np.ndarray:
    """An image file as ``[H, W, 3]`` uint8 BGR (``[H, W]`` with :data:`GRAY`), as stored: no EXIF rotation, which
    annotations do not know either.

    Raises:
        PortError: it is missing, not an image, or a JPEG that was cut off.
    """
    try:
        encoded = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise PortError(f"cannot read the image: {getattr(error, 'strerror', error)}", file=path) from None
    image = decode_image(encoded, flags)
    if image is None:
        what = "not an image, or damaged" + (": the JPEG file is cut off" if is_cut_off(encoded) else "")
        raise PortError(what, file=path, hint="replace the file or remove it from the image set")
    return image
