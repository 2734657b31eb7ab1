"""tools/convert.py on a file of VGG16's size against ``cp``, protobuf with torch.save, and OpenCV 4; and loading a Net.

python benchmarks/convert.py
python benchmarks/convert.py --opencv4 /path/to/python-with-opencv-4 --repeats 5
python benchmarks/convert.py --narrow 4 --repeats 2

Every row is a process of its own, started in turn with the others; the best time of all rounds counts. The files, one
of the current form and one of the V1 form, are made in a temporary folder, which is removed; they lie in the page cache
for every row. Memory is the peak of RssAnon: what a process allocates, without the pages of mapped files. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import numpy as np

from converters.caffemodel import CaffeModel, LayerWeights, write_caffemodel
from converters.dtypes import Pieces, flat
from converters.wire import len_field, varint_field
from prototxt.files import replacing

ROOT = Path(__file__).resolve().parents[1]
CONVOLUTION, INNER_PRODUCT = 4, 14  # V1LayerParameter.LayerType

PROTOBUF = """
import sys
import numpy, torch
from prototxt import caffe_pb2
net = caffe_pb2.NetParameter()
with open(sys.argv[1], "rb") as file:
    net.ParseFromString(file.read())
state = {}
for layer in net.layer:
    for name, blob in zip(("weight", "bias"), layer.blobs):
        values = numpy.array(blob.data, dtype=numpy.float32).reshape(tuple(blob.shape.dim))
        state[f"{layer.name}.{name}"] = torch.from_numpy(values)
torch.save(state, sys.argv[2])
"""
OPENCV = """
import sys
import cv2, numpy
net = cv2.dnn.readNetFromCaffe(sys.argv[3], sys.argv[1])
arrays = {}
for name in net.getLayerNames():
    for j, suffix in enumerate(("weight", "bias")):
        if name.startswith(("conv", "fc")):
            arrays[f"{name}.{suffix}"] = net.getParam(name, j)
with open(sys.argv[2], "wb") as file:
    numpy.savez(file, **arrays)
"""
LOADING = """
import json, os, sys, time
import torch
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from
from prototxt import read_net
net = Net(read_net(sys.argv[2]), "TEST")
buffer = memoryview(bytearray(os.path.getsize(sys.argv[1])))
times = {"read": [], "copy_from": []}
for _ in range(int(sys.argv[3])):
    start = time.perf_counter()
    with open(sys.argv[1], "rb", buffering=0) as file:
        reached = 0
        while reached < len(buffer):
            reached += file.readinto(buffer[reached : reached + (1 << 20)])
    read = time.perf_counter()
    copy_from(net, sys.argv[1])
    times["read"].append(read - start)
    times["copy_from"].append(time.perf_counter() - read)
print(json.dumps({what: min(spent) for what, spent in times.items()}))
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opencv4", metavar="PYTHON", help="a Python that has OpenCV 4 [this one, if it has it]")
    parser.add_argument("--narrow", type=int, default=1, help="divide VGG16's channels by this [1]")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of which the best counts [5]")
    parser.add_argument("--folder", metavar="DIR", help="where the temporary folder goes [the system's]")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        run(args, Path(folder))


def run(args: argparse.Namespace, folder: Path) -> None:
    layers = vgg16(args.narrow)
    v2, v1, net = folder / "v2.caffemodel", folder / "v1.caffemodel", folder / "net.prototxt"
    write_caffemodel(v2, CaffeModel("vgg16", layers))
    write_v1(v1, layers)
    net.write_text(prototxt(layers))
    size = v2.stat().st_size
    count = sum(blob.size for layer in layers for blob in layer.blobs)
    del layers
    print(f"{count / 1e6:.1f} M parameters, {size / 1e6:.0f} MB, best of {args.repeats}, {os.cpu_count()} CPUs")

    out = folder / "out"
    convert = [sys.executable, ROOT / "tools/convert.py"]
    commands: dict[str, list] = {"cp": ["cp", v2, out], "convert.py --help": [*convert, "--help"]}
    for to in ("safetensors", "pt", "npz", "caffemodel", "h5"):
        commands[f"convert.py --to {to}"] = [*convert, v2, "--to", to, "--out", out.with_suffix(f".{to}")]
    commands["convert.py, V1 file"] = [*convert, v1, "--to", "safetensors", "--out", out.with_suffix(".safetensors")]
    commands["protobuf, torch.save"] = [sys.executable, "-c", PROTOBUF, v2, out]
    opencv, why = python_with_opencv4(args.opencv4)
    if opencv:
        commands["OpenCV 4, numpy.savez"] = [opencv, "-c", OPENCV, v2, out, net]

    best = {what: (float("inf"), 0.0) for what in commands}
    for _ in range(args.repeats):
        for what, command in commands.items():
            seconds, peak = measured(command)
            best[what] = min(best[what][0], seconds), max(best[what][1], peak)
            for path in folder.glob("out*"):
                path.unlink()
    copying = best["cp"][0]
    print(f"{'':28}{'seconds':>9}{'/ cp':>8}{'peak anonymous memory':>24}")
    for what, (seconds, peak) in best.items():
        print(f"{what:28}{seconds:9.2f}{seconds / copying:8.2f}{peak / 1e6:21.0f} MB")
    if not opencv:
        print(f"{'OpenCV 4':28}{'not measured: ' + why:>9}")
    ours, limit = best["convert.py --to safetensors"][0], 1.5 * copying + 0.4
    print(f"to safetensors: {ours:.2f} s, 1.5 x cp + 0.4 s is {limit:.2f} s; V1 / V2 "
          f"{best['convert.py, V1 file'][0] / ours:.2f}; protobuf with torch.save takes "
          f"{best['protobuf, torch.save'][0] / ours:.1f} times as long"
          + (f", OpenCV 4 {best['OpenCV 4, numpy.savez'][0] / ours:.1f} times" if opencv else ""))  # fmt: skip
    command = [sys.executable, "-c", LOADING, v2, net, str(args.repeats)]
    loading = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    print(f"loading into a Net: {1e3 * loading['copy_from']:.0f} ms, reading the file {1e3 * loading['read']:.0f} ms, "
          f"ratio {loading['copy_from'] / loading['read']:.2f}")  # fmt: skip


def measured(command: list) -> tuple[float, float]:
    """Seconds of a whole process, and its largest anonymous memory in bytes, looked at every 2 ms."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        with os.fdopen(os.pidfd_open(process.pid)) as handle:  # readable as soon as the process has ended
            while not select.select([handle], [], [], 0.002)[0]:
                found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
                peak = max(peak, 1024 * int(found[1]) if found else 0)
        seconds = time.perf_counter() - start
        errors = process.stderr.read()
    if process.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{errors}")
    return seconds, peak


def python_with_opencv4(given: str | None) -> tuple[str | None, str]:
    """A Python whose OpenCV reads caffemodels, or why there is none."""
    python = given or sys.executable
    code = "import cv2; cv2.dnn.readNetFromCaffe; assert cv2.__version__[0] == '4', 'it has OpenCV ' + cv2.__version__"
    check = subprocess.run([python, "-c", code], stderr=subprocess.PIPE, text=True)
    if check.returncode == 0:
        return python, ""
    return None, f"{python}: {check.stderr.strip().splitlines()[-1]}; give one with --opencv4"


def vgg16(narrow: int) -> list[LayerWeights]:
    """VGG16's layers with weights; 138.4 M values when ``narrow`` is 1."""
    channels, spatial, classes = 3, 224, 1000
    some = np.random.default_rng(0).random(1 << 20, np.float32) - 0.5
    layers = []
    for block, (width, depth) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)], start=1):
        for i in range(1, depth + 1):
            shape = (width // narrow, channels, 3, 3)
            layers.append(LayerWeights(f"conv{block}_{i}", "Convolution", blobs=[shape, shape[:1]]))
            channels = shape[0]
        spatial //= 2
    inputs = channels * spatial**2
    for name, width in (("fc6", 4096 // narrow), ("fc7", 4096 // narrow), ("fc8", classes)):
        layers.append(LayerWeights(name, "InnerProduct", blobs=[(width, inputs), (width,)]))
        inputs = width
    for before, layer in pairwise([LayerWeights("data", "Input"), *layers]):
        layer.bottoms, layer.tops = [before.name], [layer.name]
        layer.blobs = [np.resize(some, shape) for shape in layer.blobs]
    return layers


def write_v1(path: Path, layers: list[LayerWeights]) -> None:
    """The same weights as Caffe wrote them until 2014: ``layers`` with numbered types and 4-d shapes."""
    with replacing(path) as file:
        file.writelines(len_field(1, b"vgg16"))
        for layer in layers:
            kind = CONVOLUTION if layer.type == "Convolution" else INNER_PRODUCT
            parts = len_field(4, layer.name.encode()) + [varint_field(5, kind)]
            for blob in layer.blobs:
                shape = (1,) * (4 - blob.ndim) + blob.shape
                dims = [varint_field(axis, dim) for axis, dim in enumerate(shape, start=1)]
                parts += len_field(6, *dims, *len_field(5, Pieces(blob, blob.dtype)))
            file.writelines(flat(len_field(2, *parts)))


def prototxt(layers: list[LayerWeights]) -> str:
    text = 'name: "vgg16" input: "data" input_shape { dim: [1, 3, 224, 224] }\n'
    bottom = "data"
    for layer in layers:
        name, param = layer.name, f"num_output: {len(layer.blobs[0])}"
        if layer.type == "Convolution":
            param = f"convolution_param {{ {param} pad: 1 kernel_size: 3 }}"
        else:
            param = f"inner_product_param {{ {param} }}"
        text += f'layer {{ name: "{name}" type: "{layer.type}" bottom: "{bottom}" top: "{name}" {param} }}\n'
        bottom = name
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"):
            bottom = f"pool{name[4]}"
            text += f'layer {{ name: "{bottom}" type: "Pooling" bottom: "{name}" top: "{bottom}" '
            text += "pooling_param { pool: MAX kernel_size: 2 stride: 2 } }\n"
    return text


if __name__ == "__main__":
    main()
