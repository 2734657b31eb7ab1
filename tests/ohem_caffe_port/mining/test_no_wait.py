"""On a GPU nothing here makes its host wait, save where it is said: it runs on tensors that have no values (``meta``),
which takes the way of a GPU, and copies nothing from one device to another."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ohem_caffe_port.mining import (
    METHODS,
    Examples,
    easy_rois_zeroed,
    hardest_per_image,
    ohem_roi_loss,
    select_hard_rois,
    select_rois_by_ratio,
    select_stratified_rois,
)

ROIS, CLASSES = 50, 4
COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class NoCopies(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        assert func not in COPIES or len({t.device for t in tensors}) == 1, f"{func} from device to device"
        return result


@pytest.fixture(autouse=True)
def no_copies():
    with NoCopies():
        yield


def blank(*shape, dtype=None):
    return torch.empty(shape, dtype=dtype, device="meta")


@pytest.fixture
def examples():
    return Examples(blank(ROIS), blank(ROIS), blank(ROIS), blank(ROIS, 5), blank(ROIS))


@pytest.mark.parametrize("name", METHODS)
def test_methods(name, examples, monkeypatch):
    method = METHODS[name]()
    monkeypatch.setattr(method, "generator", lambda device: torch.Generator(), raising=False)  # there is no meta one
    for _ in range(2):
        assert [w.shape for w in method(examples)] == [(ROIS,), (ROIS,)]


@pytest.mark.parametrize("name", ["ohem", "sohem", "ratio"])
def test_methods_without_suppression(name, examples, monkeypatch):
    method = METHODS[name](nms_thresh=None)
    monkeypatch.setattr(method, "generator", lambda device: torch.Generator(), raising=False)
    assert method(examples).cls.shape == (ROIS,)


@pytest.mark.parametrize("thresh", [0.7, None])
def test_loss_and_choice(thresh):
    boxes = [blank(ROIS, 4 * CLASSES) for _ in range(4)]
    labels, rois = blank(ROIS), blank(ROIS, 5)
    loss = ohem_roi_loss(blank(ROIS, CLASSES), labels, *boxes)
    assert loss.dtype == torch.float64
    hard = select_hard_rois(loss, rois, labels, 8, nms_thresh=thresh, padded=True)
    assert (hard.shape, hard.dtype) == ((8,), torch.int64)
    strata = select_stratified_rois(loss, loss, rois, labels, 8, nms_thresh=thresh, padded=True)
    assert (strata.shape, strata.dtype) == ((8,), torch.int64)
    assert [a.shape for a in easy_rois_zeroed(hard, labels, *boxes[2:])] == [(ROIS,), *[(ROIS, 4 * CLASSES)] * 2]


def test_what_has_to_wait(examples):
    """For the number of survivors, for numpy's random stream, and to see equal losses."""
    e = examples
    with pytest.raises((NotImplementedError, RuntimeError)):
        select_hard_rois(e.loss, e.rois, e.labels, 8)
    with pytest.raises((NotImplementedError, RuntimeError)):
        select_stratified_rois(e.cls_loss, e.loc_loss, e.rois, e.labels, 8)
    with pytest.raises((NotImplementedError, RuntimeError)):
        select_rois_by_ratio(e.loss, e.rois, e.labels, 8, rng=np.random.RandomState(0))
    with pytest.raises((NotImplementedError, RuntimeError)):
        hardest_per_image(e.loss, e.image, 8)


def test_the_check_sees_a_copy():
    with pytest.raises(AssertionError, match="from device to device"):
        torch.zeros(3).to("meta")
