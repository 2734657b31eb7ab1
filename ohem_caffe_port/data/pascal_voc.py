"""PASCAL VOC: the devkit's image sets and annotations (http://host.robots.ox.ac.uk/pascal/VOC/)."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np

from prototxt.errors import nearest

from ..errors import PortError
from .imdb import Imdb, one_per_row
from .proposals import load_proposals

VOC_CLASSES = (
    "__background__",  # always index 0
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


class PascalVoc(Imdb):
    """One image set of a VOC devkit.

    ``devkit``: the folder that holds ``VOC<year>/{JPEGImages,Annotations,ImageSets}``, or ``VOC<year>`` itself;
    ``proposals``: a .mat or .npz file (see :mod:`.proposals`) or None for ground truth alone. Difficult objects are
    left out of the ground truth unless ``use_diff``. ``min_size``: proposals smaller than that are dropped (see
    ``proposals.clean_boxes``).
    """

    def __init__(
        self, name, devkit, year, image_set, *, classes=VOC_CLASSES, proposals=None, use_diff=False, min_size=2
    ):
        self.data_path = _voc_folder(Path(devkit), year)
        self.year, self.image_set = str(year), image_set
        self.proposals, self.use_diff, self.min_size = proposals, use_diff, min_size
        super().__init__(name, classes, read_image_set(self.data_path / "ImageSets" / "Main" / f"{image_set}.txt"))

    @property
    def use_07_metric(self) -> bool:
        """Whether AP is the 11-point average: VOC changed its metric in 2010."""
        return int(self.year) < 2010

    @property
    def has_ground_truth(self) -> bool:
        """The annotations of the test sets after 2007 were never published."""
        return self.year == "2007" or self.image_set != "test"

    def image_path_at(self, i):
        return self.data_path / "JPEGImages" / f"{self.image_index[i]}.jpg"

    def annotation_path_at(self, i: int) -> Path:
        """Path of the XML file of image ``i``."""
        return self.data_path / "Annotations" / f"{self.image_index[i]}.xml"

    def annotations(self) -> dict[str, list[dict]]:
        """{image id: objects, as :func:`read_annotation` gives them}, difficult ones included: what
        ``evaluate_voc`` compares detections with."""
        return {image: read_annotation(self.annotation_path_at(i)) for i, image in enumerate(self.image_index)}

    def proposal_boxes(self):
        if self.proposals is None:
            return None
        return load_proposals(self.proposals, self.image_index, min_size=self.min_size)

    def gt_roidb(self):
        if not self.has_ground_truth:
            return None
        return [self._gt_entry(i) for i in range(self.num_images)]

    def _gt_entry(self, i: int) -> dict:
        path = self.annotation_path_at(i)
        width, height = self.image_size_at(i)
        boxes, gt_classes = [], []
        for n, obj in enumerate(read_annotation(path, size=(width, height)), start=1):
            if obj["difficult"] and not self.use_diff:
                continue
            x1, y1, x2, y2 = obj["bbox"]
            if x2 > width or y2 > height:
                raise PortError(
                    f"object {n} ('{obj['name']}'): box {obj['bbox']} reaches outside the {width} x {height} image",
                    file=path,
                    hint="Correct the box (one-based, inclusive) or the image; were the images resized?",
                )
            boxes.append((x1 - 1, y1 - 1, x2 - 1, y2 - 1))
            gt_classes.append(self._class_index(obj["name"], path, n))
        boxes = np.array(boxes, dtype=np.uint16).reshape(-1, 4)
        gt_classes = np.array(gt_classes, dtype=np.int32)
        sides = boxes[:, 2:].astype(np.float32) - boxes[:, :2] + 1
        return {
            "boxes": boxes,
            "gt_classes": gt_classes,
            "gt_overlaps": one_per_row(np.ones(len(boxes)), gt_classes, self.num_classes),
            "seg_areas": sides[:, 0] * sides[:, 1],  # VOC: the area of the box
            "flipped": False,
        }

    def _class_index(self, name: str, path: Path, n: int) -> int:
        if name in self.classes[1:]:
            return self.classes.index(name)
        near = nearest(name, self.classes[1:])
        raise PortError(
            f"object {n}: class '{name}' is not among the {self.num_classes - 1} classes of '{self.name}'",
            file=path,
            field="name",
            hint=f"Did you mean '{near}'?" if near else f"Classes: {', '.join(self.classes[1:])}.",
        )


def read_annotation(path, *, size: tuple[int, int] | None = None) -> list[dict]:
    """The objects of a VOC annotation file, in its order.

    Each is a dict: ``name`` (lower case), ``bbox`` (x1, y1, x2, y2: one-based inclusive ints; fractions, which VOC 2011
    and later have in places, are cut off), ``difficult`` and ``truncated`` (bool), ``pose`` (str).
    ``difficult``, ``truncated`` and ``pose`` may be absent. ``size``: width and height of the image, which the file
    must agree with where it states them.

    Raises:
        PortError: missing file, broken XML, another size, an object without name or box, a box that is inverted or
            begins before 1.
    """
    path = Path(path)
    try:
        root = ET.parse(path).getroot()
    except FileNotFoundError:
        raise PortError(
            "annotation not found", file=path, hint="Put the file there or take the image out of the image set."
        ) from None
    except (ET.ParseError, LookupError, ValueError) as error:  # LookupError: an encoding that does not exist
        line = error.position[0] if isinstance(error, ET.ParseError) else None
        raise PortError(f"broken XML: {error}", file=path, line=line, hint="Restore the annotation file.") from None
    if size is not None:
        _check_size(root, size, path)
    return [_read_object(obj, path, n) for n, obj in enumerate(root.findall("object"), start=1)]


def _check_size(root: ET.Element, size: tuple[int, int], path: Path) -> None:
    stated = [root.findtext(f"size/{side}", "").strip() for side in ("width", "height")]
    stated = tuple(int(text) if text.isdecimal() else 0 for text in stated)  # some programs write 0 or nothing
    if all(stated) and stated != tuple(size):
        raise PortError(
            f"the image is {size[0]} x {size[1]}, its annotation says {stated[0]} x {stated[1]}",
            file=path,
            field="size",
            hint="Its boxes belong to an image of that size: restore the image, or annotate it anew.",
        )


def _read_object(obj: ET.Element, path: Path, n: int) -> dict:
    def fail(message, field, hint):
        raise PortError(f"object {n}: {message}", file=path, field=field, hint=hint)

    def number(parent, field, default=None):
        text = default if parent is None else parent.findtext(field.rpartition("/")[2], default)
        try:
            return int(float(text))
        except (TypeError, ValueError, OverflowError):
            fail("missing" if text is None else f"'{text}' is not a number", field, "Write a whole number there.")

    name = (obj.findtext("name") or "").lower().strip()
    if not name:
        fail("no class name", "name", "Every <object> needs a <name>.")
    corners = obj.find("bndbox")
    bbox = tuple(number(corners, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax"))
    if bbox[0] < 1 or bbox[1] < 1:
        fail(f"box {bbox} ('{name}') begins before pixel 1", "bndbox", "VOC counts pixels from 1: add 1 to all sides?")
    if bbox[2] < bbox[0] or bbox[3] < bbox[1]:
        fail(f"box {bbox} ('{name}') is inverted", "bndbox", "xmin <= xmax and ymin <= ymax are needed.")
    return {
        "name": name,
        "bbox": bbox,
        "difficult": bool(number(obj, "difficult", "0")),
        "truncated": bool(number(obj, "truncated", "0")),
        "pose": (obj.findtext("pose") or "Unspecified").strip(),
    }


def _voc_folder(place: Path, year) -> Path:
    """``place/VOC<year>``; or ``place``, where that folder itself was named or its content lies in another one."""
    inner = place / f"VOC{year}"
    another_year = re.fullmatch(r"VOC\d{4}", place.name) and place.name != inner.name
    is_itself = not inner.is_dir() and (place / "ImageSets" / "Main").is_dir() and not another_year
    return place if is_itself else inner


def find_devkit(year, data_dir, devkit=None) -> Path:
    """The VOC devkit folder: ``devkit`` if given, else ``<data_dir>/VOCdevkit<year>``, else ``<data_dir>/VOCdevkit``.

    Raises:
        PortError: none of them holds a ``VOC<year>`` folder, or is one; the message lists the places.
    """
    if devkit is not None:
        places = [Path(devkit)]
    else:
        places = [Path(data_dir) / f"VOCdevkit{year}", Path(data_dir) / "VOCdevkit"]
    for place in places:
        if _voc_folder(place, year).is_dir():
            return place
    raise PortError(
        f"no VOC {year} devkit found; looked for " + ", ".join(str(place / f"VOC{year}") for place in places),
        hint="Unpack (or link) the VOCdevkit folder at one of these places, or name it with --devkit.",
    )


def read_image_set(path: Path) -> list[str]:
    """The image ids of an image-set file: the first word of each line."""
    try:
        index = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        here = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt") if "_" not in p.stem)) or "none"
        raise PortError("image set not found", file=path, hint=f"Image sets beside it: {here}.") from None
    except UnicodeDecodeError:
        raise PortError("the image set is not UTF-8 text", file=path, hint="List one image id per line.") from None
    if not index:
        raise PortError("the image set is empty", file=path, hint="List one image id per line.")
    return index
