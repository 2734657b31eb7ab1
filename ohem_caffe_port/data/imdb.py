"""Image databases: a list of images, their ground truth and their object proposals.

The roidb of an imdb is a list with one dict per image:

    boxes        [N, 4] uint16 (float32 where proposals have fractions): x1 y1 x2 y2, zero-based inclusive pixels
    gt_classes   [N] int32: class index of a ground-truth box, 0 for a proposal
    gt_overlaps  [N, C] scipy csr float32: IoU with the best ground-truth box, in the column of that box's class
    seg_areas    [N] float32: area of a ground-truth box in pixels, 0 for a proposal
    flipped      bool: the boxes are those of the horizontally mirrored image

Ground truth comes first, proposals follow in the order of their file.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from ..boxes import bbox_overlaps
from ..errors import PortError
from ..evaluate.recall import AREA_RANGES, proposal_recall
from .image_size import image_size


class Imdb:
    """An image database. Subclasses say where images, ground truth and proposals come from.

    ``name``: as given to ``get_imdb``; ``classes``: names, ``classes[0]`` is the background;
    ``image_index``: ids of the images, doubled by :meth:`append_flipped_images`.
    """

    def __init__(self, name: str, classes, image_index):
        self.name = name
        self.classes = tuple(classes)
        self.image_index = list(image_index)
        self._roidb = None
        self._sizes = {}

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.classes)

    @property
    def num_images(self) -> int:
        return len(self.image_index)

    def image_id_at(self, i: int) -> str:
        """Id of image ``i``, such as ``000005``."""
        return self.image_index[i]

    def image_path_at(self, i: int):
        """Path of image ``i``."""
        raise NotImplementedError

    def image_size_at(self, i: int) -> tuple[int, int]:
        """``(width, height)`` of image ``i``, from the header of its file."""
        path = self.image_path_at(i)
        if path not in self._sizes:
            self._sizes[path] = image_size(path)
        return self._sizes[path]

    def gt_roidb(self) -> list[dict] | None:
        """Roidb of the ground truth alone; None where there is none (the VOC 2010 and 2012 test sets)."""
        raise NotImplementedError

    def proposal_boxes(self) -> list[np.ndarray] | None:
        """One [N, 4] array per image; None for a roidb of ground truth alone."""
        return None

    @property
    def roidb(self) -> list[dict]:
        """Ground truth and proposals (see the module's docstring), read at the first use."""
        if self._roidb is None:
            self._roidb = self._load_roidb()
        return self._roidb

    def _load_roidb(self) -> list[dict]:
        gt_roidb = self.gt_roidb()
        box_list = self.proposal_boxes()
        if box_list is None:
            if gt_roidb is None:
                raise PortError(f"'{self.name}' has no ground truth: it needs proposals", field="proposals")
            return gt_roidb
        proposals = self.create_roidb_from_box_list(box_list, gt_roidb)
        return proposals if gt_roidb is None else self.merge_roidbs(gt_roidb, proposals)

    def create_roidb_from_box_list(self, box_list, gt_roidb) -> list[dict]:
        """Roidb of the proposals ``box_list`` ([N, 4] per image), overlaps measured against ``gt_roidb`` (or None).

        Raises:
            PortError: other number of images, or a box that is inverted or reaches outside its image.
        """
        if len(box_list) != self.num_images:
            raise PortError(f"{len(box_list)} lists of boxes for the {self.num_images} images of '{self.name}'")
        roidb = []
        for i, boxes in enumerate(box_list):
            self._check_boxes(i, boxes)
            best, classes = np.zeros(len(boxes)), np.zeros(len(boxes), dtype=np.int32)
            if gt_roidb is not None and len(gt_roidb[i]["boxes"]) and len(boxes):
                overlaps = bbox_overlaps(boxes.astype(np.float64), gt_roidb[i]["boxes"].astype(np.float64))
                best = overlaps.max(axis=1)
                classes = gt_roidb[i]["gt_classes"][overlaps.argmax(axis=1)]
            roidb.append(
                {
                    "boxes": boxes,
                    "gt_classes": np.zeros(len(boxes), dtype=np.int32),
                    "gt_overlaps": one_per_row(best, classes, self.num_classes),
                    "seg_areas": np.zeros(len(boxes), dtype=np.float32),
                    "flipped": False,
                }
            )
        return roidb

    def _check_boxes(self, i: int, boxes) -> None:
        width, height = self.image_size_at(i)
        x1, y1, x2, y2 = np.asarray(boxes).reshape(-1, 4).T
        bad = (x2 < x1) | (y2 < y1) | (x1 < 0) | (y1 < 0) | (x2 >= width) | (y2 >= height)
        if bad.any():
            n = int(bad.argmax())
            raise PortError(
                f"proposal {n} of '{self.image_id_at(i)}' is {boxes[n].tolist()}, the image {width} x {height} pixels",
                file=self.image_path_at(i),
                hint="Boxes are x1 y1 x2 y2, zero-based and inclusive: do the proposals belong to this image set?",
            )

    @staticmethod
    def merge_roidbs(a: list[dict], b: list[dict]) -> list[dict]:
        """Appends the boxes of ``b`` to those of ``a``, image by image; changes and returns ``a``."""
        if len(a) != len(b):
            raise PortError(f"roidbs of {len(a)} and {len(b)} images cannot be merged")
        for first, second in zip(a, b, strict=True):
            first["boxes"] = np.vstack((first["boxes"], second["boxes"]))
            first["gt_overlaps"] = scipy.sparse.vstack((first["gt_overlaps"], second["gt_overlaps"]), format="csr")
            for key in ("gt_classes", "seg_areas"):
                first[key] = np.hstack((first[key], second[key]))
        return a

    def append_flipped_images(self) -> None:
        """Appends the mirrored copy of every entry: x1' = width - x2 - 1, x2' = width - x1 - 1. Once only."""
        if any(entry["flipped"] for entry in self.roidb):
            return
        flipped = []
        for i, entry in enumerate(self.roidb):
            width = self.image_size_at(i)[0]
            boxes = entry["boxes"].copy()
            # int64 first: uint16 would wrap around
            wide = entry["boxes"].astype(np.int64) if boxes.dtype.kind == "u" else entry["boxes"]
            boxes[:, 0] = width - wide[:, 2] - 1
            boxes[:, 2] = width - wide[:, 0] - 1
            flipped.append({**entry, "boxes": boxes, "flipped": True})
        self.roidb.extend(flipped)
        self.image_index = self.image_index * 2

    def evaluate_recall(self, candidate_boxes=None, thresholds=None, area="all", limit=None) -> dict:
        """Recall of proposals on the ground truth, each proposal matched to one object (greedily, best IoU first).

        ``candidate_boxes``: one [N, 4] array per image, by default the proposals of the roidb; ``thresholds``: IoU,
        by default 0.5, 0.55 ... 0.95; ``area``: a key of ``AREA_RANGES`` of :mod:`..evaluate.recall`, where the rule
        is; ``limit``: proposals used per image.

        Returns a dict: ``ar`` (average recall), ``recalls`` and ``thresholds`` [T], ``gt_overlaps`` (sorted best IoUs).
        """
        if area not in AREA_RANGES:
            raise PortError(f"unknown area range '{area}'", hint=f"Known: {', '.join(AREA_RANGES)}.")
        found = proposal_recall(self.roidb, candidate_boxes, thresholds=thresholds, areas=[area], limits=[limit])[
            area, limit
        ]
        if not found.objects:
            raise PortError(f"'{self.name}' has no ground truth in the area range '{area}'")
        return {
            "ar": found.average,
            "recalls": found.recalls,
            "thresholds": found.thresholds,
            "gt_overlaps": found.gt_overlaps,
        }


class UnionImdb(Imdb):
    """Several imdbs of the same classes as one: ``voc_2007_trainval+voc_2012_trainval``.

    Flipping goes part by part, so the roidb is a, flipped a, b, flipped b, as when the original's trainer joined them.
    """

    def __init__(self, parts: list[Imdb]):
        if len({part.classes for part in parts}) > 1:
            raise PortError("imdbs of different classes cannot be joined: " + ", ".join(part.name for part in parts))
        self.parts = parts
        super().__init__("+".join(part.name for part in parts), parts[0].classes, [])
        self._join()

    def _join(self) -> None:
        self.image_index = [index for part in self.parts for index in part.image_index]
        self._where = [(part, i) for part in self.parts for i in range(part.num_images)]

    def image_path_at(self, i):
        part, k = self._where[i]
        return part.image_path_at(k)

    def image_size_at(self, i):
        part, k = self._where[i]
        return part.image_size_at(k)

    def gt_roidb(self):
        found = [part.gt_roidb() for part in self.parts]
        return None if any(roidb is None for roidb in found) else [entry for roidb in found for entry in roidb]

    def _load_roidb(self):
        return [entry for part in self.parts for entry in part.roidb]

    def append_flipped_images(self):
        for part in self.parts:
            part.append_flipped_images()
        self._roidb = None
        self._join()


def one_per_row(values, columns, num_columns: int) -> scipy.sparse.csr_matrix:
    """csr float32 [N, num_columns] with ``values[n]`` at ``(n, columns[n])``, zeros not stored."""
    keep = values > 0
    indptr = np.concatenate(([0], np.cumsum(keep)))
    return scipy.sparse.csr_matrix(
        (values[keep].astype(np.float32), columns[keep], indptr), shape=(len(values), num_columns)
    )
