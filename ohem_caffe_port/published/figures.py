"""What papers and repositories report of OHEM, its siblings and the detectors they are compared with.

``voc.csv`` and ``coco.csv`` have a line for each figure. All values are percent. A figure is ``sourced`` when it was
read in the source that it names, or in study notes or a survey that quote it where ``source`` says so; ``unverified``
when it was remembered or derived, and nothing may be asserted on it. The total and its parts (classes on VOC, AP50 and
so on for COCO) have a standing each: the totals of OHEM's tables are sourced, their classes are not.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from prototxt.errors import nearest

from ..errors import PortError

SOURCED, UNVERIFIED = "sourced", "unverified"
FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """One published number.

    Attributes:
        name: unique; ``<method>-<backbone>-<training set>``, with the test set where it is not the usual one, and where
            it was published if there are several: ``ohem-vgg16-07``, ``ohem-vgg16-07-repo``.
        method, backbone: as the source calls them.
        train, test: ``07``, ``07+12``, ``07++12`` (VOC 2007 trainval and test, 2012 trainval), ...; ``VOC07 test``.
        value: mAP at IoU 0.5 on VOC, AP at IoU 0.5:0.95 on COCO; percent.
        standing, parts_standing: of ``value`` and of ``parts``, ``sourced`` or ``unverified``; the second is empty
            where there are no parts.
        parts: ``{class: AP}`` on VOC, ``{"AP50": ..., "AP75", "small", "medium", "large"}`` on COCO; may be empty.
        source: where it was read, or is said to stand.
    """

    name: str
    method: str
    backbone: str
    train: str
    test: str
    value: float
    standing: str
    parts_standing: str
    parts: dict[str, float]
    source: str

    @property
    def metric(self) -> str:
        """What ``value`` is: ``mAP`` or ``AP@[.5:.95]``."""
        return "AP@[.5:.95]" if self.test.startswith("COCO") else "mAP"


@cache
def read_figures() -> dict[str, Figure]:
    """All figures by name, those of the OHEM paper and of its baselines first."""
    figures = {}
    for file in ("voc.csv", "coco.csv"):
        with (FOLDER / file).open(encoding="utf-8", newline="") as stream:
            for line in csv.DictReader(stream):
                first = {key: line.pop(key) for key in ("name", "method", "backbone", "train", "test")}
                last = {key: line.pop(key) for key in ("standing", "parts_standing", "source")}
                value = float(line.pop("value"))
                parts = {key.removeprefix("AP "): float(text) for key, text in line.items() if text}
                figures[first["name"]] = Figure(**first, value=value, parts=parts, **last)
    return figures


def find(name: str) -> Figure:
    """The figure called ``name``.

    Raises:
        PortError: there is none; the nearest is suggested.
    """
    figures = read_figures()
    if name not in figures:
        near = nearest(name, figures)
        hint = f"Did you mean {near}? " if near else ""
        raise PortError(f"no published figure is called '{name}'", hint=f"{hint}The list has them all.")
    return figures[name]
