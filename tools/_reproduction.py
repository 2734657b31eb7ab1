"""One row of tools/reproduce.py: what it needs, the commands that compute it, and running them so that a stop costs
little."""

from __future__ import annotations

import json
import math
import re
import shlex
import time
from fnmatch import fnmatch
from functools import cached_property
from pathlib import Path

import _cli
from _processes import run_command
from _short_data import DEVKIT, shorten
from _training_step import Training

from ohem_caffe_port.data.coco import Coco, find_coco, find_coco_proposals
from ohem_caffe_port.data.factory import get_imdb, list_imdbs
from ohem_caffe_port.errors import PortError
from ohem_caffe_port.evaluate import load_detections
from ohem_caffe_port.published import PRETRAINED, Run
from ohem_caffe_port.results import evaluate_results, write_results
from prototxt import CaffePortError
from prototxt.errors import nearest
from prototxt.files import replacing
from prototxt.zoo.generate import ZOO

TOOLS = Path(__file__).parent
FEWEST = {"iterations": 10, "images": 8}  # of a shortened run


class Row:
    """A published figure and how it is computed with the options ``args`` of tools/reproduce.py.

    Raises:
        PortError: a backbone without this recipe, or an unknown data set.
    """

    def __init__(self, run: Run, args):
        self.run, self.figure, self.args, self.scale = run, run.published, args, args.scale
        self.backbone = args.backbone or run.backbone
        self.train_imdb, self.test_imdb = args.train_imdb or run.train_imdb, args.test_imdb or run.test_imdb
        for name in [*self.train_imdb.split("+"), *self.test_imdb.split("+")]:
            if name not in list_imdbs():
                get_imdb(name, data_dir=args.data)  # says what is known
        tags = [args.backbone, "published_model" if args.evaluate else None]
        tags.append(f"scale_{self.scale:g}" if self.scale != 1 else None)
        self.folder = Path(args.output) / "_".join([run.figure, *filter(None, tags)])
        iterations = None if args.backbone else run.iterations
        self.training = self._training("train", run.recipe, self.train_imdb, iterations)
        self.pretraining = self._training("pretrain", *run.pretraining) if run.pretraining else None

    def _training(self, step: str, recipe: str, imdb: str, iterations: int | None = None) -> Training:
        folder = ZOO / self.backbone / recipe
        if not (folder / "solver.prototxt").is_file():
            known = sorted(p.parent.parent.name for p in ZOO.glob(f"*/{recipe}/solver.prototxt"))
            near = nearest(self.backbone, known)
            hint = f"Did you mean {near}? With it: " if near else "With it: "
            raise PortError(
                f"no recipe {recipe} for the backbone '{self.backbone}'", hint=hint + ", ".join(known or ["none"])
            )
        settings = [*self.run.settings, *self.args.set]
        training = Training(folder, imdb, 0, self.folder / step, settings)
        training.iterations = self.shortened(iterations or training.solver.max_iter, "iterations")
        return training

    def shortened(self, count: int, what: str) -> int:
        return count if self.scale == 1 else min(count, max(FEWEST[what], round(count * self.scale)))

    # ---- what it needs

    @property
    def trainings(self) -> list[Training]:
        """In their order; none with ``--evaluate``."""
        return [] if self.args.evaluate else [each for each in (self.pretraining, self.training) if each]

    @property
    def data(self) -> list[tuple[str, str]]:
        """``(data set, proposal method of the recipe)`` of all steps, unions apart."""
        found = [(each.imdb, each.cfg.TRAIN.PROPOSAL_METHOD) for each in self.trainings]
        found.append((self.test_imdb, self.training.cfg.TEST.PROPOSAL_METHOD))
        return [(name, method) for names, method in found for name in _single(names)]

    @property
    def weights_name(self) -> str | None:
        """The file to start from or, with ``--evaluate``, to test, by its public name; None when it needs none."""
        if self.args.evaluate:
            return self.run.detectors[0] if self.run.detectors else "a detector, named with --weights FILE"
        return PRETRAINED.get(self.backbone)

    @cached_property
    def weights(self) -> Path | None:
        """Where it is; None when it is not there."""
        given, name = Path(self.args.weights), self.weights_name
        if given.is_file():
            return given
        patterns = self.run.detectors if self.args.evaluate else [name, f"imagenet_models/{name}", f"*/{name}"]
        found = (path for pattern in patterns if name for path in sorted(given.glob(pattern)))
        return next((path for path in found if path.is_file()), None)

    def open_imdb(self, name: str, method: str):
        """A data set in full, with the proposals of ``method`` unless ``--proposals`` says otherwise."""
        options = {"devkit": _cli.devkit_of(self.args, name), "proposals": self.args.proposals or method}
        return get_imdb(name, data_dir=self.args.data, **options)

    def missing_data(self, known: dict) -> list[str]:
        """The data sets that are not there, a line each. ``known`` keeps what was found: it is looked up once."""
        for key in self.data:
            if key not in known:
                known[key] = self._problem(*key)
        return list(dict.fromkeys(known[key] for key in self.data if known[key]))

    def _problem(self, name: str, method: str) -> str | None:
        try:
            if not name.startswith("coco_"):
                image = self.open_imdb(name, method).image_path_at(0)
                return None if image.is_file() else f"{name}: {image}"
            # not opened: COCO's annotations take half a minute to read
            find_coco_proposals(self.args.proposals or method, name, self.args.data)
            _, year, image_set = name.split("_")
            kind = "image_info" if image_set.startswith("test") else "instances"
            folder = find_coco(self.args.data, _cli.devkit_of(self.args, name)) / "annotations"
            file = folder / f"{kind}_{image_set}{year}.json"
            return None if file.is_file() else f"{name}: {file}"
        except CaffePortError as error:
            return f"{name}: {error.message}"

    def missing_weights(self) -> list[str]:
        if not self.weights_name or self.weights:
            return []
        return [f"{self.weights_name}; looked for in {self.args.weights} (--weights or $OHEM_WEIGHTS)"]

    def differences(self) -> list[str]:
        """Why the result must not be compared with the figure; empty when it may."""
        args, run, lines = self.args, self.run, []
        if self.scale != 1:
            lines.append(f"shortened to {self.scale:g} of the iterations and images")
        for what, ours, theirs in (
            ("backbone", self.backbone, run.backbone),
            ("trained on", self.train_imdb, run.train_imdb),
            ("tested on", self.test_imdb, run.test_imdb),
        ):
            if ours != theirs and not (args.evaluate and what == "trained on"):
                lines.append(f"{what} {ours}, not {theirs}")
        patterns = self.run.detectors if args.evaluate else [self.weights_name or ""]
        if self.weights and not any(fnmatch(self.weights.name, Path(pattern).name) for pattern in patterns):
            lines.append(
                f"{'tested' if args.evaluate else 'started from'} {self.weights.name}, not {self.weights_name}"
            )
        lines += [f"proposals {args.proposals}"] if args.proposals else []
        lines += [f"--set {' '.join(args.set)}"] if args.set else []
        return lines

    @property
    def unverified(self) -> list[str]:
        """Settings of its recipes that no source gives; those of the recipe that comes first begin with its name."""
        first = [] if self.args.evaluate or not self.pretraining else self.pretraining.unverified
        return [f"{self.run.pretraining[0]}: {line}" for line in first] + self.training.unverified

    # ---- the commands

    @property
    def detections(self) -> Path:
        return self.folder / "test" / "detections.npz"

    def commands(self) -> list[tuple[str, list[str]]]:
        """``(step, command)`` of what is still to be done: ``pretrain``, ``map``, ``train``, ``test``."""
        start, model, steps = self.weights or self.weights_name, self.training.model, []
        if self.args.evaluate:
            model = Path(start)
        elif not model.is_file():
            if self.pretraining and not self.training.state:
                mapped = self.folder / "mapped.caffemodel"
                if not mapped.is_file():
                    if not self.pretraining.model.is_file():
                        steps.append(("pretrain", self._train(self.pretraining, start)))
                    steps.append(("map", self._map(mapped)))
                start = mapped
            steps.append(("train", self._train(self.training, start)))
        stale = model.is_file() and self.detections.is_file() and _age(model) > _age(self.detections)
        if steps or stale or not self.detections.is_file():
            options = ["--def", self.training.test_net, "--net", model, *self.run.test_options]
            options += ["--output", self.detections.parent]
            steps.append(("test", self._command("test_from_prototxt.py", options, self.training, self.test_imdb)))
        return steps

    def _train(self, training: Training, start) -> list[str]:
        solver = training.recipe / "solver.prototxt" if self.scale == 1 else training.short_solver()
        begin = ["--resume", training.state] if training.state else ["--weights", start] if start else []
        options = [solver, *begin, "--iters", training.iterations, "--output", training.folder]
        options += ["--workers", self.args.workers] if self.args.workers else []
        every = max(1, round(training.cfg.TRAIN.SNAPSHOT_ITERS * self.scale))
        short = ["TRAIN.SNAPSHOT_ITERS", str(every)] if self.scale != 1 else []
        return self._command("train_from_prototxt.py", options, training, training.imdb, short)

    def _map(self, mapped: Path) -> list[str]:
        options = ["--net", self.pretraining.model, "--out", mapped]
        return self._command("map_classes.py", options, self.training, self.train_imdb)

    def _command(self, tool: str, options, training: Training, imdb: str, settings=()) -> list[str]:
        args, (data, devkit) = self.args, self.places(imdb)
        command = ["python", TOOLS / tool, *options, "--cfg", training.recipe / "cfg.yml", "--imdb", imdb]
        command += ["--data", data, *(["--devkit", devkit] if devkit else [])]
        command += ["--proposals", args.proposals] if args.proposals and self.scale == 1 else []
        command += ["--gpu", args.gpu] if args.gpu is not None and tool != "map_classes.py" else []
        settings = [*settings, *training.settings]
        return [_shown(word) for word in command + (["--set", *settings] if settings else [])]

    def places(self, imdb: str) -> tuple[Path, Path | str | None]:
        """The folders ``--data`` and ``--devkit`` of a data set: those of the shortened one where there is one."""
        if imdb.startswith("shapes_"):
            return Path(self.args.data), None
        if self.scale == 1:
            return Path(self.args.data), self.args.devkit
        data = self.folder / "data"
        return data, None if imdb.startswith("coco_") else data / DEVKIT

    # ---- running them

    def __call__(self) -> dict:
        """Runs what is still to be done and evaluates; returns what ``result.json`` gets.

        Raises:
            PortError: the folder holds another run, or a command failed.
        """
        self.claim_folder()
        if self.scale != 1:
            for training in self.trainings:
                training.write_short_solver(self.scale)
            for name, method in self.data:
                count = lambda images: self.shortened(images, "images")  # noqa: E731
                shorten(self.open_imdb(name, method), count, self.folder / "data", method)
        file = self.folder / "result.json"
        seconds = (read_result(file) or {}).get("seconds", {})
        for step, command in self.commands():
            print(f"---- {self.figure.name}: {step}\n{shlex.join(command)}", flush=True)
            started = time.perf_counter()
            log = run_command(command, self.folder / f"{step}.log")
            seconds[step] = time.perf_counter() - started
            pace = re.search(r"iterations in .* \(([\d.]+) s/it\)", log)
            if step == "train" and pace:
                seconds["iteration"] = float(pace[1])
        result = {**self.describe(), "seconds": seconds, **self.evaluate()}
        with replacing(file, "w", encoding="utf-8") as stream:
            json.dump(result, stream, indent=1)
        return result

    def describe(self) -> dict:
        figure = self.figure
        return {
            "name": figure.name, "method": figure.method, "metric": figure.metric, "standing": figure.standing,
            "parts_standing": figure.parts_standing, "published": figure.value, "published_parts": figure.parts,
            "differences": self.differences(), "unverified": self.unverified, "settings": self.settings(),
        }  # fmt: skip

    def settings(self) -> dict:
        """What makes two runs the same run."""
        return {
            "recipe": f"{self.backbone}/{self.run.recipe}", "train": self.train_imdb, "test": self.test_imdb,
            "iterations": 0 if self.args.evaluate else self.training.iterations, "scale": self.scale,
            "weights": self.weights.name if self.weights else None, "proposals": self.args.proposals,
            "set": list(self.args.set),
        }  # fmt: skip

    def claim_folder(self) -> None:
        """Makes the folder this run's own; a folder with another run, or of other things, stays untouched."""
        file, ours = self.folder / "run.json", self.settings()
        hint = "name another folder with --output, or remove this one"
        if file.is_file():
            try:
                theirs = json.loads(file.read_text(encoding="utf-8"))
                changed = [f"{key} {theirs[key]}, not {value}" for key, value in ours.items() if theirs[key] != value]
            except (ValueError, TypeError, KeyError):
                raise PortError("is damaged, so it is unknown what lies beside it", file=file, hint=hint) from None
            if changed:
                raise PortError(f"another run lies there: {'; '.join(changed)}", file=self.folder, hint=hint)
            return
        if self.folder.is_dir() and any(self.folder.iterdir()):
            raise PortError("holds other files, and no run of this tool", file=self.folder, hint=hint)
        _cli.output_folder(self.folder)
        with replacing(file, "w", encoding="utf-8") as stream:
            json.dump(ours, stream, indent=1)

    def evaluate(self) -> dict:
        """What the finished detections score: ``ours`` (percent; None without public ground truth), ``parts`` (the
        classes, or COCO's AP50 and so on), ``images``, ``results`` (the folder for an evaluation server)."""
        data, devkit = self.places(self.test_imdb)
        devkit = devkit or (_cli.devkit_of(self.args, self.test_imdb) if self.scale == 1 else None)
        imdb = get_imdb(self.test_imdb, data_dir=data, devkit=devkit, proposals="gt")
        all_boxes, image_index, classes = load_detections(self.detections)
        if image_index != imdb.image_index or tuple(classes) != imdb.classes:
            hint = "remove the file, and it is tested again"
            raise PortError(f"detections of other images or classes than {imdb.name}", file=self.detections, hint=hint)
        results = self.folder / "test" / "results"
        write_results(results, all_boxes, imdb)
        found = evaluate_results(results, imdb)
        result = {"images": len(image_index), "results": str(results), "ours": None, "parts": {}}
        if found is None:
            return result
        if isinstance(imdb, Coco):
            parts = {name.removeprefix("AP") if name[2].isalpha() else name: found.stats[name] for name in COCO_PARTS}
            mean = found.stats["AP"]
        else:
            parts, mean = found.ap, found.mean
        known = {name: 100 * ap for name, ap in parts.items() if not math.isnan(ap)}
        return result | {"ours": None if math.isnan(mean) else 100 * mean, "parts": known}


def _single(imdbs: str) -> list[str]:
    """The data sets that a name joins."""
    return imdbs.replace("coco_2014_trainval", "coco_2014_train+coco_2014_val").split("+")


COCO_PARTS = ("AP50", "AP75", "APsmall", "APmedium", "APlarge")


# what a report shows of a result, and of which type it is
SHOWN = {
    "name": str, "metric": str, "standing": str, "parts_standing": str, "published": (int, float),
    "published_parts": dict, "ours": (int, float, type(None)), "parts": dict, "images": int, "results": str,
    "differences": list, "unverified": list, "seconds": dict,
}  # fmt: skip


def read_result(file: Path) -> dict | None:
    """A run's ``result.json``; None when it cannot be read, or is none."""
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
        whole = all(isinstance(result[key], kind) for key, kind in SHOWN.items())
    except (OSError, ValueError, TypeError, LookupError):
        return None
    numbers = [*result["parts"].values(), *result["published_parts"].values()] if whole else [None]
    return result if all(isinstance(number, int | float) for number in numbers) else None


def _shown(word) -> str:
    """An argument; a path below the working directory is relative to it."""
    path = Path(word) if isinstance(word, Path) else None
    return str(path.relative_to(Path.cwd()) if path and path.is_relative_to(Path.cwd()) else word)


def _age(path: Path) -> float:
    return path.stat().st_mtime
