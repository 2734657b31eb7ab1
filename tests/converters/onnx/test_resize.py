import pytest

import prototxt
from converters.errors import WeightsError
from ohem_caffe_port.export import to_onnx
from ohem_caffe_port.net import Net


@pytest.mark.parametrize(
    "settings",
    [
        "height: 13 width: 9",
        "height: 3 width: 2",
        "height: 1 width: 1",
        "zoom_factor: 3",
        "shrink_factor: 2",
        "shrink_factor: 3 zoom_factor: 2",
        "full_zoom_factor: 2",
        "height: 11 width: 4 pad_beg: -1 pad_end: -2",
        "zoom_factor: 2 pad_beg: -2",
        "zoom_factor: 2 pad_end: -1",
    ],
)
def test_interp(check_layer, settings):
    check_layer("Interp", f"interp_param {{ {settings} }}", (2, 3, 7, 8))


@pytest.mark.parametrize("size", [(1, 1), (1, 8), (7, 1)])
@pytest.mark.parametrize("pad", ["", "pad_beg: -2 pad_end: -1"])
def test_interp_of_one_cell(check_layer, size, pad):
    """OpenCV's Resize reads behind it, and what it reads shows in some runs only: MALLOC_PERTURB_=85 helps."""
    size = [cells + 3 * bool(pad) for cells in size]
    check_layer("Interp", f"interp_param {{ height: 9 width: 8 {pad} }}", (2, 3, *size))


@pytest.mark.parametrize("settings", ["", "use_blob_size: true", "use_blob_size: true pad_beg: -1"])
def test_interp_to_a_bottom(check_layer, settings):
    check_layer("Interp", f"interp_param {{ {settings} }}", (2, 3, 7, 8), (2, 1, 12, 5))


@pytest.mark.parametrize(
    "settings", ["shrink_factor: 2", "zoom_factor: 3 shrink_factor: 2", "full_zoom_factor: 3", "use_blob_size: true"]
)
@pytest.mark.parametrize("pad", ["", "pad_beg: -1 pad_end: -1"])
def test_interp_of_an_open_size(check, inputs_of, settings, pad):
    """The height follows from the batch."""
    second = 'bottom: "p"' if "blob" in settings else ""
    check(
        inputs_of(x=(9, 2))
        + f"""
        layer {{ name: "t" type: "Tile" bottom: "x" top: "t" tile_param {{ axis: 1 tiles: 5 }} }}
        layer {{ name: "r" type: "Reshape" bottom: "t" top: "r" reshape_param {{ shape {{ dim: 1 dim: 1 }} axis: 0
            num_axes: 0 }} }}
        layer {{ name: "p" type: "Permute" bottom: "r" top: "p" permute_param {{ order: [0, 1, 3, 2] }} }}
        layer {{ name: "i" type: "Interp" bottom: "r" {second} top: "y" interp_param {{ {settings} {pad} }} }}"""
    )


@pytest.mark.parametrize(
    ("settings", "size"),
    [("scale: 2", (4, 5)), ("", (4, 5)), ("scale_h: 3 scale_w: 1", (17, 9)), ("stride: 7", (21, 19)),
     ("stride_h: 5 stride_w: 3", (33, 31))],
)  # fmt: skip
def test_upsample(check_layer, settings, size):
    check_layer("Upsample", f"upsample_param {{ {settings} }}", (2, 3, *size))


@pytest.mark.parametrize(
    ("settings", "cells"),
    [("scale: 2", 80), ("scale: 2 pad_out_h: true", 70), ("upsample_h: 9 upsample_w: 8", 72),
     ("stride_h: 2 stride_w: 3", 120)],
)  # fmt: skip
def test_upsample_by_a_mask(check_layer, settings, cells):
    """Of values for one place the later stays."""
    places = lambda shapes, rng: {"x1": rng.randint(0, cells, shapes["x1"])}  # noqa: E731
    check_layer("Upsample", f"upsample_param {{ {settings} }}", (2, 3, 4, 5), (2, 3, 4, 5), inputs=places)


def test_pooling_and_unpooling_of_segnet(check, inputs_of):
    check(
        inputs_of(x=(2, 3, 6, 8))
        + """
        layer { name: "p" type: "Pooling" bottom: "x" top: "p" top: "m" pooling_param { kernel_size: 2 stride: 2 } }
        layer { name: "u" type: "Upsample" bottom: "p" bottom: "m" top: "u" upsample_param { scale: 2 } }"""
    )


@pytest.mark.parametrize("kind", ["NEAREST", "LINEAR", "CUBIC"])
@pytest.mark.parametrize("size", ["height: 13 width: 20", "height: 3 width: 4", "height: 5 width: 11 antialias: false"])
def test_resample(check_layer, kind, size):
    check_layer("Resample", f"resample_param {{ type: {kind} {size} }}", (2, 3, 7, 9))


def test_resample_to_a_bottom(check_layer):
    check_layer("Resample", "resample_param { type: LINEAR }", (2, 3, 7, 9), (2, 1, 10, 4))


@pytest.mark.parametrize("rule", ["", "align_corners: true", "half_pixel_centers: true"])
@pytest.mark.parametrize("size", ["output_height: 11 output_width: 5", "output_height: 1 scale_width: 1.7"])
@pytest.mark.parametrize("order", ["data_format: 'NCHW'", ""])
def test_resize_bilinear(check_layer, rule, size, order):
    check_layer("ResizeBilinear", f"resize_bilinear_param {{ {rule} {size} {order} }}", (2, 6, 7, 4))


@pytest.mark.parametrize(
    ("kind", "message", "orders"),
    [("SpaceToDepth", "space_to_depth_param", ["NHWC", "NCHW"]),
     ("DepthToSpace", "depth_to_space_param", ["NHWC", "NCHW", "DCR", "CRD"])],
)  # fmt: skip
def test_blocks(check_layer, kind, message, orders):
    for order in orders:
        check_layer(kind, f"{message} {{ block_size: 2 data_format: '{order}' }}", (2, 8, 4, 12))


@pytest.mark.parametrize("settings", ["stride: 2", "stride: 3", "stride: 2 reverse: true"])
def test_reorg(check_layer, settings):
    check_layer("Reorg", f"reorg_param {{ {settings} }}", (2, 36, 6, 12))


def test_pad(check_layer):
    settings = "pad_param { paddings: [0, 0, 1, 0, 2, 3, 0, 1] constant_values: -1.5 }"
    check_layer("Pad", settings, (2, 3, 4, 5))
    check_layer("Pad", "pad_param { paddings: [1, 2, 0, 3] }", (2, 3))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("type: 'Reorg' reorg_param { stride: 2 }", "mixes the cells"),
        ("type: 'Resample' resample_param { height: 4 width: 4 }", "constants for each size"),
        ("type: 'ResizeBilinear' resize_bilinear_param { scale_height: 2 }", "scales images of an open size"),
        ("type: 'Upsample' bottom: 'r'", "of open size"),
    ],
)
def test_images_of_open_size_are_refused(inputs_of, layer, message):
    reshape = "reshape_param { shape { dim: 1 dim: 4 dim: -1 dim: 2 } }"
    text = f"""{inputs_of(x=(4, 4))}
        layer {{ name: "r" type: "Reshape" bottom: "x" top: "r" {reshape} }}
        layer {{ name: "it" bottom: "r" top: "y" {layer} }}"""
    with pytest.raises(WeightsError, match=f"layer 'it': .*{message}"):
        to_onnx(Net(prototxt.parse_net(text), "TEST"))
