"""Trained models by other people: every file into every format and back, and the same outputs after each."""

import cv2
import numpy as np
import pytest
import torch

from converters import CaffeModel, SolverState
from converters.blob import encode_blob
from converters.convert import output_name, write
from converters.dtypes import flat
from converters.formats import kind_of, read
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from

FILES = {
    "bvlc_googlenet/bvlc_googlenet.caffemodel": "caffemodel",
    "cifar10_full_v1/cifar10_full_iter_70000.caffemodel": "caffemodel",
    "cifar10_full_v1/cifar10_full_iter_70000.solverstate": "solverstate",
    "cifar10_h5/cifar10_full_iter_60000.caffemodel.h5": "caffemodel.h5",
    "cifar10_h5/cifar10_full_iter_60000.solverstate.h5": "solverstate.h5",
    "cifar10_quick_v1_noext/cifar10_quick_iter_5000": "caffemodel",
    "hyperlpr_fp16/HorizonalFinemapping_fp16.caffemodel": "caffemodel",
    "hyperlpr_fp16/HorizonalFinemapping_fp32.caffemodel": "caffemodel",
    "lenet_v1/lenet_iter_10000.caffemodel": "caffemodel",
    "lenet_v1/lenet_iter_10000.solverstate": "solverstate",
    "means/cifar10_mean.binaryproto": "binaryproto",
    "means/ilsvrc_2012_mean.binaryproto": "binaryproto",
    "means/mnist_mean.binaryproto": "binaryproto",
    "mtcnn/det1.caffemodel": "caffemodel",
    "mtcnn/det2.caffemodel": "caffemodel",
    "mtcnn/det3.caffemodel": "caffemodel",
    "slim_320/slim-320.caffemodel": "caffemodel",
    "squeezenet_v1.0/squeezenet_v1.0.caffemodel": "caffemodel",
    "squeezenet_v1.1/squeezenet_v1.1.caffemodel": "caffemodel",
    "wechat_qrcode/detect.caffemodel": "caffemodel",
    "wechat_qrcode/sr.caffemodel": "caffemodel",
    "yufacedetectnet_v2/yufacedetectnet-open-v2.caffemodel": "caffemodel",
}
FORMATS = ["safetensors", "pt", "npz", "caffemodel", "h5"]
PAIRS = [(file, to) for file, kind in FILES.items() for to in FORMATS if (kind, to) != ("binaryproto", "h5")]
CONTENTS = {"caffemodel": "model", "solverstate": "solver state", "binaryproto": "mean"}


def convert(source, folder, to, **options):
    """The path of ``source`` in the format ``to``, in ``folder``."""
    target = folder / output_name(source.name, CONTENTS[kind_of(source).split(".")[0]], to)
    write(read(source), target, to, **options)
    return target


def assert_same(ours, theirs):
    """Bit for bit, as far as both formats can say it: HDF5 files know no types and order layers by name."""
    assert type(ours) is type(theirs)
    if isinstance(theirs, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert ours.tobytes() == theirs.tobytes()
        assert ours.size == theirs.size
    elif isinstance(theirs, SolverState):
        assert (ours.iter, ours.current_step, ours.learned_net) == (
            theirs.iter,
            theirs.current_step,
            theirs.learned_net,
        )
        assert_all_same(ours.history, theirs.history)
    else:
        of_ours, of_theirs = ({layer.name: layer for layer in model.layers if layer.blobs} for model in (ours, theirs))
        assert of_ours.keys() == of_theirs.keys()
        for name, layer in of_theirs.items():
            if layer.type and of_ours[name].type:
                assert of_ours[name].type == layer.type
            assert_all_same(of_ours[name].blobs, layer.blobs)


def assert_all_same(ours, theirs):
    assert [blob.shape for blob in ours] == [blob.shape for blob in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert_same(our, their)


@pytest.mark.parametrize("file", FILES)
def test_what_a_file_is(real_weights, file):
    assert kind_of(real_weights / file) == FILES[file]


@pytest.mark.parametrize(("file", "to"), PAIRS)
@pytest.mark.parametrize("caffe_names", [False, True])
def test_into_a_format_and_back(real_weights, tmp_path, file, to, caffe_names):
    original = read(real_weights / file)
    path = convert(real_weights / file, tmp_path, to, caffe_names=caffe_names)
    back = read(path)
    if to in ("safetensors", "pt", "npz"):
        write(back, tmp_path / "back", "caffemodel")
        back = read(tmp_path / "back")
    assert_same(back, original)


@pytest.mark.parametrize("file", [file for file, kind in FILES.items() if kind == "caffemodel"])
@pytest.mark.parametrize("by_way_of", ["safetensors", None])
def test_nothing_of_a_caffemodel_is_lost(real_weights, tmp_path, file, by_way_of):
    """Also the layers without weights, their order, bottoms and tops."""
    original = source = read(real_weights / file)
    if by_way_of:
        source = read(convert(real_weights / file, tmp_path, by_way_of))
    write(source, tmp_path / "copy.caffemodel", "caffemodel")
    copy = read(tmp_path / "copy.caffemodel")
    assert isinstance(copy, CaffeModel)
    assert copy.name == original.name
    assert [(x.name, x.type, x.bottoms, x.tops) for x in copy.layers] == [
        (x.name, x.type, x.bottoms, x.tops) for x in original.layers
    ]


@pytest.mark.parametrize("to", FORMATS)
def test_outputs_after_a_round(real_model, tmp_path, to):
    """Our Net loads the converted file and gives what real Caffe recorded."""
    path = convert(real_model.weights, tmp_path, to)
    recorded = real_model.golden
    net = real_model.load(path)
    with torch.no_grad():
        net(**{key[3:]: recorded[key] for key in recorded.files if key.startswith("in/")})
    for name in net.outputs:
        ours, reference = net.blobs[name].numpy().ravel(), recorded[f"out/{name}"].ravel()
        reference, padding = reference[: ours.size], reference[ours.size :]  # rows of zeros behind detections
        assert not padding.any()
        assert np.abs(ours - reference).max() <= 1e-5 * np.abs(reference).max()


def test_recorded_probabilities(real_weights, tmp_path):
    """The two images and the probabilities with which OpenCV tested GoogLeNet for years."""
    folder = real_weights / "bvlc_googlenet"
    images = [cv2.imread(str(folder / f"googlenet_{i}.jpg")) for i in (0, 1)]
    net = Net(folder / "deploy.prototxt", "TEST")
    copy_from(net, convert(folder / "bvlc_googlenet.caffemodel", tmp_path, "safetensors"))
    with torch.no_grad():
        probabilities = net(data=np.stack(images).transpose(0, 3, 1, 2))["prob"].numpy()
    assert np.abs(probabilities - np.load(folder / "googlenet_prob.npy")).max() <= 1e-5


@pytest.mark.parametrize("by_way_of", ["safetensors", "h5"])
def test_opencv_reads_what_is_written(real_model, tmp_path, opencv4, by_way_of):
    """OpenCV 4 gives the very same outputs for the written file as for the original."""
    write(read(convert(real_model.weights, tmp_path, by_way_of)), tmp_path / "written.caffemodel", "caffemodel")
    inputs = {key[3:]: real_model.golden[key] for key in real_model.golden.files if key.startswith("in/")}
    net = real_model.load()
    theirs = opencv4(net, real_model.prototxt, tmp_path / "written.caffemodel", inputs)
    if real_model.weights.suffix != ".h5":
        original = opencv4(net, real_model.prototxt, real_model.weights, inputs)
        assert {name: blob.tobytes() for name, blob in theirs.items()} == {
            name: blob.tobytes() for name, blob in original.items()
        }
    else:  # which OpenCV does not read itself
        np.testing.assert_allclose(theirs["prob"], real_model.golden["out/prob"], atol=1e-6)


def test_a_single_number_has_no_shape(proto):
    """So Caffe writes it (``channel_shared``, ``num_axes: 0``); OpenCV 4 fails on a shape without axes."""
    blob = proto.BlobProto.FromString(b"".join(flat(encode_blob(np.float32(3)))))
    assert list(blob.data) == [3]
    assert not blob.HasField("shape")
