"""RoI pooling against a loop over RoIs: the time of the loop divided by that of ``ops.roi_pool``, in one run.

python benchmarks/roi_pool.py
python benchmarks/roi_pool.py --rois 500 --trained-rois 64 --channels 256
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from _timing import medians
from torch.nn import functional as F

from ohem_caffe_port.ops import roi_pool


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rois", type=int, default=2000, help="RoIs of the forward pass without autograd [2000]")
    parser.add_argument("--trained-rois", type=int, default=128, help="RoIs of forward and backward [128]")
    parser.add_argument("--height", type=int, default=38, help="cells of the feature map [38]")
    parser.add_argument("--width", type=int, default=50, help="cells of the feature map [50]")
    parser.add_argument("--channels", type=int, default=512, help="[512]")
    parser.add_argument("--bins", type=int, default=7, help="bins along each side [7]")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts [5]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(args.seed)
    features = torch.relu(torch.randn(1, args.channels, args.height, args.width))
    boxes = make_rois(args.rois, args.height, args.width, args.seed)
    trained = boxes[: args.trained_rois]
    print(f"{args.height} x {args.width} x {args.channels}, {args.bins} x {args.bins} bins, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip

    def forward(pool):
        with torch.no_grad():
            return pool(features, boxes, args.bins)

    def forward_backward(pool):
        leaf = features.clone().requires_grad_()
        pooled = pool(leaf, trained, args.bins)
        pooled.backward(torch.ones_like(pooled))
        return leaf.grad

    for name, run, count in (
        ("forward", forward, len(boxes)),
        ("forward and backward", forward_backward, len(trained)),
    ):
        difference = (run(ours) - run(loop)).abs().max().item()  # warms both up
        fast, slow = medians(lambda run=run: run(ours), lambda run=run: run(loop), args.repeats)
        print(f"{name}, {count} RoIs: ops.roi_pool {1e3 * fast:.0f} ms, loop {1e3 * slow:.0f} ms, "
              f"ratio {slow / fast:.2f}; largest difference {difference:.1e}")  # fmt: skip


def make_rois(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """``[count, 5]`` boxes in cells (``spatial_scale`` 1), inside the map, of every size, as proposals are."""
    rng = np.random.default_rng(seed)
    limits = np.array([width, height])
    sides = np.maximum(2, limits * np.exp(rng.uniform(np.log(0.06), 0, (count, 2)))).astype(int)
    corners = (rng.uniform(0, 1, (count, 2)) * (limits - sides + 1)).astype(int)
    return torch.tensor(np.hstack([np.zeros((count, 1)), corners, corners + sides - 1]), dtype=torch.float32)


def ours(features, rois, bins):
    return roi_pool(features, rois, bins, bins, 1.0)


def loop(features, rois, bins):
    """One ``adaptive_max_pool2d`` for each crop. Its bins are Caffe's for boxes of whole cells inside the map, but for
    single-precision rounding at a few extents (57, 114 and 121 cells in 7 bins)."""
    crops = [
        F.adaptive_max_pool2d(features[image : image + 1, :, y1 : y2 + 1, x1 : x2 + 1], bins)
        for image, x1, y1, x2, y2 in rois.long().tolist()
    ]
    return torch.cat(crops)


if __name__ == "__main__":
    main()
