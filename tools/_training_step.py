"""One training of a row of tools/reproduce.py: its recipe and its snapshots."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import prototxt
from ohem_caffe_port.config import Config
from ohem_caffe_port.solver import find_net
from prototxt import write_text

UNVERIFIED = "# not verified: "  # begins a comment in a recipe's cfg.yml


@dataclass
class Training:
    """One training of a row: the ``recipe`` folder on ``imdb``, in ``folder``."""

    recipe: Path
    imdb: str
    iterations: int
    folder: Path
    settings: list[str]

    @cached_property
    def cfg(self) -> Config:
        cfg = Config()
        cfg.merge_file(self.recipe / "cfg.yml")
        cfg.merge_list(self.settings)
        return cfg

    @cached_property
    def solver(self):
        return prototxt.read_solver(self.recipe / "solver.prototxt")

    @property
    def kind(self) -> str:
        """``vgg16/ohem`` of ``vgg16/ohem_0712``: recipes that differ in their training set take the same time."""
        return f"{self.recipe.parent.name}/{re.sub('_(0712|12|07pp12)$', '', self.recipe.name)}"

    @property
    def net(self) -> Path:
        return find_net(self.solver.train_net, self.recipe / "solver.prototxt")

    @property
    def test_net(self) -> Path:
        return self.net.resolve().with_name("test.prototxt")

    @property
    def unverified(self) -> list[str]:
        """Settings of the recipe that no source gives, as its ``cfg.yml`` says."""
        lines = (self.recipe / "cfg.yml").read_text(encoding="utf-8").splitlines()
        return [line.removeprefix(UNVERIFIED) for line in lines if line.startswith(UNVERIFIED)]

    @property
    def model(self) -> Path:
        """The last snapshot, whether it is there or not."""
        infix = f"_{self.cfg.TRAIN.SNAPSHOT_INFIX}" if self.cfg.TRAIN.SNAPSHOT_INFIX else ""
        prefix = Path(self.solver.snapshot_prefix or "snapshot").name + infix
        return self.folder / f"{prefix}_iter_{self.iterations}.caffemodel"

    @property
    def state(self) -> Path | None:
        """The newest state to resume from."""
        found = {}
        for path in self.folder.glob("*_iter_*.solverstate"):
            number = path.stem.rpartition("_")[2]
            if number.isdecimal() and path.with_suffix(".caffemodel").is_file():
                found[int(number)] = path
        return found[max(found)] if found else None

    def short_solver(self) -> Path:
        return self.folder.with_suffix(".solver.prototxt")

    def write_short_solver(self, scale: float) -> None:
        """The solver with fewer iterations and earlier steps, beside the folder."""
        param = prototxt.read_solver(self.recipe / "solver.prototxt")
        param.train_net, param.max_iter = str(self.net.resolve()), self.iterations
        for field in ("stepsize", "display"):
            if getattr(param, field):
                setattr(param, field, max(1, round(getattr(param, field) * scale)))
        param.stepvalue[:] = [max(1, round(step * scale)) for step in param.stepvalue]
        write_text(param, self.short_solver())
