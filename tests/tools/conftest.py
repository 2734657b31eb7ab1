"""The command-line tools, run in this process on a tiny copy of the embedded data set and a tiny net."""

import functools
import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from converters import CaffeModel, LayerWeights, write_caffemodel
from ohem_caffe_port.data import shapes
from prototxt.zoo import detectors, layers

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SOLVER = """\
train_net: "train.prototxt"
base_lr: 0.001 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.0005
display: 1
snapshot_prefix: "tiny"
"""
CFG = """\
EXP_DIR: tiny
TRAIN: {IMDB: shapes_train, SCALES: [96], MAX_SIZE: 128, BATCH_SIZE: 16}
TEST: {IMDB: shapes_test, SCALES: [96], MAX_SIZE: 128}
"""
TRAIN = ("model/solver.prototxt", "--gpu", "-1", "--data", "data", "--output", "new", "--iters", "3")
TEST = (
    *("--def", "model/test.prototxt", "--net", "snapshots/tiny_iter_2.caffemodel"),
    *("--gpu", "-1", "--data", "data", "--output", "new"),
)


def _backbone():
    return layers.conv("conv1", "data", 8, 8, stride=8, init='type: "gaussian" std: 0.01'), "conv1", 8


def _detector(classes=7, method="ohem") -> tuple[str, str]:
    """Prototxts of a train and a test net, one line for each layer."""
    settings = {"backbone": _backbone, "classes": classes, "pooled": 3, "hidden": (16,), "dropout": 0}
    return detectors.train_net("tiny", method, **settings), detectors.test_net("tiny", **settings)


@dataclass
class Run:
    """What a tool left: its exit code, what it printed, and the files that are new."""

    code: int
    out: str
    err: str
    new: set

    def ended_in_one_message(self, words) -> None:
        """Exit code 2, one message of at most two lines with all ``words`` in it, and no file written."""
        message = self.err[self.err.index("error: ") :]
        assert self.code == 2
        for word in words:
            assert word in message
        assert len(message.splitlines()) <= 2
        assert self.new == set()


class Workspace:
    """A folder with ``data/shapes`` (8 and 4 images), ``model/*`` and ``snapshots/tiny_iter_2.*``; commands run in it.

    ``train(*options)`` and ``test(*options)`` run a tool with :data:`TRAIN` or :data:`TEST`, over which later options
    win, ``run(tool, options)`` with nothing else. They return ``code``, ``out``, ``err`` and ``new``, the files that
    appeared.
    """

    def __init__(self, folder: Path, tools, monkeypatch, capsys):
        self.folder, self.tools, self.monkeypatch, self.capsys = folder, tools, monkeypatch, capsys

    def train(self, *options):
        return self.run(self.tools.train_from_prototxt, [*TRAIN, *options])

    def test(self, *options):
        return self.run(self.tools.test_from_prototxt, [*TEST, *options])

    def run(self, tool, options):
        before = self.files()
        self.monkeypatch.setattr(sys, "argv", [tool.__name__, *map(str, options)])
        with pytest.raises(SystemExit) as caught:
            self.tools.cli.run(tool.main)
        out, err = self.capsys.readouterr()
        return Run(caught.value.code, out, err, self.files() - before)

    def files(self) -> set[str]:
        return {p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file()}

    def write(self, path, content=b"") -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode() if isinstance(content, str) else content)

    def replace(self, path, old: str, new: str, count=1) -> None:
        target = self.folder / path
        text = target.read_text()
        assert old in text
        target.write_text(text.replace(old, new, count))

    def cut(self, path, fraction=0.6) -> None:
        content = (self.folder / path).read_bytes()
        self.write(path, content[: int(len(content) * fraction)])

    def change_arrays(self, path, change) -> None:
        """``change(arrays)`` of an .npz file."""
        with np.load(self.folder / path) as data:
            arrays = dict(data)
        change(arrays)
        np.savez(self.folder / path, **arrays)

    def write_net(self, classes=7, method="ohem") -> None:
        for name, text in zip(("train", "test"), _detector(classes, method), strict=True):
            self.write(f"model/{name}.prototxt", text)

    def write_weights(self, path, **layers) -> None:
        """A caffemodel of zeros: ``fc6=[(16, 72), (16,)]``."""
        write_caffemodel(
            self.folder / path,
            CaffeModel("other", [LayerWeights(name, "InnerProduct", [], [], [np.zeros(shape) for shape in shapes])
                                 for name, shapes in layers.items()]),
        )  # fmt: skip


@pytest.fixture(scope="session")
def tools():
    """The scripts as modules; ``cli`` is what they share."""
    sys.path.insert(0, str(TOOLS))
    try:
        import _cli

        loaded = {"cli": _cli}
        for name in (
            "train_from_prototxt",
            "test_from_prototxt",
            "compare_mining",
            "plot_roi_loss",
            "reproduce",
            "eval_voc",
            "eval_recall",
            "reval",
            "rpn_generate",
            "net_info",
            "upgrade_prototxt",
            "convert",
            "copy_model",
            "demo",
            "eval_coco",
            "map_classes",
            "train_svms",
            "compress_net",
        ):
            spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
            loaded[name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded[name])
    finally:
        sys.path.remove(str(TOOLS))
    return SimpleNamespace(**loaded)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """The workspace's data and model, to be copied."""
    folder = tmp_path_factory.mktemp("tools")
    shapes.ensure_shapes(folder / "data" / "shapes", num_train=8, num_test=4)
    (folder / "model").mkdir()
    train, test = _detector()
    texts = {"train.prototxt": train, "test.prototxt": test, "solver.prototxt": SOLVER, "cfg.yml": CFG}
    for name, text in texts.items():
        (folder / "model" / name).write_text(text)
    return folder


@pytest.fixture
def workspace(drawn, tools, tmp_path, monkeypatch, capsys):
    """See :class:`Workspace`."""
    small = functools.partial(shapes.ensure_shapes, num_train=8, num_test=4)
    monkeypatch.setattr(shapes, "ensure_shapes", small)
    for name in ("OHEM_DATA", "OHEM_VOCDEVKIT"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "workspace"
    made = Workspace(drawn, tools, monkeypatch, capsys)
    monkeypatch.chdir(drawn)
    if not (drawn / "snapshots").exists():
        assert made.train("--iters", "2", "--output", "snapshots").code == 0
    shutil.copytree(drawn, folder)
    monkeypatch.chdir(folder)
    made.folder = folder
    return made
