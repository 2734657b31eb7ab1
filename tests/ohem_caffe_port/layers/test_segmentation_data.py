import cv2
import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

IMAGE = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
MAP = np.random.RandomState(1).randint(0, 256, (6, 8)).astype(np.uint8)

HED, SEG = "ImageLabelmapData", "ImageSegData"


@pytest.fixture
def folder(tmp_path):
    cv2.imwrite(str(tmp_path / "image.png"), IMAGE)
    cv2.imwrite(str(tmp_path / "map.png"), MAP)
    cv2.imwrite(str(tmp_path / "small.png"), MAP[:5])
    (tmp_path / "list.txt").write_text("image.png map.png\n")
    return tmp_path


def layer(kind, folder, settings="", transform=""):
    tops = 'top: "data" top: "label"' + (' top: "size"' if kind == "ImageSegData" else "")
    return f"""layer {{ name: "in" type: "{kind}" {tops} transform_param {{ {transform} }}
               image_data_param {{ source: "{folder}/list.txt" root_folder: "{folder}/" {settings} }} }}"""


def places(blob, crop):
    """Where in the image, and whether mirrored, a crop of its first channel comes from."""
    size, found = crop.shape, []
    for y, x in np.ndindex(blob.shape[0] - size[0] + 1, blob.shape[1] - size[1] + 1):
        part = blob[y : y + size[0], x : x + size[1]]
        found += [(y, x, m) for m in (False, True) if np.array_equal(part[:, ::-1] if m else part, crop)]
    return found


# ---- HED


def test_edges_are_above_the_middle(build, folder):
    net = build(layer("ImageLabelmapData", folder, transform="mean_value: 100"))
    assert net.shapes == [(1, 3, 6, 8), (1, 1, 6, 8)]
    net()
    np.testing.assert_array_equal(net.blobs["data"][0], IMAGE.transpose(2, 0, 1).astype(np.float32) - 100)
    np.testing.assert_array_equal(net.blobs["label"][0, 0], np.rint(MAP / 255))


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_edges_go_with_their_image(build, folder, phase):
    net, seen = build(layer("ImageLabelmapData", folder, transform="mirror: true crop_size: 4"), phase), set()
    for _ in range(60):
        net()
        ((y, x, mirrored),) = places(IMAGE[:, :, 0], net.blobs["data"][0, 0].numpy())
        expected = np.rint(MAP / 255)[y : y + 4, x : x + 4]
        np.testing.assert_array_equal(net.blobs["label"][0, 0], expected[:, ::-1] if mirrored else expected)
        seen.add((y, x, mirrored))
    assert len(seen) > 15  # of 3 x 5 x 2


def test_edges_are_resized_with_their_image(build, folder):
    net = build(layer("ImageLabelmapData", folder, "new_height: 3 new_width: 4"))
    net()
    np.testing.assert_array_equal(net.blobs["data"][0], cv2.resize(IMAGE, (4, 3)).transpose(2, 0, 1))
    np.testing.assert_array_equal(net.blobs["label"][0, 0], np.rint(cv2.resize(MAP, (4, 3)) / 255))


# ---- PSPNet


@pytest.mark.parametrize(("kind", "value"), [("PIXEL", None), ("IMAGE", 5), ("NONE", 255)])
def test_where_the_classes_come_from(build, folder, kind, value):
    (folder / "list.txt").write_text({"PIXEL": "image.png map.png", "IMAGE": "image.png 5", "NONE": "image.png"}[kind])
    net = build(layer("ImageSegData", folder, f"label_type: {kind}", "scale: 0.5"))
    assert net.shapes == [(1, 3, 6, 8), (1, 1, 6, 8), (1, 1, 1, 2)]
    net()
    np.testing.assert_array_equal(net.blobs["data"][0], IMAGE.transpose(2, 0, 1) * np.float32(0.5))
    np.testing.assert_array_equal(net.blobs["label"][0, 0], MAP if value is None else np.full((6, 8), value))
    assert net.blobs["size"].tolist() == [[[[6, 8]]]]


@pytest.mark.parametrize("crop", ["crop_size: 7", "crop_height: 7 crop_width: 7"])
def test_what_is_too_small_is_padded(build, folder, crop):
    net = build(layer("ImageSegData", folder, "label_type: PIXEL ignore_label: 9", f"{crop} mean_value: 104.5"), "TEST")
    assert net.shapes == [(1, 3, 7, 7), (1, 1, 7, 7), (1, 1, 1, 2)]
    net()
    expected = np.zeros((3, 7, 7), np.float32)
    expected[:, :6] = IMAGE[:, :7].transpose(2, 0, 1) - np.float32(104.5)
    np.testing.assert_array_equal(net.blobs["data"][0], expected)
    np.testing.assert_array_equal(net.blobs["label"][0, 0, :6], MAP[:, :7])
    assert (net.blobs["label"][0, 0, 6] == 9).all()
    assert net.blobs["size"].flatten().tolist() == [6, 7]


def test_scale_factors_crop_and_mirror(build, folder):
    transform = "scale_factors: 1 scale_factors: 1.5 crop_size: 5 mirror: true"
    net, seen = build(layer("ImageSegData", folder, "label_type: PIXEL", transform)), set()
    large = cv2.resize(IMAGE, (12, 9)), cv2.resize(MAP, (12, 9), interpolation=cv2.INTER_NEAREST)
    for _ in range(40):
        net()
        crop = net.blobs["data"][0, 0].numpy()
        for factor, (image, classes) in ((1, (IMAGE, MAP)), (1.5, large)):
            for y, x, mirrored in places(image[:, :, 0], crop):
                expected = classes[y : y + 5, x : x + 5]
                np.testing.assert_array_equal(net.blobs["label"][0, 0], expected[:, ::-1] if mirrored else expected)
                seen.add((factor, mirrored))
        assert net.blobs["size"].flatten().tolist() == [5, 5]
    assert seen == {(1, False), (1, True), (1.5, False), (1.5, True)}


# ---- yjxiong


def seg_layer(folder, settings="", transform=""):
    return f"""layer {{ name: "in" type: "SegData" top: "data" top: "label" transform_param {{ {transform} }}
               seg_data_param {{ source: "{folder}/list.txt" root_dir: "{folder}/" {settings} }} }}"""


def test_images_are_cut_to_the_stride(build, folder):
    net, seen = build(seg_layer(folder, transform="stride: 5 mirror: true mean_value: 4 scale: 0.5"), "TEST"), set()
    assert net.shapes == [(1, 3, 5, 5), (1, 1, 5, 5)]
    for _ in range(400):  # one of 16 places would be missed once in 10 billion runs
        net()
        ((y, x, mirrored),) = places((IMAGE[:, :, 0] - np.float32(4)) / 2, net.blobs["data"][0, 0].numpy())
        expected = MAP[y : y + 5, x : x + 5]
        np.testing.assert_array_equal(net.blobs["label"][0, 0], expected[:, ::-1] if mirrored else expected)
        seen.add((y, x, mirrored))
    assert len(seen) == 2 * 4 * 2


@pytest.mark.parametrize(
    ("upper", "size"),
    [("upper_size: 3", (3, 3)), ("upper_height: 5 upper_width: 9", (5, 8)), ("upper_height: 9 upper_width: 2", (6, 2))],
)
def test_largest_cuts(build, folder, upper, size):
    net = build(seg_layer(folder, transform=f"stride: 2 {upper}"))
    assert net.shapes == [(1, 3, *size), (1, 1, *size)]
    net()
    assert net.blobs["data"].shape[2:] == size


def test_random_scales(build, folder):
    net, seen = build(seg_layer(folder, transform="scale_ratios: 0.5 scale_ratios: 1.5")), set()
    for _ in range(60):
        net()
        size = net.blobs["data"].shape[:1:-1]
        seen.add(size)
        np.testing.assert_array_equal(net.blobs["data"][0].numpy().transpose(1, 2, 0), cv2.resize(IMAGE, size))
        expected = cv2.resize(MAP, size, interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(net.blobs["label"][0, 0], expected)
    widths = {width for width, _ in seen}
    assert min(widths) <= 5
    assert max(widths) >= 11


def test_balanced_cuts(build, folder):
    classes = np.full((6, 8), 7, np.uint8)
    classes[:, 6:] = 1
    cv2.imwrite(str(folder / "map.png"), classes)
    counts = {}
    for balance in ("true", "false"):
        net = build(seg_layer(folder, f"balance: {balance}", "stride: 1 upper_size: 4"))
        counts[balance] = []
        for _ in range(30):
            net()
            counts[balance].append((net.blobs["label"] == 1).float().mean().item())
    assert min(counts["true"]) >= 0.25
    assert min(counts["false"]) == 0


def test_the_same_order_in_every_run(build, folder):
    for i in range(8):
        cv2.imwrite(str(folder / f"{i}.png"), np.full((6, 8, 3), i, np.uint8))
    (folder / "list.txt").write_text("".join(f"{i}.png map.png\n" for i in range(8)))
    orders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = build(seg_layer(folder, "shuffle: true"))
        orders.append([int(net()["data"].max()) for _ in range(16)])
    assert orders[0] == orders[1] != sorted(orders[0])
    assert sorted(orders[0][:8]) == sorted(orders[0][8:]) == list(range(8))
    assert orders[0][:8] != orders[0][8:]


@pytest.mark.parametrize(
    ("lines", "transform", "field", "message"),
    [
        ("image.png map.png", "scale_ratios: 1", "transform_param.scale_ratios", "two are needed"),
        ("image.png map.png", "scale_ratios: 2 scale_ratios: 1", "transform_param.scale_ratios", "two are needed"),
        ("image.png map.png", "stride: 0", "transform_param.stride", "positive"),
        ("image.png map.png", "stride: 7", "transform_param.stride", "6 x 8 is smaller than it"),
        ("image.png map.png", "upper_height: 4", "transform_param.upper_height", "go together"),
        ("image.png map.png", "mean_value: 1 mean_value: 2", "transform_param.mean_value", "2 values for 3 channels"),
        ("image.png map.png", 'mean_file: "x"', "transform_param.mean_file", "not supported"),
        ("image.png map.png", "crop_size: 4", "transform_param.crop_size", "not supported"),
        ("image.png small.png", "", "seg_data_param.source", r"the map is \(5, 8\), its image"),
        ("image.png", "", "seg_data_param.source", "is not two words"),
        ("image.png none.png", "", "seg_data_param.source", "cannot read the image"),
    ],
)
def test_what_makes_no_sense_to_it(build, folder, lines, transform, field, message):
    (folder / "list.txt").write_text(lines)
    with pytest.raises(PortError, match=message) as caught:
        build(seg_layer(folder, transform=transform))()
    assert (caught.value.layer, caught.value.field) == ("in", field)


# ---- errors of the other two


@pytest.mark.parametrize(
    ("kind", "lines", "settings", "transform", "field", "message"),
    [
        (HED, "image.png\n", "", "", "image_data_param.source", "list.txt:1: 'image.png' is not two words"),
        (HED, "image.png small.png", "", "", "image_data_param.source", r"the map is \(5, 8\), its image"),
        (HED, "image.png no.png", "", "", "image_data_param.source", "cannot read the image"),
        (SEG, "image.png small.png", "label_type: PIXEL", "", "image_data_param.source", r"the map is \(5, 8\)"),
        (SEG, "image.png map.png", "", "", "image_data_param.source", "'map.png' is no class of 0 to 255"),
        (SEG, "image.png 256", "", "", "image_data_param.source", "'256' is no class"),
        (SEG, "image.png 1", "", "scale_factors: 2", "transform_param.scale_factors", "needs a crop"),
        (SEG, "image.png 1", "", "crop_size: 9", "transform_param.mean_value", "needed to pad"),
        (SEG, "image.png 1", "", 'mean_file: "x"', "transform_param.mean_file", "not supported"),
        (SEG, "image.png 1", "", "crop_size: 2 crop_height: 2", "transform_param.crop_size", "together"),
        (SEG, "image.png 1", "", "crop_height: 2", "transform_param", "a height or a width"),
    ],
)
def test_what_makes_no_sense(build, folder, kind, lines, settings, transform, field, message):
    (folder / "list.txt").write_text(lines)
    torch.manual_seed(0)
    with pytest.raises(PortError, match=message) as caught:
        build(layer(kind, folder, settings, transform))()
    assert (caught.value.layer, caught.value.field) == ("in", field)
