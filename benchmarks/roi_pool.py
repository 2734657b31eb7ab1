"""RoI pooling against a loop over RoIs: the time of the loop divided by that of ``ops.roi_pool``, in one run.

python benchmarks/roi_pool.py
python benchmarks/roi_pool.py --rois 500 --trained-rois 64 --channels 256
python benchmarks/roi_pool.py --device cuda

Where torchvision is installed its ``roi_pool`` is a second reference.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
import torch
from _timing import medians
from torch.nn import functional as F

from ohem_caffe_port.memory import keep_freed_memory
from ohem_caffe_port.ops import roi_pool

try:
    from torchvision.ops import roi_pool as torchvision_roi_pool
except (ImportError, RuntimeError):  # RuntimeError: it is there, but made for another torch
    torchvision_roi_pool = None

CALLS = {"cpu": 1, "cuda": 20}  # of a run that is timed


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rois", type=int, default=2000, help="RoIs of the forward pass without autograd [2000]")
    parser.add_argument("--trained-rois", type=int, default=128, help="RoIs of forward and backward [128]")
    parser.add_argument("--height", type=int, default=38, help="cells of the feature map [38]")
    parser.add_argument("--width", type=int, default=50, help="cells of the feature map [50]")
    parser.add_argument("--channels", type=int, default=512, help="[512]")
    parser.add_argument("--bins", type=int, default=7, help="bins along each side [7]")
    parser.add_argument("--device", choices=list(CALLS), default="cpu", help="[cpu]")
    parser.add_argument("--plain", action="store_true", help="without numba or Triton, as where they are missing")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts [5]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    args = parser.parse_args()
    sizes = ("rois", "trained_rois", "height", "width", "channels", "bins", "repeats")
    for name in sizes:
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU that torch can use")
    return args


def main() -> None:
    args = parse_args()
    keep_freed_memory()  # as the training tool does
    torch.manual_seed(args.seed)
    features = torch.relu(torch.randn(1, args.channels, args.height, args.width)).to(args.device)
    boxes = make_rois(args.rois, args.height, args.width, args.seed).to(args.device)
    trained = make_rois(args.trained_rois, args.height, args.width, args.seed).to(args.device)
    leaf = features.clone().requires_grad_()
    slope = torch.ones(len(trained), args.channels, args.bins, args.bins, device=args.device)
    pooling = sys.modules["ohem_caffe_port.ops.roi_pool"]  # the module; the package has the function under its name
    if args.plain:
        pooling._kernels = lambda device: None
    kernels = pooling._kernels(args.device)
    way = "plain torch" if kernels is None else kernels.__name__.split("_")[-1]
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"{args.height} x {args.width} x {args.channels}, {args.bins} x {args.bins} bins, {where}, "
          f"torch {torch.__version__}, {way}")  # fmt: skip

    def forward(pool):
        with torch.no_grad():
            return pool(features, boxes, args.bins)

    def forward_backward(pool):
        return torch.autograd.grad(pool(leaf, trained, args.bins), leaf, slope)[0]

    def run(work, pool):
        for _ in range(CALLS[args.device]):
            work(pool)
        if args.device == "cuda":
            torch.cuda.synchronize()

    references = {"loop": loop} | ({"torchvision": by_torchvision} if torchvision_roi_pool else {})
    for name, work, count in (
        ("forward", forward, len(boxes)),
        ("forward and backward", forward_backward, len(trained)),
    ):
        for other, pool in references.items():
            difference = (work(ours) - work(pool)).abs().max().item()  # warms both up
            times = medians(lambda w=work: run(w, ours), lambda w=work, p=pool: run(w, p), repeats=args.repeats)
            fast, slow = (1e3 * seconds / CALLS[args.device] for seconds in times)
            print(f"{name}, {count} RoIs: ops.roi_pool {fast:.4g} ms, {other} {slow:.4g} ms, ratio {slow / fast:.2f}; "
                  f"largest difference {difference:.1e}")  # fmt: skip


def make_rois(count: int, height: int, width: int, seed: int) -> torch.Tensor:
    """``[count, 5]`` boxes in cells (``spatial_scale`` 1), inside the map, of every size, as proposals are."""
    rng = np.random.default_rng(seed)
    limits = np.array([width, height])
    sides = np.maximum(2, limits * np.exp(rng.uniform(np.log(0.06), 0, (count, 2)))).astype(int)
    corners = (rng.uniform(0, 1, (count, 2)) * (limits - sides + 1)).astype(int)
    return torch.tensor(np.hstack([np.zeros((count, 1)), corners, corners + sides - 1]), dtype=torch.float32)


def ours(features, rois, bins):
    return roi_pool(features, rois, bins, bins, 1.0)


def by_torchvision(features, rois, bins):
    return torchvision_roi_pool(features, rois, bins, 1.0)


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
