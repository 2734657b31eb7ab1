"""Objects with masks: the Semantic Boundaries Dataset (Hariharan et al., ICCV 2011) as MNC uses it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import PortError
from .imdb import Imdb, one_per_row
from .mat_files import read_mat
from .pascal_voc import VOC_CLASSES, read_image_set


class Sbd(Imdb):
    """One image set of SBD: ``folder/{img,inst,cls}`` and ``folder/<image_set>.txt``.

    Boxes are those of the instances in ``inst/<id>.mat``, classes those of ``cls/<id>.mat``. The roidb has, besides
    the usual, ``gt_masks``: for each object a bool array ``[h, w]`` of the size of its box. There are no proposals.
    """

    def __init__(self, name: str, folder, image_set: str):
        self.folder, self.image_set = Path(folder), image_set
        super().__init__(name, VOC_CLASSES, read_image_set(self.folder / f"{image_set}.txt"))

    def image_path_at(self, i):
        return self.folder / "img" / f"{self.image_index[i]}.jpg"

    def gt_roidb(self):
        return [self._entry(image) for image in self.image_index]

    def _entry(self, image: str) -> dict:
        instances, classes = (
            read_mat(self.folder / kind / f"{image}.mat", f"GT{kind}", "Segmentation") for kind in ("inst", "cls")
        )
        boxes, labels, masks = [], [], []
        for number in np.unique(instances[instances > 0]):
            mask = instances == number
            found = np.unique(classes[mask & (classes > 0)])
            if len(found) != 1 or found[0] >= self.num_classes:
                path = self.folder / "cls" / f"{image}.mat"
                raise PortError(f"instance {number} is of the classes {found.tolist()}, not of one", file=path)
            y, x = np.where(mask)
            boxes.append((x.min(), y.min(), x.max(), y.max()))
            labels.append(found[0])
            masks.append(mask[y.min() : y.max() + 1, x.min() : x.max() + 1])
        labels = np.array(labels, np.int32)
        return {
            "boxes": np.array(boxes, np.uint16).reshape(-1, 4),
            "gt_classes": labels,
            "gt_overlaps": one_per_row(np.ones(len(labels)), labels, self.num_classes),
            "seg_areas": np.array([mask.sum() for mask in masks], np.float32),
            "flipped": False,
            "gt_masks": masks,
        }

    def append_flipped_images(self):
        super().append_flipped_images()
        for plain, mirrored in zip(self.roidb, self.roidb[len(self.roidb) // 2 :], strict=False):
            mirrored["gt_masks"] = [mask[:, ::-1] for mask in plain["gt_masks"]]
