import random

import cv2
import numpy as np
import pytest

from ohem_caffe_port.errors import PortError

HEIGHT, WIDTH, COUNT = 250, 330, 20


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("lrcn"), np.random.RandomState(0)
    for v in range(4):
        (folder / f"frames/v_{v}").mkdir(parents=True)
        for i in range(1, COUNT + 1):
            pixels = cv2.resize(rng.randint(0, 256, (8, 8, 3)).astype(np.uint8), (WIDTH, HEIGHT))
            assert cv2.imwrite(str(folder / f"frames/v_{v}/image.{i:04d}.jpg"), pixels)
    (folder / "list.txt").write_text("".join(f"Some/v_{v} {v + 5}\n" for v in range(4)))
    return folder


def layer(folder, kind="videoReadTest_RGB", more="", tops=3):
    names = "".join(f'top: "{name}" ' for name in ("data", "label", "clip_markers")[:tops])
    settings = f"{{video_list: {folder}/list.txt, frames: {folder}/frames/ {more}}}"
    python = f'python_param {{ module: "sequence_input_layer" layer: "{kind}" param_str: "{settings}" }}'
    return f'layer {{ name: "data" type: "Python" {names} {python} }}'


def expected_clips(folder, stream, first, mean, flow):
    """One after the other, with the numbers of Python 2's ``random``."""
    clips = []
    for k in range(3):
        y, x = int(stream.random() * 13), int(stream.random() * 93)
        mirrored, start = int(stream.random() * 2), int(stream.random() * (COUNT - 16) + 2)
        clip = []
        for i in range(start, start + 16):
            image = cv2.imread(str(folder / f"frames/v_{(first + k) % 4}/image.{i:04d}.jpg")).astype(np.float32)
            if mirrored:
                image = image[:, ::-1].copy()
                if flow:
                    image[..., 2] = 255 - image[..., 2]
                image = image[y : y + 227, x : x + 227]
            else:
                image = cv2.resize(image, (227, 227))
            clip.append((image - mean).transpose(2, 0, 1))
        clips.append(clip)
    return np.array(clips)


@pytest.mark.parametrize(
    ("kind", "mean", "flow"),
    [("videoReadTest_RGB", (103.939, 116.779, 128.68), False), ("videoReadTest_flow", (128, 128, 128), True)],
)
def test_clips_frame_by_frame(build, videos, kind, mean, flow):
    net = build(layer(videos, kind))
    assert net.shapes == [(48, 3, 227, 227), (48,), (48,)]
    stream = random.Random(10)
    for first in (0, 3):
        net()
        expected = expected_clips(videos, stream, first, mean, flow)
        data = net.blobs["data"].numpy().reshape(16, 3, 3, 227, 227)
        np.testing.assert_allclose(data.swapaxes(0, 1), expected, atol=1e-3)
        assert net.blobs["label"].tolist() == [(first + k) % 4 + 5 for k in range(3)] * 16
        assert net.blobs["clip_markers"].tolist() == [0] * 3 + [1] * 45


def test_sizes_of_training_batches(build, videos):
    assert build(layer(videos, "videoReadTrain_RGB")).shapes == [(384, 3, 227, 227), (384,), (384,)]
    assert build(layer(videos, "videoReadTrain_flow")).shapes[1:] == [(384,), (384,)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("", "is empty"),
        ("v_0 3", "list.txt:1: 'v_0 3' is not"),
        ("Some/v_0 x", "is not '<class>/<video> <label>'"),
        ("Some/v_9 3", "0 frames in '.*v_9'; a clip needs 17"),
    ],
)
def test_lists_that_make_no_sense(build, videos, tmp_path, lines, message):
    (tmp_path / "list.txt").write_text(lines)
    text = layer(videos).replace(f"video_list: {videos}", f"video_list: {tmp_path}")
    with pytest.raises(PortError, match=message) as caught:
        build(text)
    assert (caught.value.layer, caught.value.field) == ("data", "python_param.param_str")


def test_other_settings(build, videos):
    with pytest.raises(PortError, match="'speed'.* is not known"):
        build(layer(videos, more=", speed: 2"))
    with pytest.raises(PortError, match="takes 3 tops"):
        build(layer(videos, tops=2))
    with pytest.raises(PortError, match="ucf101_split1_testVideos.txt' cannot be read"):
        build(layer(videos).replace(f"video_list: {videos}/list.txt,", ""))
