"""Truncated SVD of fully connected layers: the time of the RoI head before, divided by the time after; and of the SVD
itself, numpy's (the original's) against ours.

python benchmarks/compress_net.py
python benchmarks/compress_net.py --rois 300 --ranks 512 128 --skip-numpy
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from _timing import medians

from ohem_caffe_port.compress import compress, low_rank_net, truncated_svd
from ohem_caffe_port.net import Net
from prototxt import parse_net

HEAD = """
layer {{ name: "in" type: "Input" top: "pool5" input_param {{ shape {{ dim: 1 dim: {inputs} }} }} }}
layer {{ name: "fc6" type: "InnerProduct" bottom: "pool5" top: "fc6" inner_product_param {{ num_output: {hidden} }} }}
layer {{ name: "relu6" type: "ReLU" bottom: "fc6" top: "fc6" }}
layer {{ name: "fc7" type: "InnerProduct" bottom: "fc6" top: "fc7" inner_product_param {{ num_output: {hidden} }} }}
layer {{ name: "relu7" type: "ReLU" bottom: "fc7" top: "fc7" }}
layer {{ name: "cls_score" type: "InnerProduct" bottom: "fc7" top: "scores" inner_product_param {{ num_output: 21 }} }}
layer {{ name: "bbox_pred" type: "InnerProduct" bottom: "fc7" top: "boxes" inner_product_param {{ num_output: 84 }} }}
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=512 * 7 * 7, help="of fc6 [VGG16's 25088]")
    parser.add_argument("--hidden", type=int, default=4096, help="outputs of fc6 and fc7 [4096]")
    parser.add_argument("--ranks", type=int, nargs=2, default=[1024, 256], help="of fc6 and fc7 [1024 256]")
    parser.add_argument("--rois", type=int, default=100, help="that go through the head [100]")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts [5]")
    parser.add_argument("--skip-numpy", action="store_true", help="do not run numpy's SVD of fc6, which takes long")
    return parser.parse_args()


@torch.no_grad()
def main() -> None:
    args = parse_args()
    print(f"fc6 {args.hidden} x {args.inputs}, fc7 {args.hidden} x {args.hidden}, {args.rois} RoIs, "
          f"{torch.get_num_threads()} threads, torch {torch.__version__}")  # fmt: skip
    torch.manual_seed(0)
    text = HEAD.format(inputs=args.inputs, hidden=args.hidden)
    ranks = dict(zip(("fc6", "fc7"), args.ranks, strict=True))
    whole = Net(parse_net(text), "TEST")
    for name in ranks:  # as wide a spread of singular values as trained layers have: 1, 1/2, 1/3, ...
        weight = whole.params[name][0]
        decaying = torch.randn(len(weight), 64) / torch.arange(1, 65)
        weight.copy_(0.01 * torch.randn_like(weight) + 0.1 * decaying @ torch.randn(64, weight.shape[1]))
    low = Net(low_rank_net(parse_net(text), ranks), "TEST")
    for name in ("cls_score", "bbox_pred"):
        for target, blob in zip(low.params[name], whole.params[name], strict=True):
            target.copy_(blob)
    for name in ranks:
        (done, seconds) = timed(lambda name=name: compress(whole, low, name))
        print(f"{name}: rank {done.rank}, {seconds:.1f} s, weights x {done.ratio:.3f}, relative error {done.error:.3f}")
    if not args.skip_numpy:
        compare_with_numpy(whole.params["fc6"][0].numpy(), args.ranks[0])
    rois = torch.randn(args.rois, args.inputs)
    whole(pool5=rois), low(pool5=rois)
    before, after = medians(lambda: whole(pool5=rois), lambda: low(pool5=rois), repeats=args.repeats)
    print(f"head: whole {1e3 * before:.0f} ms, compressed {1e3 * after:.0f} ms, ratio {before / after:.2f}")


def timed(work):
    """What ``work()`` gives, and the seconds of this process's CPU that it took."""
    start = time.process_time()
    return work(), time.process_time() - start


def compare_with_numpy(weight: np.ndarray, rank: int) -> None:
    """The SVD alone, each way once, CPU seconds."""
    (upper, lower, _), fast = timed(lambda: truncated_svd(weight, rank))
    (u, s, v), slow = timed(lambda: np.linalg.svd(weight, full_matrices=False))
    difference = np.abs(upper @ lower - (u[:, :rank] * s[:rank]) @ v[:rank]).max() / np.abs(weight).max()
    print(f"SVD of fc6: truncated {fast:.1f} s, numpy {slow:.1f} s, ratio {slow / fast:.1f}; "
          f"largest difference {difference:.1e} of the largest weight")  # fmt: skip


if __name__ == "__main__":
    main()
