"""What data layers read where several processes train: of the batches of one process each the ones in its turn."""

import cv2
import numpy as np
import pytest
import torch

from ohem_caffe_port import distributed
from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2

RANDOM = "mirror: true crop_size: 4"
RNG = np.random.RandomState(0)
IMAGES = [RNG.randint(0, 256, (3, 6 + i % 2, 8)).astype(np.uint8) for i in range(7)]
TOPS = 'top: "data" top: "label"'


def encoded(image) -> bytes:
    return cv2.imencode(".png", image.transpose(1, 2, 0))[1].tobytes()


def data(write_lmdb, kind):
    if kind == "encoded":
        datums = [caffe_pb2.Datum(encoded=True, data=encoded(x), label=i) for i, x in enumerate(IMAGES)]
    else:
        datums = [caffe_pb2.Datum(channels=3, height=x.shape[1], width=8, data=x.tobytes(), label=i)
                  for i, x in enumerate(IMAGES)]  # fmt: skip
    resize = "resize_param { height: 5 width: 5 interp_mode: LINEAR interp_mode: AREA }" if kind == "resized" else ""
    return f"""layer {{ name: "in" type: "Data" {TOPS} transform_param {{ {RANDOM} {resize} }}
               data_param {{ source: "{write_lmdb(datums)}" backend: LMDB batch_size: 2 shuffle: true }} }}"""


def image_data(folder, settings=""):
    lines = []
    for i, image in enumerate(IMAGES):
        (folder / f"{i}.png").write_bytes(encoded(image))
        lines.append(f"{folder / f'{i}.png'} {i}")
    (folder / "list.txt").write_text("\n".join(lines))
    return f"""layer {{ name: "in" type: "ImageData" {TOPS} transform_param {{ {RANDOM} }}
               image_data_param {{ source: "{folder / "list.txt"}" batch_size: 2 shuffle: true {settings} }} }}"""


def window_data(folder):
    (folder / "x.png").write_bytes(encoded(RNG.randint(0, 256, (3, 20, 20)).astype(np.uint8)))
    windows = ["1 0.9 2 2 9 12", "2 0.8 5 5 15 12", "1 0.1 8 8 12 18", "1 0.2 1 4 12 18"]
    (folder / "w.txt").write_text("\n".join(["# 0", "x.png", "3", "20", "20", str(len(windows)), *windows]) + "\n")
    return f"""layer {{ name: "in" type: "WindowData" {TOPS} transform_param {{ mirror: true crop_size: 5 }}
               window_data_param {{ source: "{folder / "w.txt"}" root_folder: "{folder}/" batch_size: 4 }} }}"""


def hdf5_data(folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "x.h5", "w") as file:
        file["data"], file["label"] = RNG.rand(7, 3), np.arange(7)
    (folder / "list.txt").write_text(str(folder / "x.h5"))
    return f"""layer {{ name: "in" type: "HDF5Data" {TOPS}
               hdf5_data_param {{ source: "{folder / "list.txt"}" batch_size: 3 shuffle: true }} }}"""


@pytest.fixture
def text(request, tmp_path):
    """A layer of the kind that the test asks for."""
    kind = request.param
    if kind in ("raw", "encoded", "resized"):
        return data(request.getfixturevalue("write_lmdb"), kind)
    if kind == "windows":
        return window_data(tmp_path)
    return (
        hdf5_data(tmp_path)
        if kind == "hdf5"
        else image_data(tmp_path, "new_height: 9 new_width: 6" * (kind == "scaled"))
    )


def batches(net, count):
    found = []
    for _ in range(count):
        net()
        found.append([net.blobs[name].clone() for name in ("data", "label")])
    return found


@pytest.mark.parametrize("text", ["raw", "encoded", "resized", "list", "scaled", "windows", "hdf5"], indirect=True)
def test_the_batches_of_one_in_turn(build, text, monkeypatch):
    """Random crops, mirroring and order included."""
    torch.manual_seed(4)
    alone = batches(build(text), 12)
    monkeypatch.setattr(distributed, "size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(4)
        for ours, theirs in zip(batches(build(text), 4), alone[rank::3], strict=True):
            for a, b in zip(ours, theirs, strict=True):
                assert torch.equal(a, b)


@pytest.mark.parametrize("text", ["list"], indirect=True)
def test_when_testing_each_reads_all(build, text, monkeypatch):
    torch.manual_seed(4)
    alone = batches(build(text, "TEST"), 3)
    monkeypatch.setattr(distributed, "size", lambda: 2)
    torch.manual_seed(4)
    for ours, theirs in zip(batches(build(text, "TEST"), 3), alone, strict=True):
        assert torch.equal(ours[0], theirs[0])


def test_annotated_data_are_dealt_out(build, write_lmdb, monkeypatch):
    """Whole batches, each augmented with other random numbers."""
    records = []
    for i, image in enumerate(IMAGES):
        record = caffe_pb2.AnnotatedDatum(datum=caffe_pb2.Datum(encoded=True, data=encoded(image)), type=0)
        group = record.annotation_group.add(group_label=i)
        group.annotation.add(bbox=caffe_pb2.NormalizedBBox(xmin=0.1, ymin=0.1, xmax=0.9, ymax=0.9))
        records.append(record)
    text = f"""layer {{ name: "in" type: "AnnotatedData" {TOPS} transform_param {{ mirror: true
               resize_param {{ height: 4 width: 4 }} }}
               data_param {{ source: "{write_lmdb(records)}" backend: LMDB batch_size: 2 }} }}"""
    monkeypatch.setattr(distributed, "size", lambda: 2)
    labels, streams = [], []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(4)
        net = build(text)
        streams.append(net.layers[0].rng.randint(1 << 30))
        labels.append([label[0, 0, :, 1].tolist() for _, label in batches(net, 3)])
    assert labels == [[[0, 1], [4, 5], [1, 2]], [[2, 3], [6, 0], [3, 4]]]
    assert streams[0] != streams[1]


def test_what_cannot_be_shared(build, monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(PortError, match="one process at a time can read a LevelDB") as caught:
        build(f'layer {{ name: "in" type: "Data" {TOPS} data_param {{ source: "x" batch_size: 2 }} }}')
    assert caught.value.field == "data_param.backend"
    with pytest.raises(PortError, match="camera cannot be shared"):
        build(f"""layer {{ name: "in" type: "VideoData" {TOPS} data_param {{ batch_size: 2 }}
                  video_data_param {{ video_type: WEBCAM }} }}""")
