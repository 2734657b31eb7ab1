"""Recall of object proposals: the part of the objects that some proposal covers by at least an IoU.

    python tools/eval_recall.py --imdb voc_2007_test --method selective_search
    python tools/eval_recall.py --imdb voc_2007_test --rpn-file rpn_data/voc_2007_test.npz --plot recall.png

Proposals and objects are paired, each once. The average is over IoU 0.5, 0.55, ..., 0.95. A limit takes the first
proposals of each image, so it means something where they come best first.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import _cli
import _evaluation
import numpy as np
from rich.table import Table

from converters.extras import library
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import proposal_recall
from ohem_caffe_port.evaluate.recall import AREA_RANGES
from prototxt.files import replacing

LIMITS = [100, 300, 1000, 2000]
COLUMNS = (0.5, 0.6, 0.7, 0.8, 0.9)  # what the original printed
PICTURES = (".png", ".pdf", ".svg")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    _evaluation.add_imdb_options(parser)
    parser.add_argument("--method", default="selective_search", help="proposal method [selective_search]")
    parser.add_argument(
        "--rpn-file", "--proposals", dest="file", metavar="FILE", help="a .mat or .npz file of proposals instead"
    )
    parser.add_argument(
        "--limits", nargs="*", type=int, default=LIMITS, metavar="N",
        help="also with the first N proposals of each image alone [100 300 1000 2000]",
    )  # fmt: skip
    parser.add_argument(
        "--areas", nargs="+", choices=AREA_RANGES, default=["small", "medium", "large"], metavar="NAME",
        help=f"also of objects of these areas: {', '.join(AREA_RANGES)} [small medium large]",
    )  # fmt: skip
    parser.add_argument("--difficult", action="store_true", help="count difficult objects, too")
    parser.add_argument("--plot", metavar="FILE.png", help="draw recall against IoU (.png, .pdf or .svg)")
    parser.add_argument("--json", metavar="FILE", help="write all recalls there, too")
    args = parser.parse_args()
    if min(args.limits, default=1) < 1:
        parser.error("--limits are at least 1")
    if args.plot and Path(args.plot).suffix not in PICTURES:
        parser.error(f"--plot ends in one of {', '.join(PICTURES)}")
    return args


def main() -> int:
    args = parse_args()
    for option in ("json", "plot"):
        _evaluation.can_be_written(getattr(args, option), f"--{option}")
    pyplot = library("matplotlib.pyplot", "plots") if args.plot else None
    if "gt" in (args.method, args.file):
        raise PortError("ground truth alone has no proposals to look at", field="--method")
    imdb = _evaluation.open_imdb(args, args.file or args.method, use_diff=args.difficult)
    counts = np.array([int((entry["gt_classes"] == 0).sum()) for entry in imdb.roidb])
    print(
        f"{imdb.name}: {imdb.num_images} images, {counts.mean():.0f} proposals each ({counts.min()} to {counts.max()})"
    )
    limits = [*sorted({n for n in args.limits if n < counts.max()}), None]
    areas = list(dict.fromkeys(["all", *args.areas]))
    found = proposal_recall(imdb.roidb, areas=areas, limits=limits)
    if not found["all", None].objects:
        raise PortError(f"'{imdb.name}' has no objects that count", hint="VOC's later test sets have no annotations.")
    _cli.console().print(recall_table(found, imdb.name))
    if args.json:
        rows = [
            {"area": area, "limit": limit, "objects": recall.objects, "average": number(recall.average),
             "recall": {f"{t:.2f}": number(r) for t, r in zip(recall.thresholds, recall.recalls, strict=True)}}
            for (area, limit), recall in found.items()
        ]  # fmt: skip
        with replacing(args.json, "w", encoding="utf-8") as file:
            json.dump({"imdb": imdb.name, "proposals": args.file or args.method, "rows": rows}, file, indent=1)
    if args.plot:
        draw(pyplot, args.plot, found, imdb.name)
    return 0


def number(value: float) -> float | None:
    """JSON has no nan."""
    return None if math.isnan(value) else float(value)


def recall_table(found, imdb_name: str) -> Table:
    """A row for every area and limit."""
    title = f"recall of proposals on {imdb_name}"
    table = Table(title=title, min_width=len(title))
    for name in ("objects", "proposals"):
        table.add_column(name)
    for name in ("number", "average", *(f"IoU {t}" for t in COLUMNS)):
        table.add_column(name, justify="right")
    for (area, limit), recall in found.items():
        if not recall.objects and limit is not None:
            continue
        at = [recall.recalls[np.isclose(recall.thresholds, t)][0] for t in COLUMNS]
        values = ["-" if math.isnan(v) else f"{v:.3f}" for v in (recall.average, *at)]
        table.add_row(area, "all" if limit is None else f"first {limit}", str(recall.objects), *values)
        if limit is None:  # the last of its area
            table.add_section()
    return table


def draw(pyplot, path: str, found, imdb_name: str) -> None:
    """Recall of all objects against IoU for each limit, and of the objects of each area with all proposals."""
    pyplot.switch_backend("agg")
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 5), sharey=True)
    for (area, limit), recall in found.items():
        name = "all proposals" if limit is None else f"first {limit}"
        for panel, wanted, label in ((panels[0], area == "all", name), (panels[1], limit is None, f"{area} objects")):
            if wanted and recall.objects:
                panel.plot(recall.thresholds, recall.recalls, marker=".", label=f"{label} ({recall.average:.3f})")
    for panel, title in zip(panels, ("all objects", "all proposals"), strict=True):
        panel.set(title=f"{imdb_name}, {title}", xlabel="IoU", ylim=(0, 1))
        panel.grid(alpha=0.3)
        panel.legend(title="average recall", fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2)
    panels[0].set_ylabel("recall")
    figure.tight_layout()
    with replacing(path) as file:
        figure.savefig(file, format=Path(path).suffix[1:], dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    _cli.run(main)
