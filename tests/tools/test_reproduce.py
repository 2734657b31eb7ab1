"""tools/reproduce.py on a tiny recipe and the embedded data set; its commands run in this process."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from converters import read_caffemodel
from ohem_caffe_port.data.coco import Coco
from ohem_caffe_port.data.factory import get_imdb
from ohem_caffe_port.data.pascal_voc import PascalVoc
from ohem_caffe_port.data.proposals import load_npz, save_npz
from ohem_caffe_port.data.shapes import SHAPE_CLASSES
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.published import RUNS, read_figures

ROW = "ohem-vgg16-07-repo"
FOLDER = Path("out") / f"{ROW}_tiny"
TINY = ("--backbone", "tiny", "--train_imdb", "shapes_train", "--test_imdb", "shapes_test", "--gpu", "-1")


@pytest.fixture
def reproduce(workspace, monkeypatch):
    """``reproduce(*options)`` with a zoo that has the recipe ``tiny/ohem`` beside the real ones; ``.steps`` lists the
    commands that were run."""
    module = sys.modules["_reproduction"]
    zoo = workspace.folder / "zoo"
    shutil.copytree(workspace.folder / "model", zoo / "tiny" / "ohem")
    workspace.replace("zoo/tiny/ohem/solver.prototxt", "display: 1", "display: 1 max_iter: 3")
    for backbone in ("vgg16", "vgg_cnn_m_1024"):
        (zoo / backbone).symlink_to(module.ZOO / backbone)
    monkeypatch.setattr(module, "ZOO", zoo)
    for name in ("OHEM_WEIGHTS", "OHEM_VOCDEVKIT", "OHEM_DATA"):
        monkeypatch.delenv(name, raising=False)

    def run(*options):
        return workspace.run(workspace.tools.reproduce, ["--data", "data", "--output", "out", *options])

    def in_this_process(command, log):
        run.steps.append(command)
        tool = getattr(workspace.tools, Path(command[1]).stem)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", command[1:])
            tool.main()
        return ""

    run.steps = []
    monkeypatch.setattr(module, "run_command", in_this_process)
    return run


def option(command, name):
    return command[command.index(name) + 1]


# ---- the list


def test_the_list_has_every_figure(reproduce):
    done = reproduce("--rate", "0.9")
    assert done.code == 0, done.err
    sourced, unverified = done.out.split("Published figures, unverified", 1)
    for name, figure in read_figures().items():
        assert f" {name} " in (sourced if figure.standing == "sourced" else unverified)
    line = next(line.split() for line in sourced.splitlines() if f" {ROW} " in line)
    assert line == [ROW, "71.5", "VOC07", "test", "ohem", "missing", "missing", "40,000", "10.0"]
    assert "missing: VGG16.v2.caffemodel" in done.out
    assert "missing: voc_2007_trainval: no VOC 2007 devkit" in done.out


def test_rates_are_measured_and_kept(reproduce, workspace):
    assert "nothing is measured yet" in reproduce().out
    done = reproduce(ROW, *TINY[:2], "--measure", "--gpu", "-1")
    assert done.code == 0, done.err
    ((device, rates),) = json.loads(Path("out/rates.json").read_text()).items()
    assert device.startswith("CPU")
    assert rates["tiny/ohem"]["iteration"] > 0
    assert rates["tiny/ohem"]["image"] > 0
    Path("out/rates.json").write_text(json.dumps({device: {"vgg16/ohem": {"iteration": 1.8, "image": 0.5}}}))
    done = reproduce("--gpu", "-1")
    line = next(line.split() for line in done.out.splitlines() if f" {ROW} " in line)
    assert line[-1] == f"{(40000 * 1.8 + 4952 * 0.5) / 3600:.1f}"
    line = next(line.split() for line in done.out.splitlines() if " ohem-vgg16-07+12 " in line)
    assert line[-1] == f"{(200000 * 1.8 + 4952 * 0.5) / 3600:.1f}"


# ---- plans


def test_a_plan_is_the_commands(reproduce, workspace):
    done = reproduce("ohem_m_b-vgg16-07++12+coco", "--dry-run", "--data", "there", "--output", "o")
    assert done.code == 0, done.err
    assert done.new == set()
    commands = [line.split() for line in done.out.splitlines() if line.startswith("python ")]
    assert [Path(command[1]).stem for command in commands] == [
        "train_from_prototxt", "map_classes", "train_from_prototxt", "test_from_prototxt",
    ]  # fmt: skip
    coco, mapping, voc, test = commands
    assert option(coco, "--imdb") == "coco_2014_trainval"
    assert option(coco, "--weights") == "VGG16.v2.caffemodel"
    assert option(mapping, "--net").startswith(option(coco, "--output"))
    assert option(voc, "--weights") == option(mapping, "--out")
    assert option(voc, "--imdb") == "voc_2007_trainval+voc_2007_test+voc_2012_trainval"
    assert option(voc, "--iters") == "200000"
    assert option(test, "--net") == f"{option(voc, '--output')}/vgg16_ohem_m_b_07pp12_iter_200000.caffemodel"
    assert option(test, "--imdb") == "voc_2012_test"
    assert "# not verified: iterations, stepsize: 200000 and 40000 are remembered" in done.out
    assert "# not verified: ohem_m_coco: iterations, stepsize: 240000 and 160000 are vaguely remembered" in done.out


def test_the_release_tests_ohem_with_more_detections(reproduce):
    out = reproduce(ROW, "fast_rcnn-vgg16-07-repo", "--dry-run").out
    ohem, frcn = (line for line in out.splitlines() if "test_from_prototxt" in line)
    assert "--num_dets 2000 --det_thresh 0.00001" in ohem
    assert "--num_dets" not in frcn


# ---- runs


def weights(path):
    return {layer.name: layer.blobs for layer in read_caffemodel(path).layers if layer.blobs}


def test_a_run_from_training_to_the_report(reproduce, workspace):
    done = reproduce(ROW, *TINY)
    assert done.code == 0, done.err
    assert [Path(command[1]).stem for command in reproduce.steps] == ["train_from_prototxt", "test_from_prototxt"]
    assert option(reproduce.steps[0], "--iters") == "3"
    (result,) = json.loads(Path("out/report.json").read_text())
    assert result["published"] == 71.5
    assert result["images"] == 4
    assert 0 <= result["ours"] <= 100
    assert set(result["parts"]) <= set(SHAPE_CLASSES)
    assert result["ours"] == pytest.approx(np.mean(list(result["parts"].values())))
    assert any("backbone tiny, not vgg16" in line for line in result["differences"])
    assert f"note: {ROW}: NOT comparable with the published figure" in done.out
    assert f"({result['ours'] - 71.5:+.1f})" in done.out
    assert ("out/report.png" in done.new) != ("no plot is drawn" in done.out)

    assert reproduce(ROW, *TINY).code == 0  # all is done
    assert len(reproduce.steps) == 2
    assert "71.5" in reproduce("--report").out


def test_a_run_goes_on_where_it_was(reproduce, workspace):
    settings = ("--set", "TRAIN.SNAPSHOT_ITERS", "1")
    assert reproduce(ROW, *TINY, *settings).code == 0
    last = FOLDER / "train" / "tiny_iter_3.caffemodel"
    whole, result = weights(last), json.loads((FOLDER / "result.json").read_text())
    for path in (FOLDER / "train").glob("*_iter_3.*"):
        path.unlink()
    (FOLDER / "result.json").write_text("{")
    reproduce.steps.clear()
    assert reproduce(ROW, *TINY, *settings).code == 0
    train, test = reproduce.steps  # what was tested was another snapshot
    assert option(train, "--resume").endswith("tiny_iter_2.solverstate")
    assert "--weights" not in train
    for name, blobs in weights(last).items():
        for one, other in zip(blobs, whole[name], strict=True):
            assert np.array_equal(one, other)

    (FOLDER / "test" / "results").rename(workspace.folder / "elsewhere")  # finished detections are only evaluated
    reproduce.steps.clear()
    assert reproduce(ROW, *TINY, *settings).code == 0
    assert reproduce.steps == []
    assert json.loads((FOLDER / "result.json").read_text())["ours"] == result["ours"]


def test_a_published_detector_is_only_tested(reproduce, workspace):
    done = reproduce(ROW, *TINY, "--evaluate", "--weights", "snapshots/tiny_iter_2.caffemodel")
    assert done.code == 0, done.err
    (test,) = reproduce.steps
    assert option(test, "--net") == "snapshots/tiny_iter_2.caffemodel"
    (result,) = json.loads(Path("out/report.json").read_text())
    assert result["settings"]["iterations"] == 0
    assert not any("trained on" in line for line in result["differences"])
    assert any("tested tiny_iter_2.caffemodel, not fast_rcnn_ohem_models/" in line for line in result["differences"])


def test_a_shortened_run(reproduce, workspace):
    workspace.replace(
        "zoo/tiny/ohem/solver.prototxt", 'lr_policy: "fixed"', 'lr_policy: "step" gamma: 0.1 stepsize: 40'
    )
    workspace.replace("zoo/tiny/ohem/solver.prototxt", "max_iter: 3", "max_iter: 60")
    done = reproduce(ROW, *TINY, "--scale", "0.2")
    assert done.code == 0, done.err
    train, _ = reproduce.steps
    solver = Path(train[2]).read_text()
    assert "max_iter: 12" in solver
    assert "stepsize: 8" in solver
    assert option(train, "--iters") == "12"
    assert train[train.index("TRAIN.SNAPSHOT_ITERS") + 1] == "2000"
    assert "shortened to 0.2" in done.out


# ---- data sets with fewer images


def test_shortening_voc(workspace):
    shapes = Path("data/shapes")
    proposals = shapes / "selective_search_data" / "voc_2007_train.npz"
    options = {"classes": SHAPE_CLASSES, "proposals": proposals}
    full = PascalVoc("voc_2007_train", shapes / "VOCdevkit2007", "2007", "train", **options)
    shorten = sys.modules["_short_data"].shorten
    shorten(full, lambda images: 3, Path("short"), "selective_search")
    made = Path("short/selective_search_data/voc_2007_train.npz")
    short = PascalVoc("voc_2007_train", "short/VOCdevkit", "2007", "train", classes=SHAPE_CLASSES, proposals=made)
    assert short.image_index == [full.image_index[i] for i in (0, 4, 7)]
    assert short.image_path_at(1).read_bytes() == full.image_path_at(4).read_bytes()
    for ours, theirs in ((0, 0), (1, 4), (2, 7)):
        assert np.array_equal(short.roidb[ours]["boxes"], full.roidb[theirs]["boxes"])


def test_shortening_coco(tmp_path):
    images = [{"id": 7 * k, "file_name": f"{k}.jpg", "width": 64, "height": 48} for k in range(1, 11)]
    objects = [
        {"id": k, "image_id": 7 * k, "category_id": 1, "bbox": [1, 2, 10, 9], "area": 90, "iscrowd": 0}
        for k in range(1, 11)
    ]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "cup"}]}
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "val2014").mkdir()
    (tmp_path / "coco" / "annotations" / "instances_val2014.json").write_text(json.dumps(content))
    boxes = [np.array([[k, 0, k + 9, 8]]) for k in range(10)]
    save_npz(tmp_path / "boxes.npz", [str(image["id"]) for image in images], boxes)
    full = Coco("coco_2014_val", tmp_path / "coco", "2014", "val", proposals=tmp_path / "boxes.npz")
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
    try:
        from _short_data import shorten
    finally:
        sys.path.pop(0)
    shorten(full, lambda images: 2, tmp_path / "short", "mcg")
    short = Coco("coco_2014_val", tmp_path / "short" / "coco", "2014", "val")
    assert short.image_index == ["7", "70"]
    assert [len(entry["boxes"]) for entry in short.roidb] == [1, 1]
    found = load_npz(tmp_path / "short" / "mcg_data" / "coco_2014_val.npz", ["7", "70"])
    assert [each.tolist() for each in found] == [boxes[0].tolist(), boxes[9].tolist()]


def write_as_coco(imdb, folder: Path, name: str) -> None:
    """The images of ``imdb`` as ``coco_2014_<name>``, with their proposals."""
    (folder / "coco" / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "coco" / f"{name}2014").mkdir()
    images, objects, boxes = [], [], {}
    for i in range(imdb.num_images):
        (folder / "coco" / f"{name}2014" / f"{i}.jpg").write_bytes(imdb.image_path_at(i).read_bytes())
        width, height = imdb.image_size_at(i)
        images.append({"id": i + 1, "file_name": f"{i}.jpg", "width": width, "height": height})
        entry = imdb.roidb[i]
        mine = entry["gt_classes"] > 0
        boxes[str(i + 1)] = entry["boxes"][~mine]
        for box, kind in zip(
            entry["boxes"][mine].astype(int).tolist(), entry["gt_classes"][mine].tolist(), strict=True
        ):
            sides = box[2] - box[0] + 1, box[3] - box[1] + 1
            objects.append({"id": len(objects) + 1, "image_id": i + 1, "category_id": kind, "bbox": [*box[:2], *sides],
                            "area": sides[0] * sides[1], "iscrowd": 0})  # fmt: skip
    categories = [{"id": k, "name": name} for k, name in enumerate(imdb.classes) if k]
    content = {"images": images, "annotations": objects, "categories": categories}
    (folder / "coco" / "annotations" / f"instances_{name}2014.json").write_text(json.dumps(content))
    save_npz(folder / "selective_search_data" / f"coco_2014_{name}.npz", list(boxes), list(boxes.values()))


def test_a_shortened_run_on_coco(reproduce, workspace):
    for part, name in (("train", "train"), ("test", "val")):
        imdb = get_imdb(f"shapes_{part}", data_dir="data")
        write_as_coco(imdb, Path("data"), name)
    substitutes = ("--train_imdb", "coco_2014_train", "--test_imdb", "coco_2014_val")
    done = reproduce(ROW, *TINY, *substitutes, "--scale", "0.9")
    assert done.code == 0, done.err
    (result,) = json.loads(Path("out/report.json").read_text())
    assert result["images"] == 4
    assert list(result["parts"])[:2] == ["AP50", "AP75"]
    assert 0 <= result["ours"] <= result["parts"]["AP50"]


# ---- processes


@pytest.fixture
def run_command(tools):
    return sys.modules["_processes"].run_command


def test_a_command_is_shown_and_kept(run_command, tmp_path, capfd):
    text = run_command(["python", "-c", "print('one'); print('two')"], tmp_path / "log")
    assert text == "one\ntwo\n"
    assert capfd.readouterr().out == text
    with pytest.raises(PortError, match="exit code 3"):
        run_command(["python", "-c", "import sys; sys.exit(3)"], tmp_path / "log")
    assert (tmp_path / "log").read_text() == text


def test_an_interrupt_is_passed_on_and_waited_for(run_command, tmp_path, monkeypatch):
    child = "import time\ntry:\n print('ready')\n time.sleep(60)\nexcept KeyboardInterrupt: print('saved')"
    module = sys.modules["_processes"]
    shown = []

    def show(line, **options):
        shown.append(line)
        if line == "ready\n":
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "print", show, raising=False)
    with pytest.raises(KeyboardInterrupt):
        run_command(["python", "-c", child], tmp_path / "log")
    assert shown[-1] == "saved\n"


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["ohem-vgg16-7-repo"], ["no published figure is called 'ohem-vgg16-7-repo'", f"Did you mean {ROW}"]),
        (["ssd300-vgg16-07"], ["ssd300-vgg16-07 (SSD300, VGG16) has no recipe here"]),
        ([ROW, *TINY, "--scale", "0"], ["--scale 0", "above 0"]),
        ([ROW, *TINY, "--scale", "1.5"], ["--scale 1.5", "at most 1"]),
        ([ROW, *TINY, "--scale", "nan"], ["--scale nan"]),
        (["--rate", "-1"], ["--rate -1"]),
        (["--dry-run"], ["which rows?", "--dry-run"]),
        ([ROW, *TINY, "--backbone", "tine"], ["no recipe ohem for the backbone 'tine'", "Did you mean tiny"]),
        ([ROW, *TINY, "--test_imdb", "voc_2007_tets"], ["unknown imdb 'voc_2007_tets'", "voc_2007_test"]),
        ([ROW, *TINY, "--train_imdb", "voc_2007_train"], ["voc_2007_train: no VOC 2007 devkit found"]),
        ([ROW, *TINY, "--evaluate"], ["missing: fast_rcnn_ohem_models"]),
        ([ROW, *TINY, "--set", "TRAIN.SCALE", "3"], ["unknown configuration key 'TRAIN.SCALE'"]),
        (["--report"], ["no row is done there"]),
    ],
)
def test_errors(reproduce, options, words):
    reproduce(*options).ended_in_one_message(words)


def test_everything_that_is_missing_is_named_at_once(reproduce):
    done = reproduce(ROW, "fast_rcnn-vgg16-12")
    assert done.code == 2
    assert done.new == set()
    for word in ("voc_2007_trainval", "voc_2007_test", "voc_2012_trainval", "voc_2012_test", "VGG16.v2.caffemodel"):
        assert done.err.count(f"missing: {word}") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: (FOLDER / "run.json").write_text("{"), ["is damaged"]),
        (lambda: (FOLDER / "run.json").unlink(), ["holds other files, and no run of this tool"]),
        (lambda: None, ["another run lies there", "set [], not ['RNG_SEED', '5']"]),
    ],
)
def test_a_folder_with_something_else_stays_as_it_is(reproduce, change, words):
    assert reproduce(ROW, *TINY).code == 0
    change()
    reproduce(ROW, *TINY, "--set", "RNG_SEED", "5").ended_in_one_message(words)


def test_detections_of_other_images(reproduce, workspace):
    assert reproduce(ROW, *TINY).code == 0
    workspace.change_arrays(FOLDER / "test" / "detections.npz", lambda a: a.update(image_index=a["image_index"][::-1]))
    reproduce(ROW, *TINY).ended_in_one_message(["detections of other images"])


@pytest.mark.parametrize("change", [{"standing": None}, {"published": "71.5"}, {"parts": {"cat": "much"}}])
def test_a_damaged_result_is_not_reported(reproduce, change):
    file = FOLDER / "result.json"
    assert reproduce(ROW, *TINY).code == 0
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    reproduce("--report").ended_in_one_message(["no row is done there"])


def test_a_command_that_fails_ends_the_run(reproduce, workspace, monkeypatch):
    def fail(command, log):
        raise PortError(f"{command[1]} ended with exit code 2", hint="its messages are above")

    monkeypatch.setattr(sys.modules["_reproduction"], "run_command", fail)
    done = reproduce(ROW, *TINY)
    assert done.code == 2
    assert "train_from_prototxt.py ended with exit code 2" in done.err
    assert not any("result.json" in name for name in done.new)


def test_every_run_has_its_recipe_and_can_be_planned(reproduce):
    done = reproduce(*RUNS, "--dry-run", "--data", "nowhere")
    assert done.code == 0, done.err
    assert done.out.count("test_from_prototxt.py") == len(RUNS)
