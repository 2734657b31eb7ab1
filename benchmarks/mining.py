"""Choosing hard RoIs against a plain loop: the time of the loop divided by that of ``mining``, in one run.

python benchmarks/mining.py
python benchmarks/mining.py --rois 1000 2000 --classes 81
"""

from __future__ import annotations

import argparse
import math

import numpy as np
import torch
from _timing import medians

from ohem_caffe_port.mining import ohem_roi_loss, select_hard_rois


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rois", type=int, nargs="+", default=[2000, 4000], help="RoIs of the minibatch [2000 4000]")
    parser.add_argument("--images", type=int, default=1, help="images that they belong to [1]")
    parser.add_argument("--classes", type=int, default=21, help="background included [21]")
    parser.add_argument("--foreground", type=float, default=0.1, help="fraction of foreground RoIs [0.1]")
    parser.add_argument("--batch-size", type=int, default=128, help="RoIs to choose [128]")
    parser.add_argument("--thresh", type=float, default=0.7, help="IoU of the suppression [0.7]")
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the median counts [7]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    print(f"{args.classes} classes, {args.images} images, {args.batch_size} RoIs chosen, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    for count in args.rois:
        blobs = make_blobs(count, args)
        tensors = [torch.from_numpy(blob) for blob in blobs]

        def ours(tensors=tensors):
            cls_prob, bbox_pred, rois, labels, *boxes = tensors
            loss = ohem_roi_loss(cls_prob, labels, bbox_pred, *boxes)
            return select_hard_rois(loss, rois, labels, args.batch_size, nms_thresh=args.thresh)

        def plain(blobs=blobs):
            return plain_mining(*blobs, args.batch_size, args.thresh)

        same = np.array_equal(ours().numpy(), plain())  # warms both up
        fast, slow = medians(ours, plain, args.repeats)
        print(f"{count} RoIs: mining {1e3 * fast:.1f} ms, loop {1e3 * slow:.1f} ms, ratio {slow / fast:.1f}; "
              f"the same RoIs in the same order: {'yes' if same else 'NO'}")  # fmt: skip


def make_blobs(count: int, args) -> list[np.ndarray]:
    """Bottoms of the mining layer, float32: RoIs crowd around a few objects in each image, as proposals do."""
    rng = np.random.default_rng(args.seed)
    images = np.sort(rng.integers(0, args.images, count))
    objects = rng.uniform((0, 0, 60, 60), (700, 400, 300, 300), (args.images, 12, 4))
    nearest = objects[images, rng.integers(0, 12, count)]
    size = nearest[:, 2:] * np.exp(rng.normal(0, 0.3, (count, 2)))
    corner = nearest[:, :2] + rng.normal(0, 0.2, (count, 2)) * size
    rois = np.hstack([images[:, None], corner, corner + size])
    labels = np.where(rng.random(count) < args.foreground, rng.integers(1, args.classes, count), 0)
    scores = rng.normal(0, 1, (count, args.classes))
    scores[np.arange(count), labels] += 3
    cls_prob = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    inside = np.repeat(np.eye(args.classes)[labels] * (labels > 0)[:, None], 4, axis=1)
    bbox_pred, bbox_targets = rng.normal(0, 1, (2, count, 4 * args.classes))
    blobs = (cls_prob, bbox_pred, rois, labels, bbox_targets * inside, inside, inside)
    return [blob.astype(np.float32) for blob in blobs]


def plain_mining(cls_prob, bbox_pred, rois, labels, bbox_targets, inside, outside, batch_size, thresh) -> np.ndarray:
    """What docs/mining.md describes, written down as it stands: RoI by RoI, then label by label."""
    loss = np.zeros(len(rois))
    for i, label in enumerate(labels.astype(int)):
        probability = cls_prob[i, label]
        tiny = np.finfo(np.float64).eps
        loss[i] = -float(np.log(probability)) if probability > tiny else -math.log(tiny)
        if label > 0:
            for k in np.flatnonzero(inside[i]):
                x = abs(float(inside[i, k] * (bbox_pred[i, k] - bbox_targets[i, k])))
                loss[i] += float(outside[i, k]) * (0.5 * x * x if x < 1 else x - 0.5)
    survivors = []
    for image in np.unique(rois[:, 0]):
        for label in np.unique(labels):
            members = np.flatnonzero((rois[:, 0] == image) & (labels == label))
            survivors += [members[k] for k in plain_nms(rois[members, 1:], loss[members], thresh)]
    survivors = np.array(sorted(survivors))
    return survivors[np.argsort(loss[survivors], kind="stable")[::-1][:batch_size]]


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
