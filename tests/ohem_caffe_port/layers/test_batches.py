"""The thread that reads ahead: in order, to its end, and errors arrive where the net is."""

import gc
import threading

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.layers import LAYERS, batches
from ohem_caffe_port.layers.base import register
from ohem_caffe_port.layers.batches import BatchLayer

TEXT = 'layer { name: "counted" type: "Counting" top: "data" top: "label" image_data_param { batch_size: 2 } }'


@pytest.fixture
def counting():
    @register("Counting")
    class Counting(BatchLayer):
        own_fields = "image_data_param"
        fields = {"image_data_param": {"batch_size"}}

        def open(self):
            self.made = 0
            return [(2, 1), (2,)]

        def load_batch(self):
            self.made += 1
            if self.made == 3:
                raise PortError("no third batch")
            rows = [np.array([self.made], np.float32)] * self.batch_size
            return [self.stack(rows, ["a", "b"]), torch.full((2,), self.made, dtype=torch.float32)]

    yield Counting
    del LAYERS["Counting"]


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("data layer counted")]


def test_in_order_and_errors_in_their_place(build, counting):
    net = build(TEXT)
    assert not threads()
    seen = []
    for _ in range(2):
        net()
        seen.append(net.blobs["data"].flatten().tolist())
    assert seen == [[1, 1], [2, 2]]
    with pytest.raises(PortError, match="no third batch") as caught:
        net()
    assert (caught.value.layer, caught.value.field) == ("counted", "image_data_param.source")
    assert net()["label"].tolist() == [4, 4]
    net.layers[0].close()
    assert not threads()
    assert net()["label"].tolist()[0] > 4  # and starts again
    net.layers[0].close()


def test_the_thread_ends_with_the_net(build, counting):
    net = build(TEXT)
    net()
    (thread,) = threads()
    del net
    for _ in range(300):  # it first finishes the batches that were asked of it
        gc.collect()
        thread.join(timeout=0.1)
        if not thread.is_alive():
            break
    assert not thread.is_alive()


def test_no_more_is_ordered_than_is_in_the_making(build, counting, monkeypatch):
    """A program that ends does every batch that is ordered, so that those must be few."""
    monkeypatch.setattr(counting, "load_batch", lambda self: [torch.ones(2, 1), torch.ones(2)])
    net = build(TEXT)
    (layer,) = net.layers
    for _ in range(20):
        net()
        assert len(layer._batches) <= layer.ahead
        assert layer._pool._work_queue.qsize() <= 1
    layer.close()


def test_few_large_batches_wait(build, counting, monkeypatch):
    monkeypatch.setattr(batches, "READY_BYTES", 2 * 16 + 5)  # of 4 numbers each
    assert build(TEXT).layers[0].ahead == 2
    monkeypatch.setattr(batches, "READY_BYTES", 3)
    assert build(TEXT).layers[0].ahead == 1


def test_files_that_cannot_be_read(build, counting, monkeypatch):
    def load_batch(self):
        raise OSError(36, "File name too long")

    monkeypatch.setattr(counting, "load_batch", load_batch)
    with pytest.raises(PortError, match="cannot be read: File name too long") as caught:
        build(TEXT)()
    assert caught.value.layer == "counted"
