"""What tools/compare_mining.py shows: a table, curves, all numbers in one file, and a page for the documentation."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import _cli
from rich.table import Table

from converters.extras import library
from prototxt import CaffePortError
from prototxt.files import replacing

COLUMNS = ("method", "AP at 0.5", "AP at 0.7", "loss, all RoIs", "foreground", "ms / iteration", "MiB")


def write(results: list[dict], output: Path, markdown: str | None) -> None:
    """``results.json`` and ``curves.png`` in ``output``, the table on the screen and, where asked, in Markdown."""
    with replacing(output / "results.json", "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    if any(run["budget"] != results[0]["budget"] for run in results):
        _cli.show(["these runs are of different budgets; their numbers do not compare"])
    rows = [row(name, runs) for name, runs in by_method(results).items()]
    table = Table(title=title(results))
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "method" else "right")
    for cells in rows:
        table.add_row(*cells)
    _cli.console().print(table)
    print(f"all numbers: {output / 'results.json'}")
    try:
        draw(results, output / "curves.png")
        print(f"curves: {output / 'curves.png'}")
    except CaffePortError as error:
        _cli.show([f"no curves are drawn: {error}"])
    if markdown:
        lines = [COLUMNS, ("---", *["---:"] * (len(COLUMNS) - 1)), *rows]
        with replacing(markdown, "w", encoding="utf-8") as file:
            file.write("\n".join(f"| {' | '.join(cells)} |" for cells in lines) + f"\n\n{title(results)}\n")


def by_method(results: list[dict]) -> dict[str, list[dict]]:
    groups: dict[str, list[dict]] = {}
    for result in results:
        groups.setdefault(result["method"], []).append(result)
    return groups


def title(results: list[dict]) -> str:
    seeds = max(len(runs) for runs in by_method(results).values())
    budget, device = results[0]["budget"], results[0]["device"]
    kind = "process time; memory kept for the backward pass" if device == "cpu" else "wall time; peak memory"
    means = f"{seeds} seeds (mean, least to greatest)" if seeds > 1 else "one seed"
    what = f"{budget['family']}: {budget['iters']} iterations, {means}"
    return f"{what}; on {device}, {kind}"


def row(name: str, runs: list[dict]) -> tuple[str, ...]:
    """The cells of a method's row."""
    good = [run for run in runs if "failed" not in run]
    if not good:
        return (name, f"failed: {runs[0]['failed'][:40]}", *["-"] * (len(COLUMNS) - 2))
    ap = {overlap: [run["ap"][overlap]["mean"] for run in good] for overlap in ("0.5", "0.7")}
    cells = [spread(values) for values in ap.values()]
    cells.append(f"{statistics.fmean(run['curve'][-1]['roi_loss'] for run in good):.3f}")
    cells.append(f"{100 * statistics.fmean(run['foreground'] for run in good):.0f} %")
    cells.append(f"{1e3 * statistics.fmean(run['seconds'] for run in good):.0f}")
    cells.append(f"{statistics.fmean(run['megabytes'] for run in good):.0f}")
    failed = len(runs) - len(good)
    return (f"{name} ({failed} of {len(runs)} failed)" if failed else name, *cells)


def spread(values: list[float]) -> str:
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.3f} to {max(values):.3f})"


def draw(results: list[dict], path: Path) -> None:
    """Loss over all RoIs and share of foreground during training, means over the seeds.

    Raises:
        CaffePortError: matplotlib is not installed.
    """
    library("matplotlib", "plots").use("Agg")
    plt = library("matplotlib.pyplot", "plots")
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for name, runs in by_method(results).items():
        curves = [run["curve"] for run in runs if "failed" not in run]
        for panel, key in zip(axes, ("roi_loss", "foreground"), strict=True):
            points = [[p for p in curve if key in p] for curve in curves]
            if points:
                means = [statistics.fmean(p[key] for p in at) for at in zip(*points, strict=True)]
                panel.plot([p["iter"] for p in points[0]], means, label=name, linewidth=1.4)
    axes[0].set(title="loss over all RoIs", xlabel="iteration", yscale="log")
    axes[1].set(title="share of foreground among what counts", xlabel="iteration", ylim=(0, 1))
    if axes[1].lines:
        axes[1].legend(ncols=2, fontsize=8)
    for panel in axes:
        panel.grid(alpha=0.3)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)
