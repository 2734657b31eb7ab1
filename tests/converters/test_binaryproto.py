import json
from pathlib import Path

import numpy as np
import pytest

from converters.binaryproto import read_binaryproto, write_binaryproto
from converters.errors import WeightsError
from prototxt import CaffePortError, caffe_pb2

MEANS = Path(__file__).resolve().parents[2] / "../shared/weights/means"
FILES = json.loads((MEANS / "expected.json").read_text())["files"] if MEANS.is_dir() else {}


@pytest.mark.skipif(not FILES, reason="no ../shared/weights/means")
@pytest.mark.parametrize("file", FILES)
def test_reads_what_caffe_read(file):
    mean, expected = read_binaryproto(MEANS / file), FILES[file]
    assert list(mean.shape) == expected["shape"]
    assert mean.dtype == np.float32
    np.testing.assert_array_equal(mean.ravel()[:5], np.float32(expected["first5"]))
    np.testing.assert_array_equal(mean.ravel()[-5:], np.float32(expected["last5"]))
    assert (mean.min(), mean.max()) == (expected["min"], expected["max"])
    assert mean.sum(dtype=np.float64) == pytest.approx(expected["sum"], rel=1e-12)


@pytest.mark.parametrize(("shape", "stored"), [((3, 4, 5), (1, 3, 4, 5)), ((1, 3, 4, 5), (1, 3, 4, 5)), ((), (1,) * 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_written_as_protobuf_and_we_read_it(tmp_path, shape, stored, dtype):
    array = np.random.RandomState(0).rand(*shape).astype(dtype) if shape else np.array(1.5, dtype)
    write_binaryproto(tmp_path / "mean.binaryproto", array)
    np.testing.assert_array_equal(read_binaryproto(tmp_path / "mean.binaryproto"), array.reshape(stored))
    message = caffe_pb2.BlobProto.FromString((tmp_path / "mean.binaryproto").read_bytes())
    assert (message.num, message.channels, message.height, message.width) == stored == tuple(message.shape.dim)
    values = message.data if dtype == np.float32 else message.double_data
    np.testing.assert_array_equal(np.array(values, dtype), array.ravel())


def test_more_than_four_axes(tmp_path):
    write_binaryproto(tmp_path / "b", np.arange(32).reshape(2, 2, 2, 2, 2))
    assert read_binaryproto(tmp_path / "b").shape == (2,) * 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"mean: 104\n", "a text file|text"),
        (b"\x08\x01\x10\x03\x18\x04\x20\x05", "needs 60 values but 0 are stored"),
        (b"\x0a\x04lnet\xa2\x06\x02\x0a\x00", "field 1 holds"),
        (b"\x08\x01\x2a\x10\x00\x00", "."),
    ],
)
def test_what_is_no_blob(tmp_path, content, message):
    path = tmp_path / "mean.binaryproto"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as caught:
        read_binaryproto(path)
    assert caught.value.file == path


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        read_binaryproto(tmp_path / "mean.binaryproto")
    with pytest.raises(CaffePortError, match="cannot be written"):
        write_binaryproto(tmp_path / "nowhere" / "mean.binaryproto", np.zeros(3))
