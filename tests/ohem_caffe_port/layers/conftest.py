import cv2
import numpy as np
import pytest
import torch

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.layers import Context, create_layer


@pytest.fixture(scope="session")
def run_layer():
    """``run_layer("ReLU", "relu_param { ... }", bottom, ...)``: the tops of one layer, through a net of its own.

    ``nominal``: the tops' sizes depend on the data, so that the inferred shapes need not be true. ``seed``: of the
    layer's random stream.
    """

    def run(kind, settings, *bottoms, phase="TRAIN", tops=1, params=(), cfg=None, nominal=False, seed=0):
        bottoms = [torch.as_tensor(np.asarray(b, np.float32)) if not torch.is_tensor(b) else b for b in bottoms]
        names = "".join(f'bottom: "b{i}" ' for i in range(len(bottoms)))
        names += "".join(f'top: "t{i}" ' for i in range(tops))
        text = f'layer {{ name: "it" type: "{kind}" {names} {settings} }}'
        layer = create_layer(
            prototxt.parse_net(text).layer[0], Context(phase, cfg or Config(), np.random.RandomState(seed))
        )
        layer.setup([b.to("meta") for b in bottoms])
        inferred = layer.infer([b.to("meta") for b in bottoms])
        for j, values in enumerate(params):
            layer.blobs[j] = torch.nn.Parameter(torch.as_tensor(np.asarray(values, np.float32)))
        results = layer(bottoms)
        shapes = [[tuple(t.shape) for t in found] for found in (inferred, results)]
        assert nominal or shapes[0] == shapes[1], "inferred shapes must be true"
        return results

    return run


@pytest.fixture
def write_windows(tmp_path):
    """``write_windows([((height, width), [(*flags, (x1, y1, x2, y2))])])``: a folder with such images, their objects
    white on black, and a window file ``windows.txt`` of them."""

    def write(pictures):
        lines = []
        for i, ((height, width), objects) in enumerate(pictures):
            image = np.zeros((height, width, 3), np.uint8)
            for *_, (x1, y1, x2, y2) in objects:
                image[y1 : y2 + 1, x1 : x2 + 1] = 255
            cv2.imwrite(str(tmp_path / f"{i}.png"), image)
            lines += [f"# {i}", f"{i}.png", "3", f"{height}", f"{width}", f"{len(objects)}"]
            lines += [" ".join(map(str, (*flags, *box))) for *flags, box in objects] + ["0"]
        (tmp_path / "windows.txt").write_text("\n".join(lines))
        return tmp_path

    return write


@pytest.fixture
def write_lmdb(tmp_path):
    """``write_lmdb([message, ...])``: the path of an LMDB with these records, in this order."""
    lmdb = pytest.importorskip("lmdb")

    def write(messages, name="lmdb"):
        path = str(tmp_path / name)
        with lmdb.open(path, map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
            for i, message in enumerate(messages):
                transaction.put(b"%08d" % i, message.SerializeToString())
        return path

    return write
