import sys
from itertools import islice

import cv2
import numpy as np
import pytest

from ohem_caffe_port.data.databases import datum_image, endless_records, open_database, parse_record, peeked
from ohem_caffe_port.errors import PortError
from prototxt import caffe_pb2


@pytest.fixture(params=["LMDB", "LEVELDB"])
def database(request, tmp_path):
    """``database({key: value})``: path and backend of a new database that holds this."""

    def make(records):
        if request.param == "LMDB":
            lmdb = pytest.importorskip("lmdb")
            with lmdb.open(str(tmp_path / "db"), map_size=1 << 24) as env, env.begin(write=True) as transaction:
                for key, value in records.items():
                    transaction.put(key, value)
        else:
            plyvel = pytest.importorskip("plyvel")
            db = plyvel.DB(str(tmp_path / "db"), create_if_missing=True)
            for key, value in records.items():
                db.put(key, value)
            db.close()
        return str(tmp_path / "db"), request.param

    return make


RECORDS = {b"b": b"2", b"a": b"1", b"c": b"3"}


def test_in_the_order_of_keys_over_and_over(database):
    opened = open_database(*database(RECORDS))
    first, records = peeked(endless_records(opened))
    assert first == (b"a", b"1")
    assert b"".join(value for _, value in islice(records, 8)) == b"12312312"


def test_shuffle_begins_with_the_second_pass(database):
    opened = open_database(*database({b"%03d" % i: b"%d" % i for i in range(20)}))
    keys = [key for key, _ in islice(endless_records(opened, np.random.RandomState(0)), 60)]
    passes = [keys[:20], keys[20:40], keys[40:]]
    assert passes[0] == sorted(keys[:20])
    assert all(sorted(keys) == passes[0] for keys in passes)
    assert passes[0] != passes[1] != passes[2]
    again = [key for key, _ in islice(endless_records(opened, np.random.RandomState(0)), 60)]
    assert again == keys


def test_two_readers_at_once(database):
    where = database(RECORDS)
    one, two = (endless_records(open_database(*where)) for _ in range(2))
    assert [next(one)[1], next(one)[1], next(two)[1], next(one)[1]] == [b"1", b"2", b"1", b"3"]


def test_empty(database):
    with pytest.raises(PortError, match="has no records"):
        next(endless_records(open_database(*database({}))))


def test_missing(tmp_path):
    for backend in ("LMDB", "LEVELDB"):
        with pytest.raises(PortError, match="no such database"):
            open_database(str(tmp_path / "nothing"), backend)


def test_a_folder_of_other_things_stays_as_it_is(tmp_path):
    for backend in ("LMDB", "LEVELDB"):
        with pytest.raises(PortError, match=f"holds no {backend}: there is no"):
            open_database(str(tmp_path), backend)
    assert not list(tmp_path.iterdir())


def test_the_other_backend(database):
    path, backend = database(RECORDS)
    with pytest.raises(PortError, match="holds no") as caught:
        open_database(path, {"LMDB": "LEVELDB", "LEVELDB": "LMDB"}[backend])
    assert backend in caught.value.hint


@pytest.mark.parametrize(("backend", "file"), [("LMDB", "data.mdb"), ("LEVELDB", "CURRENT")])
def test_not_a_database_at_all(tmp_path, backend, file):
    pytest.importorskip({"LMDB": "lmdb", "LEVELDB": "plyvel"}[backend])
    (tmp_path / file).write_bytes(b"something else\n" * 1000)
    with pytest.raises(PortError, match="can be opened"):
        open_database(str(tmp_path), backend)


def test_an_lmdb_that_is_cut_off(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(tmp_path), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for i in range(100):
            transaction.put(b"%d" % i, bytes(1000))
    file = tmp_path / "data.mdb"
    file.write_bytes(file.read_bytes()[:40000])
    with pytest.raises(PortError, match="cut off"):
        open_database(str(tmp_path), "LMDB")


@pytest.mark.parametrize(("backend", "package", "extra"), [("LMDB", "lmdb", "lmdb"), ("LEVELDB", "plyvel", "leveldb")])
def test_a_library_that_is_not_installed(tmp_path, monkeypatch, backend, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / {"LMDB": "data.mdb", "LEVELDB": "CURRENT"}[backend]).touch()
    with pytest.raises(PortError, match=f"needs the library {package}") as caught:
        open_database(str(tmp_path), backend)
    assert f"ohem_caffe_port[{extra}]" in caught.value.hint


# ---- Datum

PIXELS = np.random.RandomState(0).randint(0, 256, (4, 5, 3)).astype(np.uint8)


def raw(values, **changes):
    fields = {"channels": 3, "height": 4, "width": 5, "label": 7, "data": values.transpose(2, 0, 1).tobytes()}
    return caffe_pb2.Datum(**{**fields, **changes})


def encoded(pixels, kind=".png"):
    return caffe_pb2.Datum(encoded=True, data=cv2.imencode(kind, pixels)[1].tobytes())


def test_pixels_of_a_datum():
    np.testing.assert_array_equal(datum_image(raw(PIXELS)), PIXELS)
    floats = raw(PIXELS, data=b"", float_data=np.arange(60) / 7)
    expected = (np.arange(60) / 7).astype(np.float32).reshape(3, 4, 5).transpose(1, 2, 0)
    np.testing.assert_array_equal(datum_image(floats), expected)
    np.testing.assert_array_equal(datum_image(encoded(PIXELS)), PIXELS)


def test_encoded_images_are_decoded_as_stored_unless_forced():
    grey = cv2.cvtColor(PIXELS, cv2.COLOR_BGR2GRAY)
    np.testing.assert_array_equal(datum_image(encoded(grey)), grey[:, :, None])
    np.testing.assert_array_equal(datum_image(encoded(grey), color=True), np.stack([grey] * 3, axis=2))
    np.testing.assert_allclose(datum_image(encoded(PIXELS), gray=True)[:, :, 0], grey, atol=1)  # libpng's own weights
    assert datum_image(encoded(np.dstack([PIXELS, grey]))).shape == (4, 5, 4)


@pytest.mark.parametrize(
    ("datum", "message"),
    [
        (raw(PIXELS, height=5), r"shape is \(3, 5, 5\).*has 60 bytes"),
        (raw(PIXELS, data=b"", float_data=[1.0]), "has 1 values of float_data"),
        (raw(PIXELS, channels=0), "shape"),
        (caffe_pb2.Datum(label=1), "holds no image"),
        (caffe_pb2.Datum(encoded=True, data=b"no image"), "cannot be decoded"),
        (caffe_pb2.Datum(encoded=True), "cannot be decoded"),
        (encoded(PIXELS.astype(np.uint16)), "holds uint16"),
        (raw(PIXELS, encoded=True, data=encoded(PIXELS, ".jpg").data[:-20]), "cut off"),
    ],
)
def test_a_datum_that_makes_no_sense(datum, message):
    with pytest.raises(PortError, match=message):
        datum_image(datum)


def test_a_record_that_is_no_message():
    with pytest.raises(PortError, match="it is no Datum"):
        parse_record(caffe_pb2.Datum, b"\xff\xff\xff")
    with pytest.raises(PortError, match="holds no image"):
        datum_image(parse_record(caffe_pb2.Datum, caffe_pb2.AnnotatedDatum(datum=raw(PIXELS)).SerializeToString()))
