import pytest


@pytest.mark.parametrize(
    "case",
    [
        "min", "minmax_flip", "noflip_clip", "frac_sizes", "dup_ratios", "two_minmax", "ssd_conv4_3", "step_hw_img_hw",
        "step_offset",
    ],
)  # fmt: skip
def test_golden(check_golden, case):
    """Constants, whatever the number of images."""
    for model in check_golden(f"layers_ssd/PriorBox/PriorBox__{case}", tolerance=0).values():
        assert {node.op_type for node in model.graph.node} == {"Identity"}


@pytest.mark.parametrize("variance", ["", "variance: 0.1 variance: 0.1 variance: 0.2 variance: 0.2"])
def test_prior_box(check_layer, variance):
    settings = f"prior_box_param {{ min_size: 20 max_size: 50 aspect_ratio: 2 flip: true {variance} }}"
    check_layer("PriorBox", settings, (2, 3, 4, 5), (2, 3, 60, 80), tolerance=0)
