"""What a test run found, in memory and as one .npz file.

It is ``all_boxes[class][image]``, an [N, 5] float32 array of x1 y1 x2 y2 score, where boxes are zero-based, inclusive
pixels of the image. VOC's files (:mod:`.comp4`), and detections given to :mod:`.voc`, are one-based;
:func:`voc_detections` is the one place that adds 1.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from prototxt.files import replacing

from ..errors import PortError
from .voc import BACKGROUND

_KEYS = ("classes", "image_index", "offsets", "dets")


def voc_detections(all_boxes, image_index, classes) -> dict[str, tuple[list, np.ndarray, np.ndarray]]:
    """``all_boxes`` as {class: (image ids, scores [N], boxes [N, 4])}: one-based pixels, float64, without background.

    Unlike the original, which evaluates the files it wrote, nothing is rounded; for its exact numbers go through
    :func:`.comp4.write_comp4` and :func:`.comp4.read_comp4` (scores of three decimals, boxes of one).

    Raises :class:`PortError` when ``all_boxes`` does not have one array [N, 5] per class and image.
    """
    detections = {}
    for name, per_image in zip(classes, _arrays(all_boxes, image_index, classes), strict=True):
        if name == BACKGROUND:
            continue
        ids = [image for image, dets in zip(image_index, per_image, strict=True) for _ in range(len(dets))]
        dets = np.concatenate([np.empty((0, 5)), *per_image])  # float64 before adding 1, as the original
        detections[name] = (ids, dets[:, 4], dets[:, :4] + 1)
    return detections


def apply_nms(all_boxes, thresh: float) -> list[list[np.ndarray]]:
    """``all_boxes`` after non-maximum suppression of each class on each image (the original's ``apply_nms``): [N, 5]
    float32, best first, without boxes that overlap a better one by more than ``thresh``."""
    arrays = [[_dets(entry) for entry in per_image] for per_image in all_boxes]
    from ..ops import nms  # brings in torch, which nothing else here needs

    return [[dets[nms(dets[:, :4], dets[:, 4], thresh)] for dets in per_image] for per_image in arrays]


def save_detections(path: str | os.PathLike, all_boxes, image_index, classes) -> None:
    """Keep a test run's ``all_boxes``, the content of the original's detections.pkl, in an .npz without pickles.

    The file has ``classes`` [C], ``image_index`` [I], ``dets`` [N, 5] float32 and ``offsets`` [C * I + 1]: the rows of
    class c on image i are ``dets[offsets[c * I + i] : offsets[c * I + i + 1]]``.

    Raises :class:`CaffePortError` when ``all_boxes`` is not as :func:`voc_detections` needs it or the file cannot be
    written.
    """
    flat = [dets for per_image in _arrays(all_boxes, image_index, classes) for dets in per_image]
    with replacing(path) as file:
        np.savez(
            file,
            classes=np.array(classes, np.str_),
            image_index=np.array(image_index, None if len(image_index) else np.str_),
            offsets=np.cumsum([0, *map(len, flat)], dtype=np.int64),
            dets=np.concatenate([np.empty((0, 5), np.float32), *flat]),
        )


def load_detections(path: str | os.PathLike) -> tuple[list[list[np.ndarray]], list, list[str]]:
    """``(all_boxes, image_index, classes)`` of a file by :func:`save_detections`; the arrays are views on one.

    Raises :class:`PortError` when the file is missing, damaged or another one (a detections.pkl is never unpickled).
    """
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            classes, image_index, offsets, dets = (file[key] for key in _KEYS)
    except FileNotFoundError:
        raise PortError("there is no such file", file=path, hint="Run the test first, or check the path.") from None
    except Exception as err:  # a damaged zip or array header makes numpy raise nearly anything
        raise PortError(
            f"is not a file of detections: {err}",
            file=path,
            hint="Give the .npz that the test wrote; a detections.pkl of the original cannot be opened safely.",
        ) from err
    _check_detections(path, classes, image_index, offsets, dets)
    flat = [dets[start:end] for start, end in zip(offsets[:-1], offsets[1:], strict=True)]
    per_class = len(image_index)
    all_boxes = [flat[c * per_class : (c + 1) * per_class] for c in range(len(classes))]
    return all_boxes, image_index.tolist(), classes.tolist()


def _arrays(all_boxes, image_index, classes) -> list[list[np.ndarray]]:
    """``all_boxes`` with every entry an [N, 5] float32 array (the original leaves ``[]`` where nothing was tested)."""
    if len(all_boxes) != len(classes) or any(len(per_image) != len(image_index) for per_image in all_boxes):
        sizes = sorted({len(per_image) for per_image in all_boxes})
        raise PortError(
            f"all_boxes has {len(all_boxes)} classes of {sizes} images; "
            f"{len(classes)} classes of {len(image_index)} images are expected",
            hint="Are these the detections of another image set or class list?",
        )
    arrays = [[_dets(entry) for entry in per_image] for per_image in all_boxes]
    for name, per_image in zip(classes, arrays, strict=True):
        for image, dets in zip(image_index, per_image, strict=True):
            if dets.ndim != 2 or dets.shape[1] != 5:
                raise PortError(f"detections of '{name}' on image {image} have shape {dets.shape}, not [N, 5]")
    return arrays


def _dets(entry) -> np.ndarray:
    dets = np.asarray(entry, np.float32)
    return dets.reshape(0, 5) if dets.size == 0 else dets


def _check_detections(path, classes, image_index, offsets, dets) -> None:
    fits = (
        classes.ndim == image_index.ndim == offsets.ndim == 1
        and classes.dtype.kind == "U"
        and offsets.dtype == np.int64
        and len(offsets) == len(classes) * len(image_index) + 1
        and dets.dtype == np.float32
        and dets.shape == (offsets[-1], 5)
        and offsets[0] == 0
        and bool(np.all(np.diff(offsets) >= 0))
    )
    if not fits:
        raise PortError(
            "the arrays in the file do not fit together", file=path, hint="It is damaged; run the test again."
        )
