import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2

ROWS = np.random.RandomState(0).rand(6, 1, 2, 3).astype(np.float32)


@pytest.fixture
def net(build):
    def make(batch=2, transform="", shape=(1, 2, 3)):
        sizes = dict(zip(("channels", "height", "width"), shape, strict=True))
        sizes = " ".join(f"{k}: {v}" for k, v in sizes.items())
        return build(f"""layer {{ name: "data" type: "MemoryData" top: "data" top: "label"
                         transform_param {{ {transform} }} memory_data_param {{ batch_size: {batch} {sizes} }} }}""")

    return make


def test_reset_and_round_the_rows(net):
    net = net()
    assert net.shapes == [(2, 1, 2, 3), (2,)]
    net.layer_by_name["data"].reset(ROWS, np.arange(6))
    for start in (0, 2, 4, 0):
        net()
        np.testing.assert_array_equal(net.blobs["data"], ROWS[start : start + 2])
        assert net.blobs["label"].shape == (2, 1, 1, 1)
        assert net.blobs["label"].flatten().tolist() == [start, start + 1]


def test_the_array_itself_is_read(net):
    net, rows = net(), ROWS.copy()
    net.layer_by_name["data"].reset(torch.from_numpy(rows), torch.zeros(6))
    rows[:] = 7
    assert (net()["data"] == 7).all()


def test_add_transforms_and_reset_does_not(net):
    net = net(2, "scale: 0.5 mean_value: 10 crop_size: 2", (3, 2, 2))
    layer = net.layer_by_name["data"]
    images = np.random.RandomState(0).randint(0, 256, (4, 2, 2, 3)).astype(np.uint8)
    layer.add(images, [1, 2, 3, 4])
    expected = (images.transpose(0, 3, 1, 2).astype(np.float32) - 10) * np.float32(0.5)
    np.testing.assert_array_equal(torch.cat([net()["data"], net()["data"]]), expected)
    layer.reset(expected, np.zeros(4))
    np.testing.assert_array_equal(net()["data"], expected[:2])


def test_datums_bring_their_labels(net):
    net = net()
    datums = [caffe_pb2.Datum(channels=1, height=2, width=3, data=bytes(range(i, i + 6)), label=i) for i in (5, 8)]
    net.layer_by_name["data"].add(datums)
    net()
    np.testing.assert_array_equal(net.blobs["data"][1], np.arange(8, 14).reshape(1, 2, 3))
    assert net.blobs["label"].flatten().tolist() == [5, 8]


def test_added_images_must_be_read_before_others_come(net):
    net = net()
    layer, images = net.layer_by_name["data"], np.zeros((4, 2, 3), np.uint8)
    layer.add(images, np.zeros(4))
    with pytest.raises(PortError, match="not all handed out"):
        layer.add(images, np.zeros(4))
    with pytest.raises(PortError, match="not all handed out"):
        layer.set_batch_size(4)
    net(), net()
    layer.add(images, np.zeros(4))


def test_another_batch_size(net):
    net = net()
    layer = net.layer_by_name["data"]
    layer.reset(ROWS, np.arange(6))
    net()
    layer.set_batch_size(3)
    net()
    assert net.blobs["label"].flatten().tolist() == [0, 1, 2]
    layer.set_batch_size(4)
    with pytest.raises(PortError, match="no data was given"):
        net()


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (ROWS[:3], np.zeros(3), "3 rows are no multiple of 2"),
        (ROWS[:0], np.zeros(0), "0 rows"),
        (ROWS, np.zeros(5), "6 rows of data and 5 labels"),
        (ROWS[:, 0], np.zeros(6), r"data has shape \(6, 2, 3\), not \[n, 1, 2, 3\]"),
        (["a"], ["b"], "must be arrays of numbers"),
    ],
)
def test_rows_that_make_no_sense(net, data, labels, message):
    with pytest.raises(PortError, match=message) as caught:
        net().layer_by_name["data"].reset(data, labels)
    assert caught.value.layer == "data"


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (np.zeros((2, 3, 3), np.uint8), [1, 2], r"image 0 becomes \(1, 3, 3\), not \(1, 2, 3\)"),
        (np.zeros((2, 2, 3), np.uint8), None, "images without labels"),
        (np.zeros((2, 6), np.uint8), [1, 2], r"image 0: shape \(6,\) of uint8"),
        (np.zeros((2, 2, 3)), [1, 2], "of float64"),
        ([caffe_pb2.Datum()] * 2, None, "image 0: it holds no image"),
    ],
)
def test_images_that_make_no_sense(net, images, labels, message):
    with pytest.raises(PortError, match=message):
        net().layer_by_name["data"].add(images, labels)


def test_settings_that_make_no_sense(net):
    with pytest.raises(PortError, match="must all be given"):
        net(shape=(1, 0, 3))
    with pytest.raises(PortError, match="no such file"):
        net(transform='mean_file: "nothing"')
    with pytest.raises(PortError, match="no data was given"):
        net()()
