"""ImageGtData: what a batch shows, seen by pictures whose objects are white on black."""

import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

# (height, width), objects (label, ignore, box)
PICTURES = [
    ((120, 160), [(1, 0, (30, 20, 79, 79))]),
    ((100, 200), [(2, 0, (100, 30, 169, 89))]),
    ((140, 150), [(3, 1, (40, 50, 99, 129))]),
    ((90, 120), []),
]
MAPS = "downsample_rate: 8 field_w: 48 field_h: 48 downsample_rate: 16 field_w: 80 field_h: 80"


@pytest.fixture
def folder(write_windows):
    return write_windows(PICTURES)


def layer(folder, settings="", transform="", tops=4, batch=4, maps=MAPS):
    names = " ".join(f'top: "{name}"' for name in ("data", "small", "large", "boxes")[:tops])
    where = f'source: "{folder}/windows.txt" root_folder: "{folder}/" output_gt_boxes: {str(tops == 4).lower()}'
    return f"""layer {{ name: "in" type: "ImageGtData" {names} transform_param {{ {transform} }}
               image_gt_data_param {{ {where} batch_size: {batch} {maps} {settings} }} }}"""


def white(data):
    """The white part of ``[3, H, W]``: x1, y1, x2, y2 inclusive."""
    rows, columns = (data[0] > 127).any(1).nonzero()[0], (data[0] > 127).any(0).nonzero()[0]
    return [columns[0], rows[0], columns[-1], rows[-1]]


SETTINGS = [
    "",
    "crop_width: 96 crop_height: 96 resize_width: 200 resize_height: 150",
    "resize_width: 300 resize_height: 100 crop_width: 112 crop_height: 64",
    "crop_width: 112 crop_height: 80 do_multiple_scale: true min_scale: 20 max_scale: 90 "
    "min_whaspect: 0.5 max_whaspect: 1.5",
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("mirror", ["", "mirror: true"])
def test_boxes_follow_their_objects(build, folder, settings, mirror):
    torch.manual_seed(0)
    net, sizes = build(layer(folder, settings, mirror)), set()
    for _ in range(6):
        net()
        data, boxes = net.blobs["data"].numpy(), net.blobs["boxes"].flatten(1).numpy()
        assert boxes[:, 5].tolist() == [1, 2, 3] and boxes[:, 6].tolist() == [0, 0, 1]
        for item, *box, _, _ in boxes:
            height, width = data.shape[2:]
            seen = np.clip(box, 0, [width - 1, height - 1] * 2)
            np.testing.assert_allclose(white(data[int(item)]), seen, atol=3.5)
            sizes.add(round(float(box[2] - box[0])))
    if "multiple" in settings:
        assert len(sizes) > 6 and min(sizes) < 30  # of 49, 59 and 69 in the files


def test_maps(build, folder):
    """The largest label in a map is that of the object around; other maps and items know nothing of it."""
    net = build(layer(folder, "resize_width: 160 resize_height: 128"))
    assert [net.shapes[i] for i in range(4)] == [(4, 3, 128, 160), (4, 6, 16, 20), (4, 6, 8, 10), (1, 7, 1, 1)]
    net()
    boxes = net.blobs["boxes"].flatten(1)
    for name, stride in (("small", 8), ("large", 16)):
        truth = net.blobs[name]
        assert not truth[3, :1].any() and not truth[2, :1].any()  # no object; an ignored one
        for item in (0, 1):
            labelled = (truth[item, 0] > 0).nonzero()
            assert truth[item, 0].unique().tolist() in ([0], [0, item + 1])
            for y, x in labelled.tolist():
                x1, y1, x2, y2 = boxes[item, 1:5].tolist()
                wanted = [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1]
                np.testing.assert_allclose(truth[item, 1:5, y, x], wanted, rtol=1e-6)
                assert abs((x + 0.5) * stride - wanted[0]) < 40
    assert (net.blobs["small"][:2, 0] > 0).any() or (net.blobs["large"][:2, 0] > 0).any()


def test_pixels(build, folder):
    net = build(
        layer(folder, "resize_width: 160 resize_height: 120 scale: 0.5", "mean_value: 1 mean_value: 2 mean_value: 3")
    )
    net()
    first = net.blobs["data"][0]
    assert first[:, 50, 50].tolist() == [127, 126.5, 126] and first[:, 0, 0].tolist() == [-0.5, -1, -1.5]


def test_small_ones_and_those_outside_are_ignored(build, folder):
    net = build(layer(folder, "min_gt_width: 60 resize_width: 200 resize_height: 200"))
    net()
    boxes = net.blobs["boxes"].flatten(1)
    widths = boxes[:, 3] - boxes[:, 1] + 1
    assert boxes[:, 6].tolist() == [float(w < 60) or float(i == 2) for i, w in enumerate(widths)]


def test_no_objects_give_one_to_ignore(build, folder):
    (folder / "windows.txt").write_text("# 0 3.png 3 90 120 0 0")
    net = build(layer(folder, batch=1))
    net()
    assert net.blobs["boxes"].flatten().tolist() == [0, 1, 1, 2, 2, 1, 1]


@pytest.mark.parametrize("cache", ["", "cache_images: true"])
def test_order_and_repeats(build, folder, cache):
    """Images with an object to learn stand twice in the list; shuffling changes the order of each pass."""

    def labels(settings):
        net, found = build(layer(folder, f"fg_img_multiple: 2 {cache} {settings}", batch=1)), []
        for _ in range(12):
            net()
            found.append(int(net.blobs["boxes"][0, 5]) + 10 * int(net.blobs["boxes"][0, 3] == 2))
        return found

    assert labels("") == [1, 1, 2, 2, 3, 11] * 2
    torch.manual_seed(1)
    shuffled = labels("shuffle: true")
    assert sorted(shuffled[:6]) == sorted(shuffled[6:]) == [1, 1, 2, 2, 3, 11] and shuffled[:6] != shuffled[6:]
    torch.manual_seed(1)
    assert labels("shuffle: true") == shuffled


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ("coord_num: 5", {}, "4 coordinates"),
        ("crop_width: 999 crop_height: 9", {}, "999 x 9 from 120 x 90"),
        ("", {"tops": 3}, "3 tops; it makes 4"),
        ("", {"maps": "downsample_rate: 8"}, "as many positive ones"),
        ("do_multiple_scale: true min_scale: 9 max_scale: 8", {}, "9 to 8 is no range"),
        ("", {"batch": 0}, "must be positive"),
    ],
)
def test_bad_settings(build, folder, settings, options, message):
    text = layer(folder, settings, **options)
    if options.get("tops"):
        text = text.replace("output_gt_boxes: false", "output_gt_boxes: true")
    with pytest.raises(PortError, match=message) as caught:
        build(text)
    assert caught.value.layer == "in"


def test_a_missing_image(build, folder):
    (folder / "1.png").unlink()
    net = build(layer(folder))
    with pytest.raises(PortError, match=r"1.png.*cannot read the image") as caught:
        net()
    assert caught.value.layer == "in"


def test_a_bad_file(build, folder):
    (folder / "windows.txt").write_text("# 0 a.png 3 9 9 1 1 0 1 2\n3 x")
    with pytest.raises(PortError, match=r"windows.txt:2: 'x' should be a whole number") as caught:
        build(layer(folder))
    assert (caught.value.layer, caught.value.field) == ("in", "image_gt_data_param.source")
