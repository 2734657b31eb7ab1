from functools import partial

import pytest
import torch

import prototxt
from ohem_caffe_port import optim
from ohem_caffe_port.memory import cache_sized

SETTINGS = {
    "SGD": "momentum: 0.9", "Nesterov": "momentum: 0.9", "AdaGrad": "", "RMSProp": "rms_decay: 0.9",
    "AdaDelta": "momentum: 0.9", "Adam": "momentum: 0.9 momentum2: 0.99",
}  # fmt: skip


@pytest.mark.parametrize("regularization", ["L2", "L1"])
@pytest.mark.parametrize("kind", list(optim.UPDATES))
@pytest.mark.parametrize("shape", [(37, 11), (5,), ()])
def test_parts_give_the_same_bits_as_the_whole(monkeypatch, kind, regularization, shape):
    text = f'type: "{kind}" regularization_type: "{regularization}" {SETTINGS[kind]}'
    param = prototxt.parse_solver(text)

    def updated(chunk):
        monkeypatch.setattr(optim, "cache_sized", partial(cache_sized, floats=chunk))
        generator = torch.Generator().manual_seed(0)
        weight, grad, *history = (torch.rand(shape, generator=generator) for _ in range(4))
        options = {"rate": 0.1, "decay": 0.01, "factors": [0.5, 1 / 3]}
        for iteration in range(2):
            optim.update(param, weight, grad, history, iteration=iteration, **options)
        return weight, grad, *history

    for whole, parts in zip(updated(1 << 20), updated(30), strict=True):
        assert torch.equal(whole, parts)


def test_two_steps_of_sgd_by_hand():
    """``V = momentum V + rate (g + decay w)``, ``w -= V``."""
    param = prototxt.parse_solver('type: "SGD" momentum: 0.5')
    weight, history = torch.tensor([2.0]), [torch.tensor([0.0])]
    for expected in (2 - 0.1 * (4 * 0.5 + 0.25 * 2), 1.75 - (0.5 * 0.25 + 0.1 * (4 * 0.5 + 0.25 * 1.75))):
        options = {"rate": 0.1, "decay": 0.25, "factors": [0.5], "iteration": 0}
        optim.update(param, weight, torch.tensor([4.0]), history, **options)
        assert weight.item() == pytest.approx(expected, rel=1e-6)
