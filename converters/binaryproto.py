"""``.binaryproto``: one BlobProto in a file of its own, such as the mean image that ``compute_image_mean`` writes."""

from __future__ import annotations

import os

import numpy as np

from prototxt.files import replacing

from .blob import decode_blob, encode_blob
from .dtypes import flat
from .errors import WeightsError
from .files import map_file
from .wire import varint_field


def read_binaryproto(path: str | os.PathLike) -> np.ndarray:
    """The array of a ``.binaryproto``, in the shape that is stored: ``[1, C, H, W]`` for a mean image.

    float32 (float64 where the file has doubles), C order, read-only, aligned.

    Raises :class:`WeightsError` when the file is missing, empty, damaged, or something other than one BlobProto.
    """
    view = map_file(path, "a .binaryproto")
    try:
        blob = decode_blob(view)
    except WeightsError as err:
        err.file = path
        err.hint = err.hint or "A .binaryproto holds one array; is this a .caffemodel?"
        raise
    blob = np.require(blob, requirements="A")
    blob.flags.writeable = False
    return blob


def write_binaryproto(path: str | os.PathLike, array) -> None:
    """Writes ``array`` so that every Caffe reads it; the file appears whole or not at all.

    Up to four axes are also told in the older ``num``, ``channels``, ``height``, ``width``, as ``compute_image_mean``
    does, ones in front. float64 arrays are stored as doubles, all others as single precision.

    Raises :class:`prototxt.errors.CaffePortError` when the file cannot be written.
    """
    array = np.asarray(array)
    legacy: list[bytes] = []
    if array.ndim <= 4:
        array = array.reshape((1,) * (4 - array.ndim) + array.shape)
        legacy = [varint_field(number, size) for number, size in enumerate(array.shape, start=1)]
    with replacing(path) as file:
        file.writelines(legacy)
        file.writelines(flat(encode_blob(array)))
