"""FCN's data layers on data sets of a few pixels, in the folders that the real ones have."""

import random

import cv2
import numpy as np
import pytest
import scipy.io

from ohem_caffe_port.errors import PortError

NAMES = ["a", "b", "c", "d", "e"]
MEAN = (104.00699, 116.66877, 122.67892)
SCENES = "spatial_envelope_256x256_static_8outdoorcategories"
RNG = np.random.RandomState(0)
SIZES = [(4 + i, 6 + 2 * i) for i in range(len(NAMES))]
IMAGES = [np.full((h, w, 3), (40 * i, 100, 20), np.uint8) for i, (h, w) in enumerate(SIZES)]  # JPEG keeps one colour
MAPS = [RNG.randint(0, 34, size).astype(np.uint8) for size in SIZES]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, dict):
        scipy.io.savemat(path, content)
    else:
        assert cv2.imwrite(str(path), content)


@pytest.fixture
def folder(tmp_path):
    """All data sets at once; every split lists all images."""
    lists = ("voc/VOC2011/ImageSets/Segmentation", "sbdd", "nyud", "sift", "voc/VOC2010/ImageSets/Main")
    for where in lists:
        for split in ("train", "val"):
            write(tmp_path / where / f"{split}.txt", "\n".join(NAMES) + "\n")
    for name, image, classes in zip(NAMES, IMAGES, MAPS, strict=True):
        for where in ("voc/VOC2011/JPEGImages", "voc/VOC2010/JPEGImages", "sbdd/img", f"sift/Images/{SCENES}"):
            write(tmp_path / where / f"{name}.jpg", image)
        for kind in ("images", "hha"):
            write(tmp_path / f"nyud/data/{kind}/img_{name}.png", image)
        write(tmp_path / f"nyud/data/depth/img_{name}.png", (classes + 1).astype(np.uint16) * 1000)
        write(tmp_path / f"nyud/segmentation/img_{name}.mat", {"segmentation": classes})
        write(tmp_path / f"voc/VOC2011/SegmentationClass/{name}.png", classes)
        write(tmp_path / f"sbdd/cls/{name}.mat", {"GTcls": {"Segmentation": classes, "Boundaries": {}}})
        write(tmp_path / f"sift/SemanticLabels/{SCENES}/{name}.mat", {"S": classes})
        write(tmp_path / f"sift/GeoLabels/{SCENES}/{name}.mat", {"S": classes.astype(np.int16) % 5 - 1})
        write(tmp_path / f"context/trainval/{name}.mat", {"LabelMap": classes.astype(np.uint16)})
    write(tmp_path / "context/labels.txt", "".join(f"{i}: kind {i}\n" for i in range(1, 20)) + "20: table\n")
    write(tmp_path / "context/59_labels.txt", "1: kind 7\n2: diningtable\n3: kind 1\n")
    return tmp_path


@pytest.fixture
def data(build, folder):
    """``data("voc_layers", "VOCSegDataLayer", {...}, tops=2)``: a net of one of the layers."""

    def make(module, layer, settings, tops=2, **options):
        names = "".join(f'top: "t{i}" ' for i in range(tops))
        text = str(settings).replace("FOLDER", str(folder)).replace("'", "\\'")
        python = f'python_param {{ module: "{module}" layer: "{layer}" param_str: "{text}" }}'
        return build(f'layer {{ name: "data" type: "Python" {names} {python} }}', **options)

    return make


VOC = {"voc_dir": "FOLDER/voc/VOC2011", "split": "val", "mean": MEAN}
LAYERS = {
    "VOCSegDataLayer": ("voc_layers", VOC),
    "SBDDSegDataLayer": ("voc_layers", {"sbdd_dir": "FOLDER/sbdd", "split": "val", "mean": MEAN}),
    "NYUDSegDataLayer": ("nyud_layers", {"nyud_dir": "FOLDER/nyud", "split": "val", "tops": ["color", "label"]}),
    "SIFTFlowSegDataLayer": ("siftflow_layers", {"siftflow_dir": "FOLDER/sift", "split": "val"}),
    "PASCALContextSegDataLayer": (
        "pascalcontext_layers",
        {"voc_dir": "FOLDER/voc", "context_dir": "FOLDER/context", "split": "val"},
    ),
}
MEANS = dict.fromkeys(("VOCSegDataLayer", "SBDDSegDataLayer"), MEAN) | {
    "NYUDSegDataLayer": (116.190, 97.203, 92.318), "SIFTFlowSegDataLayer": (114.578, 115.294, 108.353),
    "PASCALContextSegDataLayer": (104.007, 116.669, 122.679),
}  # fmt: skip
CONTEXT = np.array([0, 3, 0, 0, 0, 0, 0, 1, *[0] * 12, 2, *[0] * 13])  # of classes 0 to 33
LABELS = {
    "VOCSegDataLayer": lambda m: m,
    "SBDDSegDataLayer": lambda m: m,
    "NYUDSegDataLayer": lambda m: np.where(m == 0, 255, m - 1.0),
    "SIFTFlowSegDataLayer": lambda m: np.where(m == 0, 255, m - 1.0),
    "PASCALContextSegDataLayer": lambda m: CONTEXT[m],
}


@pytest.mark.parametrize("layer", LAYERS)
def test_images_and_labels_in_the_order_of_the_list(data, layer):
    tops = 3 if layer == "SIFTFlowSegDataLayer" else 2
    net = data(LAYERS[layer][0], layer, LAYERS[layer][1], tops)
    assert net.shapes[:2] == [(1, 3, 4, 6), (1, 1, 4, 6)]
    for i in [*range(len(NAMES)), 0]:
        net()
        image = net.blobs["t0"][0].numpy().transpose(1, 2, 0)
        np.testing.assert_allclose(image, IMAGES[i] - np.array(MEANS[layer]), atol=2)  # JPEG
        np.testing.assert_array_equal(net.blobs["t1"][0, 0], LABELS[layer](MAPS[i]))
        if tops == 3:
            np.testing.assert_array_equal(net.blobs["t2"][0, 0], np.array([255, 255, 0, 1, 2])[MAPS[i] % 5])


def test_depth_and_hha(data):
    net = data("nyud_layers", "NYUDSegDataLayer", LAYERS["NYUDSegDataLayer"][1] | {"tops": ["depth", "hha"]})
    net()
    np.testing.assert_allclose(net.blobs["t0"][0, 0], np.log((MAPS[0] + 1) * 1000.0) - 7.844, atol=1e-5)
    np.testing.assert_allclose(net.blobs["t1"][0, :, 0, 0], np.array([20, 100, 0]) - [132.431, 94.076, 118.477], 1e-5)


def order(net, count=40):
    heights = []
    for _ in range(count):
        net()
        heights.append(net.blobs["t0"].shape[2] - 4)
    return heights


def test_a_seed_gives_the_order_of_the_original(data):
    """Python 2's ``random.seed(1337)`` and ``random.randint(0, 4)``, which takes the whole part of ``random() * 5``."""
    stream = random.Random(1337)
    net = data("voc_layers", "VOCSegDataLayer", VOC | {"split": "train", "seed": 1337})
    assert order(net) == [int(stream.random() * 5) for _ in range(40)]


def test_orders_without_a_seed(data):
    train = VOC | {"split": "train"}
    first, again = (order(data("voc_layers", "VOCSegDataLayer", train)) for _ in range(2))
    other = order(data("voc_layers", "VOCSegDataLayer", train, rng=np.random.RandomState(1)))
    assert first == again != other
    assert set(first) == {0, 1, 2, 3, 4}
    assert order(data("voc_layers", "VOCSegDataLayer", train | {"randomize": False}), 6) == [0, 1, 2, 3, 4, 0]


def test_unread_settings_are_noted(data):
    assert data("voc_layers", "VOCSegDataLayer", VOC | {"batch": 2}).warnings == [
        "layer 'data': python_param.param_str: 'batch' is not read"
    ]


@pytest.mark.parametrize(
    ("change", "tops", "field", "message"),
    [
        ({"voc_dir": "/nowhere"}, 2, "python_param.param_str", "image set not found"),
        ({"split": "other"}, 2, "python_param.param_str", "image set not found"),
        ({"voc_dir": 3}, 2, "python_param.param_str", "'voc_dir' must be of type str"),
        ({"mean": (1, 2)}, 2, "python_param.param_str", "'mean' must be three numbers"),
        ({"seed": "x", "split": "train"}, 2, "python_param.param_str", "'seed' must be of type int"),
        ({}, 3, "top", "3 given; they are data, label"),
    ],
)
def test_what_makes_no_sense(data, change, tops, field, message):
    with pytest.raises(PortError, match=message) as caught:
        data("voc_layers", "VOCSegDataLayer", VOC | change, tops)
    assert (caught.value.layer, caught.value.field) == ("data", field)


@pytest.mark.parametrize("text", ["__import__(1)", "dict(a=1)", "[1]", "", "{", "(" * 300])
def test_param_str_is_literals_only(data, text):
    with pytest.raises(PortError, match="expected a dict of Python literals"):
        data("voc_layers", "VOCSegDataLayer", text)


def test_names_of_tops(data):
    settings = LAYERS["NYUDSegDataLayer"][1]
    with pytest.raises(PortError, match="'smell'.* is none of color, depth"):
        data("nyud_layers", "NYUDSegDataLayer", settings | {"tops": ["smell", "label"]})


def test_broken_files_are_named(data, folder):
    (folder / f"sift/GeoLabels/{SCENES}/b.mat").write_bytes(b"nothing")
    (folder / "sbdd/cls/b.mat").unlink()
    for layer, tops in (("SIFTFlowSegDataLayer", 3), ("SBDDSegDataLayer", 2)):
        net = data(LAYERS[layer][0], layer, LAYERS[layer][1], tops)
        net()
        with pytest.raises(PortError, match=r"image 'b': .*b\.mat") as caught:
            net()
        assert caught.value.layer == "data"
    write(folder / "context/59_labels.txt", "1: nonsense\n")
    with pytest.raises(PortError, match="not among the classes of labels.txt: nonsense"):
        data("pascalcontext_layers", "PASCALContextSegDataLayer", LAYERS["PASCALContextSegDataLayer"][1])
    (folder / "context/labels.txt").unlink()
    with pytest.raises(PortError, match=r"labels.txt.* cannot be read"):
        data("pascalcontext_layers", "PASCALContextSegDataLayer", LAYERS["PASCALContextSegDataLayer"][1])
