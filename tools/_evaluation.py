"""What the tools that evaluate share: naming a data set, and the table of average precisions."""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path

import _cli
from _coco_report import coco_json, print_coco
from rich.table import Table

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.data.imdb import Imdb
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import VocResult
from ohem_caffe_port.evaluate.coco import CocoResult
from ohem_caffe_port.results import evaluate_results, write_results
from prototxt.files import replacing

RULES = {True: "11 points", False: "area"}


def add_imdb_options(parser: argparse.ArgumentParser, default: str = "voc_2007_test") -> None:
    """Which data set, and where it lies."""
    parser.add_argument("--imdb", default=default, help=f"data set [{default}]")
    parser.add_argument("--data", metavar="DIR", help="holds VOCdevkit2007, coco, ... [$OHEM_DATA or data]")
    parser.add_argument("--devkit", metavar="DIR", help="the VOCdevkit itself [$OHEM_VOCDEVKIT], or COCO's folder")


def open_imdb(args: argparse.Namespace, proposals: str = "gt", **options) -> Imdb:
    """The data set of :func:`add_imdb_options`; ``options`` go to ``get_imdb``."""
    data_dir = args.data or os.environ.get("OHEM_DATA") or Config().DATA_DIR
    devkit = _cli.devkit_of(args, args.imdb)
    return get_imdb(args.imdb, data_dir=data_dir, devkit=devkit, proposals=proposals, **options)


def overlap(text: str) -> float:
    """An IoU threshold, as the type of an option."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text}: an overlap is from 0 to below 1")
    return value


def can_be_written(path: str | None, option: str) -> None:
    """Raises a PortError when no file can be written there: now, and not after the work."""
    if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        raise PortError("no file can be written there", file=path, field=option, hint="name a file in a folder")


def score(all_boxes, imdb: Imdb, results: Path, args: argparse.Namespace) -> None:
    """Writes the result files of a test run's detections into ``results`` and, but for ``--comp``, evaluates them
    (``--iou``, ``--json``)."""
    write_results(results, all_boxes, imdb)
    print(f"result files: {results}")
    if args.comp:
        return
    result = evaluate_results(results, imdb, ovthresh=args.iou)
    if result is None:
        _cli.show([f"{imdb.name} has no public ground truth; send the result files to the evaluation server"])
    else:
        report(result, imdb, args.iou, args.json)


def report(result: VocResult | CocoResult, imdb: Imdb, iou: float, json_file: str | None) -> None:
    """Prints what ``results.evaluate_results`` found, and writes it as JSON."""
    if isinstance(result, CocoResult):
        if iou != 0.5:
            _cli.show(["--iou has no effect: COCO has thresholds of its own"])
        print_coco(result, f"average precision on {imdb.name}")
        content = {"imdb": imdb.name, **coco_json(result)}
    else:
        _cli.console().print(ap_table([result], imdb.name, iou))
        content = {"imdb": imdb.name, "iou": iou, "ap": json_values(result)}
    if json_file:
        with replacing(json_file, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)


def ap_table(results: list[VocResult], imdb_name: str, iou: float) -> Table:
    """A row for each class: its AP by the rule of each of ``results``, which are of the same detections; the number of
    objects that are not difficult and of detections; and the part of these objects that was found at last."""
    rules = [RULES[result.use_07_metric] for result in results]
    title = f"average precision on {imdb_name} (IoU > {iou:g}{', ' + rules[0] if len(rules) == 1 else ''})"
    table = Table(title=title, min_width=len(title))
    table.add_column("class")
    for name in (*(rules if len(rules) > 1 else ["AP"]), "objects", "detections", "recall"):
        table.add_column(name, justify="right")
    for name, objects in results[0].positives.items():
        curve = results[0].recall[name]
        recall = _text(curve[-1] if len(curve) else 0.0) if objects else ""
        table.add_row(name, *(_text(result.ap[name]) for result in results), str(objects), str(len(curve)), recall)
    table.add_section()
    table.add_row("mAP", *(_text(result.mean) for result in results))
    return table


def json_values(result: VocResult) -> dict[str, float | None]:
    """APs by class and their ``mean``, None where there are no objects: JSON has no nan."""
    return {name: None if math.isnan(ap) else ap for name, ap in {**result.ap, "mean": result.mean}.items()}


def _text(value: float) -> str:
    return "no objects" if math.isnan(value) else f"{value:.4f}"
