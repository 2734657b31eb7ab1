import json
import sys

import pytest

from converters.errors import WeightsError
from converters.extras import library


def test_installed_or_not(monkeypatch):
    assert library("json", "any") is json
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(WeightsError, match="needs the library h5py") as caught:
        library("h5py", "hdf5")
    assert "pip install 'ohem_caffe_port[hdf5]'" in caught.value.hint
