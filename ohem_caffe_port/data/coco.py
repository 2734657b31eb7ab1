"""MS COCO (Lin et al., ECCV 2014; https://cocodataset.org) and data sets of its form, through pycocotools.

Behaviour follows py-faster-rcnn's ``datasets/coco.py``: which boxes are valid, what crowds are, where proposals lie.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import scipy.sparse
from pycocotools import mask

from ..errors import PortError
from .coco_annotations import read_coco
from .imdb import Imdb, one_per_row
from .mat_files import read_mat
from .proposals import clean_boxes, find_proposals, load_proposals

# The 80 categories in the order of their ids, which are 1 to 90 with gaps; index 0 is the background.
COCO_CLASSES = (
    "__background__",
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
# image sets that are parts of others: where their images and proposals are
_VIEWS = {
    **dict.fromkeys(("minival2014", "valminusminival2014"), "val2014"),
    **{f"test-dev{year}": f"test{year}" for year in (2015, 2017)},
}


class Coco(Imdb):
    """One image set of COCO.

    ``folder`` holds ``annotations/instances_<set><year>.json`` (``image_info_...`` for test sets) and the images in
    ``images/<set><year>`` or ``<set><year>``. ``proposals``: a .mat or .npz file (see :mod:`.proposals`; the keys are
    the ids of the images), a folder of .mat files as :meth:`_image_proposals` reads them, or None for ground truth
    alone. At most ``top_k`` of an image are used; those smaller than ``min_size`` are dropped.

    Class indices follow the order of the file's categories. Ground truth is clipped to its image and cut to whole
    pixels; objects without area are left out. Crowds (``iscrowd``) stay in the roidb with -1 as their overlap with
    every class, and proposals of whose area more than ``crowd_thresh`` lies in one get the same: they are neither
    foreground nor background.

    ``coco``: pycocotools' object, without segmentations; ``category_ids``: COCO's id of each class, 0 for background.
    """

    def __init__(self, name, folder, year, image_set, *, proposals=None, min_size=2, top_k=2000, crowd_thresh=0.7):
        self.folder, self.year, self.image_set = Path(folder), str(year), image_set
        self.proposals, self.min_size, self.top_k, self.crowd_thresh = proposals, min_size, top_k, crowd_thresh
        kind = "instances" if self.has_ground_truth else "image_info"
        self.annotation_path = self.folder / "annotations" / f"{kind}_{self.data_name}.json"
        self.coco = read_coco(self.annotation_path)
        categories = self.coco.dataset["categories"]
        self.category_ids = [0, *(category["id"] for category in categories)]
        names = ("__background__", *(category["name"] for category in categories))
        super().__init__(name, names, map(str, self.coco.imgs))
        if not self.image_index:
            raise PortError("has no images", file=self.annotation_path)

    @property
    def data_name(self) -> str:
        """What COCO's files call the image set: ``val2014``."""
        return f"{self.image_set}{self.year}"

    @property
    def has_ground_truth(self) -> bool:
        """The annotations of the test sets were never published."""
        return not self.image_set.startswith("test")

    @cached_property
    def image_folder(self) -> Path:
        """Where the images lie."""
        names = dict.fromkeys((_VIEWS.get(self.data_name, self.data_name), self.data_name))
        places = [self.folder / parent / name for name in names for parent in ("images", "")]
        for place in places:
            if place.is_dir():
                return place
        raise PortError(
            f"no images of '{self.name}' found; looked for " + ", ".join(map(str, places)),
            hint="Unpack or link the images at one of these places.",
        )

    def _record(self, i: int) -> dict:
        return self.coco.imgs[int(self.image_index[i])]

    def image_path_at(self, i):
        record = self._record(i)
        return self.image_folder / (record.get("file_name") or f"{self._file_stems(record['id'])[0]}.jpg")

    def image_size_at(self, i):
        """``(width, height)`` of image ``i``, from the annotations."""
        size = tuple(self._record(i).get(side) for side in ("width", "height"))
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise PortError(f"image {self.image_index[i]} has no width and height", file=self.annotation_path)
        return size

    def gt_roidb(self):
        if not self.has_ground_truth:
            return None
        return [self._gt_entry(i) for i in range(self.num_images)]

    def _gt_entry(self, i: int) -> dict:
        limits = np.array(self.image_size_at(i)) - 1
        objects = self.coco.imgToAnns.get(int(self.image_index[i]), [])
        corners, sides = np.split(np.array([obj["bbox"] for obj in objects], np.float64).reshape(-1, 4), 2, axis=1)
        low = np.maximum(corners, 0)
        high = np.minimum(low + np.maximum(sides - 1, 0), limits)
        valid = (high >= low).all(axis=1) & np.array([obj["area"] > 0 for obj in objects], bool)
        objects = [obj for obj, good in zip(objects, valid, strict=True) if good]
        classes = np.array([self._class_of[obj["category_id"]] for obj in objects], np.int32)
        crowds = np.flatnonzero([obj["iscrowd"] for obj in objects])
        return {
            "boxes": np.hstack((low, high))[valid].astype(np.uint16),
            "gt_classes": classes,
            "gt_overlaps": _with_ignored(one_per_row(np.ones(len(classes)), classes, self.num_classes), crowds),
            "seg_areas": np.array([obj["area"] for obj in objects], np.float32),
            "flipped": False,
        }

    @cached_property
    def _class_of(self) -> dict[int, int]:
        return {category: index for index, category in enumerate(self.category_ids)}

    def proposal_boxes(self):
        if self.proposals is None:
            return None
        if Path(self.proposals).is_dir():
            found = (self._image_proposals(i) for i in range(self.num_images))
        else:
            found = load_proposals(self.proposals, self.image_index, min_size=self.min_size)
        return [boxes[: self.top_k] for boxes in found]

    def _image_proposals(self, i: int) -> np.ndarray:
        """Boxes of one image from a folder with a .mat file for each, whose ``boxes`` are one-based.

        The files lie as those of J. Hosang et al. (``COCO_val2014_0/COCO_val2014_000000447/
        COCO_val2014_000000447991.mat``) or all in the folder itself, as MCG's are published. Columns are x1 y1 x2 y2;
        in a folder with "MCG" in its name or the name of the one above, y1 x1 y2 x2.
        """
        folder, stems = Path(self.proposals), self._file_stems(int(self.image_index[i]))
        places = [folder / within / f"{s}.mat" for s in stems for within in (f"{s[:14]}/{s[:22]}", "")]
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise PortError(
                f"no proposals of image {self.image_index[i]}: no {' or '.join(f'{s}.mat' for s in stems)}",
                file=folder,
                hint="Were they made for this image set?",
            )
        boxes = read_mat(path, "boxes")
        if boxes.size == 0:
            return np.zeros((0, 4), np.uint16)
        if boxes.ndim != 2 or boxes.shape[1] < 4 or boxes.dtype.kind not in "uif" or not np.isfinite(boxes).all():
            raise PortError(f"boxes of shape {boxes.shape} ({boxes.dtype}), not [N, 4] numbers", file=path)
        is_mcg = any("mcg" in name.lower() for name in (folder.name, folder.resolve().parent.name))
        columns = (1, 0, 3, 2) if is_mcg else (0, 1, 2, 3)
        boxes = np.clip(boxes[:, columns].astype(np.float64) - 1, 0, 65535).astype(np.uint16)
        return clean_boxes(boxes.astype(np.int64), self.min_size)

    def _file_stems(self, image_id: int) -> list[str]:
        """What files of an image may be called. The images of 2017 are those of 2014, whose names had the set's."""
        names = ("train2014", "val2014") if self.has_ground_truth else ("test2015",)
        if self.year == "2017":
            return [f"{image_id:012d}", *(f"COCO_{name}_{image_id:012d}" for name in names)]
        return [f"COCO_{_VIEWS.get(self.data_name, self.data_name)}_{image_id:012d}"]

    def _load_roidb(self):
        roidb = super()._load_roidb()
        for entry in roidb if self.has_ground_truth else ():
            rows = np.flatnonzero(entry["gt_classes"] == 0)
            if len(rows) and (entry["gt_overlaps"].data < 0).any():
                crowd = entry["gt_overlaps"].max(axis=1).toarray().ravel() == -1
                x1, y1, x2, y2 = entry["boxes"].astype(np.float64).T
                boxes = np.stack((x1, y1, x2 - x1 + 1, y2 - y1 + 1), axis=1)
                inside = mask.iou(boxes[rows], boxes[crowd], [1] * int(crowd.sum()))  # intersection / area of the first
                covered = rows[inside.max(axis=1) > self.crowd_thresh]
                entry["gt_overlaps"] = _with_ignored(entry["gt_overlaps"], covered)
        return roidb


def _with_ignored(overlaps: scipy.sparse.csr_matrix, rows: np.ndarray) -> scipy.sparse.csr_matrix:
    """``overlaps`` [N, C] with -1 throughout these rows."""
    if not len(rows):
        return overlaps
    dense = overlaps.toarray()
    dense[rows] = -1
    return scipy.sparse.csr_matrix(dense)


def find_coco(data_dir, devkit=None) -> Path:
    """The folder of COCO: ``devkit`` if given, else ``<data_dir>/coco``.

    Raises:
        PortError: it has no folder ``annotations``.
    """
    folder = Path(devkit) if devkit is not None else Path(data_dir) / "coco"
    if not (folder / "annotations").is_dir():
        raise PortError(
            f"no COCO found; looked for {folder / 'annotations'}",
            hint="Put (or link) the folder with 'annotations' and 'images' there, or name it with --devkit.",
        )
    return folder


def find_coco_proposals(proposals, name: str, data_dir) -> Path | None:
    """As :func:`.proposals.find_proposals`; else a folder that :class:`Coco` reads, which is ``proposals`` or, for a
    method, ``<data_dir>/coco_proposals/<method>``, or ``mat`` in it.

    Raises:
        PortError: nothing of these.
    """
    try:
        return find_proposals(proposals, name, data_dir)
    except PortError as error:
        given = Path(proposals)
        if given.suffix in (".mat", ".npz"):
            raise
        folder = given if given.is_dir() else Path(data_dir) / "coco_proposals" / proposals
        for place in (folder / "mat", folder):
            if place.is_dir():
                return place
        error.message += f", {folder / 'mat'}"
        raise
