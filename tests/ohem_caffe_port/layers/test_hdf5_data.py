import sys

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

h5py = pytest.importorskip("h5py")

ROWS = {"data": np.arange(28.0).reshape(7, 2, 2), "label": np.arange(7)}


@pytest.fixture
def files(tmp_path):
    """``files(3, 4)``: the list of files with the first 3 and the other 4 rows."""

    def write(*counts, rows=ROWS):
        names, start = [], 0
        for i, count in enumerate(counts):
            names.append(str(tmp_path / f"{i}.h5"))
            with h5py.File(names[-1], "w") as file:
                for name, values in rows.items():
                    file[name] = values[start : start + count]
            start += count
        (tmp_path / "list.txt").write_text("\n".join(names))
        return tmp_path / "list.txt"

    return write


def layer(source, batch=2, settings="", tops=("data", "label")):
    names = "".join(f'top: "{name}" ' for name in tops)
    return f"""layer {{ name: "in" type: "HDF5Data" {names}
               hdf5_data_param {{ source: "{source}" batch_size: {batch} {settings} }} }}"""


@pytest.mark.parametrize("counts", [(7,), (3, 4), (1, 1, 5)])
@pytest.mark.parametrize("batch", [2, 7, 20])
def test_rows_run_on_from_file_to_file(build, files, counts, batch):
    net = build(layer(files(*counts), batch))
    assert net.shapes == [(batch, 2, 2), (batch,)]
    for step in range(6):
        net()
        expected = np.arange(step * batch, (step + 1) * batch) % 7
        np.testing.assert_array_equal(net.blobs["label"], expected)
        np.testing.assert_array_equal(net.blobs["data"], ROWS["data"][expected])
        assert net.blobs["label"].dtype == torch.float32


def test_shuffled_files_and_rows(build, files):
    text = layer(files(3, 4), 7, "shuffle: true", ["label"])

    def passes(seed):
        torch.manual_seed(seed)
        net = build(text)
        return [net()["label"].int().tolist() for _ in range(20)]

    found = passes(0)
    assert all(sorted(labels) == list(range(7)) for labels in found)
    # rows of a file stay together
    orders = {tuple(label > 2 for label in labels) for labels in found}
    assert orders == {(False,) * 3 + (True,) * 4, (True,) * 4 + (False,) * 3}
    assert len({tuple(labels) for labels in found}) > 15
    assert passes(0) == found != passes(1)


def test_one_shuffled_file(build, files):
    net = build(layer(files(7), 7, "shuffle: true", ["label"]))
    found = [tuple(net()["label"].int().tolist()) for _ in range(8)]
    assert len(set(found)) > 4 and all(sorted(labels) == list(range(7)) for labels in found)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"data": ROWS["data"]}, "0.h5' has no dataset 'label'"),
        ({**ROWS, "label": np.arange(6)}, r"need one number of rows, above 0 \(data: 7, label: 6\)"),
        ({"data": np.zeros((0, 2)), "label": np.zeros(0)}, "above 0"),
        ({**ROWS, "label": np.array([b"a"] * 7)}, "'label' of .* is no array of numbers"),
    ],
)
def test_files_that_make_no_sense(build, files, rows, message):
    with pytest.raises(PortError, match=message) as caught:
        build(layer(files(7, rows=rows)))
    assert caught.value.layer == "in"


def test_rows_of_another_shape_in_the_next_file(build, files, tmp_path):
    source = files(3, 4)
    with h5py.File(tmp_path / "1.h5", "w") as file:
        file["data"], file["label"] = np.zeros((4, 3)), np.zeros(4)
    net = build(layer(source))
    net()
    with pytest.raises(PortError, match=r"1.h5' has rows of shapes \[\(3,\), \(\)\], the file before"):
        net()


@pytest.mark.parametrize(
    ("content", "field", "message"),
    [
        ("", "source", "is empty"),
        ("nothing.h5", "source", "'nothing.h5' is not there"),
        (None, "source", "No such file"),
    ],
)
def test_lists_that_make_no_sense(build, tmp_path, content, field, message):
    if content is not None:
        (tmp_path / "list.txt").write_text(content)
    with pytest.raises(PortError, match=message) as caught:
        build(layer(tmp_path / "list.txt"))
    assert (caught.value.layer, caught.value.field) == ("in", f"hdf5_data_param.{field}")


def test_not_an_hdf5_file(build, tmp_path):
    (tmp_path / "list.txt").write_text(str(tmp_path / "list.txt"))
    with pytest.raises(PortError, match="cannot be read"):
        build(layer(tmp_path / "list.txt"))


def test_transform_param_is_refused(build, files):
    text = layer(files(7)).replace("hdf5_data_param", "transform_param { scale: 2 } hdf5_data_param")
    with pytest.raises(PortError, match="does not transform"):
        build(text)


def test_without_h5py(build, files, monkeypatch):
    text = layer(files(7))
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(PortError, match="needs the library h5py") as caught:
        build(text)
    assert "ohem_caffe_port[hdf5]" in caught.value.hint


# ---- HDF5Output


@pytest.fixture
def output(build, inputs_of, tmp_path):
    def make(data=(2, 3), label=(2,)):
        text = f"""layer {{ name: "out" type: "HDF5Output" bottom: "x" bottom: "y"
                   hdf5_output_param {{ file_name: "{tmp_path / "out.h5"}" }} }}"""
        return build(inputs_of(x=data, y=label) + text)

    return make


def read(path):
    with h5py.File(path) as file:
        return {name: file[name][()] for name in file}


def test_both_bottoms_are_written(output, tmp_path):
    x, y = np.random.rand(2, 3).astype(np.float32), np.array([1, 2], np.float32)
    (tmp_path / "out.h5").write_text("something old")
    net = output()
    net(x=x, y=y)
    found = read(tmp_path / "out.h5")
    np.testing.assert_array_equal(found["data"], x[:, :, None, None])
    np.testing.assert_array_equal(found["label"], y[:, None, None, None])
    assert found["data"].dtype == np.float32


def test_later_batches_are_added(output, tmp_path):
    net = output((2, 3, 2, 2), (2, 1))
    batches = [np.random.rand(n, 3, 2, 2).astype(np.float32) for n in (2, 3, 1)]
    for batch in batches:
        net(x=batch, y=np.full((len(batch), 1), len(batch)))
    found = read(tmp_path / "out.h5")
    np.testing.assert_array_equal(found["data"], np.concatenate(batches))
    assert found["label"].flatten().tolist() == [2, 2, 3, 3, 3, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["out.h5"]
    with pytest.raises(PortError, match="rows of shape"):
        net(x=np.zeros((1, 4, 2, 2)), y=np.zeros((1, 1)))
    np.testing.assert_array_equal(read(tmp_path / "out.h5")["data"], np.concatenate(batches))


def test_what_cannot_be_written(output, build, inputs_of, tmp_path):
    with pytest.raises(PortError, match="have 2 and 3 rows"):
        output((2, 3), (3,))
    with pytest.raises(PortError, match="1 to 4 axes"):
        output((2, 1, 1, 1, 1), (2,))
    text = 'layer { name: "out" type: "HDF5Output" bottom: "x" bottom: "y" hdf5_output_param { file_name: "%s" } }'
    with pytest.raises(PortError, match="names no file"):
        build(inputs_of(x=(1,), y=(1,)) + text % "")
    net = build(inputs_of(x=(1,), y=(1,)) + text % (tmp_path / "nowhere" / "out.h5"))
    with pytest.raises(PortError, match="cannot be written") as caught:
        net(x=[1], y=[1])
    assert (caught.value.layer, caught.value.field) == ("out", "hdf5_output_param.file_name")
