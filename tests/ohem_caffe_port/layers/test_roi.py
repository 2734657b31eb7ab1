import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.ops import mask_resize, ps_roi_align, ps_roi_pool, roi_align, roi_pool, roi_warp
from ohem_caffe_port.ops.roi_align import roi_align_grid, roi_align_max, roi_align_window
from ohem_caffe_port.ops.roi_pool_3d import roi_pool_3d

FEATURES = torch.randn(2, 12, 8, 9, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, -10.0, 0, 30, 30], [1, 10, 5, 60, 40]])
DEEP = torch.randn(2, 3, 5, 8, 9, generator=torch.Generator().manual_seed(1))
BOXES = torch.tensor([[0, 0.0, 0, 0, 20, 30, 30], [1, 8, 10, 5, 40, 60, 40]])
SIZE = "pooled_h: 2 pooled_w: 3 spatial_scale: 0.125"
SETTINGS = f"roi_pooling_param {{ {SIZE} }}"
PS = "spatial_scale: 0.125 output_dim: 3 group_size: 2"


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1)])
def test_is_roi_pool(run_layer, shape):
    (out,) = run_layer("ROIPooling", SETTINGS, FEATURES, ROIS.view(shape))
    assert torch.equal(out, roi_pool(FEATURES, ROIS, 2, 3, 0.125))


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        (SIZE + " pad_ratio: 0.25", {"pad_ratio": 0.25, "gradient": "mscnn"}),
        (SIZE + " pad_ratio: 0", {}),
        ("pooled_size: 2 pooled_size: 3 spatial_scale: 0.125", {"gradient": "all"}),
    ],
)
def test_forks_of_roi_pooling(run_layer, settings, options):
    ours, expected = (FEATURES.clone().requires_grad_() for _ in range(2))
    (out,) = run_layer("ROIPooling", f"roi_pooling_param {{ {settings} }}", ours, ROIS)
    wanted = roi_pool(expected, ROIS, 2, 3, 0.125, **options)
    assert torch.equal(out, wanted)
    out.sum().backward()
    wanted.sum().backward()
    assert torch.equal(ours.grad, expected.grad)


@pytest.mark.parametrize(("setting", "size"), [("pooled_size: 2", (2, 2, 2)), ("pooled_size: [1, 2, 3]", (1, 2, 3))])
def test_pooling_on_three_axes(run_layer, setting, size):
    (out,) = run_layer("ROIPooling", f"roi_pooling_param {{ {setting} spatial_scale: 0.125 }}", DEEP, BOXES)
    assert torch.equal(out, roi_pool_3d(DEEP, BOXES, *size, 0.125))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (SETTINGS, roi_align_grid),
        (f"roi_pooling_param {{ {SIZE} pad_ratio: 0.25 }}", lambda *a: roi_align_grid(*a, 0.25)),
        (f"roi_align_param {{ {SIZE} }}", roi_align_window),
        (f"roi_align_param {{ {SIZE} sampling_ratio: 2 }}", lambda *a: roi_align(*a, 2)),
        (f"roi_align_param {{ {SIZE} sampling_ratio: -1 }}", roi_align),
        (f"roi_pooling_param {{ {SIZE} bi_type: 0 }}", roi_align_max),
        (f"roi_align_param {{ {SIZE} pad_ratio: 0.25 }}", lambda *a: roi_align_max(*a, 0.25)),
        (
            f"roi_pooling_param {{ {SIZE} bi_type: 1 is_multi_interpolate: false }}",
            lambda *a: roi_align_max(*a, cubic=True, multiple=False),
        ),
    ],
)
def test_align_of_every_fork(run_layer, settings, expected):
    (out,) = run_layer("ROIAlign", settings, FEATURES, ROIS)
    assert torch.equal(out, expected(FEATURES, ROIS, 2, 3, 0.125))


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("PSROIPooling", f"psroi_pooling_param {{ {PS} }}", lambda *a: ps_roi_pool(*a, 3, 2, 0.125)),
        ("PSROIAlign", f"psroi_align_param {{ {PS} }}", lambda *a: ps_roi_align(*a, 3, 2, 0.125, 2)),
        ("PSROIAlign", f"psroi_align_param {{ {PS} sample_num: 3 }}", lambda *a: ps_roi_align(*a, 3, 2, 0.125, 3)),
        (
            "PSROIAlign",
            f"psroi_align_param {{ {PS} sampling_ratio: 2 }}",
            lambda *a: torch.stack(  # bin (i, j) of the usual align, of every fourth channel
                [roi_align(a[0][:, k::4], a[1], 2, 2, 0.125, 2)[:, :, k // 2, k % 2] for k in range(4)], -1
            ).view(2, 3, 2, 2),
        ),
        ("ROIWarping", f"roi_warping_param {{ {SIZE} }}", lambda *a: roi_warp(*a, 2, 3, 0.125)),
    ],
)
def test_is_the_function(run_layer, kind, settings, expected):
    (out,) = run_layer(kind, settings, FEATURES, ROIS.view(2, 5, 1, 1))
    torch.testing.assert_close(out, expected(FEATURES, ROIS))


def test_masks(run_layer):
    masks = torch.rand(2, 1, 8, 9, generator=torch.Generator().manual_seed(2), requires_grad=True)
    (out,) = run_layer("MaskPooling", "", FEATURES, masks)
    out.sum().backward()
    assert torch.equal(out, FEATURES * masks)
    torch.testing.assert_close(masks.grad, FEATURES.sum(1, keepdim=True))
    (out,) = run_layer("MaskResize", "mask_resize_param { output_height: 4 output_width: 5 }", FEATURES)
    assert torch.equal(out, mask_resize(FEATURES, 4, 5))


@pytest.mark.parametrize(
    ("kind", "settings", "message", "field"),
    [
        ("ROIPooling", "roi_pooling_param { pooled_h: 2 spatial_scale: 1 }", "must be positive", "roi_pooling_param"),
        ("ROIPooling", "roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0 }", "must be positive", "roi_p"),
        ("ROIPooling", "roi_pooling_param { pooled_size: [1, 2, 3] }", "one or 2 positive", "pooled_size"),
        ("ROIPooling", "roi_pooling_param { pooled_size: 0 }", "positive", "pooled_size"),
        ("ROIPooling", "roi_pooling_param { pooled_size: 2 pad_ratio: 1 }", "does not go with", "pad_ratio"),
        ("ROIAlign", "", "must be positive", "roi_align_param"),
        ("ROIAlign", f"{SETTINGS} roi_align_param {{ {SIZE} }}", "either", "roi_align_param"),
        ("ROIAlign", f"roi_pooling_param {{ {SIZE} bi_type: 2 }}", "0 .bilinear.", "bi_type"),
        ("ROIAlign", f"roi_align_param {{ {SIZE} bi_type: 0 sampling_ratio: 2 }}", "another fork", "sampling_ratio"),
        ("PSROIPooling", "psroi_pooling_param { spatial_scale: 1 output_dim: 3 group_size: 0 }", "positive", "psroi"),
        ("PSROIPooling", "psroi_pooling_param { spatial_scale: 1 output_dim: 4 group_size: 2 }", "12 channels", "_dim"),
        ("PSROIAlign", "psroi_align_param { spatial_scale: 1 output_dim: 4 group_size: 2 }", "12 channels", "_dim"),
        ("PSROIAlign", f"psroi_align_param {{ {PS} sample_num: 0 }}", "must be positive", "sample_num"),
        ("PSROIAlign", f"psroi_align_param {{ {PS} sample_num: 2 sampling_ratio: 2 }}", "another", "sampling_ratio"),
        ("ROIWarping", "", "must be positive", "roi_warping_param"),
    ],
)
def test_settings_that_make_no_sense(run_layer, kind, settings, message, field):
    with pytest.raises(PortError, match=message) as caught:
        run_layer(kind, settings, FEATURES, ROIS)
    assert field in caught.value.field


@pytest.mark.parametrize(
    ("kind", "settings", "shapes", "message"),
    [
        ("ROIPooling", SETTINGS, [(2, 3, 8, 9), (2, 4)], "rows .batch_index"),
        ("ROIPooling", SETTINGS, [(2, 3), (2, 5)], "takes maps"),
        ("ROIPooling", "roi_pooling_param { pooled_size: 2 }", [(2, 3, 4, 8, 9), (2, 5)], "z1, x1"),
        ("ROIPooling", SETTINGS, [(2, 3, 4, 8, 9), (2, 7)], "one or 3 positive"),
        ("ROIPooling", "roi_pooling_param { pooled_h: 2 pooled_size: 2 }", [(2, 3, 4, 8, 9), (2, 7)], "does not go"),
        ("ROIAlign", SETTINGS, [(2, 3, 8), (2, 5)], "takes feature maps"),
        ("PSROIPooling", f"psroi_pooling_param {{ {PS} }}", [(2, 12, 8, 9), (2, 6)], "rows .batch_index"),
        ("MaskPooling", "", [(2, 3, 8, 9), (2, 1, 8, 8)], "masks"),
        ("MaskPooling", "", [(2, 3, 8, 9), (2, 3, 8, 9)], "masks"),
        ("MaskResize", "mask_resize_param { output_height: 4 }", [(2, 3, 8, 9)], "must be positive"),
        ("MaskResize", "mask_resize_param { output_height: 4 output_width: 4 }", [(2, 3)], "takes masks"),
    ],
)
def test_shapes_that_do_not_fit(run_layer, kind, settings, shapes, message):
    with pytest.raises(PortError, match=message):
        run_layer(kind, settings, *(np.zeros(shape) for shape in shapes))
