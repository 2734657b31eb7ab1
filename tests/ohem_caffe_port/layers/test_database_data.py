"""The Data layer on LMDBs and LevelDBs that hold real ``Datum`` records."""

import cv2
import numpy as np
import pytest
import torch

from converters.binaryproto import write_binaryproto
from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2

IMAGES = np.random.RandomState(0).randint(0, 256, (5, 3, 6, 8)).astype(np.uint8)


def datum(i, **changes):
    fields = {"channels": 3, "height": 6, "width": 8, "data": IMAGES[i].tobytes(), "label": 10 + i}
    return caffe_pb2.Datum(**{**fields, **changes})


def layer(source, settings="", transform="", tops=2, batch=2, backend="LMDB"):
    names = "".join(f'top: "{name}" ' for name in ("data", "label")[:tops])
    return f"""layer {{ name: "in" type: "Data" {names} transform_param {{ {transform} }}
               data_param {{ source: "{source}" backend: {backend} batch_size: {batch} {settings} }} }}"""


def test_batches_run_round_the_database(build, write_lmdb):
    net = build(layer(write_lmdb([datum(i) for i in range(5)])))
    assert net.shapes == [(2, 3, 6, 8), (2,)]
    for expected in ([0, 1], [2, 3], [4, 0], [1, 2]):
        net()
        np.testing.assert_array_equal(net.blobs["data"], IMAGES[expected].astype(np.float32))
        assert net.blobs["label"].tolist() == [10 + i for i in expected]


def test_leveldb_is_the_default(build, tmp_path):
    plyvel = pytest.importorskip("plyvel")
    db = plyvel.DB(str(tmp_path / "leveldb"), create_if_missing=True)
    for i in range(3):
        db.put(b"%08d" % i, datum(i).SerializeToString())
    db.close()
    net = build(layer(tmp_path / "leveldb").replace("backend: LMDB", ""))
    net(), net()
    assert net.blobs["label"].tolist() == [12, 10]


def test_one_top_needs_no_labels(build, write_lmdb):
    unlabelled = [datum(i) for i in range(2)]
    for d in unlabelled:
        d.ClearField("label")
    source = write_lmdb(unlabelled)
    assert list(build(layer(source, tops=1))()) == ["data"]
    with pytest.raises(PortError, match=r"record '00000000'|has no label") as caught:
        build(layer(source))()
    assert (caught.value.layer, caught.value.field) == ("in", "top")


def test_a_batch_larger_than_the_database(build, write_lmdb):
    net = build(layer(write_lmdb([datum(0), datum(1)]), batch=5))
    net()
    assert net.blobs["label"].tolist() == [10, 11, 10, 11, 10]


def test_floats_and_encoded_images(build, write_lmdb):
    floats = caffe_pb2.Datum(channels=2, height=1, width=2, float_data=[0.5, -1, 2, 3], label=0)
    net = build(layer(write_lmdb([floats]), transform="scale: 2", batch=1))
    np.testing.assert_array_equal(net()["data"], [[[[1, -2]], [[4, 6]]]])
    pixels = IMAGES[0].transpose(1, 2, 0)
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    source = write_lmdb([caffe_pb2.Datum(encoded=True, data=cv2.imencode(".png", grey)[1].tobytes(), label=0)], "grey")
    assert build(layer(source, batch=1)).shapes[0] == (1, 1, 6, 8)
    for net in (build(layer(source, transform="force_color: true")), build(layer(source, "force_encoded_color: true"))):
        np.testing.assert_array_equal(net()["data"][0], np.stack([grey] * 3))


def test_mean_crop_and_scale(build, write_lmdb, tmp_path):
    mean = np.random.RandomState(1).uniform(0, 255, (3, 6, 8)).astype(np.float32)
    write_binaryproto(tmp_path / "mean.binaryproto", mean)
    transform = f'mean_file: "{tmp_path / "mean.binaryproto"}" crop_size: 4 scale: 0.25'
    net = build(layer(write_lmdb([datum(i) for i in range(2)]), transform=transform), "TEST")
    expected = (IMAGES[:2, :, 1:5, 2:6].astype(np.float32) - mean[:, 1:5, 2:6]) * np.float32(0.25)
    np.testing.assert_array_equal(net()["data"], expected)


def test_the_seed_decides(build, write_lmdb):
    text = layer(write_lmdb([datum(i) for i in range(5)]), "shuffle: true rand_skip: 4", "mirror: true crop_size: 3")

    def run(seed, disturb=False):
        torch.manual_seed(seed)
        net, seen = build(text), []
        for _ in range(6):
            net()
            if disturb:
                torch.rand(100)  # what dropout layers draw meanwhile
            seen += [net.blobs["data"].clone(), net.blobs["label"].clone()]
        return torch.cat([x.flatten() for x in seen])

    torch.testing.assert_close(run(3), run(3, disturb=True), rtol=0, atol=0)
    assert not torch.equal(run(3), run(4))


def test_rand_skip(build, write_lmdb):
    source, starts = write_lmdb([datum(i) for i in range(5)]), set()
    for seed in range(40):
        torch.manual_seed(seed)
        net = build(layer(source, "rand_skip: 3", batch=1))
        net()
        starts.add(net.blobs["label"].item())
    assert starts == {10, 11, 12}


def test_rand_skip_beyond_the_end(build, write_lmdb):
    net = build(layer(write_lmdb([datum(i) for i in range(5)]), "rand_skip: 4000000000", batch=1))  # at once
    net()
    assert net.blobs["label"].item() in range(10, 15)


def test_batches_beyond_the_memory(build, write_lmdb):
    with pytest.raises(PortError, match="its tops .* take 2,320 GB; this machine has") as caught:
        build(layer(write_lmdb([datum(0)]), batch=4000000000))
    assert caught.value.layer == "in"


def test_shapes_may_change_between_batches(build, write_lmdb):
    small = datum(1, height=3, data=IMAGES[1].tobytes()[:72])
    source = write_lmdb([datum(0), small])
    net = build(layer(source, batch=1))
    assert [tuple(net()["data"].shape) for _ in range(3)] == [(1, 3, 6, 8), (1, 3, 3, 8), (1, 3, 6, 8)]
    with pytest.raises(PortError, match=r"record '00000001' has shape \(3, 3, 8\), the first of its batch"):
        build(layer(source, batch=2))()


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (("batch_size: 2", ""), "data_param.batch_size", "must be positive"),
        (('source: "', 'source: "/nothing'), "data_param.source", "no such database"),
        (("backend: LMDB", "backend: LEVELDB"), "data_param.source", "holds no LEVELDB"),
        (("m_param {", "m_param { crop_size: 9"), "transform_param.crop_size", "'00000000': a crop of 9"),
        (("m_param {", "m_param { scale: nan"), "transform_param.scale", "must be a finite number"),
        (("m_param {", "m_param { mean_value: 1 mean_value: 2"), "transform_param.mean_value", "2 values"),
        (("m_param {", "m_param { multi_scale: true"), "transform_param.multi_scale", "not supported"),
    ],
)
def test_what_makes_no_sense(build, write_lmdb, change, field, message):
    text = layer(write_lmdb([datum(0)])).replace(*change)
    with pytest.raises(PortError, match=message) as caught:
        build(text)()
    assert (caught.value.layer, caught.value.field) == ("in", field)


@pytest.mark.parametrize(
    "bad", [b"\xff\xff\xff", caffe_pb2.Datum(encoded=True, data=b"x", label=0).SerializeToString()]
)
def test_a_bad_record_in_the_middle(build, write_lmdb, bad):
    class Raw:
        SerializeToString = staticmethod(lambda: bad)

    net = build(layer(write_lmdb([datum(0), datum(1), Raw, datum(3)])))
    net()
    with pytest.raises(PortError, match="record '00000002': ") as caught:
        net()
    assert (caught.value.layer, caught.value.field) == ("in", "data_param.source")


def test_no_source(build):
    with pytest.raises(PortError, match="names no database"):
        build(layer("").replace('source: ""', ""))
