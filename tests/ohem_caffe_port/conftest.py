"""Small nets from text, and a tiny copy of the embedded data set."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.data.pascal_voc import PascalVoc
from ohem_caffe_port.data.roidb import add_bbox_regression_targets, get_training_roidb
from ohem_caffe_port.data.shapes import SHAPE_CLASSES, ensure_shapes
from ohem_caffe_port.layers import PYTHON_LAYERS, PythonLayer, register_python
from ohem_caffe_port.net import Net
from prototxt.zoo import detectors
from prototxt.zoo.generate import ZOO
from prototxt.zoo.layers import FROZEN, conv


@pytest.fixture(scope="session")
def build():
    """``build(text, phase, **options)``: a net from the text of a prototxt."""

    def make(text, phase="TRAIN", **options):
        return Net(prototxt.parse_net(text), phase, **options)

    return make


@pytest.fixture
def feed():
    """``feed(x=[array, ...])``: the text of a data layer that hands out one array for each pass, in turn.

    All layers of one test come from the same arrays; a net of its own counts its passes from 0.
    """
    key = ("tests", "Feed")

    def make(**blobs):
        PYTHON_LAYERS.pop(key, None)

        @register_python(*key)
        class Feed(PythonLayer):
            def setup(self, bottoms):
                self.step = 0

            def infer(self, bottoms):
                return [torch.empty(np.shape(blobs[top][0]), device="meta") for top in self.param.top]

            def forward(self, bottoms):
                self.step += 1
                rows = [blobs[top][(self.step - 1) % len(blobs[top])] for top in self.param.top]
                return [torch.tensor(np.array(row), dtype=torch.float32) for row in rows]

        tops = " ".join(f'top: "{name}"' for name in blobs)
        return f'layer {{ name: "data" type: "Python" {tops} python_param {{ module: "tests" layer: "Feed" }} }}\n'

    yield make
    PYTHON_LAYERS.pop(key, None)


# ---- the embedded data set, small


@pytest.fixture(scope="session")
def shapes_folder(tmp_path_factory):
    return ensure_shapes(tmp_path_factory.mktemp("data") / "shapes", num_train=8, num_test=4)


@pytest.fixture
def shapes_imdb(shapes_folder):
    """``shapes_imdb("train")``: 8 images to train on, ``"test"``: 4 to test with."""

    def make(image_set):
        return PascalVoc(
            f"shapes_{image_set}",
            shapes_folder / "VOCdevkit2007",
            "2007",
            image_set,
            classes=SHAPE_CLASSES,
            proposals=shapes_folder / "selective_search_data" / f"voc_2007_{image_set}.npz",
        )

    return make


@pytest.fixture
def shapes_cfg():
    """``shapes_cfg("ohem", IMS_PER_BATCH=2)``: the zoo's configuration with changes to TRAIN, images made small."""

    def make(method="ohem", **train):
        cfg = Config()
        cfg.merge_file(ZOO / "shapes" / method / "cfg.yml")
        small = {"SCALES": [96], "MAX_SIZE": 128}
        cfg.merge({"TRAIN": {**small, "BATCH_SIZE": 16, **train}, "TEST": small}, source="test")
        return cfg

    return make


@pytest.fixture
def shapes_roidb(shapes_imdb):
    """``shapes_roidb(cfg)``: prepared for training, with box targets."""

    def make(cfg):
        roidb = get_training_roidb(shapes_imdb("train"), cfg)
        add_bbox_regression_targets(roidb, cfg)
        return roidb

    return make


@pytest.fixture(scope="session")
def tiny_backbone():
    """Stands for the zoo's backbones where only the head matters: one convolution of stride 8."""

    def backbone():
        return (
            conv("conv1", "data", 8, 8, stride=8, params=FROZEN, init='type: "gaussian" std: 0.01'),
            "conv1",
            8,
        )

    return backbone


@pytest.fixture(scope="session")
def detector(tiny_backbone):
    """``detector(method, dropout=0)``: texts ``train`` and ``test`` of a tiny detector, wired as the zoo's."""

    def make(method="ohem", dropout=0.0, classes=7):
        settings = {
            "backbone": tiny_backbone, "classes": classes, "pooled": 3, "hidden": (16,), "dropout": dropout,
        }  # fmt: skip
        return SimpleNamespace(
            train=detectors.train_net("tiny", method, **settings), test=detectors.test_net("tiny", **settings)
        )

    return make


@pytest.fixture(scope="session")
def zoo_folder():
    return Path(ZOO)
