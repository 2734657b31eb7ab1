"""VOC's average precision against what the original's voc_eval.py does: seconds, memory, and whether the numbers agree.

    python benchmarks/evaluate.py
    python benchmarks/evaluate.py --original /path/to/voc_eval.py
    python benchmarks/evaluate.py --detections 2000 --repeats 1     # 100 of each of 20 classes on each image

A synthetic VOC devkit and comp4 files of it, on the scale of VOC 2007's test set, are made in a temporary folder. Every
way is a process of its own, in turn with the others; the best time of all rounds counts, of the processor and not of
the clock, since each uses one thread. It begins with files and ends with the curves and APs of all classes. Memory is
how far the process grows meanwhile (Linux only). Scores differ from each other within a class, since voc_eval.py leaves
the order of equal ones to numpy's unstable sort.

The plain way (_plain_voc.py) does what voc_eval.py does, class by class, detection by detection. ``--original`` also
runs that file itself, where this Python can (that of 2016 wants print as a function, pickle for cPickle, binary modes
for its cache, and bool for np.bool).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import _plain_voc as plain
import numpy as np
from _timing import resident

from ohem_caffe_port.data.pascal_voc import VOC_CLASSES, PascalVoc
from ohem_caffe_port.evaluate import ResultFiles, average_precision, evaluate_voc

WAYS = {"ours": "evaluate_voc", "plain": "plain voc_eval", "original": "voc_eval.py itself"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=4952, help="[4952]")
    parser.add_argument("--classes", type=int, default=20, help="so many of VOC's [20]")
    parser.add_argument("--detections", type=int, default=100, help="on each image, of all classes together [100]")
    parser.add_argument("--original", metavar="FILE", help="a voc_eval.py, to be run as it is")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of which the best counts [3]")
    parser.add_argument("--folder", metavar="DIR", help="where the temporary folder goes [the system's]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)  # what a process of its own is started with
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    classes = VOC_CLASSES[1 : args.classes + 1]
    if args.way:
        print(json.dumps(run(args.way[0], Path(args.way[1]), classes, args.original)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        count = make_devkit(Path(folder), classes, args)
        print(f"{args.images} images, {len(classes)} classes, {count} detections, best of {args.repeats}, "
              f"numpy {np.__version__}")  # fmt: skip
        compare([way for way in WAYS if way != "original" or args.original], folder, args)


def compare(ways: list[str], folder: str, args: argparse.Namespace) -> None:
    command = [sys.executable, __file__, f"--classes={args.classes}"]
    command += [f"--original={args.original}"] if args.original else []
    best: dict[str, dict] = {}
    for _ in range(args.repeats):
        for way in ways:
            done = subprocess.run([*command, "--way", way, folder], check=True, stdout=subprocess.PIPE)
            found = json.loads(done.stdout.splitlines()[-1])
            if way not in best or sum(found["seconds"].values()) < sum(best[way]["seconds"].values()):
                best[way] = found
    ours = best["ours"]
    for way, found in best.items():
        parts = ", ".join(f"{what} {seconds:.2f}" for what, seconds in found["seconds"].items())
        total = sum(found["seconds"].values())
        print(f"{WAYS[way]:20}{total:8.2f} s ({parts}), {found['memory'] / 1e6:.0f} MB; "
              f"ratio {total / sum(ours['seconds'].values()):.1f}")  # fmt: skip
    for way in ways[1:]:
        theirs = best[way]
        same = sum(curve == theirs["curves"][name] for name, curve in ours["curves"].items())
        apart = max(abs(ap - theirs[rule][name]) for rule in ("ap11", "area") for name, ap in ours[rule].items())
        print(f"against {WAYS[way]}: curves the same to the last bit in {same} of {len(ours['curves'])} classes; "
              f"largest difference of an AP, of either rule, {apart:.1e}")  # fmt: skip


def run(way: str, folder: Path, classes: tuple[str, ...], original: str | None) -> dict:
    """One way, in this process: seconds of each part, memory, digests of the curves, APs by both rules."""
    before = resident("VmRSS")
    clock = Clock()
    if way == "ours":
        curves = our_curves(folder, classes, clock)
    elif way == "plain":
        curves = plain_curves(folder, classes, clock)
    else:
        curves = original_curves(folder, classes, clock, original)
    grown = resident("VmHWM") - before
    area = {name: plain.average_precision(recall, precision, False) for name, (recall, precision, _) in curves.items()}
    if way == "ours":
        area = {name: average_precision(*curve[:2], use_07_metric=False) for name, curve in curves.items()}
    return {
        "seconds": clock.seconds,
        "memory": grown,
        "curves": {
            name: hashlib.sha256(np.concatenate(curve[:2]).tobytes()).hexdigest() for name, curve in curves.items()
        },
        "ap11": {name: float(curve[2]) for name, curve in curves.items()},
        "area": area,
    }


class Clock:
    """Seconds of processor time by what they were spent on."""

    def __init__(self):
        self.seconds, self.last = {}, time.process_time()

    def lap(self, what: str) -> None:
        now = time.process_time()
        self.seconds[what], self.last = self.seconds.get(what, 0) + now - self.last, now


def our_curves(folder: Path, classes, clock: Clock) -> dict:
    imdb = PascalVoc("voc_2007_test", folder, "2007", "test")
    annotations = imdb.annotations()
    clock.lap("annotations")

    class Timed(ResultFiles):
        def __getitem__(self, name):
            clock.lap("matching")
            found = super().__getitem__(name)
            clock.lap("reading")
            return found

    files = Timed(folder / "detections", classes, image_set="test")
    result = evaluate_voc(files, annotations, classes, use_07_metric=True)
    clock.lap("matching")
    return {name: (result.recall[name], result.precision[name], result.ap[name]) for name in classes}


def plain_curves(folder: Path, classes, clock: Clock) -> dict:
    images = (folder / "VOC2007/ImageSets/Main/test.txt").read_text().split()
    objects = {image: plain.objects(folder / f"VOC2007/Annotations/{image}.xml") for image in images}
    clock.lap("annotations")  # voc_eval.py keeps them in a file from the first class on
    curves = {}
    for name in classes:
        detections = plain.reading(folder / f"detections/comp4_det_test_{name}.txt")
        clock.lap("reading")
        recall, precision = plain.matching(objects, name, *detections)
        curves[name] = recall, precision, plain.average_precision(recall, precision, True)
        clock.lap("matching")
    return curves


def original_curves(folder: Path, classes, clock: Clock, path: str) -> dict:
    spec = importlib.util.spec_from_file_location("voc_eval", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    curves = {}
    detections, annotations = (
        f"{folder}/detections/comp4_det_test_{{:s}}.txt",
        f"{folder}/VOC2007/Annotations/{{:s}}.xml",
    )
    where = detections, annotations, f"{folder}/VOC2007/ImageSets/Main/test.txt"
    with tempfile.TemporaryDirectory() as cache:
        clock.last = time.process_time()
        for name in classes:
            recall, precision, ap = module.voc_eval(*where, name, cache, ovthresh=0.5, use_07_metric=True)
            curves[name] = recall, precision, ap
            clock.lap("in all")
    return curves


def make_devkit(folder: Path, classes, args: argparse.Namespace) -> int:
    """VOC2007's annotations and image set, and comp4 files in ``folder/detections``; returns how many detections.

    An image has 1 to 6 objects, every fifth of them difficult. Half of the detections are an object of the image moved
    a little, of its class; the others are anywhere, of any class. Each class has so many on every image that all
    classes together have ``args.detections``.
    """
    rng = np.random.default_rng(args.seed)
    for name in ("VOC2007/Annotations", "VOC2007/ImageSets/Main", "detections"):
        (folder / name).mkdir(parents=True)
    images = [f"{k + 1:06d}" for k in range(args.images)]
    (folder / "VOC2007/ImageSets/Main/test.txt").write_text("".join(f"{image}\n" for image in images))
    of_image = rng.integers(1, 7, args.images)
    image = np.repeat(np.arange(args.images), of_image)
    label, difficult = rng.integers(0, len(classes), len(image)), rng.random(len(image)) < 0.2
    boxes = random_boxes(rng, len(image))
    for k, ident in enumerate(images):
        mine = np.flatnonzero(image == k)
        text = "".join(OBJECT.format(classes[label[j]], int(difficult[j]), *boxes[j]) for j in mine)
        (folder / f"VOC2007/Annotations/{ident}.xml").write_text(ANNOTATION.format(ident, text))
    total = 0
    for index, name in enumerate(classes):
        count = args.images * args.detections // len(classes)
        where, found = rng.integers(0, args.images, count), random_boxes(rng, count).astype(float)
        own = np.flatnonzero(label == index)
        near = np.flatnonzero(rng.random(count) < 0.5) if len(own) else np.zeros(0, int)
        source = rng.choice(own, len(near)) if len(own) else near
        where[near] = image[source]
        sides = np.tile(boxes[source, 2:] - boxes[source, :2], 2)
        found[near] = boxes[source] + rng.normal(0, 0.15, (len(near), 4)) * sides
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        scores = (rng.permutation(count) + 1) / (count + 1)
        order = np.argsort(where, kind="stable")
        with (folder / f"detections/comp4_det_test_{name}.txt").open("w") as file:
            rows = zip(where[order].tolist(), scores[order].tolist(), found[order].tolist(), strict=True)
            file.writelines(
                f"{images[k]} {s:.9f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}\n" for k, s, (x1, y1, x2, y2) in rows
            )
        total += count
    return total


def random_boxes(rng, count: int) -> np.ndarray:
    """[N, 4] int, inside 500 x 375 pixels, one-based."""
    size = np.exp(rng.uniform(np.log(16), np.log(300), (count, 2)))
    corner = 1 + rng.random((count, 2)) * (np.array([500, 375]) - size).clip(1)
    return np.hstack([corner, np.minimum(corner + size, [500, 375])]).astype(int)


ANNOTATION = """\
<annotation>
	<folder>VOC2007</folder>
	<filename>{}.jpg</filename>
	<source>
		<database>synthetic</database>
		<annotation>synthetic</annotation>
		<image>none</image>
	</source>
	<size>
		<width>500</width>
		<height>375</height>
		<depth>3</depth>
	</size>
	<segmented>0</segmented>
{}</annotation>
"""
OBJECT = """\
	<object>
		<name>{}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>{}</difficult>
		<bndbox>
			<xmin>{}</xmin>
			<ymin>{}</ymin>
			<xmax>{}</xmax>
			<ymax>{}</ymax>
		</bndbox>
	</object>
"""


if __name__ == "__main__":
    main()
