"""How many images a second the training data pipeline gives, and what a device that computes would wait for it.

    python benchmarks/data_pipeline.py
    python benchmarks/data_pipeline.py --data data --imdb voc_2007_trainval --workers 0 1 2 4 8 --rate 100

The limit is what no detector can do without: ``cv2.imread`` of the same JPEGs and ``cv2.resize`` of their bytes, in one
thread. RoIs are drawn at random. The device is a pause of as long as it would compute; what it waits for is the time
that the next minibatch takes to be handed out.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.data.image_size import image_size
from ohem_caffe_port.data.loader import MinibatchLoader
from ohem_caffe_port.data.minibatch import (
    entry_image,
    image_scale,
    images_to_blob,
    load_minibatch,
    plan_minibatch,
    prep_image,
)
from ohem_caffe_port.memory import keep_freed_memory
from prototxt import CaffePortError

CLASSES, METHODS = 21, ("ohem", "fast_rcnn")
IDLE = 0.05  # the part of its time that a device may wait
WARM_UP = 8  # minibatches
TINY = (16, 12)  # pixels


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="holds a VOCdevkit, whose images are read [drawn ones]")
    parser.add_argument("--imdb", default="voc_2007_train", help="with --data: of this data set [voc_2007_train]")
    parser.add_argument("--images", type=int, default=40, help="so many different ones [40]")
    parser.add_argument("--rois", type=int, default=2000, help="proposals of an image [2000]")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="[0 1 2]")
    parser.add_argument("--rate", type=float, default=50, metavar="X", help="images/s that the device takes [50]")
    parser.add_argument("--minibatches", type=int, default=40, help="of which a row is the mean [40]")
    parser.add_argument("--device", default="cpu", help="cuda: minibatches are copied there, from pinned memory [cpu]")
    args = parser.parse_args()
    for name, least in (("images", 2), ("rois", 64), ("minibatches", 1)):
        if getattr(args, name) < least:
            parser.error(f"--{name} must be at least {least}")
    if min(args.workers) < 0:
        parser.error("--workers must not be negative")
    if not 0 < args.rate < math.inf:
        parser.error("--rate must be positive")
    if args.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {args.device}: torch finds no CUDA device")
    try:
        args.paths = [] if args.data is None else of_imdb(args)
    except CaffePortError as error:
        parser.error(str(error))
    return args


def main() -> None:
    args = parse_args()
    keep_freed_memory()  # as the training tool does
    with tempfile.TemporaryDirectory() as folder:
        paths = args.paths or drawn(folder, args.images)
        roidb = random_roidb(paths, args.rois)
        side = statistics.mean(entry["width"] * entry["height"] for entry in roidb) ** 0.5
        kilobytes = statistics.mean(Path(path).stat().st_size for path in paths) / 1000
        print(f"{len(paths)} JPEGs of {side:.0f} x {side:.0f} pixels and {kilobytes:.0f} kB (means), and mirrored")
        print(f"{args.rois} RoIs an image, 2 images a minibatch, {os.cpu_count()} CPUs")
        tiny = random_roidb(drawn(folder, 2, TINY, "tiny"), args.rois)
        args.limit, args.locked = stages(roidb, paths, tiny)
        for method in METHODS:
            streams(method, roidb, args)


# ---- what is read


def drawn(folder, count: int, size=(500, 375), name: str = "drawn") -> list[str]:
    """JPEGs; of the default size with about as many bytes as photographs have."""
    rng, paths = np.random.RandomState(0), []
    for k in range(count):
        coarse = rng.randint(0, 256, (24, 32, 3), np.uint8)
        image = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC) + rng.normal(0, 6, (*size[::-1], 3))
        paths.append(str(Path(folder) / f"{name}{k}.jpg"))
        cv2.imwrite(paths[-1], image.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
    return paths


def of_imdb(args) -> list[str]:
    imdb = get_imdb(args.imdb, data_dir=args.data, proposals="gt")
    return [str(imdb.image_path_at(i)) for i in range(min(args.images, imdb.num_images))]


def random_roidb(paths, rois: int) -> list[dict]:
    """Prepared entries of the images and their mirror images; a tenth of the RoIs is foreground."""
    rng, roidb = np.random.RandomState(0), []
    for path in paths:
        width, height = image_size(path)
        corners, sides = rng.rand(2, rois, 2) * (0.5 * width, 0.5 * height)
        overlaps = np.where(np.arange(rois) < rois // 10, 0.7, 0.3) + rng.uniform(-0.2, 0.2, rois)
        classes = rng.randint(1, CLASSES, rois)
        targets = np.hstack([np.where(overlaps >= 0.5, classes, 0)[:, None], rng.randn(rois, 4)])
        entry = {
            "image": path, "width": width, "height": height, "max_overlaps": overlaps, "max_classes": classes,
            "boxes": np.hstack([corners, corners + sides]).astype(np.uint16),
            "bbox_targets": targets.astype(np.float32),
        }  # fmt: skip
        roidb += [{**entry, "flipped": flipped} for flipped in (False, True)]
    return roidb


def config(method: str, workers: int = 0, scale: int = 600) -> Config:
    cfg = Config()
    train = {"USE_OHEM": method == "ohem", "BG_THRESH_LO": 0.0, "ASPECT_GROUPING": False, "SCALES": [scale]}
    cfg.merge({"TRAIN": {**train, "USE_PREFETCH": workers > 0, "PREFETCH_WORKERS": workers}}, source="")
    return cfg


# ---- one image in one thread


def stages(roidb, paths, tiny) -> tuple[float, dict[str, float]]:
    """Prints the milliseconds that an image takes in one thread, stage by stage.

    Returns:
        those of the limit; and, of each method, those that are left where an image has next to no pixels: about what
        Python's lock lets one thread do at a time.
    """
    cfg, rng, threads = config("ohem"), np.random.RandomState(0), cv2.getNumThreads()
    cv2.setNumThreads(1)
    bare = [cv2.imread(path) for path in paths]
    sizes = [image_scale(image.shape, cfg.TRAIN.SCALES[0], cfg.TRAIN)[0] for image in bare]
    images = [entry_image(entry) for entry in roidb]
    scaled = [prep(image, cfg) for image in images]
    rows = {
        "cv2.imread": each(cv2.imread, paths),
        "cv2.resize": each(lambda k: cv2.resize(bare[k], None, fx=sizes[k], fy=sizes[k]), range(len(bare))),
    }
    limit, locked = sum(rows.values()), {}
    rows |= {
        "read, mirror": each(entry_image, roidb),
        "mean, resize": each(lambda image: prep(image, cfg), images),
        "to blob": each(lambda image: images_to_blob([image]), scaled),
    }
    for method in METHODS:
        rows[f"{method}: RoIs chosen"], rows[f"{method}: minibatch made"] = made(roidb, config(method), rng)
        locked[method] = rows[f"{method}: of tiny images"] = sum(made(tiny, config(method, scale=TINY[1]), rng))
    cv2.setNumThreads(threads)
    table = Table("one thread", "ms an image", box=box.SIMPLE)
    for name, spent in rows.items():
        table.add_row(name, f"{spent:.2f}")
    Console().print(table)
    return limit, locked


def made(roidb, cfg, rng) -> tuple[float, float]:
    """Milliseconds of an image to choose the RoIs of minibatches, and to make these."""
    pairs = [(k, k + 1) for k in range(0, len(roidb), 2)]
    plans = [plan_minibatch(roidb, pair, cfg, rng) for pair in pairs]
    return (
        each(lambda pair: plan_minibatch(roidb, pair, cfg, rng), pairs) / 2,
        each(lambda plan: load_minibatch(roidb, plan, CLASSES, cfg), plans) / 2,
    )


def prep(image, cfg):
    return prep_image(image, cfg, cfg.TRAIN.SCALES[0], cfg.TRAIN)[0]


def each(function, items, repeats: int = 5) -> float:
    """Milliseconds of ``function(item)``: the mean over the items, the median over the repeats."""
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        for item in items:
            function(item)
        spent.append(time.perf_counter() - start)
    return 1e3 * statistics.median(spent) / len(items)


# ---- the stream of minibatches


def streams(method: str, roidb, args) -> None:
    """Prints what each way of making minibatches gives, and how many workers the device needs."""
    table = Table(method, "images/s", "/ limit", f"idle at {args.rate:g}/s", "caller ms", box=box.SIMPLE)
    limit, enough = 1e3 / args.limit, None
    for workers in args.workers:
        ways = {"without workers": MinibatchStream}
        if workers:
            ways = {f"threads: {workers}": MinibatchStream, f"processes: {workers}": ProcessStream}
        for name, stream in ways.items():
            with closing(stream(roidb, config(method, workers), args.device)) as source:
                fast = consume(source, args.minibatches)
                paced = consume(source, args.minibatches, args.rate)
            table.add_row(name, f"{fast.rate:.0f}", f"{fast.rate / limit:.2f}",
                          f"{paced.idle:.1%}", f"{paced.caller:.2f}")  # fmt: skip
            if stream is MinibatchStream and enough is None and paced.idle < IDLE:
                enough = workers
    Console().print(table)
    verdict = "none of these" if enough is None else f"{enough} workers" if enough != 1 else "1 worker"
    print(f"{method}: {verdict} will keep busy a device that takes {args.rate:g} images/s (idle less than {IDLE:.0%});")
    print(f"  Python's lock allows {1e3 / args.locked[method]:.0f} images/s, however many workers")
    if args.device != "cpu":
        copies(method, roidb, args.device)


def copies(method: str, roidb, device: str) -> None:
    """Prints how long a CUDA device takes to fetch an image with its RoIs."""
    with closing(MinibatchLoader(roidb, CLASSES, config(method, 1), np.random.RandomState(3), device=device)) as loader:
        pinned = loader.next_minibatch()
    for kind, blobs in (("pinned", pinned), ("other", {name: blob.clone() for name, blob in pinned.items()})):

        def copy(_, blobs=blobs):
            for blob in blobs.values():
                blob.to(device, non_blocking=True)
            torch.cuda.synchronize()

        print(f"  copied from {kind} memory: {each(copy, range(10)) / len(blobs['data']):.2f} ms an image")


class MinibatchStream:
    """The project's, in the caller's thread or in threads of its own."""

    def __init__(self, roidb, cfg, device):
        self.device = device
        self.loader = MinibatchLoader(roidb, CLASSES, cfg, np.random.RandomState(3), device=device)

    def next(self) -> dict:
        return {name: blob.to(self.device, non_blocking=True) for name, blob in self.loader.next_minibatch().items()}

    def close(self) -> None:
        self.loader.close()


class ProcessStream:
    """The same minibatches from the processes of torch's DataLoader, through shared memory: the common way."""

    def __init__(self, roidb, cfg, device):
        rng, self.device = np.random.RandomState(3), device

        def plans():
            while True:
                inds = rng.permutation(len(roidb))
                for k in range(0, len(inds) - 1, 2):
                    yield plan_minibatch(roidb, inds[k : k + 2], cfg, rng)

        cv2.setNumThreads(1)  # a forked process that touches its parent's OpenCV threads can hang
        self.batches = iter(DataLoader(_Minibatches(roidb, cfg), sampler=plans(), batch_size=None,
                                       num_workers=cfg.TRAIN.PREFETCH_WORKERS, pin_memory=device != "cpu"))  # fmt: skip

    def next(self) -> dict:
        return {name: blob.to(self.device, non_blocking=True) for name, blob in next(self.batches).items()}

    def close(self) -> None:
        del self.batches


class _Minibatches(Dataset):
    def __init__(self, roidb, cfg):
        self.roidb, self.cfg = roidb, cfg

    def __getitem__(self, plan):
        blobs = load_minibatch(self.roidb, plan, CLASSES, self.cfg)
        return {name: torch.from_numpy(blob) for name, blob in blobs.items()}


@dataclass
class Pace:
    """``rate``: images/s; ``idle``: the part of the time in which the next minibatch was waited for; ``caller``: CPU
    time of the thread that asks for them, ms an image."""

    rate: float
    idle: float
    caller: float


def consume(stream, minibatches: int, rate: float | None = None) -> Pace:
    """Takes minibatches as fast as they come, or with a pause after each, as a device that takes ``rate`` images/s."""
    for _ in range(WARM_UP):
        stream.next()
    begin, waited, cpu, images = time.perf_counter(), 0.0, 0.0, 0
    for _ in range(minibatches):
        start, busy = time.perf_counter(), time.thread_time()
        blobs = stream.next()
        waited, cpu = waited + time.perf_counter() - start, cpu + time.thread_time() - busy
        images += len(blobs["data"])
        pause = len(blobs["data"]) / rate if rate else 0
        del blobs
        time.sleep(pause)
    spent = time.perf_counter() - begin
    return Pace(images / spent, waited / spent, 1e3 * cpu / images)


if __name__ == "__main__":
    main()
