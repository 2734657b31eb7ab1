import cv2
import numpy as np
import pytest

from ohem_caffe_port.errors import PortError


@pytest.fixture
def video(tmp_path):
    """A video of 6 grey frames: 0, 40, 80..."""
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 16))
    for i in range(6):
        writer.write(np.full((16, 32, 3), 40 * i, np.uint8))
    writer.release()
    if not path.is_file() or not cv2.VideoCapture(str(path)).isOpened():
        pytest.skip("this OpenCV neither writes nor reads videos")
    return path


def layer(path, settings="", tops=2, batch=2, transform=""):
    names = "".join(f'top: "{name}" ' for name in ("data", "label")[:tops])
    return f"""layer {{ name: "in" type: "VideoData" {names} data_param {{ batch_size: {batch} }}
               transform_param {{ {transform} }}
               video_data_param {{ video_type: VIDEO video_file: "{path}" {settings} }} }}"""


def test_frames_in_order_to_the_end(build, video):
    net = build(layer(video, transform="mean_value: 40"))
    assert net.shapes == [(2, 3, 16, 32), (2,)]
    for first in (0, 2, 4):
        net()
        found = net.blobs["data"].numpy().mean(axis=(1, 2, 3))
        np.testing.assert_allclose(found, [40 * first - 40, 40 * first], atol=2)
        assert net.blobs["label"].tolist() == [0, 0]
    with pytest.raises(PortError, match="no more frames") as caught:
        net()
    assert (caught.value.layer, caught.value.field) == ("in", "video_data_param.video_file")


def test_skipped_frames(build, video):
    net = build(layer(video, "skip_frames: 1", tops=1, batch=3))
    np.testing.assert_allclose(net()["data"].numpy().mean(axis=(1, 2, 3)), [40, 120, 200], atol=2)


@pytest.mark.parametrize(
    ("change", "field", "message"),
    [
        (('video_file: "', 'video_file: "/nowhere'), "video_file", "there is no file"),
        (("VIDEO video_file", "VIDEO source: 'list.txt' video_file"), "source", "not supported"),
    ],
)
def test_what_makes_no_sense(build, tmp_path, change, field, message):
    with pytest.raises(PortError, match=message) as caught:
        build(layer(tmp_path / "video.avi").replace(*change))
    assert (caught.value.layer, caught.value.field) == ("in", f"video_data_param.{field}")


def test_a_file_that_is_no_video(build, tmp_path):
    (tmp_path / "video.avi").write_bytes(b"no video" * 100)
    with pytest.raises(PortError, match="cannot be opened as a video|no more frames"):
        build(layer(tmp_path / "video.avi"))
