"""Solver states against real Caffe's files and its history arrays."""

import numpy as np
import pytest

from converters import SolverState, WeightsError, read_caffemodel, read_solverstate, write_solverstate


def assert_same_arrays(ours, theirs):
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        assert our.tobytes() == their.tobytes()


def test_reads_what_caffe_wrote(run_folder, proto):
    path = run_folder / "snap_iter_5.solverstate"
    state = read_solverstate(path)
    theirs = proto.SolverState.FromString(path.read_bytes())
    assert (state.iter, state.learned_net, state.current_step) == (5, "snap_iter_5.caffemodel", 1)
    assert (state.iter, state.learned_net, state.current_step) == (theirs.iter, theirs.learned_net, theirs.current_step)
    assert_same_arrays(
        state.history, [np.array(b.data, np.float32).reshape(tuple(b.shape.dim)) for b in theirs.history]
    )


def test_history_is_caffes(shared):
    folders = sorted(p for p in (shared / "golden/solvers").iterdir() if p.is_dir())
    assert folders
    for folder in folders:
        golden = np.load(folder / "golden.npz")
        state = read_solverstate(folder / "snap_iter_10.solverstate")
        assert state.iter == 10
        assert_same_arrays(state.history, [golden[f"history/{i}"] for i in range(int(golden["n_history"]))])


@pytest.mark.parametrize(
    "file", ["lenet_v1/lenet_iter_10000.solverstate", "cifar10_full_v1/cifar10_full_iter_70000.solverstate"]
)
def test_reads_real_v1_states(shared, proto, file):
    path = shared / "weights" / file
    state = read_solverstate(path)
    theirs = proto.SolverState.FromString(path.read_bytes())
    assert (state.iter, state.learned_net) == (theirs.iter, theirs.learned_net)
    arrays = [np.array(b.data, np.float32).reshape(b.num, b.channels, b.height, b.width) for b in theirs.history]
    assert_same_arrays(state.history, arrays)


def test_writes_caffes_bytes(run_folder, tmp_path):
    state = read_solverstate(run_folder / "snap_iter_5.solverstate")
    write_solverstate(tmp_path / "x.solverstate", state)
    assert (tmp_path / "x.solverstate").read_bytes() == (run_folder / "snap_iter_5.solverstate").read_bytes()


def test_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    history = [rng.random(shape, np.float32) for shape in [(3, 4), (), (0,), (2, 3, 4, 5)]]
    state = SolverState(30_000, "net_iter_30000.caffemodel", history, 2)
    write_solverstate(tmp_path / "x.solverstate", state)
    read = read_solverstate(tmp_path / "x.solverstate")
    assert (read.iter, read.learned_net, read.current_step) == (30_000, "net_iter_30000.caffemodel", 2)
    assert_same_arrays(read.history, history)


def test_the_two_kinds_are_told_apart(run_folder):
    with pytest.raises(WeightsError, match="Is it a .caffemodel"):
        read_solverstate(run_folder / "snap_iter_5.caffemodel")
    with pytest.raises(WeightsError, match="Is it a .solverstate"):
        read_caffemodel(run_folder / "snap_iter_5.solverstate")


def test_cut_and_flipped_bytes_never_break_out(run_folder, tmp_path):
    whole = (run_folder / "snap_iter_5.solverstate").read_bytes()
    rng = np.random.default_rng(1)
    path = tmp_path / "x.solverstate"
    for trial in range(1000):
        data = bytearray(whole[: trial + 1])
        if trial >= len(whole):
            data[rng.integers(len(data))] = rng.integers(256)
        path.write_bytes(data)
        try:
            read_solverstate(path)
        except WeightsError as error:
            assert error.file == path


@pytest.mark.parametrize("ending", ["", ".h5"])
def test_paths_that_are_no_text(tmp_path, ending):
    """A path on Linux is bytes; those that are not UTF-8 come back as they were."""
    if ending:
        pytest.importorskip("h5py")
    path = tmp_path / f"s.solverstate{ending}"
    write_solverstate(path, SolverState(3, "caf\udce9/s.caffemodel", []))
    assert read_solverstate(path).learned_net == "caf\udce9/s.caffemodel"
