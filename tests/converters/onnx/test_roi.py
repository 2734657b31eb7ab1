"""RoI layers in ONNX against the Net, which real Caffe's arrays judge, at RoIs of every kind."""

import numpy as np
import pytest

MAPS, ROIS = (2, 8, 13, 17), (9, 5)


def rois(shapes, rng):
    """RoIs inside the map, over its edges and outside, malformed, of one cell, with corners halfway between cells."""
    count, (height, width) = shapes["x1"][0], shapes["x0"][-2:]
    first = rng.uniform(-60, 16 * np.array([width, height]) + 40, (count, 2))
    boxes = np.concatenate([first, first + rng.uniform(-40, 200, (count, 2))], 1)
    special = [[-300, -300, -200, -250], [8, 24, 40, 56], [-8, -24, 8.5, 72], [50, 60, 20, 30], [33, 33, 33, 33],
               [-500, -500, 900, 900], [0, 0, 16 * width - 1, 16 * height - 1]]  # fmt: skip
    boxes[: len(special)] = special[:count]
    return {"x1": np.column_stack((rng.randint(0, shapes["x0"][0], count), boxes))}


@pytest.mark.parametrize("case", ["1x1_s1", "2x3_s8", "6x6_s16", "7x7_s16", "7x7_s16_ss", "ties_post_relu"])
def test_golden_maxima(check_golden, case):
    check_golden(f"layers/ROIPooling/ROIPooling__{case}", tolerance=0)


@pytest.mark.parametrize("case", ["ave", "g1_o5_s16", "g2_o21_s32", "g3_o4_s8", "g5_o2_s1", "g7_o3_s16"])
def test_golden_means(check_golden, case):
    check_golden(f"layers_rfcn/PSROIPooling/PSROIPooling__{case}", tolerance=1e-6)


@pytest.mark.parametrize("more", ["", "pad_ratio: 0.25"])
def test_roi_pooling(check_layer, more):
    settings = f"roi_pooling_param {{ pooled_h: 7 pooled_w: 6 spatial_scale: 0.0625 {more} }}"
    check_layer("ROIPooling", settings, MAPS, ROIS, inputs=rois, tolerance=0)


def test_roi_pooling_of_long_bins(check_layer):
    """57, 114 and 121 cells in 7 bins, which end one cell late in single precision, and a map of a single row."""
    boxes = [[0, 0, 0, n - 1, 0] for n in (57, 114, 121)] + [[0, 3, 0, 59, 0]]
    settings = "roi_pooling_param { pooled_h: 1 pooled_w: 7 spatial_scale: 1 }"
    check_layer("ROIPooling", settings, (1, 2, 1, 150), (4, 5), inputs={"x1": boxes}, tolerance=0)


def test_roi_pooling_of_volumes(check_layer):
    def volumes(shapes, rng):
        flat = rois(shapes, rng)["x1"]
        z = np.sort(rng.uniform(-20, 120, (len(flat), 2)), 1)
        return {"x1": np.column_stack((flat[:, 0], z[:, 0], flat[:, 1:3], z[:, 1], flat[:, 3:]))}

    settings = "roi_pooling_param { pooled_size: 2 pooled_size: 3 pooled_size: 3 spatial_scale: 0.0625 }"
    check_layer("ROIPooling", settings, (2, 3, 5, 7, 9), (8, 7), inputs=volumes, tolerance=0)


POOLED = "pooled_h: 3 pooled_w: 4 spatial_scale: 0.0625"
SENSITIVE = "output_dim: 2 group_size: 2 spatial_scale: 0.0625"


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ROIAlign", f"roi_align_param {{ {POOLED} sampling_ratio: 2 }}"),
        ("ROIAlign", f"roi_align_param {{ {POOLED} sampling_ratio: 0 }}"),
        ("ROIAlign", f"roi_align_param {{ {POOLED} }}"),
        ("ROIAlign", f"roi_pooling_param {{ {POOLED} }}"),
        ("ROIAlign", f"roi_pooling_param {{ {POOLED} pad_ratio: 0.2 }}"),
        ("ROIAlign", f"roi_pooling_param {{ {POOLED} bi_type: 0 }}"),
        ("ROIAlign", f"roi_pooling_param {{ {POOLED} bi_type: 0 is_multi_interpolate: true pad_ratio: 0.1 }}"),
        ("ROIAlign", f"roi_pooling_param {{ {POOLED} bi_type: 1 is_multi_interpolate: true }}"),
        ("PSROIAlign", f"psroi_align_param {{ {SENSITIVE} }}"),
        ("PSROIAlign", f"psroi_align_param {{ {SENSITIVE} sample_num: 3 }}"),
        ("PSROIAlign", f"psroi_align_param {{ {SENSITIVE} sampling_ratio: 2 }}"),
        ("PSROIPooling", f"psroi_pooling_param {{ {SENSITIVE} }}"),
        ("ROIWarping", f"roi_warping_param {{ {POOLED} }}"),
    ],
)
def test_samples(check_layer, kind, settings):
    check_layer(kind, settings, MAPS, ROIS, inputs=rois)


@pytest.mark.parametrize("size", [(9, 11), (20, 15), (1, 14)])
def test_masks(check, inputs_of, size):
    text = inputs_of(x=(2, 3, 14, 14), mask=(2, 1, *size)) + (
        'layer { name: "r" type: "MaskResize" bottom: "mask" top: "m" '
        "mask_resize_param { output_height: 14 output_width: 14 } }"
        'layer { name: "p" type: "MaskPooling" bottom: "x" bottom: "m" top: "y" }'
    )
    check(text)
