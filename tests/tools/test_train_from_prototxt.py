"""tools/train_from_prototxt.py: what it writes and says, and that every mistake ends in one message."""

import errno
import io
import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from converters import read_caffemodel, read_solverstate
from converters.convert import convert
from ohem_caffe_port.solver import Solver

VOC = Path("data/shapes/VOCdevkit2007/VOC2007")
IMAGE, XML = VOC / "JPEGImages/000003.jpg", VOC / "Annotations/000003.xml"
IMAGE_SET = VOC / "ImageSets/Main/train.txt"
PROPOSALS = Path("data/shapes/selective_search_data/voc_2007_train.npz")
NET, SOLVER, CFG = "model/train.prototxt", "model/solver.prototxt", "model/cfg.yml"
STATE, RESUME = "snapshots/tiny_iter_2.solverstate", "snapshots/tiny_iter_2.resume.npz"
SNAPSHOT = "snapshots/tiny_iter_2.caffemodel"
KINDS = (".caffemodel", ".solverstate", ".resume.npz")


def snapshot(prefix):
    return {prefix + kind for kind in KINDS}


def weights(path):
    return {layer.name: layer.blobs for layer in read_caffemodel(path).layers if layer.blobs}


def assert_same_weights(a, b):
    first, second = weights(a), weights(b)
    assert first.keys() == second.keys()
    for name, blobs in first.items():
        for one, other in zip(blobs, second[name], strict=True):
            assert np.array_equal(one, other), name


# ---- the good path


def test_training(workspace):
    done = workspace.train()
    assert done.code == 0
    assert done.err == ""
    assert done.new == snapshot("new/tiny_iter_3")
    assert "configuration: model/cfg.yml" in done.out
    assert "mines hard RoIs" in done.out
    assert "shapes_train: 16 images with their mirror images; tiny: 3 iterations, to new" in done.out
    assert len(re.findall(r"iteration [123]: loss \d+\.\d{4} \(loss_cls \S+ loss_bbox \S+\) lr 0.001", done.out)) == 3
    assert done.out.rstrip().endswith("last snapshot: new/tiny_iter_3.caffemodel")
    assert read_solverstate("new/tiny_iter_3.solverstate").iter == 3


def test_weights_of_other_formats(workspace):
    convert(SNAPSHOT, "w.safetensors", "safetensors")
    assert workspace.train("--weights", SNAPSHOT, "--output", "a").code == 0
    assert workspace.train("--weights", "w.safetensors", "--output", "b").code == 0
    assert_same_weights("a/tiny_iter_3.caffemodel", "b/tiny_iter_3.caffemodel")


def test_the_result_does_not_depend_on_the_run(workspace):
    assert workspace.train("--output", "a").code == 0
    assert workspace.train("--output", "b", "--workers", "1").code == 0
    assert workspace.train("--output", "c", "--rand").code == 0
    assert_same_weights("a/tiny_iter_3.caffemodel", "b/tiny_iter_3.caffemodel")
    with pytest.raises(AssertionError):
        assert_same_weights("a/tiny_iter_3.caffemodel", "c/tiny_iter_3.caffemodel")


def test_resuming_continues_as_if_never_stopped(workspace):
    done = workspace.train("--resume", STATE, "--iters", "4")
    assert done.code == 0
    assert done.new == snapshot("new/tiny_iter_4")
    assert "iteration 3:" in done.out
    assert "iteration 2:" not in done.out
    assert workspace.train("--iters", "4", "--output", "whole").code == 0
    assert_same_weights("new/tiny_iter_4.caffemodel", "whole/tiny_iter_4.caffemodel")


def test_resuming_from_caffes_own_files(workspace):
    Path(RESUME).unlink()
    done = workspace.train("--resume", STATE)
    assert done.code == 0
    assert "note: no tiny_iter_2.resume.npz beside the solver state" in done.out


def test_resuming_when_all_is_done(workspace):
    done = workspace.train("--resume", STATE, "--iters", "2")
    assert done.code == 0
    assert done.new == set()
    assert "none (all iterations were done already)" in done.out


def test_interrupt(workspace, monkeypatch):
    """Ctrl-C writes a snapshot, and from there training goes on as if it had never stopped."""
    step = Solver.step

    def interrupted(self, *args):
        if self.iter == 1:
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Solver, "step", interrupted)
        stopped = workspace.train()
    assert stopped.code == 130
    assert stopped.new == snapshot("new/tiny_iter_1")
    assert "stopped; continue with --resume new/tiny_iter_1.solverstate" in stopped.out
    assert workspace.train("--resume", "new/tiny_iter_1.solverstate").code == 0
    assert workspace.train("--output", "whole").code == 0
    assert_same_weights("new/tiny_iter_3.caffemodel", "whole/tiny_iter_3.caffemodel")


def test_weights(workspace):
    done = workspace.train("--weights", SNAPSHOT)
    assert done.code == 0
    assert re.search(rf"{SNAPSHOT}: \d layers loaded", done.out)


def test_set_wins_over_the_file(workspace):
    options = ("TRAIN.SNAPSHOT_ITERS", "1", "TRAIN.SNAPSHOT_INFIX", "often")
    done = workspace.train("--set", *options, "--set", "TRAIN.USE_FLIPPED", "False")
    assert done.code == 0
    assert done.new == {name for k in (1, 2, 3) for name in snapshot(f"new/tiny_often_iter_{k}")}
    assert "shapes_train: 8 images; tiny" in done.out


def test_which_configuration(workspace):
    """``cfg.yml`` beside the solver is read unless another is named; without one the defaults hold."""
    default = workspace.train("--iters", "1", "--output", "a")
    assert "configuration: model/cfg.yml" in default.out
    workspace.write("other.yml", Path(CFG).read_text().replace("BATCH_SIZE: 16", "BATCH_SIZE: 16, USE_FLIPPED: false"))
    named = workspace.train("--cfg", "other.yml", "--iters", "1", "--output", "b")
    assert "configuration:" not in named.out
    assert "8 images" in named.out
    Path(CFG).unlink()
    small = ("--set", "TRAIN.SCALES", "[96]", "TRAIN.MAX_SIZE", "128")
    bare = workspace.train("--imdb", "shapes_train", "--iters", "1", "--output", "c", *small)
    assert (default.code, named.code, bare.code) == (0, 0, 0)
    assert "configuration:" not in bare.out


def test_where_results_go_by_default(workspace, monkeypatch):
    monkeypatch.setenv("OHEM_DATA", "data")
    parts = ("model/solver.prototxt", "--iters", "1", "--gpu", "-1")
    done = workspace.run(workspace.tools.train_from_prototxt, parts)
    assert done.new == snapshot("output/tiny/shapes_train/tiny_iter_1")
    assert workspace.run(workspace.tools.train_from_prototxt, ("--solver", *parts)).code == 0


@pytest.mark.parametrize(
    ("max_iter", "options", "expected"), [(None, (), 40000), (7, (), 7), (7, ("--iters", "5"), 5), (0, (), 40000)]
)
def test_how_many_iterations(workspace, monkeypatch, max_iter, options, expected):
    tool, asked = workspace.tools.train_from_prototxt, []
    monkeypatch.setattr(tool.Trainer, "run", lambda trainer, iterations, step: asked.append(iterations) or [])
    if max_iter is not None:
        workspace.replace(SOLVER, "display", f"max_iter: {max_iter}\ndisplay")
    done = workspace.run(tool, ("model/solver.prototxt", "--gpu", "-1", "--data", "data", "--output", "new", *options))
    assert (done.code, asked) == (0, [expected])


def test_unknown_fields_can_be_passed_over(workspace):
    workspace.replace(NET, "num_output: 16", "num_output: 16 nonsense: 3")
    workspace.replace(SOLVER, "display: 1", "displai: 1")
    done = workspace.train("--lenient")
    assert done.code == 0
    assert "note: unknown field ignored:" in done.out
    assert "nonsense" in done.out
    assert "displai (did you mean 'display'?)" in done.out


def test_paths_with_spaces_and_umlauts(workspace):
    for name in ("data", "model", "snapshots"):
        Path(name).rename(f"ä {name} 数")
    options = [
        *("ä model 数/solver.prototxt", "--gpu", "-1", "--data", "ä data 数", "--output", "n ß", "--iters", "3"),
        *("--resume", "ä snapshots 数/tiny_iter_2.solverstate", "--weights", "ä snapshots 数/tiny_iter_2.caffemodel"),
    ]
    done = workspace.run(workspace.tools.train_from_prototxt, options)
    assert done.code == 0
    assert done.new == snapshot("n ß/tiny_iter_3")


# ---- bad input


def resized(workspace, factor):
    image = cv2.imread(str(IMAGE))
    cv2.imwrite(str(IMAGE), cv2.resize(image, None, fx=factor, fy=factor))


def edited(pattern, text):
    return lambda w: w.write(XML, re.sub(pattern, text, XML.read_text(), count=1))


def box(k, values):
    return lambda w: w.change_arrays(PROPOSALS, lambda arrays: arrays["boxes"].__setitem__(k, values))


def net(old, new):
    return lambda w: w.replace(NET, old, new)


def solver(old, new):
    return lambda w: w.replace(SOLVER, old, new)


def resume_array(key, value):
    return lambda w: w.change_arrays(RESUME, lambda arrays: arrays.update({key: value}))


def one_array():
    """The bytes of an .npy file."""
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


def untouched(w):
    pass


NUM_CLASSES = "\"'num_classes': 7\""
BAD_DATA = {
    "no devkit": (untouched, "--imdb voc_2007_train", ["no VOC 2007 devkit found", "data/VOCdevkit2007/VOC2007"]),
    "no devkit there": (untouched, "--imdb voc_2007_train --devkit nix", ["nix/VOC2007", "--devkit"]),
    "unknown imdb": (untouched, "--imdb shapes_trian", ["unknown imdb 'shapes_trian'", "'shapes_train'?"]),
    "image set missing": (lambda w: IMAGE_SET.unlink(), "", ["train.txt: image set not found", "beside it: test"]),
    "image set empty": (lambda w: w.write(IMAGE_SET, "\n"), "", ["train.txt: the image set is empty"]),
    "image set binary": (lambda w: w.write(IMAGE_SET, b"\xff\xfe\0"), "", ["train.txt: the image set is not UTF-8"]),
    "image missing": (lambda w: IMAGE.unlink(), "", ["000003.jpg: image not found", "take it out of the image set"]),
    "image empty": (lambda w: w.write(IMAGE), "", ["000003.jpg: not a readable image"]),
    "image no image": (lambda w: w.write(IMAGE, "hello"), "", ["000003.jpg: not a readable image"]),
    "image a folder": (lambda w: (IMAGE.unlink(), IMAGE.mkdir()), "", ["000003.jpg: Is a directory"]),
    "image cut off": (lambda w: w.cut(IMAGE), "", ["000003.jpg: not a readable image: the JPEG file is cut off"]),
    "image cut off early": (lambda w: w.cut(IMAGE, 0.05), "", ["000003.jpg: not a readable image", "cut off"]),
    "image smaller": (lambda w: resized(w, 0.5), "", ["000003.xml: size: the image is 125 x 100", "says 250 x 200"]),
    "image larger": (lambda w: resized(w, 2), "", ["000003.xml: size: the image is 500 x 400", "says 250 x 200"]),
    "annotation missing": (lambda w: XML.unlink(), "", ["000003.xml: annotation not found"]),
    "annotation broken": (lambda w: w.cut(XML), "", ["000003.xml:", "broken XML", "line"]),
    "annotation empty": (lambda w: w.write(XML), "", ["000003.xml:1: broken XML"]),
    "annotation encoding": (
        lambda w: w.write(XML, "<?xml version='1.0' encoding='foo'?><a/>"), "", ["broken XML: unknown encoding: foo"],
    ),
    "class unknown": (edited("<name>", "<name>x"), "", ["000003.xml: name: object 1: class 'x", "Did you mean"]),
    "classes of another set": (
        untouched,
        "--imdb voc_2007_train --devkit data/shapes/VOCdevkit2007 --proposals gt",
        ["000001.xml: name: object 1", "is not among the 20 classes of 'voc_2007_train'"],
    ),
    "object outside": (edited("<xmax>.*<", "<xmax>300<"), "", ["000003.xml: object 1", "outside the 250 x 200 image"]),
    "object inverted": (edited("<xmax>.*<", "<xmax>1<"), "", ["000003.xml: bndbox: object 1", "is inverted"]),
    "object before 1": (edited("<xmin>.*<", "<xmin>0<"), "", ["000003.xml: bndbox", "begins before pixel 1"]),
    "object no number": (edited("<xmin>.*<", "<xmin>a<"), "", ["000003.xml: bndbox/xmin: object 1: 'a' is not a"]),
    "proposals missing": (
        lambda w: PROPOSALS.unlink(), "", ["no proposals for 'voc_2007_train'", "voc_2007_train.mat"],
    ),
    "proposals not there": (untouched, "--proposals nix.mat", ["no proposals for", "nix.mat"]),
    "proposals of another set": (
        untouched,
        "--proposals data/shapes/selective_search_data/voc_2007_test.npz",
        ["voc_2007_test.npz: no boxes for 8 of 8 images, the first '000001'"],
    ),
    "proposals cut off": (lambda w: w.cut(PROPOSALS), "", ["voc_2007_train.npz: not a readable .npz file"]),
    "proposals one array": (
        lambda w: w.write("p.npz", one_array()), "--proposals p.npz", ["p.npz: not a readable .npz"],
    ),
    "proposals no mat": (lambda w: w.write("p.mat", "hello"), "--proposals p.mat", ["p.mat: not a readable .mat file"]),
    "proposal inverted": (box(5, [50, 50, 20, 60]), "", ["voc_2007_train.npz: image '000001': box 5", "inverted"]),
    "proposal outside": (box(5, [50, 50, 999, 60]), "", ["proposal 5 of '000001'", "the image 250 x 200 pixels"]),
    "no RoI of use": (
        untouched,
        "--set TRAIN.FG_THRESH 2.0 TRAIN.BG_THRESH_HI 0.0",
        ["TRAIN.FG_THRESH", "none of the 16 images has a foreground or background RoI"],
    ),
}  # fmt: skip
BAD_NETS = {
    "net missing": (lambda w: Path(NET).unlink(), "", ["solver.prototxt: the solver's net 'train.prototxt' is not"]),
    "net cut off": (lambda w: w.cut(NET), "", ["train.prototxt:11: this string is not closed"]),
    "net empty": (lambda w: w.write(NET), "", ["train.prototxt: no fields in this net file"]),
    "no such bottom": (
        net('bottom: "conv1"', 'bottom: "convx"'),
        "",
        ["train.prototxt:4: layer 'relu_conv1': bottom: no earlier layer makes bottom 'convx'", "'conv1'?"],
    ),
    "shared shapes": (
        net("num_output: 16", "num_output: 17"), "", ["layer 'fc6': param[0]: shares 'fc6_w'", "(17, 72)"],
    ),
    "shared lr_mults": (
        net('name: "fc6_w"  }', 'name: "fc6_w" lr_mult: 7 }'), "", ["layer 'fc6': param[0].lr_mult: 1.0", "says 7.0"],
    ),
    "unknown type": (
        net('"Convolution"', '"Convolutoin"'), "", ["train.prototxt:3: layer 'conv1': type", "'Convolution'?"],
    ),
    "unknown module": (
        net("roi_data_layer.layer", "os.path"), "", ["layer 'data': python_param", "os.path", "never imported"],
    ),
    "unknown Python layer": (
        net("OHEMDataLayer", "OHEMData"), "", ["hard_roi_mining", "unknown Python layer", "OHEMDataLayer?"],
    ),
    "unknown field": (net("stride: 8", "strid: 8"), "", ["train.prototxt:3", "no field 'strid'", "'stride'?"]),
    "impossible value": (net("stride: 8", "stride: 0"), "", ["train.prototxt:3: layer 'conv1'", "must be positive"]),
    "no dilation": (net("stride: 8", "stride: 8 dilation: 0"), "", ["layer 'conv1'", "must be positive"]),
    "too large": (net("num_output: 16", "num_output: 2000000000"), "", ["layer 'fc6_readonly': no memory"]),
    "no num_classes": (
        net(NUM_CLASSES, "\"'x': 7\""), "", ["layer 'data': python_param.param_str: 'num_classes' is missing"],
    ),
    "no param_str": (net("param_str: " + NUM_CLASSES, ""), "", ["layer 'data'", "'num_classes' is missing"]),
    "param_str broken": (net(NUM_CLASSES, '"{"'), "", ["layer 'data': python_param.param_str: not YAML"]),
    "21 classes": (lambda w: w.write_net(21), "", ["layer 'data'", "num_classes is 21, the data set has 7"]),
    "5 classes": (lambda w: w.write_net(5), "", ["layer 'data'", "num_classes is 5, the data set has 7"]),
    "a test net": (solver("train.prototxt", "test.prototxt"), "", ["nothing fills its inputs data, rois"]),
    "a net for a solver": (
        untouched, "--solver-is model/train.prototxt", ["this is a net, where a solver is expected"],
    ),
    "no solver": (untouched, "--solver-is nix.prototxt", ["nix.prototxt: there is no such file"]),
    "two nets": (solver("display", 'net: "x" display'), "", ["solver.prototxt:1: train_net: name one training net"]),
    "unknown policy": (
        solver('"fixed"', '"fixd"'), "", ["solver.prototxt:2: lr_policy: unknown policy 'fixd'", "'fixed'?"],
    ),
    "no rate": (solver("base_lr: 0.001", ""), "", ["solver.prototxt: base_lr: is needed"]),
    "negative max_iter": (
        solver("display", "max_iter: -3 display"), "", ["solver.prototxt:3: max_iter: must not be neg"],
    ),
    "policy that ends": (
        solver('"fixed"', '"poly" power: 1 max_iter: 2'), "", ["max_iter: the learning rate of lr_policy poly ends"],
    ),
    "rate that overflows": (solver('"fixed"', '"exp" gamma: 1e300'), "", ["gamma: must be a finite number"]),
    "a rate too high": (solver("0.001", "1e9"), "--iters 9", ["the loss is nan in iteration", "a lower base_lr"]),
    "weights too large": (solver("0.001", "1e38"), "--iters 1", ["no longer finite", "a lower base_lr"]),
}  # fmt: skip
BAD_WEIGHTS = {
    "missing": (untouched, "--weights nix.caffemodel", ["nix.caffemodel: there is no such file"]),
    "cut off": (lambda w: w.cut(SNAPSHOT), f"--weights {SNAPSHOT}", ["tiny_iter_2.caffemodel", "cut off or damaged"]),
    "empty": (lambda w: w.write("w"), "--weights w", ["w: the file is empty"]),
    "a prototxt": (untouched, f"--weights {NET}", ["train.prototxt: is a text file (a prototxt?)", "wrong order"]),
    "a solverstate": (untouched, f"--weights {STATE}", ["holds a solver state, no weights"]),
    "of another net": (
        lambda w: w.write_weights("w", fc_a=[(2, 3)]), "--weights w", ["no layer of the file is in the net", "fc_a"],
    ),
    "of another shape": (
        lambda w: w.write_weights("w", cls_score=[(21, 16), (21,)]),
        "--weights w",
        ["w: layer 'cls_score': parameter 0 has shape (21, 16) in the file and (7, 16) in the net"],
    ),
    "of another count": (lambda w: w.write_weights("w", fc6=[(16, 72)]), "--weights w", ["layer 'fc6': has 1 param"]),
    "named by the solver": (
        solver("display", 'weights: "a" display'), "", ["solver's weights file 'a' is not there"],
    ),
    "state missing": (untouched, "--resume nix.solverstate", ["nix.solverstate: there is no such file"]),
    "state cut off": (lambda w: w.cut(STATE), f"--resume {STATE}", ["tiny_iter_2.solverstate", "cut off or damaged"]),
    "state a caffemodel": (untouched, f"--resume {SNAPSHOT}", ["is not a .solverstate", "Is it a .caffemodel?"]),
    "state without weights": (lambda w: Path(SNAPSHOT).unlink(), f"--resume {STATE}", ["its weights", "are not there"]),
    "state of another net": (
        net("num_output: 8", "num_output: 9"), f"--resume {STATE}", ["history blobs do not fit", "same net and solver"],
    ),
    "state of other data": (
        untouched, f"--resume {STATE} --set TRAIN.USE_FLIPPED False", ["made with 16 images; this data set has 8"],
    ),
    "resume cut off": (lambda w: w.cut(RESUME), f"--resume {STATE}", ["resume.npz: cannot be used for resuming"]),
    "resume empty": (lambda w: w.write(RESUME), f"--resume {STATE}", ["resume.npz: cannot be used for resuming"]),
    "resume text": (lambda w: w.write(RESUME, "x"), f"--resume {STATE}", ["resume.npz: cannot be used for resuming"]),
    "resume array": (
        lambda w: w.write(RESUME, one_array()), f"--resume {STATE}", ["resume.npz: cannot be used"],
    ),
    "resume shape": (
        resume_array("bbox_pred/0", np.zeros((1, 1), np.float32)), f"--resume {STATE}", ["resume.npz: cannot be used"],
    ),
    "resume order": (resume_array("data/perm", np.arange(3)), f"--resume {STATE}", ["its order of images"]),
    "resume generator": (
        resume_array("torch_rng", np.zeros(5056, np.float32)), f"--resume {STATE}", ["resume.npz: cannot be used"],
    ),
}  # fmt: skip
BAD_SETTINGS = {
    "unknown key": (
        lambda w: w.replace(CFG, "SCALES", "SCALE"), "", ["cfg.yml: unknown configuration key", "TRAIN.SCALES'?"],
    ),
    "wrong type": (lambda w: w.replace(CFG, "[96]", "abc"), "", ["cfg.yml: TRAIN.SCALES must be a list of numbers"]),
    "bad YAML": (lambda w: w.write(CFG, "a: [1\nb: {"), "", ["cfg.yml:2: not a YAML file"]),
    "code": (lambda w: w.write(CFG, "a: !!python/object/apply:os.getcwd []"), "", ["cfg.yml:1: not a YAML file"]),
    "binary": (lambda w: w.write(CFG, b"\xff\xfe\x80"), "", ["cfg.yml: not a YAML file"]),
    "missing": (untouched, "--cfg nix.yml", ["nix.yml: cannot read the configuration"]),
    "odd": (untouched, "--set TRAIN.SCALES", ["--set takes pairs KEY VALUE; 'TRAIN.SCALES' has no value"]),
    "set unknown": (untouched, "--set TRAIN.SCALE 3", ["--set: unknown configuration key", "'TRAIN.SCALES'?"]),
    "set type": (untouched, "--set TRAIN.BATCH_SIZE {[]:1}", ["--set: TRAIN.BATCH_SIZE must be of type int"]),
    "no images in a batch": (
        untouched, "--set TRAIN.IMS_PER_BATCH 0", ["TRAIN.IMS_PER_BATCH must be at least 1, not 0"],
    ),
    "no snapshots": (untouched, "--set TRAIN.SNAPSHOT_ITERS 0", ["TRAIN.SNAPSHOT_ITERS must be at least 1"]),
    "no size": (untouched, "--set TRAIN.SCALES [600,0]", ["TRAIN.SCALES must be at least 1, not (600, 0)"]),
    "fraction": (untouched, "--set TRAIN.FG_FRACTION 2.0", ["TRAIN.FG_FRACTION must be from 0 to 1"]),
    "means": (untouched, "--set PIXEL_MEANS [1,2]", ["PIXEL_MEANS must be 3 numbers", "not 2"]),
    "seed": (untouched, "--set RNG_SEED -1", ["RNG_SEED must be from 0 to"]),
    "BG_THRESH_LO": (
        untouched, "--set TRAIN.BG_THRESH_LO 0.1", ["TRAIN.BG_THRESH_LO is 0.1, but mining", "USE_OHEM to False"],
    ),
    "not divisible": (
        untouched, "--set TRAIN.IMS_PER_BATCH 3", ["TRAIN.IMS_PER_BATCH (3) must divide TRAIN.BATCH_SIZE (16)"],
    ),
    "odd number of images": (
        lambda w: w.write(IMAGE_SET, "000001\n000002\n000003\n"),
        "--set TRAIN.USE_FLIPPED False",
        ["TRAIN.ASPECT_GROUPING pairs images, and there are 3", "TRAIN.ASPECT_GROUPING False"],
    ),
    "too few images": (untouched, "--set TRAIN.IMS_PER_BATCH 32 TRAIN.BATCH_SIZE 64", ["16 images for minibatches of"]),
    "no iterations": (untouched, "--iters 0", ["--iters must be positive, not 0"]),
    "fewer than none": (untouched, "--iters -3", ["--iters must be positive, not -3"]),
    "iterations no number": (untouched, "--iters abc", ["--iters: invalid int value: 'abc'"]),
    "no such GPU": (untouched, "--gpu 99", ["--gpu 99: this machine has", "--gpu -1"]),
    "output a file": (lambda w: w.write("new"), "", ["new: results cannot be written there", "--output"]),
    "output below a file": (
        untouched, "--output model/cfg.yml/x", ["model/cfg.yml/x: results cannot be written there"],
    ),
    "data a file": (untouched, "--data model/cfg.yml", ["the data set cannot be drawn there"]),
}  # fmt: skip


def named(groups):
    return [
        pytest.param(*case, id=f"{group}: {name}") for group, cases in groups.items() for name, case in cases.items()
    ]


@pytest.mark.parametrize(
    ("prepare", "options", "words"),
    named({"data": BAD_DATA, "net": BAD_NETS, "weights": BAD_WEIGHTS, "settings": BAD_SETTINGS}),
)
def test_a_mistake_ends_in_one_message(workspace, prepare, options, words):
    prepare(workspace)
    done = run(workspace, options.split())
    done.ended_in_one_message(words)


def run(workspace, options):
    if options[:1] == ["--solver-is"]:
        return workspace.run(workspace.tools.train_from_prototxt, [options[1], "--gpu", "-1", "--data", "data"])
    return workspace.train(*options)


def test_a_full_disk(workspace, monkeypatch):
    def full(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    done = workspace.train()
    assert done.code == 2
    assert done.err == "error: new/tiny_iter_3.caffemodel: cannot be written: No space left on device\n"
    assert done.new == set()


@pytest.mark.parametrize("options", [(), ("--workers", "1")])
def test_an_image_whose_damage_shows_only_when_it_is_read(workspace, options):
    content = IMAGE.read_bytes()
    workspace.write(IMAGE, content[: content.index(b"\xff\xda")] + b"\xff\xd9")  # the header, then the end
    done = workspace.train("--iters", "16", *options)
    assert done.code == 2
    assert "layer 'data': data/shapes/VOCdevkit2007/VOC2007/JPEGImages/000003.jpg: not an image, or dam" in done.err
    assert done.new == set()


def test_no_solver_at_all(workspace):
    done = workspace.run(workspace.tools.train_from_prototxt, ["--data", "data"])
    assert done.code == 2
    assert "which solver.prototxt?" in done.err
