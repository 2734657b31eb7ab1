"""COCO's numbers on the terminal and as JSON."""

from __future__ import annotations

import math

import _cli
from rich.table import Table

from ohem_caffe_port.evaluate.coco import CocoResult

ABOUT = {
    "AP": "IoU 0.50 to 0.95",
    "AP50": "IoU 0.50",
    "AP75": "IoU 0.75",
    "APsmall": "area up to 32 x 32",
    "APmedium": "32 x 32 to 96 x 96",
    "APlarge": "from 96 x 96",
    "AR1": "recall, 1 detection of a category in an image",
    "AR10": "10 detections",
    "AR100": "100 detections",
    "ARsmall": "area up to 32 x 32",
    "ARmedium": "32 x 32 to 96 x 96",
    "ARlarge": "from 96 x 96",
}


def print_coco(result: CocoResult, title: str) -> None:
    """The average precision of each category, then the twelve numbers."""
    ap50 = result.ap50
    table = Table("category", title=title, min_width=len(title))
    for heading in ("AP", "AP50"):
        table.add_column(heading, justify="right")
    for name, ap in result.ap.items():
        table.add_row(name, _text(ap), _text(ap50[name]))
    _cli.console().print(table)
    table = Table(title="over all categories", show_header=False)
    for side in ("left", "left", "right"):
        table.add_column(justify=side)
    for name, value in result.stats.items():
        if name == "AR1":
            table.add_section()
        table.add_row(name, ABOUT[name], _text(value))
    _cli.console().print(table)


def coco_json(result: CocoResult) -> dict:
    """``{"stats": ..., "ap": ..., "ap50": ...}``, null where there are no objects."""
    parts = {"stats": result.stats, "ap": result.ap, "ap50": result.ap50}
    return {key: {name: None if math.isnan(v) else v for name, v in part.items()} for key, part in parts.items()}


def _text(value: float) -> str:
    return "no objects" if math.isnan(value) else f"{value:.4f}"
