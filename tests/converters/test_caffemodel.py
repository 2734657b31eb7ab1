"""Caffemodels against real Caffe's files, and against protobuf's own reader and writer."""

import numpy as np
import pytest

from converters import CaffeModel, LayerWeights, WeightsError, read_caffemodel, write_caffemodel
from prototxt import caffe_pb2
from prototxt.errors import CaffePortError

MODELS = [
    "bvlc_googlenet/bvlc_googlenet.caffemodel",
    "cifar10_full_v1/cifar10_full_iter_70000.caffemodel",
    "cifar10_quick_v1_noext/cifar10_quick_iter_5000",
    "hyperlpr_fp16/HorizonalFinemapping_fp16.caffemodel",
    "hyperlpr_fp16/HorizonalFinemapping_fp32.caffemodel",
    "lenet_v1/lenet_iter_10000.caffemodel",
    "mtcnn/det1.caffemodel",
    "mtcnn/det2.caffemodel",
    "mtcnn/det3.caffemodel",
    "slim_320/slim-320.caffemodel",
    "squeezenet_v1.0/squeezenet_v1.0.caffemodel",
    "squeezenet_v1.1/squeezenet_v1.1.caffemodel",
    "wechat_qrcode/detect.caffemodel",
    "wechat_qrcode/sr.caffemodel",
    "yufacedetectnet_v2/yufacedetectnet-open-v2.caffemodel",
]
GOLDEN_RUNS = ["ohem_vggm_small_b", "fast_rcnn_vggm_small", "rfcn_small", "ssd_small_ohem"]


def reference_blob(blob):
    """A BlobProto of protobuf's own reader as an array, by the rules of Caffe's Blob::FromProto."""
    if blob.double_data:
        values = np.array(blob.double_data, np.float64)
    elif blob.HasField("raw_data"):
        values = np.frombuffer(blob.raw_data, {0: "f8", 1: "f4", 2: "f2"}[blob.raw_data_type]).astype(np.float32)
    else:
        values = np.array(blob.data, np.float32)
    legacy = any(blob.HasField(name) for name in ("num", "channels", "height", "width"))
    return values.reshape((blob.num, blob.channels, blob.height, blob.width) if legacy else tuple(blob.shape.dim))


def assert_same_blobs(ours, theirs):
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.shape == their.shape
        assert our.dtype == their.dtype
        assert our.tobytes() == their.tobytes()


def assert_same_model(ours, theirs):
    assert ours.name == theirs.name
    for our, their in zip(ours.layers, theirs.layers, strict=True):
        assert (our.name, our.type, our.bottoms, our.tops) == (their.name, their.type, their.bottoms, their.tops)
        assert_same_blobs(our.blobs, their.blobs)


def golden_arrays(npz, prefix):
    """{layer: [arrays]} of the keys ``prefix/<layer>/<j>``; layer names may hold slashes themselves."""
    layers = {}
    for key in npz.files:
        if key.startswith(prefix + "/"):
            layer, j = key[len(prefix) + 1 :].rsplit("/", 1)
            layers.setdefault(layer, {})[int(j)] = npz[key]
    return {layer: [blobs[j] for j in sorted(blobs)] for layer, blobs in layers.items()}


@pytest.mark.parametrize(("file", "prefix"), [("initial", "w/0"), ("snap_iter_5", "w/5")])
def test_reads_what_caffe_had_in_memory(run_folder, file, prefix):
    model = read_caffemodel(run_folder / f"{file}.caffemodel")
    golden = golden_arrays(np.load(run_folder / "golden.npz"), prefix)
    assert model.name == "tiny"
    assert [(layer.name, layer.type) for layer in model.layers] == [
        ("data", "Python"),
        ("ip1", "InnerProduct"),
        ("tanh", "TanH"),
        ("ip2", "InnerProduct"),
        ("loss", "EuclideanLoss"),
    ]
    assert model.layers[0].tops == ["x", "t"]
    assert model.layers[4].bottoms == ["ip2", "t"]
    for layer in model.layers:
        assert_same_blobs(layer.blobs, golden.get(layer.name, []))


@pytest.mark.parametrize("run", GOLDEN_RUNS)
def test_reads_the_initial_weights_of_whole_runs(shared, run):
    folder = shared / "golden" / run
    layers = {layer.name: layer.blobs for layer in read_caffemodel(folder / "initial.caffemodel").layers}
    golden = golden_arrays(np.load(folder / "golden.npz"), "w_init")
    assert golden
    for name, blobs in golden.items():
        assert_same_blobs(layers[name], blobs)


@pytest.mark.parametrize("file", MODELS)
def test_reads_real_models_as_protobuf_does(shared, proto, file):
    path = shared / "weights" / file
    model = read_caffemodel(path)
    net = proto.NetParameter.FromString(path.read_bytes())
    assert model.name == net.name
    theirs = net.layer or net.layers
    for our, their in zip(model.layers, theirs, strict=True):
        assert (our.name, our.bottoms, our.tops) == (their.name, list(their.bottom), list(their.top))
        assert net.layers or our.type == their.type
        assert not our.type.startswith("V1:")
        assert_same_blobs(our.blobs, [reference_blob(blob) for blob in their.blobs])


@pytest.mark.parametrize(
    "file", ["lenet_v1/lenet_iter_10000.caffemodel", "hyperlpr_fp16/HorizonalFinemapping_fp16.caffemodel"]
)
def test_write_then_read_is_bit_exact(shared, tmp_path, file):
    model = read_caffemodel(shared / "weights" / file)
    write_caffemodel(tmp_path / "copy.caffemodel", model)
    assert_same_model(read_caffemodel(tmp_path / "copy.caffemodel"), model)


def test_writes_what_caffe_writes(run_folder, proto, tmp_path):
    model = read_caffemodel(run_folder / "initial.caffemodel")
    write_caffemodel(tmp_path / "copy.caffemodel", model, phase="TRAIN")
    ours = proto.NetParameter.FromString((tmp_path / "copy.caffemodel").read_bytes())
    theirs = proto.NetParameter.FromString((run_folder / "initial.caffemodel").read_bytes())
    for message in (ours, theirs):  # layer parameters are not ours to keep
        for layer in message.layer:
            layer.DiscardUnknownFields()
    assert ours == theirs


def test_writes_any_array_like(tmp_path):
    blobs = [
        np.arange(24, dtype=np.float32).reshape(2, 3, 4).transpose(2, 0, 1),
        [[1, 2], [3, 4]],
        np.float32(7),
        np.empty((0, 3), np.float32),
        np.array([0.1, 1e300]),
    ]
    write_caffemodel(tmp_path / "x.caffemodel", CaffeModel("x", [LayerWeights("a", "A", blobs=blobs)]))
    read = read_caffemodel(tmp_path / "x.caffemodel").layers[0].blobs
    assert [blob.dtype for blob in read] == [np.float32] * 4 + [np.float64]
    for ours, given in zip(read, blobs, strict=True):
        np.testing.assert_array_equal(ours, given)


def test_names_of_sharing_and_transposed_weights(tmp_path):
    """As our own schema writes and reads them."""
    net = caffe_pb2.NetParameter(name="n")
    for name, params in {"a": ["w", ""], "b": ["", "v", ""], "c": ["", ""], "d": []}.items():
        message = net.layer.add(name=name, type="InnerProduct")
        for param in params:
            message.param.add(name=param, lr_mult=2) if param else message.param.add(lr_mult=1)
        message.inner_product_param.num_output = 3
    net.layer[1].inner_product_param.transpose = True
    path = save(tmp_path, net)
    layers = read_caffemodel(path).layers
    assert [layer.params for layer in layers] == [["w"], ["", "v"], [], []]
    assert [layer.transposed for layer in layers] == [False, True, False, False]
    write_caffemodel(path, CaffeModel("n", layers))
    assert read_caffemodel(path).layers == layers
    again = caffe_pb2.NetParameter.FromString(path.read_bytes())
    assert [[p.name for p in layer.param] for layer in again.layer] == [["w"], ["", "v"], [], []]
    assert [layer.inner_product_param.transpose for layer in again.layer] == [False, True, False, False]


def test_names_of_sharing_in_v1(tmp_path):
    net = caffe_pb2.NetParameter(name="n")
    net.layers.add(name="a", type=14, param=["w", "b"])
    net.layers.add(name="b", type=14, param=["w", ""])
    assert [layer.params for layer in read_caffemodel(save(tmp_path, net)).layers] == [["w", "b"], ["w"]]


def test_a_blob_that_is_not_there_is_not_written(tmp_path):
    model = CaffeModel(
        "n", [LayerWeights("a", "A", blobs=[np.zeros(3, np.float32)]), LayerWeights("b", "A", blobs=[None])]
    )
    with pytest.raises(WeightsError, match="lies under another layer") as error:
        write_caffemodel(tmp_path / "x.caffemodel", model)
    assert (error.value.layer, error.value.field) == ("b", "blobs[0]")
    assert not list(tmp_path.iterdir())


def test_overwrites_the_file_it_is_a_view_of(tmp_path):
    path = tmp_path / "x.caffemodel"
    weights = np.random.default_rng(0).random((100, 100), np.float32)
    write_caffemodel(path, CaffeModel("x", [LayerWeights("a", "A", blobs=[weights])]))
    model = read_caffemodel(path)
    write_caffemodel(path, CaffeModel("x", model.layers[:1] * 2))
    for layer in [*model.layers, *read_caffemodel(path).layers]:
        np.testing.assert_array_equal(layer.blobs[0], weights)
    assert [p.name for p in tmp_path.iterdir()] == ["x.caffemodel"]


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.caffemodel"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="could not convert"):
        write_caffemodel(path, CaffeModel("x", [LayerWeights("a", "A", blobs=[["no number"]])]))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.caffemodel"]
    with pytest.raises(CaffePortError, match="cannot be written"):
        write_caffemodel(tmp_path / "none/x.caffemodel", CaffeModel())


def test_blobs_are_views_on_the_file(run_folder):
    blob = read_caffemodel(run_folder / "initial.caffemodel").layers[1].blobs[0]
    assert not blob.flags.owndata
    assert not blob.flags.writeable
    base = blob
    while isinstance(base, np.ndarray):
        base = base.base
    assert isinstance(base, memoryview)


def save(tmp_path, message):
    path = tmp_path / "made.caffemodel"
    path.write_bytes(message if isinstance(message, bytes) else message.SerializeToString())
    return path


def test_v1_types_and_unknown_ones(tmp_path, proto):
    net = proto.NetParameter(name="v1")
    for number in (0, 4, 14, 21, 25, 33, 39, 40, 77):
        net.layers.add(name=f"l{number}", type=number, bottom=["a"], top=["b", "c"])
    layers = read_caffemodel(save(tmp_path, net)).layers
    assert [layer.type for layer in layers] == (
        ["", "Convolution", "InnerProduct", "SoftmaxWithLoss", "Eltwise", "Slice", "Deconvolution", "V1:40", "V1:77"]
    )
    assert (layers[1].bottoms, layers[1].tops) == (["a"], ["b", "c"])


def test_v0(tmp_path, proto):
    net = proto.NetParameter(name="v0")
    for kind in ("conv", "innerproduct", "pool", "softmax_loss", "hdf5_data", "images", "relu", "padding"):
        layer = net.layers.add(bottom=["a"], top=["b"])
        layer.layer.name, layer.layer.type = kind + "1", kind
        layer.layer.blobs.add(num=1, channels=1, height=1, width=2, data=[1, 2])
    layers = read_caffemodel(save(tmp_path, net)).layers
    assert [layer.type for layer in layers] == (
        ["Convolution", "InnerProduct", "Pooling", "SoftmaxWithLoss", "HDF5Data", "ImageData", "ReLU", "V0:padding"]
    )
    for layer in layers:
        assert (layer.name[-1], layer.bottoms, layer.tops) == ("1", ["a"], ["b"])
        assert layer.blobs[0].shape == (1, 1, 1, 2)


def varint(value):
    return bytes([value & 0x7F | 0x80]) + varint(value >> 7) if value > 0x7F else bytes([value])


def delimited(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def net_of(blob):
    """The bytes of a net whose one layer has the one blob of these bytes."""
    return delimited(100, delimited(1, b"layer_name") + delimited(7, blob))


VALUES = np.linspace(-3, 3, 300, dtype=np.float32)
UNPACKED = b"".join(b"\x2d" + value.tobytes() for value in VALUES)
SHAPE = delimited(7, delimited(1, varint(20) + varint(15)))


@pytest.mark.parametrize(
    "blob",
    [
        pytest.param(delimited(5, VALUES.tobytes()) + SHAPE, id="packed"),
        pytest.param(SHAPE + UNPACKED, id="unpacked"),
        pytest.param(UNPACKED[: 5 * 130] + SHAPE + UNPACKED[5 * 130 :], id="unpacked in two runs"),
        pytest.param(delimited(5, VALUES[:7].tobytes()) + delimited(5, VALUES[7:].tobytes()) + SHAPE, id="two chunks"),
        pytest.param(delimited(5, VALUES[:7].tobytes()) + UNPACKED[5 * 7 :] + SHAPE, id="packed and unpacked"),
        pytest.param(delimited(5, VALUES.tobytes()) + delimited(7, b"\x08\x14\x08\x0f"), id="unpacked shape"),
        pytest.param(delimited(6, b"x" * 1200) + delimited(5, VALUES.tobytes()) + SHAPE, id="diff ignored"),
        pytest.param(b"\x50\x01" + delimited(12, VALUES.tobytes()) + SHAPE, id="raw float"),
        pytest.param(
            delimited(999, b"?") + delimited(5, VALUES.tobytes()) + b"\xc8\x7d\x05" + SHAPE, id="unknown fields"
        ),
    ],
)
def test_every_spelling_of_the_same_blob(tmp_path, proto, blob):
    read = read_caffemodel(save(tmp_path, net_of(blob))).layers[0].blobs[0]
    assert_same_blobs([read], [VALUES.reshape(20, 15)])
    assert_same_blobs([read], [reference_blob(proto.BlobProto.FromString(blob))])


def test_doubles_win_and_stay_doubles(tmp_path, proto):
    blob = proto.BlobProto(data=[1, 2], double_data=[0.1, 0.2])
    blob.shape.dim.append(2)
    read = read_caffemodel(save(tmp_path, net_of(blob.SerializeToString()))).layers[0].blobs[0]
    assert_same_blobs([read], [np.array([0.1, 0.2])])


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (delimited(5, bytes(8)) + delimited(7, b"\x08\x03"), "needs 3 values but 2 are stored"),
        (delimited(5, bytes(8)), "needs 1 values but 2 are stored"),
        (delimited(5, bytes(7)), "not a whole number of 4-byte values"),
        (delimited(7, b"\x08" + b"\xff" * 9 + b"\x01"), "impossible shape"),
        (delimited(7, b"\x08\x00" + b"\x08\xff\xff\xff\xff\x07" * 3), "impossible shape"),
        (delimited(7, b"\x08\xff\xff\xff\xff\x07" * 2), "impossible shape"),
        (delimited(7, b"\x08\x01" * 40), "more than 32 axes"),
        (b"\x50\x03" + delimited(12, bytes(4)), "raw_data_type 3 is not supported"),
        (delimited(1, b"x"), "field 1 holds a length and bytes where a varint should be"),
    ],
)
def test_damaged_blobs_are_refused(tmp_path, blob, message):
    with pytest.raises(WeightsError, match=message) as error:
        read_caffemodel(save(tmp_path, net_of(blob)))
    assert error.value.layer == "layer_name"
    assert error.value.field == "blobs[0]"
    assert error.value.file == tmp_path / "made.caffemodel"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'name: "net"\nlayer { name: "conv1" type: "Convolution" }\n', "text file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5"),
        (b"PK\x03\x04" + bytes(100), "zip"),
        (b"\x80\x04\x95" + bytes(100), "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "Git LFS"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"\x08\x05\x12\x04abcd", "begins with a number"),
        (b"\n\x04tiny", "holds no layers"),
        (b"\n\x7ftiny\x01", "needs 127 bytes and 5 are left"),
        (b"\n" + b"\xff" * 8 + b"\x7f" + b"\x01", "needs 9223372036854775807 bytes"),
        (b"\n\x04tiny\xa2", "middle of a number"),
        (b"\n\x04tiny" + b"\xff" * 12, "more than 64 bits"),
        (b"\n\x04tiny\x0b", "wire type 3"),
        (bytes(50), "field 0"),
        (b"\n\x04tiny\xa0\x06\x01", "field 100 holds a varint"),
    ],
)
def test_other_files_are_named_and_refused(tmp_path, content, message):
    path = tmp_path / "given.caffemodel"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=message) as error:
        read_caffemodel(path)
    assert str(error.value).startswith(f"{path}: ")


def test_missing_file_and_folder(tmp_path):
    (tmp_path / "vgg16.caffemodel").write_bytes(b"x")
    with pytest.raises(WeightsError, match="Did you mean vgg16.caffemodel"):
        read_caffemodel(tmp_path / "vgg_16.caffemodel")
    with pytest.raises(WeightsError, match="no such file"):
        read_caffemodel(tmp_path / "no/such.caffemodel")
    with pytest.raises(WeightsError, match="is a folder"):
        read_caffemodel(tmp_path)


def test_cut_at_every_byte(run_folder, tmp_path):
    whole = (run_folder / "initial.caffemodel").read_bytes()
    starts = [i for i in range(len(whole)) if whole[i : i + 2] == b"\xa2\x06"][
        1:
    ]  # a whole number of layers: a valid file
    for size in range(len(whole)):
        path = save(tmp_path, whole[:size])
        if size in starts:
            assert len(read_caffemodel(path).layers) == 1 + starts.index(size)
            continue
        with pytest.raises(WeightsError):
            read_caffemodel(path)


def test_flipped_and_random_bytes_never_break_out(run_folder, tmp_path):
    """Damage either goes unnoticed (a wrong weight or name) or is a WeightsError; nothing else, whatever the bytes."""
    whole = (run_folder / "initial.caffemodel").read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(3000):
        data = bytearray(whole if trial % 3 else rng.bytes(int(rng.integers(1, 400))))
        for _ in range(int(rng.integers(1, 6))):
            data[rng.integers(len(data))] = rng.integers(256)
        try:
            model = read_caffemodel(save(tmp_path, bytes(data)))
        except WeightsError:
            continue
        assert sum(blob.nbytes for layer in model.layers for blob in layer.blobs) <= 2 * len(data)


def test_blob_of_more_than_2_gib(tmp_path):
    """A sparse file: 2.2 GB on paper, a few pages on disk and in memory."""
    count = 550_000_000
    blob = varint(5 << 3 | 2) + varint(4 * count)
    shape = delimited(7, delimited(1, varint(count)))
    size = len(blob) + 4 * count + len(shape)
    layer = delimited(1, b"fc") + varint(7 << 3 | 2) + varint(size) + blob
    path = tmp_path / "large.caffemodel"
    with path.open("wb") as file:
        file.write(varint(100 << 3 | 2) + varint(len(layer) + 4 * count + len(shape)) + layer)
        file.seek(4 * count - 4, 1)
        file.write(np.float32(42).tobytes() + shape)
    (blob,) = read_caffemodel(path).layers[0].blobs
    assert blob.shape == (count,)
    assert blob[-1] == 42
