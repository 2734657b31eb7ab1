import numpy as np
import pytest

from ohem_caffe_port.errors import PortError

PROB = np.random.RandomState(0).rand(3, 1, 40).astype(np.float32)
PROB = np.concatenate([1 - PROB, PROB], 1)
LABEL = np.random.RandomState(1).rand(3, 1, 40).astype(np.float32)


@pytest.fixture
def dice(build, inputs_of):
    def make(prob, label, weight=1):
        text = (
            inputs_of(prob=prob.shape, label=label.shape)
            + f"""
            layer {{ name: "it" type: "Python" bottom: "prob" bottom: "label" top: "loss" loss_weight: {weight}
                     python_param {{ module: "pyLayer" layer: "DiceLoss" }} }} force_backward: true"""
        )
        net = build(text)
        net(prob=prob, label=label)
        net.backward()
        return net.blobs["loss"].detach(), net.blobs["prob"].grad

    return make


@pytest.mark.parametrize("weight", [1, 3])
def test_volume_by_volume(dice, weight):
    loss, grad = dice(PROB, LABEL, weight)
    total = 0.0
    for n in range(3):
        truth, found = LABEL[n, 0] > 0.5, PROB[n].argmax(0)
        union, inter = truth.sum() + found.sum(), (truth * found).sum()
        total += 2 * inter / (union + 1e-5)
        slope = 2 * (truth * union / union**2 - 2 * PROB[n, 1] * inter / union**2)
        np.testing.assert_allclose(grad[n], [slope, -slope], rtol=1e-5)
    assert loss.shape == (1,)
    np.testing.assert_allclose(loss, [total], rtol=1e-6)


def test_ties_are_of_the_first_class(dice):
    loss, _ = dice(np.full((1, 2, 4), 0.5, np.float32), np.ones((1, 1, 4), np.float32))
    assert loss.item() == 0


def test_nothing_there_and_nothing_found(dice):
    prob = np.stack([np.ones((2, 4)), np.zeros((2, 4))], 1).astype(np.float32)
    loss, grad = dice(prob, np.zeros((2, 1, 4), np.float32))
    assert loss.item() == 0
    assert not grad.any()


def test_another_form(dice):
    for prob, label in ((PROB, LABEL[:, :, :-1]), (PROB[:, :1], LABEL), (PROB[..., None], LABEL)):
        with pytest.raises(PortError, match=r"needs probabilities \[N, 2, V\]"):
            dice(prob, label)
