"""What tools/reproduce.py shows: the list of published figures; published beside ours as tables, a plot and a file."""

from __future__ import annotations

import json
from pathlib import Path

import _cli
from rich.box import SIMPLE
from rich.table import Table

from converters.extras import library
from ohem_caffe_port.published import RUNS, SOURCED, UNVERIFIED, Figure
from prototxt import CaffePortError
from prototxt.files import replacing

TITLES = {
    SOURCED: "Published figures, sourced",
    UNVERIFIED: "Published figures, unverified: remembered or derived, not checked against the publication",
}


def show_list(figures: list[Figure], states: dict[str, tuple[str, str, str, str]], hours: str) -> None:
    """Tables of the figures that have a recipe and of those that have none; sourced ones first, then the others.

    Args:
        states: of the figures that have a recipe, by name: data, weights, iterations and hours as they are shown.
        hours: heading of the last column.
    """
    for standing, title in TITLES.items():
        chosen = [figure for figure in figures if figure.standing == standing]
        runs = Table(title=title, title_justify="left", box=SIMPLE)
        others = Table(title=f"{title}; no recipe, for comparison", title_justify="left", box=SIMPLE)
        for table, headings in (
            (runs, ("row", "mAP", "test", "recipe", "data", "weights", "iterations", hours)),
            (others, ("row", "mAP", "test", "method")),
        ):
            for heading in headings:
                right = heading in ("mAP", "iterations", hours)
                table.add_column(heading, justify="right" if right else "left", no_wrap=heading == "row")
        for figure in chosen:
            cells = [figure.name, f"{figure.value:.1f}{'' if figure.metric == 'mAP' else '*'}", figure.test]
            if figure.name in states:
                runs.add_row(*cells, RUNS[figure.name].recipe, *states[figure.name])
            else:
                others.add_row(*cells, figure.method)
        for table in (runs, others):
            _cli.console().print(table)
    print("* COCO: AP averaged over IoU 0.5 to 0.95")


def show_results(results: list[dict], output: Path) -> None:
    """Tables on the screen, ``report.json`` and ``report.png`` in ``output``."""
    summary = Table(title="published and ours, in percent", title_justify="left")
    for heading in ("row", "published", "standing", "ours", "difference", "comparable"):
        summary.add_column(heading, justify="right" if heading in ("published", "ours", "difference") else "left")
    for result in results:
        summary.add_row(
            result["name"], f"{result['published']:.1f}", result["standing"],
            *_pair(result["published"], result["ours"], result), "no" if result["differences"] else "yes",
        )  # fmt: skip
    _cli.console().print(summary)
    for result in results:
        if result["differences"]:
            why = "; ".join(result["differences"])
            _cli.show([f"{result['name']}: NOT comparable with the published figure: {why}"])
        _cli.show(f"{result['name']}: not verified of the recipe: {line}" for line in result["unverified"])
        if result["ours"] is None:
            where = result["results"]
            _cli.show([f"{result['name']}: no public ground truth; send {where} to the evaluation server"])
        if result["parts"]:
            _cli.console().print(_classes(result))
    with replacing(output / "report.json", "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    print(f"all numbers: {output / 'report.json'}")
    try:
        if draw([result for result in results if result["parts"]], output / "report.png"):
            print(f"plot: {output / 'report.png'}")
    except CaffePortError as error:
        _cli.show([f"no plot is drawn: {error}"])


def _pair(published: float | None, ours: float | None, result: dict) -> tuple[str, str]:
    """Ours and the difference, as cells; the difference in brackets where the two do not compare."""
    if ours is None or published is None:
        return "-" if ours is None else f"{ours:.1f}", "-"
    difference = f"{ours - published:+.1f}"
    return f"{ours:.1f}", f"({difference})" if result["differences"] else difference


def _classes(result: dict) -> Table:
    theirs, standing = result["published_parts"], result["parts_standing"]
    table = Table(title=f"{result['name']}, {result['images']} images", title_justify="left")
    table.add_column("class")
    for heading in (f"published ({standing})" if standing else "published", "ours", "difference"):
        table.add_column(heading, justify="right")
    for name in dict.fromkeys([*theirs, *result["parts"]]):
        value = theirs.get(name)
        table.add_row(name, "-" if value is None else f"{value:.1f}", *_pair(value, result["parts"].get(name), result))
    table.add_section()
    table.add_row(result["metric"], f"{result['published']:.1f}", *_pair(result["published"], result["ours"], result))
    return table


def draw(results: list[dict], path: Path) -> bool:
    """Bars of each class and the mean, published beside ours, a panel for each result; False when there is none.

    Raises:
        CaffePortError: matplotlib is not installed.
    """
    if not results:
        return False
    library("matplotlib", "plots").use("Agg")
    plt = library("matplotlib.pyplot", "plots")
    figure, axes = plt.subplots(len(results), 1, figsize=(11, 3.6 * len(results)), layout="constrained", squeeze=False)
    for axis, result in zip(axes[:, 0], results, strict=True):
        total = result["metric"]
        theirs = {**result["published_parts"], total: result["published"]}
        ours = {**result["parts"], total: result["ours"]}
        names = [*dict.fromkeys([*result["published_parts"], *result["parts"]]), total]
        doubtful = [name for name in theirs if result["standing" if name == total else "parts_standing"] == UNVERIFIED]
        for shift, values, colour, label in ((-0.2, theirs, "0.7", "published"), (0.2, ours, "tab:blue", "ours")):
            there = [k for k, name in enumerate(names) if name in values]
            bars = axis.bar(
                [k + shift for k in there], [values[names[k]] for k in there], 0.4, color=colour, label=label
            )
            for bar, k in zip(bars, there, strict=True):
                if values is theirs and names[k] in doubtful:
                    bar.set(hatch="////", edgecolor="white")
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
        axis.set(ylabel="AP (%)", ylim=(0, 100))
        axis.grid(axis="y", alpha=0.3)
        axis.set_axisbelow(True)
        remark = "; not comparable: " + ", ".join(result["differences"]) if result["differences"] else ""
        hatched = "; hatched: unverified" if doubtful else ""
        axis.set_title(f"{result['name']}{remark}{hatched}", fontsize=9, loc="left", wrap=True)
        axis.legend(fontsize=8, ncols=2)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
    return True
