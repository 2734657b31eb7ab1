"""What choosing RoIs costs, for every method of ``ohem_caffe_port.mining``: the loss of each RoI and the choice.

python benchmarks/mining.py
python benchmarks/mining.py --rois 1000 2000 --images 1 --classes 81
python benchmarks/mining.py --device cuda

OHEM and S-OHEM are compared with what docs/mining.md describes as a plain loop over RoIs and labels, in numpy: the time
of the loop divided by theirs. Times on a CPU are of the processor, so that a busy machine counts little. On a GPU they
are from event to event, with the host's own beside them, and how often it waited is counted
(``torch.cuda.set_sync_debug_mode``).
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings

import numpy as np
import torch

from ohem_caffe_port.mining import (
    METHODS,
    Examples,
    Strata,
    ohem_roi_loss,
    roi_cls_loss,
    roi_loc_loss,
    select_hard_rois,
    select_stratified_rois,
)
from ohem_caffe_port.mining.sohem import quotas


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rois", type=int, nargs="+", default=[2000, 4000], help="RoIs of the minibatch [2000 4000]")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2], help="images that they belong to [1 2]")
    parser.add_argument("--classes", type=int, default=21, help="background included [21]")
    parser.add_argument("--foreground", type=float, default=0.1, help="fraction of foreground RoIs [0.1]")
    parser.add_argument("--batch-size", type=int, default=128, help="RoIs to choose [128]")
    parser.add_argument("--thresh", type=float, default=0.7, help="IoU of the suppression [0.7]")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="[the CPU, and the GPU where there is one]")
    parser.add_argument("--repeats", type=int, default=15, help="runs of which the median counts [15]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that torch can use")
    devices = [args.device] if args.device else ["cpu", *["cuda"] * torch.cuda.is_available()]
    print(f"{args.classes} classes, {args.foreground:.0%} foreground, {args.batch_size} RoIs chosen, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    for device in devices:
        print(f"\n{torch.cuda.get_device_name() if device == 'cuda' else 'CPU'}")
        for images in args.images:
            for count in args.rois:
                report(device, images, count, args)


def report(device: str, images: int, count: int, args) -> None:
    blobs = make_blobs(count, images, args)
    tensors = [torch.from_numpy(blob).to(device) for blob in blobs]
    print(f"{count} RoIs of {images} image{'s' * (images > 1)}")
    loops = {"ohem": plain_mining, "sohem": plain_strata}
    for name, choose in ways(args).items():
        call = _Call(lambda choose=choose: choose(*tensors), device)
        seconds = call.seconds(args.repeats)
        line = f"  {name:20s}{1e3 * seconds:7.2f} ms"
        if device == "cuda":
            line += f", host {1e3 * call.host:.2f} ms, waits {call.waits()} times"
        if name in loops:
            loop = _Call(lambda name=name: loops[name](*blobs, args.batch_size, args.thresh), "cpu")
            slow = loop.seconds(max(3, args.repeats // 5))
            same = np.array_equal(call.result.cpu().numpy(), loop.result)
            line += f", loop {1e3 * slow:.1f} ms, ratio {slow / seconds:.1f}; the same RoIs: {'yes' if same else 'NO'}"
        print(line)


def ways(args) -> dict:
    """What is measured: functions of the layer's bottoms, which return indices of RoIs or weights of all."""

    def indices(padded, cls_prob, bbox_pred, rois, labels, *boxes):
        loss = ohem_roi_loss(cls_prob, labels, bbox_pred, *boxes)
        return select_hard_rois(loss, rois, labels, args.batch_size, nms_thresh=args.thresh, padded=padded)

    def strata(cls_prob, bbox_pred, rois, labels, *boxes):
        losses = roi_cls_loss(cls_prob, labels), roi_loc_loss(labels, bbox_pred, *boxes)
        return select_stratified_rois(*losses, rois, labels, args.batch_size, nms_thresh=args.thresh)

    def weights(method, cls_prob, bbox_pred, rois, labels, *boxes):
        loc_loss = roi_loc_loss(labels, bbox_pred, *boxes)
        return method(Examples(roi_cls_loss(cls_prob, labels), labels, loc_loss, rois, torch.full_like(loc_loss, 0.2)))

    found = {"ohem": lambda *b: indices(False, *b), "ohem, padded": lambda *b: indices(True, *b), "sohem": strata}
    for name, kind in METHODS.items():
        sizes = {"batch_size": args.batch_size, "rois_per_image": args.batch_size, "nms_thresh": args.thresh}
        method = kind(**{key: value for key, value in sizes.items() if key in kind.__dataclass_fields__})
        found[f"weights: {name}"] = lambda *b, method=method: weights(method, *b)
    return found


class _Call:
    """A function's time on a device, its last result, and how often it makes the host wait."""

    def __init__(self, function, device: str):
        self.function, self.device = function, device
        for _ in range(3):  # warm
            self.result = function()

    def seconds(self, repeats: int) -> float:
        spent = [self._gpu() if self.device == "cuda" else self._cpu() for _ in range(repeats)]
        self.host = statistics.median(host for _, host in spent)
        return statistics.median(seconds for seconds, _ in spent)

    def _cpu(self):
        start = time.process_time()
        self.result = self.function()
        return (time.process_time() - start,) * 2

    def _gpu(self):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        first.record()
        self.result = self.function()
        last.record()
        host = time.perf_counter() - start
        torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3, host

    def waits(self) -> int:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                self.function()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(warning.message) for warning in caught)


def make_blobs(count: int, images: int, args) -> list[np.ndarray]:
    """Bottoms of the mining layer, float32: RoIs crowd around a few objects in each image, as proposals do."""
    rng = np.random.default_rng(args.seed)
    objects = rng.uniform((0, 0, 60, 60), (700, 400, 300, 300), (images, 12, 4))
    image = np.sort(rng.integers(0, images, count))
    nearest = objects[image, rng.integers(0, 12, count)]
    size = nearest[:, 2:] * np.exp(rng.normal(0, 0.3, (count, 2)))
    corner = nearest[:, :2] + rng.normal(0, 0.2, (count, 2)) * size
    rois = np.hstack([image[:, None], corner, corner + size])
    labels = np.where(rng.random(count) < args.foreground, rng.integers(1, args.classes, count), 0)
    scores = rng.normal(0, 1, (count, args.classes))
    scores[np.arange(count), labels] += 3
    cls_prob = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    inside = np.repeat(np.eye(args.classes)[labels] * (labels > 0)[:, None], 4, axis=1)
    bbox_pred, bbox_targets = rng.normal(0, 1, (2, count, 4 * args.classes))
    blobs = (cls_prob, bbox_pred, rois, labels, bbox_targets * inside, inside, inside)
    return [blob.astype(np.float32) for blob in blobs]


def plain_losses(cls_prob, bbox_pred, labels, bbox_targets, inside, outside) -> np.ndarray:
    """Classification and localisation loss, RoI by RoI: ``[R, 2]``."""
    losses = np.zeros((len(labels), 2))
    for i, label in enumerate(labels.astype(int)):
        probability = cls_prob[i, label]
        tiny = np.finfo(np.float64).eps
        losses[i, 0] = -float(np.log(probability)) if probability > tiny else -math.log(tiny)
        if label > 0:
            for k in np.flatnonzero(inside[i]):
                x = abs(float(inside[i, k] * (bbox_pred[i, k] - bbox_targets[i, k])))
                losses[i, 1] += float(outside[i, k]) * (0.5 * x * x if x < 1 else x - 0.5)
    return losses


def plain_survivors(loss, rois, labels, thresh) -> np.ndarray:
    """Image by image, label by label; hardest first."""
    survivors = []
    for image in np.unique(rois[:, 0]):
        for label in np.unique(labels):
            members = np.flatnonzero((rois[:, 0] == image) & (labels == label))
            survivors += [members[k] for k in plain_nms(rois[members, 1:], loss[members], thresh)]
    survivors = np.array(sorted(survivors))
    return survivors[np.argsort(loss[survivors], kind="stable")[::-1]]


def plain_mining(cls_prob, bbox_pred, rois, labels, bbox_targets, inside, outside, batch_size, thresh) -> np.ndarray:
    loss = plain_losses(cls_prob, bbox_pred, labels, bbox_targets, inside, outside).sum(1)
    return plain_survivors(loss, rois, labels, thresh)[:batch_size]


def plain_strata(cls_prob, bbox_pred, rois, labels, bbox_targets, inside, outside, batch_size, thresh) -> np.ndarray:
    alpha, beta, bounds, shares = Strata().at(0)
    losses = plain_losses(cls_prob, bbox_pred, labels, bbox_targets, inside, outside) * (alpha, beta)
    left, chosen, rest = quotas(shares, batch_size), [], []
    ranked = plain_survivors(losses.sum(1), rois, labels, thresh)
    for place, i in enumerate(ranked):
        stratum = sum(losses[i, 0] >= bound * losses[i, 1] for bound in bounds)
        (chosen if left[stratum] > 0 else rest).append(place)
        left[stratum] -= 1
    return ranked[sorted(chosen + rest[: batch_size - len(chosen)])]


def plain_nms(boxes, scores, thresh) -> list[int]:
    x1, y1, x2, y2 = boxes.T
    areas = (x2 - x1 + 1) * (y2 - y1 + 1)
    order, keep = np.argsort(scores, kind="stable")[::-1], []
    while len(order):
        best, rest = order[0], order[1:]
        keep.append(best)
        width = np.maximum(np.minimum(x2[best], x2[rest]) - np.maximum(x1[best], x1[rest]) + 1, 0)
        height = np.maximum(np.minimum(y2[best], y2[rest]) - np.maximum(y1[best], y1[rest]) + 1, 0)
        overlap = width * height
        order = rest[overlap / (areas[best] + areas[rest] - overlap) <= thresh]
    return keep


if __name__ == "__main__":
    main()
