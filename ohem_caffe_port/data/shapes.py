"""The embedded data set: shapes drawn on cluttered backgrounds, in the layout of a VOC devkit, with proposals.

Six classes among look-alikes that belong to none (ellipses, bars, half discs ...), so that a detector meets easy and
hard background, as OHEM expects. Drawn in seconds, it lets every tool run without a download.

    <folder>/stamp.json                                      what it was drawn with
    <folder>/VOCdevkit2007/VOC2007/{JPEGImages,Annotations,ImageSets/Main}
    <folder>/selective_search_data/voc_2007_{train,test}.npz
"""

from __future__ import annotations

import json
import tempfile
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from ..errors import PortError
from .grouping import STRATEGIES, colour_edge_proposals
from .proposals import clean_boxes, save_npz

SHAPE_CLASSES = ("__background__", "circle", "square", "triangle", "star", "cross", "ring")
DISTRACTORS = ("ellipse", "bar", "half_disc", "arc", "ell", "chevron")

VERSION = 1  # raise it when the drawing changes: old folders are then drawn again
NUM_PROPOSALS = 300  # per image
SUBPIXEL = 4  # bits of a fraction of a pixel in polygon corners


def ensure_shapes(folder, *, num_train: int = 300, num_test: int = 100, seed: int = 0) -> Path:
    """:func:`make_shapes` unless ``folder`` already holds this very data set; returns ``folder``.

    The folder appears complete or not at all.

    Raises:
        PortError: the folder holds something that was not drawn by this function.
    """
    folder = Path(folder)
    stamp = {"version": VERSION, "num_train": num_train, "num_test": num_test, "seed": seed}
    if _read_stamp(folder) == stamp:
        return folder
    empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not empty and _read_stamp(folder) is None:
        raise PortError("the folder is not empty and holds no drawn data set", file=folder, hint="Name another folder.")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            fresh = Path(temporary) / "fresh"
            make_shapes(fresh, num_train=num_train, num_test=num_test, seed=seed)
            if _read_stamp(folder) != stamp:  # else another process was quicker
                if folder.exists():
                    folder.replace(Path(temporary) / "old")
                fresh.replace(folder)
    except OSError as error:
        raise PortError(
            f"the data set cannot be drawn there: {error}", file=folder, hint="Name another data folder."
        ) from None
    return folder


def _read_stamp(folder: Path) -> dict | None:
    try:
        return json.loads((folder / "stamp.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def make_shapes(folder, *, num_train: int = 300, num_test: int = 100, seed: int = 0) -> None:
    """Draws ``num_train`` + ``num_test`` images (250 x 200 pixels, 1 to 4 objects) with annotations and proposals.

    The same arguments give the same bytes; image k of a set does not depend on how many follow.
    """
    folder = Path(folder)
    voc = folder / "VOCdevkit2007" / "VOC2007"
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (voc / part).mkdir(parents=True, exist_ok=True)
    for split, (image_set, first, count) in enumerate((("train", 1, num_train), ("test", 500001, num_test))):
        index, proposals = [], []
        for k in range(count):
            rng = np.random.default_rng([seed, split, k])
            image_id = f"{first + k:06d}"
            scene = _draw_scene(rng)
            while all(item.difficult for item in scene.objects):  # every image has something to learn from
                scene = _draw_scene(rng)
            jpeg = cv2.imencode(".jpg", scene.image, [cv2.IMWRITE_JPEG_QUALITY, 92])[1]
            (voc / "JPEGImages" / f"{image_id}.jpg").write_bytes(jpeg.tobytes())
            _write_annotation(voc / "Annotations" / f"{image_id}.xml", image_id, scene)
            index.append(image_id)
            proposals.append(_propose(rng, scene))
        (voc / "ImageSets" / "Main" / f"{image_set}.txt").write_text("".join(f"{i}\n" for i in index), encoding="utf-8")
        save_npz(folder / "selective_search_data" / f"voc_2007_{image_set}.npz", index, proposals)
    stamp = {"version": VERSION, "num_train": num_train, "num_test": num_test, "seed": seed}
    (folder / "stamp.json").write_text(json.dumps(stamp), encoding="utf-8")


@dataclass
class _Item:
    """Something drawn: ``mask`` [H, W] bool is all of it inside the image, ``box`` x1 y1 x2 y2 of what is visible."""

    kind: str
    mask: np.ndarray
    truncated: bool
    faint: bool
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    visible: float = 1.0

    @property
    def difficult(self) -> bool:
        return self.faint or self.visible < 0.65


@dataclass
class _Scene:
    image: np.ndarray  # [H, W, 3] uint8 BGR
    objects: list[_Item]
    distractors: list[_Item]


def _draw_scene(rng, width: int = 250, height: int = 200) -> _Scene:
    canvas = _background(rng, width, height)
    distractors = [str(rng.choice(DISTRACTORS)) for _ in range(rng.integers(2, 6))]
    objects = [str(rng.choice(SHAPE_CLASSES[1:])) for _ in range(rng.integers(1, 5))]
    kinds = [*distractors, *objects]
    rng.shuffle(kinds)  # so that each may cover the other
    items = []
    for kind in kinds:
        item = _place(rng, canvas, kind, [other.mask for other in items])
        if item is not None:
            items.append(item)
    _measure_visibility(items)
    seen = [item for item in items if item.visible > 0.3]
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.9))
    canvas = canvas * rng.uniform(0.75, 1.1) + rng.normal(0, rng.uniform(2, 8), canvas.shape)
    return _Scene(
        np.clip(canvas, 0, 255).astype(np.uint8),
        [item for item in seen if item.kind in SHAPE_CLASSES],
        [item for item in seen if item.kind in DISTRACTORS],
    )


def _background(rng, width: int, height: int) -> np.ndarray:
    """[H, W, 3] float32: clouds of several grain sizes, a few large patches, many thin strokes."""
    canvas = np.full((height, width, 3), rng.uniform(60, 200, 3), dtype=np.float32)
    for cell, strength in ((90, 45), (25, 22), (6, 14)):
        coarse = rng.normal(0, strength, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        grey = coarse.mean(axis=2, keepdims=True)
        canvas += cv2.resize(0.5 * coarse + grey, (width, height), interpolation=cv2.INTER_CUBIC)
    size = np.array([width, height])
    for _ in range(rng.integers(1, 5)):  # hard edges that belong to nothing
        corners = rng.uniform(-0.2, 1.2, (1, 2)) * size + rng.normal(0, 60, (rng.integers(3, 6), 2))
        mask = _fill([corners], width, height)[..., None] * np.float32(rng.uniform(0.3, 0.8))
        canvas += mask * (_colour(rng) - canvas)
    for _ in range(rng.integers(15, 45)):
        start = rng.uniform(0, 1, 2) * size
        points = np.cumsum(np.vstack((start, rng.normal(0, 12, (rng.integers(2, 5), 2)))), axis=0)
        points = np.rint(points * 2**SUBPIXEL).astype(np.int32)
        colour = tuple(map(float, _colour(rng)))
        cv2.polylines(canvas, [points], False, colour, int(rng.integers(1, 4)), cv2.LINE_AA, SUBPIXEL)
    return canvas


def _colour(rng) -> np.ndarray:
    return rng.uniform(10, 245, 3).astype(np.float32)


def _place(rng, canvas: np.ndarray, kind: str, others: list[np.ndarray]) -> _Item | None:
    """Paints one shape onto ``canvas`` where it hides little of the others; None when no place is found."""
    height, width = canvas.shape[:2]
    for _ in range(30):
        side = np.exp(rng.uniform(np.log(30), np.log(110)))
        centre = rng.uniform(0.4 * side, np.array([width, height]) - 0.4 * side)
        polygons = _outline(rng, kind, side, centre)
        alpha = _fill(polygons, width, height)
        mask = alpha > 0.5
        if mask.any() and all((mask & other).sum() <= 0.3 * min(mask.sum(), other.sum()) for other in others):
            break
    else:
        return None
    faint = bool(rng.random() < 0.04)
    corners = np.concatenate(polygons)
    truncated = bool((corners < 0).any() or (corners > np.array([width, height]) - 1).any())
    _paint(rng, canvas, alpha * np.float32(0.3 if faint else 1.0), mask)
    return _Item(kind, mask, truncated, faint)


def _paint(rng, canvas: np.ndarray, alpha: np.ndarray, mask: np.ndarray) -> None:
    """Blends a plain, shaded, striped, chequered or speckled filling into ``canvas``, in contrast to what is there."""
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    window = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    canvas, alpha, mask = canvas[window], alpha[window], mask[window]  # a view: painting changes the whole canvas
    below = canvas[mask].mean(axis=0)
    colour = max((_colour(rng) for _ in range(3)), key=lambda c: np.abs(c - below).sum())
    second = np.clip(colour + rng.normal(0, 45, 3), 0, 255).astype(np.float32)
    height, width = mask.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 20)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    pattern = rng.integers(5)
    if pattern == 0:
        blend = np.zeros_like(u)
    elif pattern == 1:
        blend = (u - u[mask].min()) / max(1.0, np.ptp(u[mask]))
    elif pattern == 2:
        blend = (np.sin(u * (2 * np.pi / period)) > 0).astype(np.float32)
    elif pattern == 3:
        blend = (np.sin(u * (2 * np.pi / period)) * np.sin(v * (2 * np.pi / period)) > 0).astype(np.float32)
    else:
        blend = cv2.resize(rng.random((height // 4 + 1, width // 4 + 1), dtype=np.float32), (width, height))
    filling = colour + np.clip(blend, 0, 1)[..., None] * (second - colour)
    if rng.random() < 0.35:  # a rim
        inner = cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=int(rng.integers(1, 3)))
        filling = np.where(inner[..., None] > 0, filling, 0.45 * filling)
    canvas += alpha[..., None] * (filling - canvas)


def _measure_visibility(items: list[_Item]) -> None:
    """Sets ``box`` and ``visible`` of each item: later ones cover earlier ones."""
    covered = np.zeros(items[0].mask.shape, dtype=bool)
    for item in reversed(items):
        shown = item.mask & ~covered
        item.visible = shown.sum() / item.mask.sum()
        if shown.any():
            rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
            item.box = (int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1]))
        covered |= item.mask


def _fill(polygons, width: int, height: int) -> np.ndarray:
    """[H, W] float32 coverage of closed polygons; where two overlap is a hole (even-odd rule)."""
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(mask, [np.rint(p * 2**SUBPIXEL).astype(np.int32) for p in polygons], 255, cv2.LINE_AA, SUBPIXEL)
    return mask.astype(np.float32) / 255


def _outline(rng, kind: str, side: float, centre: np.ndarray) -> list[np.ndarray]:
    """Polygons [K, 2] (x, y) in pixels of a shape about ``side`` pixels large, a little turned and stretched."""

    def arc(start, end, radius=1.0, steps=48):
        t = np.linspace(start, end, steps) * np.pi
        return np.stack((np.cos(t), np.sin(t)), axis=1) * radius

    whole_turn = kind in ("star", *DISTRACTORS)
    if kind == "circle":
        polygons = [arc(0, 2)]
    elif kind == "square":
        polygons = [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.95]
    elif kind == "triangle":
        polygons = [arc(-0.5, 1.5, 1.1, 4)[:3]]
    elif kind == "star":
        tips, notches = arc(0, 2, 1.1, 6)[:5], arc(0.2, 2.2, rng.uniform(0.42, 0.52), 6)[:5]
        polygons = [np.stack((tips, notches), axis=1).reshape(-1, 2)]
    elif kind == "cross":
        t = rng.uniform(0.25, 0.36)
        quarter = np.array([(t, -1), (t, -t), (1, -t)])
        polygons = [
            np.concatenate([quarter @ np.linalg.matrix_power(np.array([(0, 1), (-1, 0)]), k) for k in range(4)])
        ]
    elif kind == "ring":
        polygons = [arc(0, 2), arc(0, 2, rng.uniform(0.5, 0.7))]
    elif kind == "ellipse":
        polygons = [arc(0, 2) * (1, rng.uniform(0.35, 0.55))]
    elif kind == "bar":
        polygons = [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (1, rng.uniform(0.2, 0.5))]
    elif kind == "half_disc":
        polygons = [arc(0, 1) - (0, 0.5)]
    elif kind == "arc":
        gap = rng.uniform(0.3, 0.6)
        polygons = [np.concatenate((arc(gap, 2), arc(2, gap, rng.uniform(0.5, 0.7))))]
    elif kind == "ell":
        t = rng.uniform(0.4, 0.6)
        polygons = [np.array([(-1, -1), (-1 + t, -1), (-1 + t, 1 - t), (1, 1 - t), (1, 1), (-1, 1)])]
    else:  # chevron
        polygons = [np.array([(-1, -1), (-0.2, -1), (0.8, 0), (-0.2, 1), (-1, 1), (0, 0)])]
    turn = rng.uniform(-1, 1) * (np.pi if whole_turn else np.pi / 8)
    rotation = np.array([(np.cos(turn), np.sin(turn)), (-np.sin(turn), np.cos(turn))])
    stretch = np.exp(rng.uniform(-0.13, 0.13)) ** np.array([1, -1])
    return [(p @ rotation) * stretch * (side / 2) + centre for p in polygons]


def _propose(rng, scene: _Scene) -> np.ndarray:
    """[N, 4] uint16 boxes: groups of pixels, near misses around objects and distractors alike, random boxes."""
    height, width = scene.image.shape[:2]
    limits = np.array([width, height, width, height]) - 1
    grouped = colour_edge_proposals(scene.image, NUM_PROPOSALS // 2, strategies=STRATEGIES[:1])
    drawn = np.array([item.box for item in (*scene.objects, *scene.distractors)], dtype=np.float64).reshape(-1, 4)
    near = np.repeat(drawn, 8, axis=0)
    sides = np.tile(near[:, 2:] - near[:, :2] + 1, 2)
    near += rng.normal(0, 0.12, near.shape) * sides
    count = max(0, NUM_PROPOSALS - len(grouped) - len(near))
    centres, extents = rng.uniform(0, 1, (count, 2)) * (width, height), np.exp(rng.uniform(2.7, 5, (count, 2)))
    random = np.hstack((centres - extents / 2, centres + extents / 2))
    boxes = np.concatenate((grouped.astype(np.float64), near, random))
    return clean_boxes(np.rint(np.clip(boxes, 0, limits)).astype(np.int64), min_size=8)


def _write_annotation(path: Path, image_id: str, scene: _Scene) -> None:
    height, width = scene.image.shape[:2]
    root = ET.Element("annotation")
    ET.SubElement(root, "filename").text = f"{image_id}.jpg"
    size = ET.SubElement(root, "size")
    for tag, value in (("width", width), ("height", height), ("depth", 3)):
        ET.SubElement(size, tag).text = str(value)
    for item in scene.objects:
        obj = ET.SubElement(root, "object")
        facts = (("name", item.kind), ("pose", "Unspecified"), ("truncated", int(item.truncated)))
        for tag, value in (*facts, ("difficult", int(item.difficult))):
            ET.SubElement(obj, tag).text = str(value)
        box = ET.SubElement(obj, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True):
            ET.SubElement(box, tag).text = str(value + 1)  # VOC counts from 1
    ET.indent(root)
    ET.ElementTree(root).write(path, encoding="utf-8")
