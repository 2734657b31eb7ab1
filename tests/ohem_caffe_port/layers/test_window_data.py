import cv2
import numpy as np
import pytest
import torch

from converters.binaryproto import write_binaryproto
from ohem_caffe_port.errors import PortError

IMAGES = [np.random.RandomState(i).randint(0, 256, (50, 80, 3)).astype(np.uint8) for i in range(2)]
# class, overlap, box; the windows of image 0, then those of image 1
WINDOWS = [
    [(3, 0.9, (10, 5, 29, 24)), (0, 0.1, (40, 5, 59, 24)), (4, 0.6, (10, 25, 29, 44))],
    [(0, 0.0, (0, 0, 19, 19)), (9, 0.4, (20, 20, 39, 39))],
]


@pytest.fixture
def folder(tmp_path):
    text = ""
    for i, (image, windows) in enumerate(zip(IMAGES, WINDOWS, strict=True)):
        cv2.imwrite(str(tmp_path / f"{i}.png"), image)
        text += f"# {i}\n{i}.png\n3\n50\n80\n{len(windows)}\n"
        text += "".join(f"{label} {overlap} {' '.join(map(str, box))}\n" for label, overlap, box in windows)
    (tmp_path / "windows.txt").write_text(text)
    return tmp_path


def layer(folder, settings="", transform="crop_size: 20", batch=8):
    where = f'source: "{folder}/windows.txt" root_folder: "{folder}/"'
    return f"""layer {{ name: "in" type: "WindowData" top: "data" top: "label" transform_param {{ {transform} }}
               window_data_param {{ {where} batch_size: {batch} bg_threshold: 0.3 {settings} }} }}"""


def crop(image, box):
    x1, y1, x2, y2 = box
    return IMAGES[image][y1 : y2 + 1, x1 : x2 + 1].transpose(2, 0, 1).astype(np.float32)


BACKGROUND = [crop(0, (40, 5, 59, 24)), crop(1, (0, 0, 19, 19))]
FOREGROUND = {3: crop(0, (10, 5, 29, 24)), 4: crop(0, (10, 25, 29, 44))}


@pytest.mark.parametrize("settings", ["", "cache_images: true"])
def test_background_comes_first(build, folder, settings):
    net, labels, places = build(layer(folder, settings)), set(), set()
    assert net.shapes == [(8, 3, 20, 20), (8,)]
    for _ in range(10):
        net()
        data, label = net.blobs["data"].numpy(), net.blobs["label"].tolist()
        assert label[:6] == [0] * 6  # fg_fraction is 0.25 by default
        places |= {next(i for i, b in enumerate(BACKGROUND) if np.array_equal(b, d)) for d in data[:6]}
        for d, kind in zip(data[6:], label[6:], strict=True):
            np.testing.assert_array_equal(d, FOREGROUND[kind])
            labels.add(kind)
    assert labels == {3, 4} and places == {0, 1}


def test_mirror_mean_and_scale(build, folder, tmp_path):
    mean = np.random.RandomState(7).rand(3, 24, 24).astype(np.float32) * 200
    write_binaryproto(tmp_path / "mean.binaryproto", mean)
    transform = f'crop_size: 20 mirror: true mean_file: "{tmp_path / "mean.binaryproto"}"'
    net, seen = build(layer(folder, "fg_fraction: 1 scale: 0.5", transform), "TEST"), set()
    for _ in range(3):
        net()
        for d, kind in zip(net.blobs["data"].numpy(), net.blobs["label"].tolist(), strict=True):
            plain = [FOREGROUND[kind], FOREGROUND[kind][:, :, ::-1]]
            expected = [(image - mean[:, 2:22, 2:22]) * np.float32(0.5) for image in plain]
            seen.add(next(i for i, e in enumerate(expected) if np.array_equal(e, d)))
    assert seen == {0, 1}


def test_what_is_outside_the_image_is_zero_after_the_mean(build, folder):
    # the window at the corner of image 1; see test_windows.py for the numbers: scale 20 / 12
    transform = "crop_size: 20 mean_value: 104 mean_value: 117 mean_value: 123"
    text = (folder / "windows.txt").read_text().replace("40 5 59 24", "0 0 11 11").replace("0 0 19 19", "0 0 11 11")
    (folder / "windows.txt").write_text(text)
    net = build(layer(folder, "fg_fraction: 0 context_pad: 4", transform))
    data = net()["data"].numpy()
    assert not data[:, :, :4].any() and not data[:, :, :, :4].any()
    expected = [cv2.resize(image[:17, :17], (16, 16)).transpose(2, 0, 1) - np.float32([[[104]], [[117]], [[123]]])
                for image in IMAGES]  # fmt: skip
    assert all(any(np.array_equal(d[:, 4:, 4:], e) for e in expected) for d in data)


def test_the_seed_decides(build, folder):
    def run(seed):
        torch.manual_seed(seed)
        net = build(layer(folder, transform="crop_size: 20 mirror: true"))
        return torch.cat([net()["data"] for _ in range(3)])

    assert torch.equal(run(0), run(0)) and not torch.equal(run(0), run(1))


@pytest.mark.parametrize(
    ("old", "new", "field", "message"),
    [
        ("crop_size: 20", "", "transform_param.crop_size", "must be given"),
        ("bg_threshold", "context_pad: 10 bg_threshold", "window_data_param.context_pad", "leaves nothing"),
        ("bg_threshold", 'crop_mode: "round" bg_threshold', "window_data_param.crop_mode", "not 'round'"),
        ("bg_threshold", "fg_fraction: 2 bg_threshold", "window_data_param.fg_fraction", "no fraction"),
        ("bg_threshold", "fg_threshold: 1 bg_threshold", "window_data_param.source", "has no foreground windows"),
        ("bg_threshold: 0.3", "bg_threshold: 0", "window_data_param.source", "has no background windows"),
        ('root_folder: "', 'root_folder: "/nowhere', "window_data_param.source", "cannot read the image: No such file"),
        ('source: "', 'source: "/nowhere', "window_data_param.source", "cannot be read: No such file"),
        ("crop_size", "mean_value: 1 mean_value: 2 crop_size", "transform_param.mean_value", "2 values for 3"),
    ],
)
def test_what_makes_no_sense(build, folder, old, new, field, message):
    with pytest.raises(PortError, match=message) as caught:
        build(layer(folder).replace(old, new, 1))()
    assert (caught.value.layer, caught.value.field) == ("in", field)


@pytest.mark.parametrize("settings", ["", "cache_images: true"])
def test_an_image_that_is_none(build, folder, settings):
    for i in range(2):
        (folder / f"{i}.png").write_bytes(b"no image")
    with pytest.raises(PortError, match="not an image, or damaged"):
        build(layer(folder, settings))()


def test_a_mean_that_is_too_small(build, folder, tmp_path):
    write_binaryproto(tmp_path / "mean.binaryproto", np.zeros((3, 24, 19)))
    with pytest.raises(PortError, match="too small for a crop of 20"):
        build(layer(folder, transform=f'crop_size: 20 mean_file: "{tmp_path / "mean.binaryproto"}"'))


def test_transform_scale_is_noted(build, folder):
    net = build(layer(folder, transform="crop_size: 20 scale: 2"))
    assert any("transform_param.scale has no effect" in note for note in net.warnings)
    assert net()["data"].max() <= 255
