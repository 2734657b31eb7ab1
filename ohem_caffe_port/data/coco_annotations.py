"""COCO's annotation files, checked, as pycocotools' object."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

from pycocotools.coco import COCO

from ..errors import PortError


def read_coco(path) -> COCO:
    """An annotation file as pycocotools' object, checked, without segmentations (they take most of its memory).

    Where an annotation has no ``area`` it gets that of its box; ``iscrowd`` is 0 unless stated. Files of images without
    annotations (``image_info_test2015.json``) are read, too.

    Raises:
        PortError: missing, not JSON, or not of COCO's form: what the first thing wrong is.
    """
    path = Path(path)
    data = read_json(path, "Download the annotations, or name the folder that holds 'annotations' with --devkit.")
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "categories")):
        raise PortError("no annotations of COCO's form: the lists 'images' and 'categories' are needed", file=path)
    images = _by_id(data, "images", path)
    categories = _by_id(data, "categories", path)
    names = [category.get("name") for category in categories.values()]
    if not all(isinstance(name, str) and name for name in names) or len(set(names)) < len(names):
        raise PortError("every category needs a name of its own", file=path, field="categories")
    if not isinstance(data.setdefault("annotations", []), list):
        raise PortError("must be a list", file=path, field="annotations")
    for number, annotation in _by_id(data, "annotations", path).items():
        _check_annotation(annotation, number, images, categories, path)
    coco = COCO()
    coco.dataset = data
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def read_json(path, hint: str):
    """The content of a JSON file; ``hint`` is for one that is missing.

    Raises:
        PortError: missing, or not JSON.
    """
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise PortError("not found", file=path, hint=hint) from None
    except OSError as error:
        raise PortError(f"cannot be read: {error.strerror}", file=path) from None
    except (ValueError, RecursionError) as error:
        raise PortError(f"not JSON: {error}", file=path, hint="Is it complete, and unpacked?") from None


def _by_id(data: dict, key: str, path: Path) -> dict[int, dict]:
    """The records of ``data[key]`` by their ids."""
    records = {}
    for number, record in enumerate(data[key], start=1):
        ident = record.get("id") if isinstance(record, dict) else None
        if not isinstance(ident, int):
            raise PortError(f"number {number} has no id that is a whole number", file=path, field=key)
        if ident in records:
            raise PortError(f"id {ident} is there twice", file=path, field=key)
        records[ident] = record
    return records


def _check_annotation(annotation: dict, number: int, images: dict, categories: dict, path: Path) -> None:
    """Raises a PortError, or completes the annotation."""

    def wrong(message):
        return PortError(f"annotation {number}: {message}", file=path, field="annotations")

    for key, known in (("image_id", images), ("category_id", categories)):
        ident = annotation.get(key)
        if not isinstance(ident, int) or ident not in known:
            raise wrong(f"{key} {ident} is not in the file")
    box = annotation.get("bbox")
    if not is_box(box):
        raise wrong(f"bbox is {box}, not x, y, width and height")
    area = annotation.setdefault("area", box[2] * box[3])
    if not is_number(area):
        raise wrong(f"area is {area}")
    if annotation.setdefault("iscrowd", 0) not in (0, 1):
        raise wrong(f"iscrowd is {annotation['iscrowd']}, not 0 or 1")
    annotation.pop("segmentation", None)


def is_box(box) -> bool:
    """Whether this is a list of four numbers."""
    return isinstance(box, list) and len(box) == 4 and all(map(is_number, box))


def is_number(value) -> bool:
    """Whether this is a number that a box may have: finite, and not so large that areas are not."""
    return isinstance(value, (int, float)) and abs(value) < 1e15
