"""GradientReversal and BlockRotation: values, gradients, and mistakes. The rotation itself: ops/test_rotation.py."""

import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.ops.rotation import rotate_blocks


@pytest.mark.parametrize(("settings", "weight"), [("", 1), ("gradient_reversal_param { weight: 0.3 }", 0.3)])
def test_reversal(run_layer, settings, weight):
    x = torch.randn(3, 4, requires_grad=True)
    (y,) = run_layer("GradientReversal", settings, x)
    assert torch.equal(y, x)
    slope = torch.randn(3, 4)
    y.backward(slope)
    torch.testing.assert_close(x.grad, -weight * slope)


def test_angles_are_limited(run_layer):
    features, numbers = torch.randn(2, 8, 6, 6), torch.randn(2, 4) * 3
    (turned,) = run_layer("BlockRotation", "", features, numbers)
    torch.testing.assert_close(turned, rotate_blocks(features, 10 * numbers.tanh()))
    (turned,) = run_layer("BlockRotation", "block_rotation_param { max_angle: 25 }", features, numbers[..., None, None])
    torch.testing.assert_close(turned, rotate_blocks(features, 25 * numbers.tanh()))


def test_any_angle(run_layer):
    features = torch.randn(2, 8, 6, 6)
    (turned,) = run_layer("BlockRotation", "block_rotation_param { max_angle: 0 }", features, torch.full((2, 4), 90.0))
    torch.testing.assert_close(turned, torch.rot90(features, 1, (2, 3)))


def test_foreground_alone(run_layer):
    features, numbers = torch.randn(3, 8, 6, 6), torch.randn(3, 4, requires_grad=True)
    (turned,) = run_layer("BlockRotation", "", features, numbers, torch.tensor([2.0, 0, 1]))
    expected = rotate_blocks(features, 10 * numbers.tanh())
    torch.testing.assert_close(turned[[0, 2]], expected[[0, 2]])
    torch.testing.assert_close(turned[1], features[1], atol=2e-6, rtol=0)
    turned.square().sum().backward()
    assert numbers.grad.abs().sum(1).bool().tolist() == [True, False, True]


def test_gradients(run_layer):
    features = torch.randn(2, 4, 4, 4, dtype=torch.float64, requires_grad=True)
    numbers = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *bottoms: run_layer("BlockRotation", "", *bottoms)[0], (features, numbers))


def test_no_rois(run_layer):
    (turned,) = run_layer("BlockRotation", "", torch.zeros(0, 8, 6, 6), torch.zeros(0, 4))
    assert turned.shape == (0, 8, 6, 6)


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "message"),
    [
        ("GradientReversal", "gradient_reversal_param { weight: -1 }", [(2, 3)],
         r"layer 'it': gradient_reversal_param.weight: must not be negative, it is -1"),
        ("BlockRotation", "block_rotation_param { max_angle: -5 }", [(2, 4, 3, 3), (2, 4)],
         r"layer 'it': block_rotation_param.max_angle: must be from 0 to 180 degrees, it is -5"),
        ("BlockRotation", "", [(2, 6, 3, 3), (2, 4)], "6 channels cannot be split into 4 blocks"),
        ("BlockRotation", "", [(2, 6, 3, 3), (2, 0)], "6 channels cannot be split into 0 blocks"),
        ("BlockRotation", "", [(2, 4, 3, 3), (3, 4)], "3 rows of angles for 2 rows of features"),
        ("BlockRotation", "", [(2, 4, 3, 3), (2, 4), (3,)], "3 labels for 2 rows of features"),
        ("BlockRotation", "", [(2, 4), (2, 4)], r"features must be \[N, C, H, W\], not \(2, 4\)"),
    ],
)  # fmt: skip
def test_mistakes(run_layer, kind, settings, shapes, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, *(torch.zeros(shape) for shape in shapes))
