"""SSD's files: label maps, lists of names and sizes, and the result files that DetectionOutput writes.

As weiliu89/caffe, branch ssd, has them (``detection_output_layer.cpp``; ``OutputBBox`` of ``bbox_util.cpp``).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from prototxt import caffe_pb2, read_any
from prototxt.files import replacing

from ..errors import PortError

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")
_FORMATS = ("VOC", "COCO", "ILSVRC")


def read_label_map(path) -> dict[int, str]:
    """``{label: name}`` of a ``labelmap_*.prototxt``.

    Raises :class:`CaffePortError` when it cannot be read, is no label map or has a label twice.
    """
    label_map = read_any(path)
    if not isinstance(label_map, caffe_pb2.LabelMap):
        raise PortError("no label map: its entries are not called 'item'", file=path)
    items = label_map.item
    names = {item.label: item.name for item in items}
    if len(names) < len(items):
        raise PortError("a label is there twice", file=path)
    return names


def read_name_sizes(path) -> list[tuple[str, int, int]]:
    """``(name, height, width)`` of each line of a ``test_name_size.txt``; raises :class:`PortError`."""
    rows = []
    for number, line in enumerate(_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            name, height, width = words
            rows.append((name, int(height), int(width)))
        except ValueError:
            raise PortError(f"expected 'name height width', got {line!r}", file=path, line=number) from None
    return rows


def _text(path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        hint = "a path in a prototxt is relative to the working directory"
        raise PortError(f"cannot be read: {error.strerror}", file=path, hint=hint) from None
    except UnicodeDecodeError:
        raise PortError("not a text file", file=path) from None


def output_boxes(boxes: np.ndarray, height: int, width: int, resize=None) -> tuple[np.ndarray, np.ndarray]:
    """Boxes in units of the net's input as pixels of the image: ``[N, 4] -> [N, 4]``, and their areas ``[N]``.

    Without a ``ResizeParameter``, or with WARP, they are clipped and scaled by the image's size. FIT_LARGE_SIZE_AND_PAD
    takes the padding off first; FIT_SMALL_SIZE with ``height_scale`` and ``width_scale`` scales by these, then clips.
    An area is ``width + 1`` times ``height + 1``, but ``width * height`` where FIT_SMALL_SIZE clips. All in float32.
    """
    f = np.float32
    boxes, scale = boxes.astype(f), np.array([width, height] * 2, f)
    one, small = f(1), False
    if resize is not None:
        target_height, target_width = f(resize.height), f(resize.width)
        if not target_height or not target_width:
            raise PortError("height and width must be positive", field="resize_param")
        if resize.resize_mode == resize.FIT_LARGE_SIZE_AND_PAD:
            aspect, pad_x, pad_y = f(width) / f(height), f(0), f(0)
            if aspect > target_width / target_height:
                pad_y = (target_height - target_width / aspect) / 2 / target_height
            else:
                pad_x = (target_width - target_height * aspect) / 2 / target_width
            boxes = _projected(boxes, np.array([pad_x, pad_y, one - pad_x, one - pad_y], f))
        elif resize.resize_mode == resize.FIT_SMALL_SIZE and resize.height_scale and resize.width_scale:
            small = True
    if small:
        boxes = np.clip(boxes * np.array([resize.width_scale, resize.height_scale] * 2, f), 0, scale)
    else:
        boxes = np.clip(boxes, 0, one) * scale
    sides = boxes[:, 2:] - boxes[:, :2]
    pixel = 0 if small or (width <= 1 and height <= 1) else 1
    areas = np.where((sides >= 0).all(1), (sides[:, 0] + pixel) * (sides[:, 1] + pixel), 0)
    return boxes, areas.astype(f)


def _projected(boxes, source):
    """Boxes in units of the part ``source`` of the whole; those that do not touch it stay (``ProjectBBox``)."""
    size = np.tile(source[2:] - source[:2], 2)
    outside = (boxes[:, :2] >= source[2:]).any(1) | (boxes[:, 2:] <= source[:2]).any(1)
    return np.where(outside[:, None], boxes, (boxes - np.tile(source[:2], 2)) / size)


class ResultFiles:
    """Collects detections and writes them when a whole test set has been seen.

    Args:
        param: a ``SaveOutputParameter``. Without a folder, a label map and a list of names nothing is written.
        background: the label without a file.
        classes: number of labels; the label map must have a name for each.

    Attributes:
        warnings: why nothing will be written though a folder is named.
    """

    def __init__(self, param, background: int, classes: int):
        self.param, self.background, self.classes = param, background, classes
        self.wanted = bool(param.output_directory and param.label_map_file and param.name_size_file)
        self.warnings = []
        if param.output_directory and not self.wanted:
            self.warnings.append("save_output_param writes nothing without label_map_file and name_size_file")
        if self.wanted and param.output_format not in _FORMATS:
            raise PortError(
                f"'{param.output_format}' is none of {', '.join(_FORMATS)}",
                field="detection_output_param.save_output_param.output_format",
            )
        self.images: list[tuple[str, int, int]] | None = None

    def _open(self):
        p = self.param
        self.labels, self.images = read_label_map(p.label_map_file), read_name_sizes(p.name_size_file)
        count = p.num_test_image if p.HasField("num_test_image") else len(self.images)
        if not 0 < count <= len(self.images):
            raise PortError(f"lists {len(self.images)} images, but num_test_image is {count}", file=p.name_size_file)
        self.images = self.images[:count]
        for label in (c for c in range(self.classes) if c != self.background):
            name = self.labels.get(label)
            if name is None:
                raise PortError(f"has no name for label {label}", file=p.label_map_file)
            if p.output_format == "VOC" and re.search(r"[/\\\0]", name):
                raise PortError(f"'{name}' cannot be part of a file name", file=p.label_map_file)
        if re.search(r"[/\\\0]", p.output_name_prefix):
            field = "detection_output_param.save_output_param.output_name_prefix"
            raise PortError(f"'{p.output_name_prefix}' cannot be part of a file name", field=field)
        try:
            Path(p.output_directory).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PortError(f"cannot be created: {error.strerror}", file=p.output_directory) from None
        self.seen, self.found = 0, []

    def add(self, rows, images: int) -> None:
        """Takes the detections ``[N, 7]`` of a batch of ``images``, and writes the files when the set is complete.

        Raises:
            PortError: a file that cannot be read or written.
        """
        if not self.wanted:
            return
        if self.images is None:
            self._open()
        rows = rows.detach().cpu().numpy()
        for i in range(images):
            name, height, width = self.images[self.seen]
            mine = rows[rows[:, 0] == i]
            resize = self.param.resize_param if self.param.HasField("resize_param") else None
            boxes, _ = output_boxes(mine[:, 3:], height, width, resize)
            boxes[:, 2:] -= boxes[:, :2]
            hundredths = (boxes * np.float32(100)).astype(np.float64)
            boxes = (np.trunc(hundredths + np.copysign(0.5, hundredths)) / 100).astype(np.float32)
            self.found += [
                (name, int(row[1]), float(row[2]), box.tolist()) for row, box in zip(mine, boxes, strict=True)
            ]
            self.seen += 1
            if self.seen == len(self.images):
                self._write()
                self.seen, self.found = 0, []

    def _write(self) -> None:
        p = self.param
        if p.output_format == "COCO":
            rows = [
                f'{{"image_id": {_json(name)}, "category_id": {_json(self.labels[label])}, '
                f'"bbox": [{", ".join(f"{v:.9g}" for v in box)}], "score": {score:.9g}}}'
                for name, label, score, box in self.found
            ]
            files = {".json": "[\n" + ",\n".join(rows) + "\n]\n"}
        elif p.output_format == "ILSVRC":
            files = {".txt": "".join(f"{row[0]} {row[1]} {_line(row)}" for row in self.found)}
        else:
            files = {f"{self.labels[c]}.txt": "" for c in range(self.classes) if c != self.background}
            for row in self.found:
                files[f"{self.labels[row[1]]}.txt"] += f"{row[0]} {_line(row)}"
        for name, text in files.items():
            path = Path(p.output_directory) / (p.output_name_prefix + name)
            with replacing(path, "w", encoding="utf-8", newline="\n") as file:
                file.write(text)


def _line(row) -> str:
    """``score x1 y1 x2 y2``, corners and sides cut to whole pixels."""
    x, y, w, h = map(int, row[3])
    return f"{row[2]:g} {x} {y} {x + w} {y + h}\n"


def _json(name: str) -> str:
    return name if _NUMBER.fullmatch(name) else json.dumps(name)
