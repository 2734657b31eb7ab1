import numpy as np
import pytest
import torch


@pytest.fixture
def bottoms():
    """Bottoms of a mining layer, 50 RoIs of two images, 4 classes: probabilities, box predictions, rois, labels,
    targets, inside and outside weights."""
    classes, count = 4, 50
    rng = np.random.default_rng(0)
    corners = rng.integers(0, 60, (count, 2))
    rois = np.hstack([rng.integers(0, 2, (count, 1)), corners, corners + rng.integers(5, 50, (count, 2))])
    prob = rng.dirichlet(np.ones(classes), count)
    labels = rng.integers(0, classes, count)
    inside = np.repeat(np.eye(classes)[labels] * (labels > 0)[:, None], 4, axis=1)
    pred, targets = rng.standard_normal((2, count, 4 * classes))
    return [torch.tensor(a, dtype=torch.float32) for a in (prob, pred, rois, labels, targets, inside, inside)]
