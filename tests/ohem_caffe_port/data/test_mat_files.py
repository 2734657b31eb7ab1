import numpy as np
import pytest
import scipy.io

from ohem_caffe_port.data.mat_files import read_mat
from ohem_caffe_port.errors import PortError

ARRAY = np.arange(6, dtype=np.uint8).reshape(2, 3)


def test_variables_and_fields(tmp_path):
    scipy.io.savemat(tmp_path / "x.mat", {"plain": ARRAY, "outer": {"inner": {"deep": ARRAY}, "b": 1}})
    np.testing.assert_array_equal(read_mat(tmp_path / "x.mat", "plain"), ARRAY)
    np.testing.assert_array_equal(read_mat(tmp_path / "x.mat", "outer", "inner", "deep"), ARRAY)


@pytest.mark.parametrize("names", [("other",), ("plain", "field"), ("outer", "other")])
def test_what_is_not_there(tmp_path, names):
    scipy.io.savemat(tmp_path / "x.mat", {"plain": ARRAY, "outer": {"b": 1}})
    with pytest.raises(PortError, match=f"has no '{'.'.join(names)}'") as caught:
        read_mat(tmp_path / "x.mat", *names)
    assert caught.value.file == tmp_path / "x.mat"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "not a readable .mat file"),
        (b"nonsense" * 40, "not a readable .mat file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\0\2IM" + bytes(100), "MATLAB 7.3"),
    ],
)
def test_what_cannot_be_read(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(PortError, match=message):
        read_mat(tmp_path / "x.mat", "plain")
