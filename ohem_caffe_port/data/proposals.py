"""Object proposals: read from .mat and .npz files, or made here.

.mat, as published for Fast R-CNN: ``boxes``, a cell per image in the order of the image set, columns y1 x1 y2 x2,
one-based; ``images``, optional, the ids.

.npz (EdgeBoxes, MCG, your own), boxes ``x1 y1 x2 y2`` zero-based and inclusive, further columns (a score) ignored,
best first; one of two forms:

    one array [N, 4] or [N, 5] per image, its key the image id
    ``images`` [n] ids, ``boxes`` [T, 4 or 5] of all images one after the other, ``offsets`` [n + 1]: image k has the
    rows offsets[k] to offsets[k + 1]

An .npz may hold more images than are asked for, in any order.
"""

from __future__ import annotations

import multiprocessing
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from prototxt.files import replacing

from ..errors import PortError
from .grouping import colour_edge_proposals
from .mat_files import read_mat


def find_proposals(proposals, name: str, data_dir) -> Path | None:
    """The proposals file of the imdb ``name``: None for ``gt``; else ``proposals`` is a file, a folder that holds
    ``<name>.mat`` or ``.npz``, or a method, whose folder is ``<data_dir>/<method>_data``.

    Raises:
        PortError: no such file; the message lists the places.
    """
    if proposals is None or proposals == "gt":
        return None
    given = Path(proposals)
    if given.suffix in (".mat", ".npz") or given.suffix and given.is_file():  # one of another kind is refused later
        places = [given]
    else:
        folder = given if given.is_dir() else Path(data_dir) / f"{proposals}_data"
        places = [folder / f"{name}{suffix}" for suffix in (".mat", ".npz")]
    for place in places:
        if place.is_file():
            return place
    raise PortError(
        f"no proposals for '{name}'; looked for " + ", ".join(map(str, places)),
        field="proposals",
        hint="Put the file at one of these places, name it, or make one with tools/make_proposals.py.",
    )


def load_proposals(path, image_index, *, min_size: int = 2) -> list[np.ndarray]:
    """:func:`load_selective_search` for .mat, :func:`load_npz` for .npz."""
    path = Path(path)
    if path.suffix not in (".mat", ".npz"):
        raise PortError(f"proposals of the kind '{path.suffix}' are not known", file=path, hint="Use .mat or .npz.")
    if not path.is_file():
        raise PortError("proposals not found", file=path, hint="Name a file that exists, or make one.")
    load = load_selective_search if path.suffix == ".mat" else load_npz
    return load(path, image_index, min_size=min_size)


def load_selective_search(path, image_index, *, min_size: int = 2) -> list[np.ndarray]:
    """Boxes [N, 4] (x1 y1 x2 y2, zero-based) per image from a .mat file, cleaned by :func:`clean_boxes`.

    Raises:
        PortError: missing or broken file, other images than ``image_index``, coordinates below 1.
    """
    path = Path(path)
    data = read_mat(path)
    if "boxes" not in data or data["boxes"].dtype != object:
        raise PortError(
            "no cell array 'boxes'", file=path, hint="See ohem_caffe_port/data/proposals.py for the format."
        )
    cells = data["boxes"].ravel()
    if len(cells) != len(image_index):
        raise PortError(
            f"boxes of {len(cells)} images, the image set has {len(image_index)}",
            file=path,
            hint="Use the proposals made for this very image set.",
        )
    if "images" in data:
        ids = [str(np.ravel(cell)[0]) if np.size(cell) else "" for cell in data["images"].ravel()]
        for k, (theirs, ours) in enumerate(zip(ids, image_index, strict=False)):
            if theirs != ours:
                raise PortError(
                    f"cell {k} belongs to image '{theirs}', the image set has '{ours}' there",
                    file=path,
                    hint="Use the proposals made for this very image set; the order counts.",
                )
    return [
        clean_boxes(_checked(cell, path, image)[:, (1, 0, 3, 2)] - 1, min_size)
        for cell, image in zip(cells, image_index, strict=True)
    ]


def load_demo_boxes(path) -> np.ndarray:
    """Boxes [N, 4] (x1 y1 x2 y2, zero-based) of one image from a .mat file with a matrix ``boxes``, as lie in the
    original's data/demo.

    Raises:
        PortError: missing or broken file, another form.
    """
    boxes = read_mat(path).get("boxes")
    if boxes is None or boxes.dtype == object:
        raise PortError("no matrix 'boxes'", file=path, hint="it holds the x1 y1 x2 y2 of one image")
    return _checked(boxes, Path(path), Path(path).stem, lowest=0)[:, :4]


def _checked(boxes, path: Path, image: str, lowest: int = 1) -> np.ndarray:
    """``boxes`` as signed or floating [N, >= 4], all finite and not below ``lowest``."""
    boxes = np.asarray(boxes)
    if boxes.size == 0:
        return np.zeros((0, 4), dtype=np.int64)
    if boxes.ndim != 2 or boxes.shape[1] < 4 or boxes.dtype.kind not in "uif":
        raise PortError(f"image '{image}': boxes of shape {boxes.shape} ({boxes.dtype}), not [N, 4]", file=path)
    boxes = boxes.astype(np.float64 if boxes.dtype.kind == "f" else np.int64)  # unsigned ones would wrap around
    corners = boxes[:, :4]
    good = (corners >= lowest) & (corners <= 65535)  # false for NaN
    good[:, 2:] &= corners[:, 2:] >= corners[:, :2]
    if not good.all():
        n = int((~good).any(axis=1).argmax())
        raise PortError(
            f"image '{image}': box {n} is {corners[n].tolist()}: inverted, or not from {lowest} to 65535",
            file=path,
            hint=".mat files hold y1 x1 y2 x2 from 1, .npz files x1 y1 x2 y2 from 0.",
        )
    return boxes


def clean_boxes(boxes: np.ndarray, min_size: int = 2) -> np.ndarray:
    """First occurrences of ``boxes`` [N, 4], without those where x2 - x1 < ``min_size`` or y2 - y1 <= ``min_size``.

    The two unlike comparisons are the original's. Whole numbers become uint16, fractions float32.
    """
    _, first = np.unique(boxes, axis=0, return_index=True)
    boxes = boxes[np.sort(first)]
    keep = (boxes[:, 2] - boxes[:, 0] >= min_size) & (boxes[:, 3] - boxes[:, 1] > min_size)
    boxes = boxes[keep]
    whole = boxes.dtype.kind != "f" or (boxes == np.floor(boxes)).all()
    return boxes.astype(np.uint16 if whole else np.float32)


def load_npz(path, image_index, *, min_size: int = 2) -> list[np.ndarray]:
    """Boxes [N, 4] per image from an .npz file (see the module's docstring), cleaned by :func:`clean_boxes`.

    Raises:
        PortError: missing or broken file, images that are not in it, malformed boxes.
    """
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as data:
            lookup = _flat_form(data, path) if {"boxes", "offsets", "images"} <= set(data.files) else data
            missing = [image for image in image_index if image not in lookup]
            if missing:
                raise PortError(
                    f"no boxes for {len(missing)} of {len(image_index)} images, the first '{missing[0]}'",
                    file=path,
                    hint="Make the proposals for this image set; the keys are the image ids.",
                )
            return [clean_boxes(_checked(lookup[i], path, i, lowest=0)[:, :4], min_size) for i in image_index]
    except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PortError(f"not a readable .npz file: {error}", file=path, hint="Write it with numpy.savez.") from None


def _flat_form(data, path: Path) -> dict:
    boxes, offsets, images = data["boxes"], data["offsets"], data["images"]
    if (
        offsets.shape != (len(images) + 1,)
        or offsets[0] != 0
        or offsets[-1] != len(boxes)
        or (np.diff(offsets) < 0).any()
    ):
        raise PortError(
            f"offsets {offsets.shape} do not divide {len(boxes)} boxes among {len(images)} images",
            file=path,
            field="offsets",
            hint="offsets has one more entry than images: 0, ends of each image, and the last is the number of boxes.",
        )
    return {str(image): boxes[offsets[k] : offsets[k + 1]] for k, image in enumerate(images)}


def save_npz(path, image_index, box_list) -> None:
    """Writes the flat .npz form; the file appears when it is complete."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate(([0], np.cumsum([len(boxes) for boxes in box_list], dtype=np.int64)))
    boxes = np.concatenate([np.asarray(b).reshape(-1, 4) for b in box_list]) if len(box_list) else np.zeros((0, 4))
    with replacing(path) as file:
        np.savez_compressed(file, images=np.array(list(image_index), dtype=str), boxes=boxes, offsets=offsets)


def _selective_search(image_bgr: np.ndarray, max_boxes: int) -> np.ndarray:
    """OpenCV's selective search, fast mode (in opencv-contrib-python)."""
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image_bgr)
    search.switchToSelectiveSearchFast()
    x, y, w, h = np.reshape(search.process(), (-1, 4))[:max_boxes].T
    return np.stack((x, y, x + w - 1, y + h - 1), axis=1).astype(np.uint16)


_METHODS = {"colour_edge": colour_edge_proposals}
if hasattr(cv2, "ximgproc") and hasattr(cv2.ximgproc, "segmentation"):
    _METHODS["selective_search"] = _selective_search


def proposal_method(method: str = "auto") -> str:
    """The name of the method that :func:`generate_proposals` uses for ``method``.

    Raises:
        PortError: unknown, or not in this OpenCV.
    """
    if method == "auto":
        return "selective_search" if "selective_search" in _METHODS else "colour_edge"
    if method not in _METHODS:
        hint = "Install opencv-contrib-python, or use 'colour_edge'." if method == "selective_search" else None
        raise PortError(f"proposal method '{method}' is not one of: auto, {', '.join(_METHODS)}", hint=hint)
    return method


def generate_proposals(image_bgr: np.ndarray, method: str = "auto", *, max_boxes: int = 2000) -> np.ndarray:
    """Boxes [N, 4] uint16 (x1 y1 x2 y2, zero-based inclusive) of an image [H, W, 3] uint8, N <= ``max_boxes``.

    ``method``: ``selective_search`` (OpenCV's, fast mode, where the contrib module is installed), ``colour_edge``
    (our own, see :mod:`.grouping`) or ``auto``, the first that is there.
    """
    return _METHODS[proposal_method(method)](image_bgr, max_boxes)


def build_proposals(imdb, out_npz, method: str = "auto", workers: int = 1) -> Path:
    """Generates the proposals of all images of ``imdb`` and writes them to ``out_npz``; returns its path.

    ``workers`` processes share the work; a progress bar is shown. The same file results for any number of them.
    """
    method = proposal_method(method)
    jobs = [(imdb.image_path_at(i), method) for i in range(imdb.num_images)]
    progress = {"total": len(jobs), "desc": f"{method} proposals", "unit": "image"}
    if workers > 1:
        # spawn: forking a process that runs OpenCV's or torch's threads can hang
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
            boxes = list(tqdm(pool.map(_propose, jobs, chunksize=4), **progress))
    else:
        boxes = [_propose(job) for job in tqdm(jobs, **progress)]
    save_npz(out_npz, imdb.image_index, boxes)
    return Path(out_npz)


def _propose(job) -> np.ndarray:
    path, method = job
    image = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise PortError("not a readable image", file=path)
    return generate_proposals(image, method)
