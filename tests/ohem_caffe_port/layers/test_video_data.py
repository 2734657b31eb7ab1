import cv2
import numpy as np
import pytest

from converters.binaryproto import write_binaryproto
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
        (("VIDEO video_file", "VIDEO new_length: 3 video_file"), "new_length", "is not read without"),
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


# ---- lists of images

HEIGHT, WIDTH = 16, 20
COUNTS = (9, 4, 12)  # frames of the three videos
PIXELS = np.random.RandomState(0).randint(0, 256, (3, 13, HEIGHT, WIDTH, 3)).astype(np.uint8)  # by number, from 1


@pytest.fixture
def videos(tmp_path):
    """A list of three videos with colour frames, and grey ones x and y (the first two channels) for the flow."""
    for v, count in enumerate(COUNTS):
        (tmp_path / str(v)).mkdir()
        for i in range(1, count + 1):
            cv2.imwrite(str(tmp_path / f"{v}/frame{i}.png"), PIXELS[v, i])
            for channel, axis in enumerate("xy"):
                cv2.imwrite(str(tmp_path / f"{v}/flow_{axis}_{i:04d}.png"), PIXELS[v, i, :, :, channel])
    (tmp_path / "list.txt").write_text("".join(f"{tmp_path}/{v} {n} {5 * v}\n" for v, n in enumerate(COUNTS)))
    return tmp_path


RGB, FLOW = 'modality: RGB name_pattern: "frame%d.png"', 'name_pattern: "flow_%c_%04d.png"'


def clips(folder, settings=RGB, transform="", batch=1):
    return f"""layer {{ name: "in" type: "VideoData" top: "data" top: "label" transform_param {{ {transform} }}
               video_data_param {{ source: "{folder}/list.txt" batch_size: {batch} {settings} }} }}"""


def frames_of(video, numbers, channels=3):
    """``[C, H, W]`` of these frames, one after the other."""
    return np.concatenate([PIXELS[video, i, :, :, :channels].transpose(2, 0, 1) for i in numbers])


def test_clips_from_the_middle(build, videos):
    net = build(clips(videos, RGB + " new_length: 2 num_segments: 2", batch=3), "TEST")
    assert net.shapes == [(3, 12, HEIGHT, WIDTH), (3, 1, 1, 1)]
    net()
    # parts of 4, 2 and 6 frames, of which 3, 1 and 5 places are free
    expected = [frames_of(0, [2, 3, 6, 7]), frames_of(1, [1, 2, 3, 4]), frames_of(2, [3, 4, 9, 10])]
    np.testing.assert_array_equal(net.blobs["data"], expected)
    assert net.blobs["label"].flatten().tolist() == [0, 5, 10]


def test_clips_of_flow(build, videos):
    net = build(clips(videos, FLOW + " new_length: 3", "is_flow: true", batch=3), "TEST")
    net()
    expected = [frames_of(0, [4, 5, 6], 2), frames_of(1, [2, 3, 4], 2), frames_of(2, [6, 7, 8], 2)]
    np.testing.assert_array_equal(net.blobs["data"], expected)


def test_short_parts_begin_at_the_start(build, videos):
    net = build(clips(videos, RGB + " new_length: 4 num_segments: 3"), "TEST")
    net()
    np.testing.assert_array_equal(net.blobs["data"][0], frames_of(0, [1, 2, 3, 4] * 3))


def test_random_clips_of_every_part(build, videos):
    net, seen = build(clips(videos, RGB + " new_length: 2 num_segments: 2")), set()
    for i in range(60):
        net()
        if i % 3 == 0:
            blob = net.blobs["data"][0].numpy()
            (found,) = [(a, b) for a in (1, 2, 3) for b in (5, 6, 7)
                        if np.array_equal(blob, frames_of(0, [a, a + 1, b, b + 1]))]  # fmt: skip
            seen.add(found)
    assert len(seen) > 5


def test_shuffled_and_resized_grey_frames(build, videos):
    net = build(clips(videos, RGB + " shuffle: true new_height: 8 new_width: 10 grayscale: true", batch=3))
    assert net.shapes[0] == (3, 1, 8, 10)
    orders = set()
    for _ in range(20):
        net()
        orders.add(tuple(net.blobs["label"].flatten().tolist()))
    assert all(sorted(order) == [0, 5, 10] for order in orders)
    assert len(orders) > 2


def cuts_of(net, image, size, sizes, count):
    """``{(y, x, height, width, mirrored)}`` of the cuts, of one of ``sizes`` from an image's first channel, that the
    blobs of a net are."""
    table = {}
    for h, w in sizes:
        for y, x in np.ndindex(HEIGHT - h + 1, WIDTH - w + 1):
            part = image[y : y + h, x : x + w]
            blob = (part if h == w == size else cv2.resize(part, (size, size))).astype(np.float32)
            table |= {blob.tobytes(): (y, x, h, w, False), blob[:, ::-1].tobytes(): (y, x, h, w, True)}
    found = set()
    for _ in range(count):
        net()
        found.add(table[net.blobs["data"][0, 0].numpy().tobytes()])
    return found


@pytest.fixture
def one_frame(videos):
    """A list of one video of one frame, and the first channel of that frame."""
    (videos / "list.txt").write_text(f"{videos}/0 1 0\n")
    return videos, PIXELS[0, 1, :, :, 0]


@pytest.mark.parametrize(("more", "places"), [("", 5), ("more_fix_crop: true", 13)])
def test_fixed_places(build, one_frame, more, places):
    folder, image = one_frame
    found = cuts_of(build(clips(folder, RGB, f"crop_size: 8 fix_crop: true {more}")), image, 8, [(8, 8)], 200)
    # 8 x 12 pixels are free: quarters of 2 x 3
    first = {(0, 0), (0, 12), (8, 0), (8, 12), (4, 6)}
    others = {(0, 6), (8, 6), (4, 0), (4, 12), (2, 3), (2, 9), (6, 3), (6, 9)}
    assert {(y, x) for y, x, *_ in found} == (first | others if more else first)
    assert {(h, w, m) for _, _, h, w, m in found} == {(8, 8, False)}
    assert len(found) == places


def test_many_scales(build, one_frame):
    """0.9, 0.75 and 0.5 of 16 pixels are 14, 12 and 8; 14 is not within 2 pixels of the crop, 12 is, 8 not."""
    folder, image = one_frame
    ratios = "scale_ratios: 0.9 scale_ratios: 0.75 scale_ratios: 0.5"
    transform = f"crop_size: 11 mirror: true fix_crop: true multi_scale: true {ratios}"
    net = build(clips(folder, RGB, transform))
    sizes = {(14, 14), (14, 11), (11, 14), (11, 11), (11, 8), (8, 11), (8, 8)}
    found = cuts_of(net, image, 11, sizes, 400)
    assert {(h, w) for _, _, h, w, _ in found} == sizes
    assert {m for *_, m in found} == {False, True}
    found = cuts_of(build(clips(folder, RGB, transform + " max_distort: 0")), image, 11, sizes, 150)
    assert {(h, w) for _, _, h, w, _ in found} == {(14, 14), (11, 11), (8, 8)}
    assert cuts_of(build(clips(folder, RGB, transform), "TEST"), image, 11, sizes, 30) == {
        (2, 4, 11, 11, mirrored) for mirrored in (False, True)
    }


def test_mirrored_flow_turns_round(build, videos):
    net, seen = build(clips(videos, FLOW + " new_length: 2", "mirror: true is_flow: true mean_value: 7", 1), "TEST"), 0
    plain = frames_of(0, [5, 6], 2).astype(np.float32)
    turned = plain[..., ::-1].copy()
    turned[::2] = 255 - turned[::2]
    for i in range(18):
        net()
        if i % 3 == 0:
            blob = net.blobs["data"][0].numpy() + 7
            assert np.array_equal(blob, plain) or np.array_equal(blob, turned)
            seen += np.array_equal(blob, turned)
    assert 0 < seen < 6


def test_means_of_many_frames(build, videos):
    three = "mean_value: 1 mean_value: 2 mean_value: 3 scale: 0.5"
    net = build(clips(videos, RGB + " new_length: 2", three), "TEST")
    net()
    expected = (frames_of(0, [5, 6]) - np.array([1, 2, 3, 1, 2, 3], np.float32)[:, None, None]) / 2
    np.testing.assert_array_equal(net.blobs["data"][0], expected)


@pytest.mark.parametrize("multi_scale", [False, True])
def test_a_mean_image(build, videos, multi_scale):
    """With multi_scale it is always cut at the top left corner."""
    mean = np.random.RandomState(1).rand(1, 3, HEIGHT, WIDTH).astype(np.float32)
    write_binaryproto(videos / "mean", mean)
    transform = f'mean_file: "{videos}/mean" crop_size: 8 multi_scale: {str(multi_scale).lower()}'
    net = build(clips(videos, RGB, transform), "TEST")
    net()
    y, x = (0, 0) if multi_scale else (4, 6)
    expected = frames_of(0, [5])[:, 4:12, 6:14] - mean[0, :, y : y + 8, x : x + 8]
    np.testing.assert_array_equal(net.blobs["data"][0], expected)


@pytest.mark.parametrize(
    ("settings", "transform", "field", "message"),
    [
        ("video_file: 'x'", "", "video_data_param.video_file", "is not read for a list"),
        ("", "crop_h: 3", "transform_param.crop_h", "is not read for a list"),
        ("new_length: 0", "", "video_data_param.new_length", "positive"),
        ("new_height: 3", "", "video_data_param.new_height", "go together"),
        ("name_pattern: '%d%d'", "", "video_data_param.name_pattern", "not enough arguments"),
        ("new_length: 30", "", "video_data_param.source", "list.txt:1: .*frame10.png: cannot read"),
        ("", "multi_scale: true", "transform_param.crop_size", "needed for multi_scale"),
        ("", "crop_size: 30", "transform_param.crop_size", "a crop of 30 x 30"),
        ("", "crop_size: 8 multi_scale: true scale_ratios: 3", "transform_param.scale_ratios", "a cut of 48 x 48"),
        ("", "mean_value: 1 mean_value: 2", "transform_param.mean_value", "2 values for 3 channels"),
        ("encoded: true", "", "video_data_param.encoded", "not supported"),
    ],
)
def test_lists_that_make_no_sense(build, videos, settings, transform, field, message):
    pattern = "" if "name_pattern" in settings else 'name_pattern: "frame%d.png"'
    with pytest.raises(PortError, match=message) as caught:
        build(clips(videos, f"modality: RGB {pattern} {settings}", transform))()
    assert (caught.value.layer, caught.value.field) == ("in", field)


@pytest.mark.parametrize(("lines", "message"), [("", "is empty"), ("a b 3", "list.txt:1: 'a b 3' is no video")])
def test_lists_of_another_form(build, videos, lines, message):
    (videos / "list.txt").write_text(lines)
    with pytest.raises(PortError, match=message) as caught:
        build(clips(videos))
    assert (caught.value.layer, caught.value.field) == ("in", "video_data_param.source")
    with pytest.raises(PortError, match="two are needed"):
        build(clips(videos).replace('top: "label"', ""))
