"""``.caffemodel.h5`` and ``.solverstate.h5``, judged by h5py and by files that Caffe wrote."""

import h5py
import numpy as np
import pytest

from converters import (
    CaffeModel,
    LayerWeights,
    SolverState,
    WeightsError,
    read_caffemodel,
    read_solverstate,
    write_caffemodel,
    write_solverstate,
)  # fmt: skip

RNG = np.random.default_rng(3)
W, B = RNG.standard_normal((4, 3)).astype(np.float32), RNG.standard_normal(4).astype(np.float32)


def arrays_of(path):
    """``{path in the file: array}`` as h5py sees it."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
    return found


def test_written_as_caffe_lays_it_out(tmp_path):
    layers = [LayerWeights("data", "Input"), LayerWeights("ip", "InnerProduct", blobs=[W, B])]
    layers.append(LayerWeights("twin", "InnerProduct", blobs=[W.reshape(4, 3), B.copy()]))  # W is shared
    path = tmp_path / "x.caffemodel.h5"
    write_caffemodel(path, CaffeModel("net", layers))
    found = arrays_of(path)
    assert set(found) == {"data/ip/0", "data/ip/1", "data/twin/1"}
    np.testing.assert_array_equal(found["data/ip/0"], W)
    assert found["data/ip/0"].dtype == np.float32
    with h5py.File(path) as file:
        assert set(file["data"]) == {"data", "ip", "twin"}  # layers without parameters have a group, too
    model = read_caffemodel(path)
    assert model.shared_once
    by_name = {layer.name: layer.blobs for layer in model.layers}
    assert by_name["twin"][0] is by_name["ip"][0]
    with h5py.File(path, "a") as file:  # Caffe leaves it out
        del file["data/twin/0"]
    assert read_caffemodel(path).layers[-1].blobs[0] is None
    np.testing.assert_array_equal(by_name["ip"][0], W)


def test_names_with_slashes(tmp_path):
    """HDF5 takes them for folders within folders."""
    layers = [
        LayerWeights(n, "Convolution", blobs=[np.full(2, i, np.float32)]) for i, n in enumerate(["a", "a/b", "c/d/e"])
    ]
    write_caffemodel(tmp_path / "x.h5", CaffeModel("", layers))
    read = {layer.name: layer.blobs for layer in read_caffemodel(tmp_path / "x.h5").layers}
    assert {name: blobs[0].tolist() for name, blobs in read.items()} == {"a": [0, 0], "a/b": [1, 1], "c/d/e": [2, 2]}


def test_doubles_stay_doubles(tmp_path):
    write_caffemodel(tmp_path / "x.h5", CaffeModel("", [LayerWeights("a", "", blobs=[W.astype(np.float64)])]))
    assert read_caffemodel(tmp_path / "x.h5").layers[0].blobs[0].dtype == np.float64


def test_solverstate(tmp_path):
    path = tmp_path / "x.solverstate.h5"
    write_solverstate(path, SolverState(7, "x_iter_7.caffemodel.h5", [W, B], 2))
    found = arrays_of(path)
    assert (found["iter"].tolist(), found["current_step"].tolist()) == ([7], [2])
    assert found["learned_net"] == b"x_iter_7.caffemodel.h5"
    state = read_solverstate(path)
    assert (state.iter, state.learned_net, state.current_step) == (7, "x_iter_7.caffemodel.h5", 2)
    np.testing.assert_array_equal(state.history[1], B)


def test_files_that_caffe_wrote(shared):
    folder = shared / "weights" / "cifar10_h5"
    model = read_caffemodel(folder / "cifar10_full_iter_60000.caffemodel.h5")
    shapes = {layer.name: [b.shape for b in layer.blobs] for layer in model.layers if layer.blobs}
    assert shapes == {
        "conv1": [(32, 3, 5, 5), (32,)], "conv2": [(32, 32, 5, 5), (32,)], "conv3": [(64, 32, 5, 5), (64,)],
        "ip1": [(10, 1024), (10,)],
    }  # fmt: skip
    state = read_solverstate(folder / "cifar10_full_iter_60000.solverstate.h5")
    assert (state.iter, len(state.history)) == (60000, 8)
    assert state.learned_net == "examples/cifar10/cifar10_full_iter_60000.caffemodel.h5"


def test_arrays_in_one_piece_are_views_on_the_file(tmp_path):
    path = tmp_path / "x.caffemodel.h5"
    ways = [{}, {"chunks": (2, 2)}, {"compression": "gzip"}, {"dtype": ">f4"}, {"dtype": "f2"}]
    with h5py.File(path, "w") as file:
        for j, options in enumerate(ways):
            file.create_dataset(f"data/ip/{j}", data=W, **options)
        file.create_dataset("data/ip/5", data=np.float32(3))
    *blobs, scalar = read_caffemodel(path).layers[0].blobs
    assert [blob.flags.owndata for blob in blobs] == [False, True, True, True, True]
    for blob, options in zip(blobs, ways, strict=True):
        assert blob.dtype == np.float32
        np.testing.assert_array_equal(blob, W.astype("f2") if options.get("dtype") == "f2" else W)
    assert scalar.shape == () and scalar == 3


# ---- files that are not right


def link_out(file):
    file.create_group("data/ip")["0"] = h5py.ExternalLink("/etc/passwd", "/")


def too_large(file):
    file.create_dataset("data/ip/0", shape=(1 << 20, 1 << 20), dtype="f4")  # nothing stored


def compressed_and_too_large(file):
    file.create_dataset("data/ip/0", shape=(1 << 20, 1 << 10), dtype="f4", chunks=(1024, 1024), compression="gzip")


def not_a_number(file):
    file.create_dataset("data/ip/weights", data=W)


def text(file):
    file.create_dataset("data/ip/0", data=np.bytes_("text"))


def elsewhere(file):
    file.create_dataset("data/ip/0", shape=(4,), dtype="f4", external=[("/etc/passwd", 0, 16)])


def over_and_over(file):
    file["data/ip/0"] = W
    file["data/ip/inner"] = file["data"]


def a_number_out_of_reach(file):
    file["data/ip/10001"] = W


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (over_and_over, "group 'ip/inner' stands there twice"),
        (a_number_out_of_reach, "'10001' is not a parameter's number"),
        (lambda file: file.create_group("other"), "no group 'data'"),
        (link_out, "is a link to elsewhere"),
        (too_large, "more than the file has"),
        (compressed_and_too_large, "more than the file has"),
        (not_a_number, "'weights' is not a parameter's number"),
        (text, "holds no numbers"),
        (elsewhere, "holds no numbers of its own"),
    ],
)
def test_refused(tmp_path, make, message):
    path = tmp_path / "x.caffemodel.h5"
    with h5py.File(path, "w") as file:
        make(file)
    with pytest.raises(WeightsError, match=message) as caught:
        read_caffemodel(path)
    assert str(path) in str(caught.value)


def test_a_dataset_of_two_names_is_one_array(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("data/a/0", data=W, compression="gzip")
        file["data/b/0"] = file["data/a/0"]
    a, b = read_caffemodel(tmp_path / "x.h5").layers
    assert a.blobs[0] is b.blobs[0]


def test_values_that_claim_to_be_large(tmp_path):
    for name in ("iter", "current_step", "minimum_loss", "learned_net"):
        write_solverstate(tmp_path / "x.h5", SolverState(7, "", [W], minimum_loss=1.0))
        with h5py.File(tmp_path / "x.h5", "a") as file:
            del file[name]
            file.create_dataset(name, shape=(1 << 40,), dtype="f4", chunks=(1024,))
        with pytest.raises(WeightsError, match=f"'{name}' is not one value"):
            read_solverstate(tmp_path / "x.h5")


@pytest.mark.parametrize("kept", [9, 100, 2000])
def test_cut_short(tmp_path, kept):
    path = tmp_path / "x.h5"
    write_caffemodel(path, CaffeModel("", [LayerWeights("ip", "", blobs=[W, B])]))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match="damaged"):
        read_caffemodel(path)


def test_a_solverstate_is_not_a_model(tmp_path):
    write_solverstate(tmp_path / "s.h5", SolverState(7, "", [W]))
    with pytest.raises(WeightsError, match="no group 'data'"):
        read_caffemodel(tmp_path / "s.h5")
    write_caffemodel(tmp_path / "m.h5", CaffeModel("", [LayerWeights("ip", "", blobs=[W])]))
    with pytest.raises(WeightsError, match="no 'iter'"):
        read_solverstate(tmp_path / "m.h5")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.h5"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_caffemodel(path, CaffeModel("", [LayerWeights("ip", "", blobs=[np.array([object()])])]))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.h5"]


def test_an_array_that_is_under_another_layer_stays_there(tmp_path):
    layers = [LayerWeights("a", "", blobs=[W, B]), LayerWeights("b", "", blobs=[None, B.copy()])]
    write_caffemodel(tmp_path / "x.h5", CaffeModel("", layers))
    assert read_caffemodel(tmp_path / "x.h5").layers[1].blobs[0] is None


@pytest.mark.parametrize("names", [["a", "a"], [""], ["."], ["/a"], ["a//b"], ["a\0"], ["a", "a/0"]])
def test_names_that_hdf5_cannot_hold_lose_nothing(tmp_path, names):
    layers = [LayerWeights(name, "PReLU", blobs=[B + i]) for i, name in enumerate(names)]
    with pytest.raises(WeightsError, match="HDF5 files"):
        write_caffemodel(tmp_path / "x.h5", CaffeModel("", layers))
    assert not list(tmp_path.iterdir())
    write_caffemodel(tmp_path / "x.h5", CaffeModel("", [LayerWeights(name, "ReLU") for name in names]))
