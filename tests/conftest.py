"""What every test may use."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
import torch.distributed as dist

from ohem_caffe_port.inputs import reshape_inputs
from ohem_caffe_port.net import Net
from ohem_caffe_port.weights import copy_from
from prototxt import read_net
from prototxt.zoo.layers import FROZEN, conv

TESTS = Path(__file__).resolve().parent
GOLDEN = TESTS / "data" / "golden"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """pytest-xdist runs as many tests at once as there are cores; threads that wait for each other only cost time."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the tools that tests start


@pytest.fixture(autouse=True)
def same_draws():
    """A test draws the same numbers in every run, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def several():
    """``several(argv, folder)``: runs a script as two processes that work together, as ``torchrun`` would start them;
    returns the ``(exit code, output, errors)`` of each."""
    if not (dist.is_available() and dist.is_gloo_available()):
        pytest.skip("this PyTorch has no gloo")

    def run(argv, folder, count=2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        processes = []
        for rank in range(count):
            own = {key: str(value) for key, value in {**common, "RANK": rank, "LOCAL_RANK": rank}.items()}
            processes.append(
                subprocess.Popen(
                    [sys.executable, *map(str, argv)],
                    cwd=folder,
                    env=os.environ | own,
                    text=True,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                )  # fmt: skip
            )
        try:
            with ThreadPoolExecutor(count) as pool:  # a full pipe of one must not keep the other waiting
                printed = list(pool.map(lambda process: process.communicate(timeout=240), processes))
        finally:
            for process in processes:
                process.kill()
        return [(process.returncode, *texts) for process, texts in zip(processes, printed, strict=True)]

    return run


@pytest.fixture(scope="session")
def golden_data():
    """What real Caffe computed, in the forms that ``tests/golden.py`` replays."""
    return GOLDEN


@pytest.fixture(scope="session")
def inputs_of():
    """``inputs_of(x=(2, 3), y=(2,))``: the text of Input layers of these names and shapes."""

    def make(**shapes):
        text = ""
        for name, shape in shapes.items():
            dims = " ".join(f"dim: {d}" for d in shape)
            text += f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}\n'
        return text

    return make


# ---- trained Caffe models by other people

# prototxt, weights, recorded blobs; then how a photo becomes an input: factor * (pixel - mean), on the scale 0..255
MODELS = {
    "squeezenet_v1.0": ("deploy", "squeezenet_v1.0.caffemodel", "golden", 1, (104, 117, 123)),
    "squeezenet_v1.1": ("deploy", "squeezenet_v1.1.caffemodel", "golden", 1, (104, 117, 123)),
    "bvlc_googlenet": ("deploy", "bvlc_googlenet.caffemodel", "golden", 1, 0),
    "lenet_v1": ("lenet", "lenet_iter_10000.caffemodel", "golden", 1 / 256, 0),
    "cifar10_full_v1": ("cifar10_full", "cifar10_full_iter_70000.caffemodel", "golden", 1, (114, 123, 125)),
    "cifar10_h5": ("cifar10_full", "cifar10_full_iter_60000.caffemodel.h5", "golden", 1, (114, 123, 125)),
    "cifar10_quick_v1_noext": ("cifar10_quick", "cifar10_quick_iter_5000", "golden", 1, (114, 123, 125)),
    "mtcnn/det1": ("det1", "det1.caffemodel", "golden_det1", 1 / 128, 127.5),
    "mtcnn/det2": ("det2", "det2.caffemodel", "golden_det2", 1 / 128, 127.5),
    "mtcnn/det3": ("det3", "det3.caffemodel", "golden_det3", 1 / 128, 127.5),
    "yufacedetectnet_v2": ("yufacedetectnet-open-v2", "yufacedetectnet-open-v2.caffemodel", "golden", 1, 115),
    "wechat_qrcode/detect": ("detect", "detect.caffemodel", "golden_detect", 1 / 256, 0),
    "wechat_qrcode/sr": ("sr", "sr.caffemodel", "golden_sr", 1 / 256, 0),
    "slim_320": ("slim-320", "slim-320.caffemodel", "golden", 1 / 128, 127),
    "hyperlpr_fp16": ("HorizonalFinemapping", "HorizonalFinemapping_fp16.caffemodel", "golden", 1, (104, 117, 123)),
}


@pytest.fixture(scope="session")
def real_weights():
    """The folder of trained models beside the checkout."""
    folder = TESTS.parents[1] / "shared" / "weights"
    if not folder.is_dir():
        pytest.skip(f"needs {folder} (real Caffe models)")
    return folder


@pytest.fixture(params=MODELS)
def real_model(request, real_weights):
    """One trained model: ``prototxt``, ``weights``, ``golden`` (npz: in/, mid/, out/ of real Caffe), ``load()`` to a
    Net in the TEST phase (from another file, with other inputs' ``shapes``), ``photos(shape)``: its input made of
    real photos."""
    prototxt, weights, golden, factor, mean = MODELS[request.param]
    folder = real_weights / request.param.split("/")[0]

    def load(path=folder / weights, shapes=None) -> Net:
        param = read_net(folder / f"{prototxt}.prototxt")
        reshape_inputs(param, shapes or {})
        net = Net(param, "TEST", path=folder / f"{prototxt}.prototxt")
        report = copy_from(net, path)
        assert {verdict for _, _, verdict in report.rows} <= {"loaded", "not in the net"}
        return net

    def photos(shape):
        """An input of ``shape`` [N, C, H, W] from N photos of PASCAL VOC."""
        files = sorted((real_weights.parent / "voc").rglob("*.jpg"))[::97][: shape[0]]
        flag = cv2.IMREAD_GRAYSCALE if shape[1] == 1 else cv2.IMREAD_COLOR
        resized = [cv2.resize(cv2.imread(str(file), flag), shape[:1:-1]) for file in files]
        blobs = [(image.astype(np.float32) - np.float32(mean)) * np.float32(factor) for image in resized]
        return np.stack([blob.reshape(*shape[2:], shape[1]).transpose(2, 0, 1) for blob in blobs])

    return SimpleNamespace(
        name=request.param, folder=folder, prototxt=folder / f"{prototxt}.prototxt", weights=folder / weights,
        golden=np.load(folder / f"{golden}.npz"), load=load, photos=photos,
    )  # fmt: skip


@pytest.fixture(scope="session")
def opencv4(tmp_path_factory):
    """``run(net, prototxt, weights, inputs)``: what OpenCV 4 gives for the outputs of ``net``, by name."""
    python = os.environ.get("OPENCV4_PYTHON") or (sys.executable if hasattr(cv2.dnn, "readNetFromCaffe") else None)
    if python is None:
        pytest.skip(f"OpenCV {cv2.__version__} reads no Caffe models; OPENCV4_PYTHON names a Python with OpenCV 4")
    folder = tmp_path_factory.mktemp("opencv4")

    def run(net: Net, prototxt, weights, inputs: dict) -> dict[str, np.ndarray]:
        np.savez(folder / "in.npz", **inputs)
        paths = [str(path) for path in (prototxt, weights, folder / "in.npz", folder / "out.npz")]
        last = {value.name: value for value in net.values}
        wanted = [f"{name}={net.layers[last[name].producer].name}:{last[name].top}" for name in net.outputs]
        done = subprocess.run(
            [python, TESTS / "opencv4_oracle.py", *paths, *wanted], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(np.load(folder / "out.npz"))

    return run


# ---- a small Faster R-CNN for images of 7 classes

RPN_DATA = """
layer { name: "data" type: "Python" top: "data" top: "im_info" top: "gt_boxes" python_param {
    module: "roi_data_layer.layer" layer: "RoIDataLayer" param_str: "'num_classes': 7" } }
"""
RPN_INPUT = """
layer { name: "data" type: "Input" top: "data" top: "im_info"
        input_param { shape { dim: 1 dim: 3 dim: 96 dim: 128 } shape { dim: 1 dim: 3 } } }
"""
RPN_HEAD = """
layer { name: "rpn_cls_score" type: "Convolution" bottom: "conv1" top: "rpn_cls_score"
        convolution_param { num_output: 18 kernel_size: 1 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "rpn_bbox_pred" type: "Convolution" bottom: "conv1" top: "rpn_bbox_pred"
        convolution_param { num_output: 36 kernel_size: 1 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "two" type: "Reshape" bottom: "rpn_cls_score" top: "rpn_cls_score_reshape"
        reshape_param { shape { dim: 0 dim: 2 dim: -1 dim: 0 } } }
layer { name: "rpn_cls_prob" type: "Softmax" bottom: "rpn_cls_score_reshape" top: "rpn_cls_prob" }
layer { name: "back" type: "Reshape" bottom: "rpn_cls_prob" top: "rpn_cls_prob_reshape"
        reshape_param { shape { dim: 0 dim: 18 dim: -1 dim: 0 } } }
layer { name: "proposal" type: "Python" bottom: "rpn_cls_prob_reshape" bottom: "rpn_bbox_pred" bottom: "im_info"
        top: "%s" top: "scores" python_param {
            module: "rpn.proposal_layer" layer: "ProposalLayer" param_str: "{feat_stride: 8, scales: [1, 2, 4]}" } }
"""
RPN_TARGETS = """
layer { name: "rpn-data" type: "Python" bottom: "rpn_cls_score" bottom: "gt_boxes" bottom: "im_info" bottom: "data"
        top: "rpn_labels" top: "rpn_bbox_targets" top: "rpn_bbox_inside_weights" top: "rpn_bbox_outside_weights"
        python_param { module: "rpn.anchor_target_layer" layer: "AnchorTargetLayer"
                       param_str: "{feat_stride: 8, scales: [1, 2, 4]}" } }
layer { name: "rpn_loss_cls" type: "SoftmaxWithLoss" bottom: "rpn_cls_score_reshape" bottom: "rpn_labels"
        top: "rpn_cls_loss" loss_param { ignore_label: -1 normalize: true } propagate_down: 1 propagate_down: 0 }
layer { name: "rpn_loss_bbox" type: "SmoothL1Loss" bottom: "rpn_bbox_pred" bottom: "rpn_bbox_targets"
        bottom: "rpn_bbox_inside_weights" bottom: "rpn_bbox_outside_weights" top: "rpn_loss_bbox"
        smooth_l1_loss_param { sigma: 3.0 } }
layer { name: "roi-data" type: "Python" bottom: "rpn_rois" bottom: "gt_boxes" top: "rois" top: "labels"
        top: "bbox_targets" top: "bbox_inside_weights" top: "bbox_outside_weights" python_param {
            module: "rpn.proposal_target_layer" layer: "ProposalTargetLayer" param_str: "'num_classes': 7" } }
layer { name: "no_scores" type: "Silence" bottom: "scores" }
"""
RPN_ROIS = """
layer { name: "pool" type: "ROIPooling" bottom: "conv1" bottom: "rois" top: "pool"
        roi_pooling_param { pooled_h: 3 pooled_w: 3 spatial_scale: 0.125 } }
layer { name: "cls_score" type: "InnerProduct" bottom: "pool" top: "cls_score"
        inner_product_param { num_output: 7 weight_filler { type: "gaussian" std: 0.01 } } }
layer { name: "bbox_pred" type: "InnerProduct" bottom: "pool" top: "bbox_pred"
        inner_product_param { num_output: 28 weight_filler { type: "gaussian" std: 0.001 } } }
"""
RPN_LOSSES = """
layer { name: "loss_cls" type: "SoftmaxWithLoss" bottom: "cls_score" bottom: "labels" top: "loss_cls" }
layer { name: "loss_bbox" type: "SmoothL1Loss" bottom: "bbox_pred" bottom: "bbox_targets"
        bottom: "bbox_inside_weights" bottom: "bbox_outside_weights" top: "loss_bbox" }
"""


@pytest.fixture(scope="session")
def faster_rcnn():
    """Texts ``train``, ``test`` and ``rpn`` (proposals alone) of a tiny Faster R-CNN, wired as py-faster-rcnn's."""
    backbone = conv("conv1", "data", 8, 8, stride=8, params=FROZEN, init='type: "gaussian" std: 0.01')
    probability = 'layer { name: "cls_prob" type: "Softmax" bottom: "cls_score" top: "cls_prob" }'
    return SimpleNamespace(
        train=RPN_DATA + backbone + RPN_HEAD % "rpn_rois" + RPN_TARGETS + RPN_ROIS + RPN_LOSSES,
        test=RPN_INPUT + backbone + RPN_HEAD % "rois" + RPN_ROIS + probability,
        rpn=RPN_INPUT + backbone + RPN_HEAD % "rois",
    )
