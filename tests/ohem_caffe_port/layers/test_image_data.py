import cv2
import numpy as np
import pytest
import torch

from ohem_caffe_port.errors import PortError

IMAGES = [np.random.RandomState(i).randint(0, 256, (6, 8, 3)).astype(np.uint8) for i in range(5)]


@pytest.fixture
def image_list(tmp_path):
    """``image_list(names)``: the list of these images, labels counting from 10."""

    def write(names=("a.png", "b.png", "c d.png", "e.png", "f.png")):
        for name, image in zip(names, IMAGES, strict=False):
            cv2.imwrite(str(tmp_path / name), image)
        lines = [f"{name} {10 + i}" for i, name in enumerate(names)]
        (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def layer(folder, settings="", transform="", batch=2):
    where = f'source: "{folder}/list.txt" root_folder: "{folder}/"'
    return f"""layer {{ name: "in" type: "ImageData" top: "data" top: "label" transform_param {{ {transform} }}
               image_data_param {{ {where} batch_size: {batch} {settings} }} }}"""


def blob(image):
    return image.transpose(2, 0, 1).astype(np.float32)


def test_batches_run_round_the_list(build, image_list):
    net = build(layer(image_list()))
    assert net.shapes == [(2, 3, 6, 8), (2,)]
    for expected in ([0, 1], [2, 3], [4, 0]):
        net()
        np.testing.assert_array_equal(net.blobs["data"], [blob(IMAGES[i]) for i in expected])
        assert net.blobs["label"].tolist() == [10 + i for i in expected]


def test_resized_grey_and_transformed(build, image_list):
    folder = image_list(["a.png"])
    net = build(layer(folder, "new_height: 5 new_width: 7 is_color: false", "scale: 0.5 mean_value: 3", batch=1))
    grey = cv2.resize(cv2.imread(str(folder / "a.png"), cv2.IMREAD_GRAYSCALE), (7, 5))
    np.testing.assert_array_equal(net()["data"][0, 0], (grey.astype(np.float32) - 3) * np.float32(0.5))


def test_shuffle_gives_a_new_order_in_each_pass(build, image_list):
    text = layer(image_list(), "shuffle: true", batch=5)

    def passes(seed):
        torch.manual_seed(seed)
        net = build(text)
        return [net()["label"].int().tolist() for _ in range(6)]

    assert all(sorted(labels) == [10, 11, 12, 13, 14] for labels in passes(0))
    assert len({tuple(labels) for labels in passes(0)}) > 3
    assert passes(0) == passes(0) != passes(1)


def test_shuffled_passes_meet_inside_a_batch(build, image_list):
    net = build(layer(image_list(), "shuffle: true", batch=3))
    labels = torch.cat([net()["label"] for _ in range(5)]).int().tolist()
    assert all(sorted(labels[i : i + 5]) == [10, 11, 12, 13, 14] for i in (0, 5, 10))


def test_rand_skip(build, image_list):
    text, starts = layer(image_list(), "rand_skip: 3"), set()
    for seed in range(40):
        torch.manual_seed(seed)
        starts.add(int(build(text)()["label"][0]))
    assert starts == {10, 11, 12}


def test_shapes_may_change_between_batches(build, image_list):
    folder = image_list(["a.png", "b.png"])
    cv2.imwrite(str(folder / "b.png"), IMAGES[1][:4])
    net = build(layer(folder, batch=1))
    assert [tuple(net()["data"].shape) for _ in range(3)] == [(1, 3, 6, 8), (1, 3, 4, 8), (1, 3, 6, 8)]
    with pytest.raises(PortError, match=r"list.txt:2 has shape \(3, 4, 8\), the first of its batch") as caught:
        build(layer(folder))()
    assert caught.value.layer == "in"


@pytest.mark.parametrize(
    ("lines", "settings", "field", "message"),
    [
        ("", "", "source", "is empty"),
        ("\n \n", "", "source", "is empty"),
        ("a.png 1\na.png\n", "", "source", "list.txt:2: 'a.png' does not end with a label"),
        ("a.png 0.5\n", "", "source", "list.txt:1: 'a.png 0.5' does not end with a label"),
        ("a.png 1\nno.png 2\n", "", "source", "list.txt:2: .*no.png: cannot read the image: No such file"),
        ("list.txt 2\n", "", "source", "list.txt:1: .*not an image"),
        ("a.png 1\n", "new_height: 3", "new_height", "go together"),
        ("a.png 1\n", "rand_skip: 1000", "rand_skip", "the list has 1"),
        ("a.png 1\n", "short_side: 3", "short_side", "not supported"),
    ],
)
def test_what_makes_no_sense(build, image_list, lines, settings, field, message):
    folder = image_list(["a.png"])
    (folder / "list.txt").write_text(lines)
    torch.manual_seed(0)
    with pytest.raises(PortError, match=message) as caught:
        build(layer(folder, settings))()
    assert (caught.value.layer, caught.value.field) == ("in", f"image_data_param.{field}")


def test_no_list_and_no_batch(build, image_list, tmp_path):
    with pytest.raises(PortError, match="cannot be read: No such file"):
        build(layer(tmp_path / "nowhere"))
    with pytest.raises(PortError, match="must be positive"):
        build(layer(image_list(), batch=0))


def test_windows_line_ends(build, image_list):
    folder = image_list(["a.png"])
    (folder / "list.txt").write_bytes(b"a.png 7\r\n\r\n")
    assert build(layer(folder, batch=1))()["label"].tolist() == [7]
