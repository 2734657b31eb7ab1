import math

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

SETTINGS = {
    "one size": ("min_size: 12.7", {"least": [12]}),
    "ratios": (
        "min_size: 10 min_size: 20 max_size: 16 max_size: 33.9 aspect_ratio: 2 aspect_ratio: 0.5 aspect_ratio: 3",
        {"least": [10, 20], "most": [16, 33], "ratios": [2, 0.5, 3, 1 / 3]},
    ),
    "no flip": ("min_size: 10 aspect_ratio: 2 flip: false clip: true", {"least": [10], "ratios": [2], "clip": True}),
    "step": ("min_size: 10 step_h: 9 step_w: 5 offset: 0.25", {"least": [10], "step": (9, 5), "offset": 0.25}),
    "image": ("min_size: 10 img_h: 50 img_w: 100", {"least": [10], "image": (50, 100)}),
    "square": ("min_size: 10 img_size: 80 step: 4", {"least": [10], "image": (80, 80), "step": (4, 4)}),
    "variance": ("min_size: 10 variance: 0.3", {"least": [10], "variance": [0.3] * 4}),
    "variances": (
        "min_size: 10 variance: 0.1 variance: 0.2 variance: 0.3 variance: 0.4",
        {"least": [10], "variance": [0.1, 0.2, 0.3, 0.4]},
    ),
}


def slow(cells, image, least, most=(), ratios=(), clip=False, step=None, offset=0.5, variance=(0.1,) * 4):
    step = step or (image[0] / cells[0], image[1] / cells[1])
    boxes = []
    for row in range(cells[0]):
        for column in range(cells[1]):
            x, y = (column + offset) * step[1], (row + offset) * step[0]
            for i, size in enumerate(least):
                shapes = [(size, size)] + [(math.sqrt(size * m),) * 2 for m in most[i : i + 1]]
                shapes += [(size * math.sqrt(r), size / math.sqrt(r)) for r in ratios]
                for w, h in shapes:
                    box = [
                        (x - w / 2) / image[1],
                        (y - h / 2) / image[0],
                        (x + w / 2) / image[1],
                        (y + h / 2) / image[0],
                    ]
                    boxes.append([min(max(v, 0), 1) for v in box] if clip else box)
    return np.array([np.ravel(boxes), np.tile(variance, len(boxes))])[None]


@pytest.mark.parametrize("case", SETTINGS)
def test_boxes_of_a_map(run_layer, case):
    text, options = SETTINGS[case]
    (top,) = run_layer("PriorBox", f"prior_box_param {{ {text} }}", np.zeros((2, 3, 4, 5)), np.zeros((2, 3, 60, 90)))
    options = {"image": (60, 90), **options}
    np.testing.assert_allclose(top, slow((4, 5), **options), rtol=1e-5, atol=1e-6)


def test_the_image_is_needed_only_for_its_size(run_layer):
    (top,) = run_layer("PriorBox", "prior_box_param { min_size: 8 img_size: 40 }", torch.zeros(1, 1, 2, 2))
    assert top.shape == (1, 2, 16)


@pytest.mark.parametrize(
    ("text", "message", "field"),
    [
        ("", "at least one size", "min_size"),
        ("min_size: 0.5", "1 pixel or more", "min_size"),
        ("min_size: 9 max_size: 9", "greater than min_size", "max_size"),
        ("min_size: 9 min_size: 8 max_size: 10", "1 for 2 of min_size", "max_size"),
        ("min_size: 9 aspect_ratio: 0", "positive", "aspect_ratio"),
        ("min_size: 9 variance: 0.1 variance: 0.2", "1 or 4 positive", "variance"),
        ("min_size: 9 variance: 0", "1 or 4 positive", "variance"),
        ("min_size: 9 img_size: 10 img_h: 5", "either img_size or img_h", "img_size"),
        ("min_size: 9 img_h: 5", "positive", "img_w"),
        ("min_size: 9 step: 0", "positive", "step"),
    ],
)
def test_bad_settings(run_layer, text, message, field):
    with pytest.raises(PortError, match=message) as caught:
        run_layer("PriorBox", f"prior_box_param {{ {text} }}", torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 9, 9))
    assert (caught.value.layer, caught.value.field) == ("it", f"prior_box_param.{field}")


def test_bad_bottoms(run_layer):
    with pytest.raises(PortError, match="image's size is unknown"):
        run_layer("PriorBox", "prior_box_param { min_size: 9 }", torch.zeros(1, 1, 2, 2))
    with pytest.raises(PortError, match="takes .N, C, H, W. blobs"):
        run_layer("PriorBox", "prior_box_param { min_size: 9 }", torch.zeros(1, 4), torch.zeros(1, 3, 9, 9))
