import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError
from ohem_caffe_port.ops import roi_pool

FEATURES = torch.randn(2, 3, 8, 9, generator=torch.Generator().manual_seed(0))
ROIS = torch.tensor([[0, 0.0, 0, 30, 30], [1, 10, 5, 60, 40]])
SETTINGS = "roi_pooling_param { pooled_h: 2 pooled_w: 3 spatial_scale: 0.125 }"


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 1, 1)])
def test_is_roi_pool(run_layer, shape):
    (out,) = run_layer("ROIPooling", SETTINGS, FEATURES, ROIS.view(shape))
    assert torch.equal(out, roi_pool(FEATURES, ROIS, 2, 3, 0.125))


@pytest.mark.parametrize(
    ("settings", "rois", "message"),
    [
        ("roi_pooling_param { pooled_h: 2 spatial_scale: 1 }", (2, 5), "must be positive"),
        ("roi_pooling_param { pooled_h: 2 pooled_w: 2 spatial_scale: 0 }", (2, 5), "must be positive"),
        (SETTINGS, (2, 4), "rows .batch_index"),
    ],
)
def test_settings_that_make_no_sense(run_layer, settings, rois, message):
    with pytest.raises(PortError, match=message):
        run_layer("ROIPooling", settings, FEATURES, np.zeros(rois))
