import threading

import numpy as np
import pytest
import torch

from ohem_caffe_port.data.loader import READY, MinibatchLoader
from ohem_caffe_port.errors import PortError


@pytest.fixture
def make_loader(shapes_cfg, shapes_roidb):
    """``make_loader(workers=0, method="ohem", device="cpu", **train)``: a loader of 16 small images."""

    def make(workers=0, method="ohem", device="cpu", **train):
        prefetch = {"USE_PREFETCH": True, "PREFETCH_WORKERS": workers} if workers else {}
        cfg = shapes_cfg(method, **prefetch, **train)
        return MinibatchLoader(shapes_roidb(cfg), 7, cfg, np.random.RandomState(cfg.RNG_SEED), device=device)

    return make


def take(loader, count):
    return [loader.next_minibatch() for _ in range(count)]


def assert_same(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
    ("method", "train"),
    [("ohem", {}), ("fast_rcnn", {"IMS_PER_BATCH": 2, "ASPECT_GROUPING": True, "SCALES": [64, 80, 96]})],
)
def test_the_stream_does_not_depend_on_workers(make_loader, method, train):
    expected = take(make_loader(0, method, **train), 20)
    for workers in (1, 3):
        assert_same(take(make_loader(workers, method, **train), 20), expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_state_round_trip(make_loader, workers):
    """Also from a stream that was prepared ahead: the state is that of the last minibatch handed out."""
    straight = make_loader(0)
    take(straight, 5)
    expected = take(straight, 14)
    first = make_loader(workers)
    take(first, 5)
    state = {key: np.array(value) for key, value in first.state_dict().items()}
    resumed = make_loader(workers)
    take(resumed, 2)
    resumed.load_state_dict(state)
    assert_same(take(resumed, 14), expected)


def test_the_state_before_the_first_minibatch(make_loader):
    loader, other = make_loader(), make_loader()
    take(other, 3)
    other.load_state_dict(loader.state_dict())
    assert_same(take(other, 3), take(loader, 3))


def test_a_state_of_another_data_set(make_loader):
    state = make_loader().state_dict()
    state["numbers"] = state["numbers"] + np.array([0, 1])
    with pytest.raises(PortError, match="made with 17 images; this data set has 16"):
        make_loader().load_state_dict(state)


@pytest.mark.parametrize("workers", [0, 1])
def test_torchs_generator_is_left_alone(make_loader, workers):
    """It belongs to dropout."""
    before = torch.get_rng_state()
    take(make_loader(workers), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_close_ends_the_workers(make_loader):
    loader = make_loader(2)
    take(loader, 1)
    workers = list(loader._pool._threads)
    assert len(workers) == 2 and all(worker.is_alive() for worker in workers)
    loader.close()
    assert not any(worker.is_alive() for worker in workers)


def test_the_stream_goes_on_after_close(make_loader):
    loader, expected = make_loader(2), take(make_loader(), 6)
    assert_same(take(loader, 3), expected[:3])
    loader.close()
    assert_same(take(loader, 3), expected[3:])


def test_no_more_is_made_ahead_than_workers_and_a_few(make_loader):
    loader = make_loader(2)
    take(loader, 3)
    assert len(loader._ahead) == len(loader._states) == 2 + READY - 1


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_workers_pin_what_goes_to_a_cuda_device(make_loader, monkeypatch, device, pinned):
    threads, empty = set(), torch.empty

    def pin(*args, pin_memory, **options):
        threads.add(threading.current_thread())
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", pin)
    assert_same(take(make_loader(2, device=device), 6), take(make_loader(), 6))
    assert bool(threads) == pinned and threading.main_thread() not in threads


def fake_roidb(widths, heights):
    return [
        {"width": w, "height": h, "max_classes": np.array([1]), "max_overlaps": np.array([0.9])}
        for w, h in zip(widths, heights, strict=True)
    ]


def order(loader, count):
    plans = loader._plans()
    return [next(plans).roidb_inds for _ in range(count)]


def test_permutations(shapes_cfg):
    """As in the original, the last image of a permutation is not used: 9 of 10, then a new one."""
    loader = MinibatchLoader(fake_roidb([5] * 10, [4] * 10), 7, shapes_cfg(), np.random.RandomState(3))
    rng = np.random.RandomState(3)
    expected = []
    for _ in range(2):
        expected += rng.permutation(np.arange(10))[:9].tolist()
        for _ in range(9):  # each plan draws a scale, and sampling draws nothing with OHEM
            rng.randint(0, high=1, size=1)
    assert [inds[0] for inds in order(loader, 18)] == expected


def test_aspect_grouping_pairs_images_alike(shapes_cfg):
    widths = np.random.default_rng(0).integers(50, 150, 40)
    cfg = shapes_cfg(ASPECT_GROUPING=True, IMS_PER_BATCH=2)
    wide = widths >= 100
    if wide.sum() % 2:
        widths[np.flatnonzero(wide)[0]] = 50
        wide = widths >= 100
    loader = MinibatchLoader(fake_roidb(widths, [100] * 40), 7, cfg, np.random.RandomState(3))
    pairs = order(loader, 60)
    assert all(wide[a] == wide[b] for a, b in pairs)
    assert len({tuple(sorted(pair)) for pair in pairs}) > 30, "the pairs are drawn anew"
    epoch = [i for pair in pairs[:19] for i in pair]
    assert len(set(epoch)) == 38


def test_aspect_grouping_of_an_odd_number(shapes_cfg):
    with pytest.raises(PortError, match="pairs images, and there are 3"):
        MinibatchLoader(fake_roidb([5] * 3, [4] * 3), 7, shapes_cfg(ASPECT_GROUPING=True), np.random.RandomState(3))


@pytest.mark.parametrize(
    ("images", "train", "classes", "message"),
    [
        (0, {}, 7, "nothing to train on"),
        (1, {"IMS_PER_BATCH": 2}, 7, "1 images for minibatches of TRAIN.IMS_PER_BATCH 2"),
        (3, {"IMS_PER_BATCH": 3}, 7, "must divide TRAIN.BATCH_SIZE"),
        (3, {}, 1, "has class 1, the net's data layer num_classes 1"),
    ],
)
def test_errors(shapes_cfg, images, train, classes, message):
    with pytest.raises(PortError, match=message):
        MinibatchLoader(fake_roidb([5] * images, [4] * images), classes, shapes_cfg(**train), np.random.RandomState(3))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image(make_loader, tmp_path, workers):
    """The error is the same, file and all, wherever the image was read."""
    loader = make_loader(workers)
    path = tmp_path / "bad.jpg"
    path.write_bytes(b"\xff\xd8 no image")
    for entry in loader.roidb:
        entry["image"] = str(path)
    with pytest.raises(PortError, match="not an image, or damaged") as caught:
        loader.next_minibatch()
    assert str(caught.value.file) == str(path)
    assert "remove it from the image set" in caught.value.hint


@pytest.mark.parametrize("workers", [0, 2])
def test_minibatches_before_a_damaged_image_are_given_out(make_loader, tmp_path, workers):
    loader = make_loader(workers)
    loader.roidb[loader._perm[2]]["image"] = str(tmp_path / "absent.jpg")
    assert len(take(loader, 2)) == 2
    with pytest.raises(PortError, match="cannot read the image"):
        loader.next_minibatch()


def test_a_single_image(shapes_cfg):
    """It is used for every minibatch."""
    loader = MinibatchLoader(fake_roidb([5], [4]), 7, shapes_cfg(), np.random.RandomState(3))
    assert order(loader, 3) == [[0], [0], [0]]
