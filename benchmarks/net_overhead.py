"""What a Net costs above its layers: VGG16 written by hand in torch, its time divided by the Net's, in one run.

python benchmarks/net_overhead.py
python benchmarks/net_overhead.py --sizes 32 --narrow 16 --repeats 100
"""

from __future__ import annotations

import argparse

import torch
from _timing import medians
from torch.nn import functional as F

import prototxt
from ohem_caffe_port.net import Net

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 224], help="sides of the images [32 224]")
    parser.add_argument("--batch", type=int, default=1, help="images [1]")
    parser.add_argument("--narrow", type=int, default=1, help="divide all channels by this [1]")
    parser.add_argument("--repeats", type=int, default=7, help="runs of which the median counts [7]")
    parser.add_argument("--device", default="cpu", help="[cpu]")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    threads = torch.get_num_threads()
    print(f"{args.batch} images, channels / {args.narrow}, {threads} threads, torch {torch.__version__}")
    for size in args.sizes:
        net = Net(prototxt.parse_net(vgg16(args.batch, size, args.narrow)), device=args.device)
        weights = [learnable.blob for learnable in net.learnable_params]
        data = torch.randn(args.batch, 3, size, size, device=args.device)
        label = torch.randint(1000 // args.narrow, (args.batch,), device=args.device)

        def ours(net=net, data=data, label=label, weights=weights):
            clear(weights)
            net(data=data, label=label)
            net.backward()
            return finished(net.loss)

        def by_hand(data=data, label=label, weights=weights):
            clear(weights)
            loss = plain_vgg16(data, label, weights)
            loss.backward()
            return finished(loss)

        losses, gradients = [], []
        for run in (ours, by_hand):  # warms both up
            losses.append(run())
            gradients.append([blob.grad for blob in weights])
        gap = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*gradients, strict=True))
        net_time, hand_time = medians(ours, by_hand, repeats=args.repeats)
        print(f"{size} x {size}: Net {1e3 * net_time:.1f} ms, by hand {1e3 * hand_time:.1f} ms, ratio "
              f"{hand_time / net_time:.3f}, {1e6 * (net_time - hand_time) / len(net.layers):.0f} us for each of "
              f"{len(net.layers)} layers; losses {abs(losses[0] - losses[1]):.1e} apart, largest relative difference "
              f"of a gradient {gap:.1e}")  # fmt: skip


def clear(weights) -> None:
    for blob in weights:
        blob.grad = None


def finished(loss) -> float:
    """Reading the loss waits for the device."""
    return float(loss.detach())


def vgg16(batch: int, size: int, narrow: int) -> str:
    """VGG16 (configuration D) without dropout, and its softmax loss, as a prototxt."""
    filler = 'weight_filler { type: "msra" }'
    shapes = f"shape {{ dim: [{batch}, 3, {size}, {size}] }} shape {{ dim: {batch} }}"
    lines = [f'layer {{ name: "data" type: "Input" top: "data" top: "label" input_param {{ {shapes} }} }}']
    bottom = "data"

    def add(name, kind, settings, in_place=False):
        nonlocal bottom
        top = bottom if in_place else name
        lines.append(f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {settings} }}')
        bottom = top

    for i, block in enumerate(BLOCKS, start=1):
        for j, channels in enumerate(block, start=1):
            settings = f"num_output: {channels // narrow} kernel_size: 3 pad: 1 {filler}"
            add(f"conv{i}_{j}", "Convolution", f"convolution_param {{ {settings} }}")
            add(f"relu{i}_{j}", "ReLU", "", in_place=True)
        add(f"pool{i}", "Pooling", "pooling_param { pool: MAX kernel_size: 2 stride: 2 }")
    for name, outputs in (("fc6", 4096), ("fc7", 4096), ("fc8", 1000)):
        add(name, "InnerProduct", f"inner_product_param {{ num_output: {outputs // narrow} {filler} }}")
        if name != "fc8":
            add(f"relu_{name}", "ReLU", "", in_place=True)
    lines.append('layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc8" bottom: "label" top: "loss" }')
    return "\n".join(lines)


def plain_vgg16(x, label, weights) -> torch.Tensor:
    """The same net as one writes it in torch."""
    weights = iter(weights)
    for block in BLOCKS:
        for _ in block:
            x = F.relu(F.conv2d(x, next(weights), next(weights), padding=1), inplace=True)
        x = F.max_pool2d(x, 2)
    x = x.flatten(1)
    x = F.relu(F.linear(x, next(weights), next(weights)), inplace=True)
    x = F.relu(F.linear(x, next(weights), next(weights)), inplace=True)
    return F.cross_entropy(F.linear(x, next(weights), next(weights)), label)


if __name__ == "__main__":
    main()
