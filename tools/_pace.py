"""How long an iteration and a tested image of a recipe take on this machine, without a data set: on noise."""

from __future__ import annotations

import copy
import json
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import torch

from ohem_caffe_port.config import Config
from ohem_caffe_port.data.imdb import Imdb, one_per_row
from ohem_caffe_port.data.roidb import get_training_roidb
from ohem_caffe_port.detect import im_detect
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver, find_net
from ohem_caffe_port.train import Trainer, settle_mining
from prototxt.files import replacing

IMAGES, WIDTH, HEIGHT, PROPOSALS = 4, 500, 375, 2000  # VOC's usual size, selective search's usual number


class Noise(Imdb):
    """A few images of noise with one object and :data:`PROPOSALS` proposals each."""

    def __init__(self, folder: Path, classes: int):
        super().__init__("noise", ["__background__", *map(str, range(1, classes))], [str(i) for i in range(IMAGES)])
        self.folder, rng = folder, np.random.RandomState(0)
        for i in range(IMAGES):
            cv2.imwrite(str(self.image_path_at(i)), rng.randint(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        corners = rng.rand(IMAGES, PROPOSALS, 2, 2) * (WIDTH - 21, HEIGHT - 21)
        self.boxes = np.concatenate([corners.min(2), corners.max(2) + 20], 2).astype(np.uint16)

    def image_path_at(self, i):
        return self.folder / f"{self.image_index[i]}.png"

    def gt_roidb(self):
        return [self._object(n) for n in range(IMAGES)]

    def _object(self, n: int) -> dict:
        one = np.ones(1)
        kind = np.full(1, 1 + n % (self.num_classes - 1), np.int32)
        return {
            "boxes": self.boxes[n, :1], "gt_classes": kind, "gt_overlaps": one_per_row(one, kind, self.num_classes),
            "seg_areas": one.astype(np.float32), "flipped": False,
        }  # fmt: skip

    def proposal_boxes(self):
        return list(self.boxes)


def device_name(device: torch.device) -> str:
    """What rates are kept under."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU, {torch.get_num_threads()} threads"


def measure(solver_path: Path, cfg: Config, device: torch.device, repeats: int = 3) -> dict[str, float]:
    """Seconds of ``{"iteration": ..., "image": ...}``: medians of ``repeats``, one more before them not counted."""
    cfg = copy.deepcopy(cfg)
    cfg.TRAIN.BBOX_NORMALIZE_TARGETS = False  # a few images have no statistics of every class
    solver = Solver(solver_path, cfg=cfg, device=device)
    solver.param.base_lr = 0.0  # as much work, and noise cannot make the weights diverge
    solver.net.keep_blobs = False
    settle_mining(solver.net, cfg)
    with tempfile.TemporaryDirectory() as folder:
        classes = next(layer.num_classes for layer in solver.net.layers if hasattr(layer, "set_roidb"))
        imdb = Noise(Path(folder), classes)
        image, boxes = cv2.imread(str(imdb.image_path_at(0))), imdb.boxes[0].astype(np.float32)
        Trainer(solver, get_training_roidb(imdb, cfg), cfg, folder)
        seconds = {"iteration": _median(solver.step, device, repeats)}
    test_net = find_net(solver.param.train_net, solver_path).parent / "test.prototxt"
    net = Net(test_net, "TEST", cfg=cfg, device=device)
    return seconds | {"image": _median(lambda: im_detect(net, image, boxes, cfg), device, repeats)}


def _median(work, device: torch.device, repeats: int) -> float:
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times[1:])


class Rates:
    """Measured seconds by device and recipe, kept in a file: ``{device: {"vgg16/ohem": {"iteration", "image"}}}``."""

    def __init__(self, file: Path):
        self.file, self.seconds = file, {}
        with suppress(OSError, ValueError, AttributeError, TypeError):  # none yet, or not readable: measured anew
            self.seconds = {k: dict(v) for k, v in json.loads(file.read_text(encoding="utf-8")).items()}

    def add(self, device: str, recipe: str, **seconds: float) -> None:
        known = self.seconds.setdefault(device, {})
        known[recipe] = known.get(recipe, {}) | seconds
        with replacing(self.file, "w", encoding="utf-8") as file:
            json.dump(self.seconds, file, indent=1)

    def device(self, wanted: str) -> str | None:
        """``wanted`` where something was measured on it, else another device."""
        return wanted if wanted in self.seconds else next(iter(self.seconds), None)
