import numpy as np
import pytest
import torch

from ohem_caffe_port.mining import hardest_per_image


@pytest.mark.parametrize("count", [1, 7, 1000])
@pytest.mark.parametrize("images", [1, 3])
def test_the_largest_of_each_image(count, images):
    rng = np.random.default_rng(count)
    loss, image = rng.permutation(90).astype(np.float32), rng.integers(0, images, 90)
    chosen = hardest_per_image(torch.tensor(loss), torch.tensor(image), count)
    expected = np.zeros(90, bool)
    for i in range(images):
        rows = np.flatnonzero(image == i)
        expected[rows[np.argsort(-loss[rows])[:count]]] = True
    assert chosen.tolist() == expected.tolist()


def test_of_few_equal_losses_the_first_is_chosen():
    chosen = hardest_per_image(torch.tensor([1.0, 2, 2, 2]), torch.zeros(4), 2)
    assert chosen.tolist() == [False, True, True, False]


def test_rois_of_no_image_are_never_chosen():
    assert hardest_per_image(torch.ones(3), torch.tensor([-1, 0, -1]), 5).tolist() == [False, True, False]


def test_no_rois():
    assert len(hardest_per_image(torch.zeros(0), torch.zeros(0), 3)) == 0
