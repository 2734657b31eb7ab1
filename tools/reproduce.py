"""The published figures that this project knows; computes those it has recipes for and puts them beside its own.

python tools/reproduce.py                                          # lists them, and what each needs
python tools/reproduce.py ohem-vgg16-07-repo --dry-run             # the commands
python tools/reproduce.py ohem-vgg16-07-repo --data data --weights data/imagenet_models
python tools/reproduce.py ohem-vgg16-07-repo --scale 0.01          # the same, shortened, to check an installation

Nothing is downloaded. A run that was stopped goes on where it was when it is started again.
"""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

import _cli
import _reproduction_report as report
from _pace import Rates, device_name, measure
from _reproduction import Row, read_result

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.published import RUNS, find, read_figures

TEST_IMAGES = {"voc_2007_test": 4952, "voc_2010_test": 9637, "voc_2012_test": 10991, "coco_2015_test-dev": 20288}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows of the list; without any the list is shown")
    what = parser.add_argument_group("what to do with them")
    what.add_argument("--dry-run", action="store_true", help="show the commands and what is missing, run nothing")
    what.add_argument("--evaluate", action="store_true", help="train nothing: test the published detector's caffemodel")
    what.add_argument("--scale", type=float, default=1.0, metavar="X", help="share of iterations and images [1]")
    what.add_argument("--report", action="store_true", help="only show what is done in --output")
    what.add_argument("--measure", action="store_true", help="time the rows' recipes on this machine, on noise")
    what.add_argument("--rate", type=float, metavar="SECONDS", help="of an iteration, for the hours in the list")
    places = parser.add_argument_group("where things are")
    places.add_argument(
        "--data", metavar="DIR", help="holds VOCdevkit<year>, selective_search_data [$OHEM_DATA or data]"
    )
    places.add_argument("--devkit", metavar="DIR", help="the VOCdevkit itself [$OHEM_VOCDEVKIT]")
    places.add_argument("--proposals", metavar="NAME|FILE", help="proposal method, or a folder of .mat or .npz files")
    places.add_argument(
        "--weights", metavar="DIR|FILE", help="folder of caffemodels under their public names [$OHEM_WEIGHTS or --data]"
    )
    places.add_argument("--output", metavar="DIR", default="output/reproduce", help="[output/reproduce]")
    other = parser.add_argument_group("substitutes: the result is then not comparable with the published figure")
    other.add_argument("--backbone", metavar="NAME", help="another one, e.g. squeezenet_v1.1, with its own schedule")
    other.add_argument("--train_imdb", metavar="NAME", help="another training set, e.g. voc_2007_train")
    other.add_argument("--test_imdb", metavar="NAME", help="another test set, e.g. voc_2007_val")
    other.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="configuration keys")
    parser.add_argument("--gpu", type=int, metavar="ID", help="CUDA device; -1 is the CPU [0 where there is one]")
    parser.add_argument("--workers", type=int, metavar="N", help="threads that prepare images ahead [none]")
    args = parser.parse_args()
    args.data = args.data or os.environ.get("OHEM_DATA") or "data"
    args.weights = args.weights or os.environ.get("OHEM_WEIGHTS") or args.data
    return args


def main() -> int:
    args = parse_args()
    if not 0 < args.scale <= 1:  # nan too
        raise PortError(f"--scale {args.scale:g}: a share above 0, and at most 1", hint="0.01: a hundredth of the work")
    if args.rate is not None and not 0 < args.rate < float("inf"):
        raise PortError(f"--rate {args.rate:g}: seconds above 0")
    if not (args.rows or args.report or args.measure) and changes_runs(args):
        raise PortError("which rows? the list has their names", hint=f"{changes_runs(args)} would have no effect")
    rates = Rates(Path(args.output) / "rates.json")
    if args.measure:
        measure_rows(args, rates)
    elif args.report:
        show_done(args)
    elif not args.rows:
        show_list(args, rates)
    else:
        rows = [Row(run_of(name), args) for name in dict.fromkeys(args.rows)]
        if args.dry_run:
            for row in rows:
                show_plan(row)
        else:
            run(rows, args, rates)
    return 0


def changes_runs(args) -> str:
    """The first option that means nothing without a row; empty where there is none."""
    given = {
        "--dry-run": args.dry_run, "--evaluate": args.evaluate, "--scale": args.scale != 1, "--set": args.set,
        "--backbone": args.backbone, "--train_imdb": args.train_imdb, "--test_imdb": args.test_imdb,
    }  # fmt: skip
    return next((option for option, value in given.items() if value), "")


def run_of(name: str):
    """The run of a row.

    Raises:
        PortError: no such row, or none that has a recipe.
    """
    figure = find(name)
    if name not in RUNS:
        raise PortError(
            f"{name} ({figure.method}, {figure.backbone}) has no recipe here: it is listed for comparison",
            hint="nets of your own run with tools/train_from_prototxt.py and test_from_prototxt.py",
        )
    return RUNS[name]


def run(rows: list[Row], args, rates: Rates) -> None:
    """Runs the rows one after the other, once all they need is there, and reports."""
    known: dict = {}
    lacking = [line for row in rows for line in [*row.missing_data(known), *row.missing_weights()]]
    if lacking:
        raise PortError("not everything is there", hint="missing: " + "\n  missing: ".join(dict.fromkeys(lacking)))
    output = _cli.output_folder(args.output)
    device = device_name(_cli.pick_device(args))
    results = []
    for row in rows:
        results.append(row())
        if "iteration" in results[-1]["seconds"] and not args.set:
            rates.add(device, row.training.kind, iteration=results[-1]["seconds"]["iteration"])
    report.show_results(results, output)


def show_plan(row: Row) -> None:
    """The commands of a row that are still to be run."""
    figure = row.figure
    print(f"# {figure.name}: {figure.method}, {figure.metric} {figure.value:.1f} ({figure.standing}: {figure.source})")
    for line in [*row.missing_data({}), *row.missing_weights()]:
        print(f"# missing: {line}")
    for line in row.differences():
        print(f"# not comparable: {line}")
    for line in row.unverified:
        print(f"# not verified: {line}")
    if row.scale != 1:
        print(f"# {row.folder} gets solvers, {row.training.iterations} iterations, and data with fewer images")
    commands = [shlex.join(command) for _, command in row.commands()]
    print("\n".join(commands or [f"# done: {row.folder}"]), end="\n\n")


def show_done(args) -> None:
    """What is done in ``--output``: of the rows given, or all."""
    found = [read_result(file) for file in sorted(Path(args.output).glob("*/result.json"))]
    wanted = {find(name).name for name in args.rows}
    found = [result for result in found if result and (not wanted or result["name"] in wanted)]
    if not found:
        raise PortError("no row is done there", file=args.output, hint="leave out --report, or name another --output")
    report.show_results(found, _cli.output_folder(args.output))


def measure_rows(args, rates: Rates) -> None:
    """Times the recipes of the rows given, or of all rows, and keeps what was found for the list."""
    rows = [Row(run_of(name), args) for name in args.rows or RUNS]
    kinds = {training.kind: training for row in rows for training in row.trainings}
    _cli.output_folder(args.output)
    device = _cli.pick_device(args)
    for kind, training in kinds.items():
        seconds = measure(training.recipe / "solver.prototxt", training.cfg, device)
        rates.add(device_name(device), kind, **seconds)
        iteration, image = seconds["iteration"], seconds["image"]
        print(f"{kind}: {iteration:.3g} s an iteration, {image:.3g} s a tested image", flush=True)
    print(f"kept in {rates.file}")


def show_list(args, rates: Rates) -> None:
    """All figures and what those with a recipe need."""
    device = None if args.rate else rates.device(device_name(_cli.pick_device(args)))
    known, states, lacking = {}, {}, []
    for name, run in RUNS.items():
        row = Row(run, args)
        data, weights = row.missing_data(known), row.missing_weights()
        lacking += data + weights
        hours = estimated_hours(row, {"iteration": args.rate} if args.rate else rates.seconds.get(device, {}))
        words = ["missing" if lines else "present" for lines in (data, weights)]
        states[name] = (*words, f"{row.training.iterations:,}", "?" if hours is None else f"{hours:.1f}")
    where = f"hours at {args.rate:g} s/it" if args.rate else f"hours, {device}" if device else "hours"
    report.show_list(list(read_figures().values()), states, where)
    for line in dict.fromkeys(lacking):
        print(f"missing: {line}")
    for name, run in RUNS.items():
        if run.detectors:
            row = Row(run, argparse.Namespace(**vars(args) | {"evaluate": True}))
            print(f"{name} --evaluate: {row.weights or f'missing: {row.weights_name}'}")
    if not (device or args.rate):
        _cli.show(["hours: nothing is measured yet; --measure [ROW ...] times the recipes here, --rate takes yours"])


def estimated_hours(row: Row, rates: dict) -> float | None:
    """Of training, and of testing where that was measured; None without a rate."""
    total = 0.0
    for training in row.trainings:
        seconds = rates if "iteration" in rates else rates.get(training.kind, {})
        if "iteration" not in seconds:
            return None
        total += training.iterations * seconds["iteration"]
    return (total + TEST_IMAGES.get(row.test_imdb, 0) * seconds.get("image", 0)) / 3600


if __name__ == "__main__":
    _cli.run(main)
