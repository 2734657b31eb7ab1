"""Trains a small net, alone or as one of several processes: ``training_together.py FOLDER PASSES`` does two iterations
in each way and writes the first process's losses and weights to ``FOLDER/<PASSES>.npz``.

The net has what several processes could get wrong: random crops and mirroring of a shuffled list, dropout, gradients
that are clipped, a tensor of two layers, one that is not trained, and a loss that every third pass lacks.
"""

import sys
from pathlib import Path

import numpy as np
import torch

import prototxt
from ohem_caffe_port import distributed
from ohem_caffe_port.config import Config
from ohem_caffe_port.net import Net
from ohem_caffe_port.solver import Solver

NET = """
layer { name: "data" type: "ImageData" top: "data" top: "label"
        image_data_param { source: "list.txt" batch_size: 2 shuffle: true }
        transform_param { scale: 0.01 mirror: true crop_size: 5 } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" param { lr_mult: 1 } param { lr_mult: 0 }
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "conv" top: "conv" dropout_param { dropout_ratio: 0.5 } }
layer { name: "a" type: "InnerProduct" bottom: "conv" top: "a" param { name: "w" } param { name: "b" }
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "conv" top: "b" param { name: "w" } param { name: "b" }
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "c" type: "InnerProduct" bottom: "b" top: "c"
        inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss_a" type: "SoftmaxWithLoss" bottom: "a" bottom: "label" top: "loss_a" }
layer { name: "loss_c" type: "SoftmaxWithLoss" bottom: "c" bottom: "label" top: "loss_c" }
"""
SOLVER = 'base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.01 clip_gradients: 2 iter_size: {}'


class Forgetful(Net):
    """Every third pass of all gives no gradient, and the next one only that of ``loss_a``."""

    number = 0

    def forward(self, **inputs):
        outputs = super().forward(**inputs)
        kind = self.number % 3
        if kind == 0:
            self.loss = self.loss.detach()
        elif kind == 1:
            self.loss = outputs["loss_a"] + self.losses["loss_c"]
        self.number += distributed.size()
        return outputs


def trained(iter_size: int) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    cfg = Config()
    cfg.TRAIN.SEED_PASSES = True
    net = Forgetful(prototxt.parse_net(NET), cfg=cfg)
    net.number = distributed.rank()
    solver = Solver(prototxt.parse_solver(SOLVER.format(iter_size)), net)
    losses = []
    for _ in range(6):
        solver.step()
        losses.append(solver.loss)
    arrays = {f"{name}/{i}": blob.detach().numpy().copy() for name, blobs in net.params.items()
              for i, blob in enumerate(blobs)}  # fmt: skip
    return arrays | {"losses": np.array(losses), "passes": np.array(solver.passes)}


@distributed.joined()
def main(folder: str, passes: str) -> None:
    for count in (int(text) for text in passes.split(",")):
        arrays = trained(count // distributed.size())
        if distributed.is_root():
            np.savez(Path(folder) / f"{count}.npz", **arrays)
        same = distributed.gathered([{name: arrays[name] for name in sorted(arrays)}])
        for other in same or ():
            assert all(np.array_equal(arrays[name], other[name]) for name in arrays), "the processes drift apart"
    assert distributed.from_root(distributed.rank() + 7) == 7
    items = distributed.gathered([10 * i for i in distributed.shard(5)])
    assert items is None or items == [0, 10, 20, 30, 40]
    assert (items is None) == (distributed.rank() == 1)
    print("done by", distributed.rank())


if __name__ == "__main__":
    main(*sys.argv[1:])
