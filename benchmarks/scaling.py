"""What an OHEM iteration costs as work grows: seconds and peak memory over RoIs, pixels, images and classes.

python benchmarks/scaling.py                        # every axis, around a base point; about five minutes on two cores
python benchmarks/scaling.py --quick                # small sizes, two or three points for each axis
python benchmarks/scaling.py --axis rois classes --points points.json    # measures only what the file lacks
python benchmarks/scaling.py --net vgg16 --device cuda

An iteration is all of it: the minibatch made from JPEG files, forward, mining, backward, update. Every point is a
process of its own, so that its peak memory is its own (on a GPU: what torch allocated there); after one iteration that
warms it up the best of those counts that fit into `--seconds`, of one at least. Hard RoIs are 64 of each image.

An exponent is the slope of a straight line through the logarithms: 1 where cost is proportional to size, less where a
part of it does not grow, 2 where it is quadratic. It is given over all points; of the growth of the time, which is what
comes on top of the first point; and of the last step, from the last but one point to the last, where a quadratic part
shows. Memory has no exponent of growth: it is the larger of what the update needs, which does not grow, and the pass.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import time
from pathlib import Path

import numpy as np
import torch
from _nets import build, find
from _timing import check_device, in_own_process, peak_memory
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from converters.extras import library
from ohem_caffe_port.memory import keep_freed_memory
from prototxt import CaffePortError
from prototxt.files import replacing

AXES = ("rois", "side", "images", "classes")
TITLES = {"rois": "RoIs of an image", "side": "pixels of an image", "images": "images of a batch", "classes": "classes"}
UNITS = {"rois": "RoI", "side": "kilopixel", "images": "image", "classes": "class"}
BASE = (2000, 600, 1, 21)
SWEEP = {
    "rois": [500, 1000, 2000, 4000, 8000, 16000],
    "side": [300, 450, 600, 900, 1200],
    "images": [1, 2, 4, 8],
    "classes": [21, 101, 251, 501, 1001],
}
QUICK_BASE = (500, 300, 1, 21)
QUICK = {"rois": [250, 500, 1000], "side": [200, 300, 400], "images": [1, 2, 4], "classes": [21, 101, 301]}
LEAST = (3, 64, 1, 2)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", default="vgg_cnn_m_1024", metavar="FAMILY", help="of the zoo [vgg_cnn_m_1024]")
    parser.add_argument("--device", default="cpu", help="[cpu]")
    parser.add_argument("--axis", nargs="+", choices=AXES, default=AXES, help="those to sweep [all]")
    parser.add_argument("--base", nargs=4, type=int, metavar=("ROIS", "SIDE", "IMAGES", "CLASSES"),
                        help=f"the point around which each is swept {list(BASE)}")  # fmt: skip
    for axis in AXES:
        parser.add_argument(f"--{axis}", nargs="+", type=int, metavar="N", help=f"{SWEEP[axis]}")
    parser.add_argument("--quick", action="store_true", help=f"base {list(QUICK_BASE)}, and sizes near it")
    parser.add_argument("--seconds", type=float, default=5, help="for each point, after its first iteration [5]")
    parser.add_argument("--points", metavar="FILE", help="JSON; points that are in it are not measured again")
    parser.add_argument("--plot", metavar="FILE", default="output/scaling.png", help="[output/scaling.png]")
    parser.add_argument("--point", nargs=4, type=int, help=argparse.SUPPRESS)  # what a process of its own measures
    args = parser.parse_args()
    args.base = args.base or (QUICK_BASE if args.quick else BASE)
    default = QUICK if args.quick else SWEEP
    args.sweep = {axis: sorted(set(getattr(args, axis) or default[axis])) for axis in args.axis}
    for axis, least, base in zip(AXES, LEAST, args.base, strict=True):
        if min([base, *args.sweep.get(axis, [])]) < least:
            parser.error(f"{axis} must be at least {least}")
    if not args.seconds >= 0:
        parser.error("--seconds must not be negative")
    check_device(parser, args.device)
    args.parser = parser
    return args


def main() -> None:
    args = parse_args()
    try:
        if args.point:
            print(json.dumps(measure(args)))
            return
        find(f"{args.net}/ohem")
        run(args)
    except (CaffePortError, torch.OutOfMemoryError, OSError, ValueError) as error:
        args.parser.error(str(error))


def measure(args: argparse.Namespace) -> dict:
    """Seconds and peak memory of an iteration, in this process."""
    rois, side, images, classes = args.point
    keep_freed_memory()  # as the training tool does
    solver = build(
        f"{args.net}/ohem", images=images, rois=rois, batch_size=64 * images, height=side, width=side, classes=classes,
        device=args.device,
    )  # fmt: skip
    seconds = []
    while len(seconds) < 2 or sum(seconds[1:]) < args.seconds:
        start = time.perf_counter()
        solver.step()
        if args.device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds[1:]), "memory": peak_memory(args.device)}


def run(args: argparse.Namespace) -> None:
    """Measures what is missing, then shows and draws all of it."""
    where = torch.cuda.get_device_name(args.device) if args.device.startswith("cuda") else "CPU"
    setting = f"{args.net}, {where}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    points = Points(args, setting)
    wanted = {point_at(args, axis, size) for axis, sizes in args.sweep.items() for size in sizes}
    for point in tqdm(sorted(wanted, key=math.prod), unit="point", leave=False):
        points.measure(point)
    print(f"{setting}; base: " + ", ".join(f"{n} {axis}" for axis, n in zip(AXES, args.base, strict=True)))
    curves = {axis: Curve(axis, *points.along(axis, sizes)) for axis, sizes in args.sweep.items()}
    show(curves)
    try:
        draw(curves, setting, Path(args.plot))
        print(f"picture: {args.plot}")
    except CaffePortError as error:
        print(f"note: no picture is drawn: {error}")


def point_at(args: argparse.Namespace, axis: str, size: int) -> tuple[int, ...]:
    """The base point with another size along one axis."""
    return tuple(size if name == axis else base for name, base in zip(AXES, args.base, strict=True))


class Points:
    """Measured points, kept in ``--points``.

    Raises:
        ValueError: that file is of another net, machine or number of threads, or is none of these files.
    """

    def __init__(self, args: argparse.Namespace, setting: str):
        self.args, self.setting, self.found = args, setting, {}
        if args.points and Path(args.points).exists():
            try:
                content = json.loads(Path(args.points).read_text(encoding="utf-8"))
                of = content["setting"]
                self.found = {
                    name: {what: float(at[what]) for what in ("seconds", "memory")}
                    for name, at in content["points"].items()
                }
            except (ValueError, LookupError, TypeError, AttributeError):
                raise ValueError(f"{args.points}: not a file of this script's points") from None
            if of != setting:
                raise ValueError(f"{args.points} is of '{of}', this is '{setting}'")

    def measure(self, point: tuple[int, ...]) -> None:
        """A point that fails (no memory) is left out, and said so."""
        if self._name(point) in self.found:
            return
        options = ("--net", self.args.net, "--device", self.args.device, "--seconds", self.args.seconds)
        try:
            self.found[self._name(point)] = in_own_process(__file__, *options, "--point", *point)
        except subprocess.CalledProcessError as error:
            tqdm.write(f"note: the process for {self._name(point)} ended with {error.returncode}; it is left out")
            return
        if self.args.points:
            with replacing(self.args.points, "w", encoding="utf-8") as file:
                json.dump({"setting": self.setting, "points": self.found}, file, indent=1)

    def along(self, axis: str, sizes: list[int]) -> tuple[list[int], list[float], list[float]]:
        """Sizes that were measured, their seconds and bytes."""
        names = {size: self._name(point_at(self.args, axis, size)) for size in sizes}
        kept = [size for size in sizes if names[size] in self.found]
        return kept, *([self.found[names[size]][what] for size in kept] for what in ("seconds", "memory"))

    def _name(self, point) -> str:
        return ", ".join(f"{n} {axis}" for axis, n in zip(AXES, point, strict=True))


class Curve:
    """One axis: ``size`` is what work should be proportional to, thousands of pixels for the side of an image."""

    def __init__(self, axis: str, sizes: list[int], seconds: list[float], memory: list[float]):
        self.axis, self.labels = axis, sizes
        self.size = np.array([n * n / 1000 if axis == "side" else n for n in sizes], float)
        self.seconds, self.memory = np.array(seconds), np.array(memory)

    def exponents(self) -> list[float]:
        """Of the time, of its growth and its last step; of the memory and its last step."""
        time, memory, size = self.seconds, self.memory, self.size
        growth = slope(size[1:] - size[:1], time[1:] - time[:1])
        return [
            slope(size, time),
            growth,
            slope(size[-2:], time[-2:]),
            slope(size, memory),
            slope(size[-2:], memory[-2:]),
        ]


def slope(size: np.ndarray, cost: np.ndarray) -> float:
    """Of the straight line through the logarithms; what is not above 0 is left out, and NaN is of fewer than two."""
    counts = cost > 0
    return float(np.polyfit(np.log(size[counts]), np.log(cost[counts]), 1)[0]) if counts.sum() > 1 else math.nan


def shown(exponent: float) -> str:
    return "-" if math.isnan(exponent) else f"{exponent:.2f}"


def three_digits(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def show(curves: dict[str, Curve]) -> None:
    """All points with the cost of each further unit since the one before; the exponents of each axis."""
    table, summary = Table(), Table()
    for column in ("axis", "size", "seconds", "ms / further unit", "peak GB", "MB / further unit"):
        table.add_column(column, justify="left" if column == "axis" else "right")
    for column in ("exponents over", "time", "growth", "last step", "memory", "last step"):
        summary.add_column(column, justify="left" if column == "exponents over" else "right")
    for axis, curve in curves.items():
        before = None
        for size, label, seconds, memory in zip(curve.size, curve.labels, curve.seconds, curve.memory, strict=True):
            more = ["", ""]
            if before:
                step = size - before[0]
                more = [
                    three_digits(1e3 * (seconds - before[1]) / step),
                    three_digits((memory - before[2]) / 1e6 / step),
                ]
            name = "" if before else f"{TITLES[axis]} (unit: {UNITS[axis]})"
            stated = f"{label} x {label}" if axis == "side" else f"{label}"
            table.add_row(name, stated, f"{seconds:.3f}", more[0], f"{memory / 1e9:.2f}", more[1])
            before = size, seconds, memory
        table.add_section()
        summary.add_row(TITLES[axis], *map(shown, curve.exponents()))
    console = Console(width=120)
    console.print(table)
    console.print(summary)


def draw(curves: dict[str, Curve], setting: str, path: Path) -> None:
    """A panel for each axis: seconds and memory over size, both logarithmic, and what proportional would be.

    Raises:
        CaffePortError: matplotlib is not installed.
    """
    library("matplotlib", "plots").use("Agg")
    plt = library("matplotlib.pyplot", "plots")
    figure, panels = plt.subplots(1, len(curves), figsize=(4 * len(curves), 4), layout="constrained", squeeze=False)
    for panel, (axis, curve) in zip(panels[0], curves.items(), strict=True):
        overall, _, last, memory, last_memory = map(shown, curve.exponents())
        right = panel.twinx()
        lines = panel.plot(
            curve.size, curve.seconds, "C0o-", markersize=5, label=f"seconds: exponent {overall}, last step {last}"
        )
        linear = curve.seconds[-1:] * curve.size / curve.size[-1:]
        lines += panel.plot(curve.size, linear, "--", color="grey", linewidth=1, label="seconds proportional to size")
        label = f"GB: exponent {memory}, last step {last_memory}"
        lines += right.plot(curve.size, curve.memory / 1e9, "C1s-", markersize=4, label=label)
        logarithmic(panel, np.concatenate([each.seconds for each in curves.values()]), "C0")
        logarithmic(right, np.concatenate([each.memory / 1e9 for each in curves.values()]), "C1")
        panel.set_xticks(curve.size, [f"{n}²" if axis == "side" else f"{n:,}" for n in curve.labels], fontsize=8)
        panel.set(title=TITLES[axis])
        panel.grid(alpha=0.3)
        panel.legend(lines, [line.get_label() for line in lines], fontsize=7, loc="upper left")
    panels[0][0].set_ylabel("seconds of an OHEM iteration", color="C0")
    right.set_ylabel("peak memory, GB", color="C1")
    figure.suptitle(setting, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
    plt.close(figure)


def logarithmic(panel, values: np.ndarray, color: str) -> None:
    """Both axes logarithmic; the vertical one with room for a legend above all values, and numbers that can be read."""
    panel.set(xscale="log", yscale="log")
    panel.minorticks_off()
    if len(values):
        low, high = values.min() / 1.3, values.max() * 5
        ticks = [m * 10.0**e for e in range(-4, 6) for m in (1, 2, 5) if low <= m * 10.0**e <= high]
        panel.set_ylim(low, high)
        panel.set_yticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    panel.tick_params(axis="y", colors=color)


if __name__ == "__main__":
    main()
