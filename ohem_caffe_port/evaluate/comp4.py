"""VOC's result files: ``comp4_det_<image set>_<class>.txt``, one a class, a line ``image score x1 y1 x2 y2``.

comp4 is VOC's name for detection with a detector trained on any data, comp3 for one trained on VOC's alone. Boxes are
pixels, one-based and inclusive, here as in the files.
"""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from prototxt.files import replacing

from ..errors import PortError
from .results import voc_detections

Detections = tuple[list[str], np.ndarray, np.ndarray]
_RUN = re.compile(r"comp\d[^/]*?_det_.+")
_SUFFIX = re.compile(r"\.txt(\.gz)?$")
_LINE = np.dtype([("image", "U1"), ("values", np.float64, 5)])  # of the image's id only that it is there


def write_comp4(folder, all_boxes, image_index, classes, *, image_set: str, comp_id: str = "comp4") -> list[Path]:
    """Write VOC's result files ``<comp_id>_det_<image_set>_<class>.txt``, one a class, and return their paths.

    A line is ``image score x1 y1 x2 y2``, one-based, the score to three decimals and the box to one, as the devkit and
    the original's ``pascal_voc.py`` have it. A class without detections gets an empty file. The folder is created.

    Raises :class:`CaffePortError` when ``all_boxes`` is not as :func:`voc_detections` needs it or a file cannot be
    written.
    """
    folder, paths = Path(folder), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as err:
        raise PortError(f"cannot be created: {err.strerror}", file=folder) from err
    for name, (ids, scores, boxes) in voc_detections(all_boxes, image_index, classes).items():
        paths.append(folder / f"{comp_id}_det_{image_set}_{name}.txt")
        with replacing(paths[-1], "w", encoding="utf-8", newline="\n") as file:
            rows = zip(ids, scores.tolist(), boxes.tolist(), strict=True)
            file.writelines(
                f"{image} {score:.3f} {x1:.1f} {y1:.1f} {x2:.1f} {y2:.1f}\n" for image, score, (x1, y1, x2, y2) in rows
            )
    return paths


def read_comp4(source, *, image_set: str = "test", comp_id: str = "comp4") -> dict[str, Detections]:
    """Read VOC's result files, plain or ``.gz``: {class: (image ids, scores [N], boxes [N, 4])}.

    ``source`` is a folder, whose files ``<comp_id>_det_<image_set>_*.txt`` are read, or several such files. The class
    is what follows that prefix.

    Raises :class:`PortError` for a folder without such files, a file of another name, or a malformed line.
    """
    prefix = f"{comp_id}_det_{image_set}_"
    detections = {}
    for path in _files_of(source, prefix):
        name = _SUFFIX.sub("", path.name).removeprefix(prefix)
        if not path.name.startswith(prefix) or not name:
            raise PortError(
                f"the file name does not begin with '{prefix}', so its class is unknown",
                file=path,
                hint="Give the comp_id and image_set that the files are named after.",
            )
        if name in detections:
            raise _twice(name, path)
        detections[name] = read_detections(path)
    return detections


class ResultFiles(Mapping):
    """The result files of one run, found by their names alone, as {class: detections} for ``evaluate_voc``.

    A class is read when it is asked for and not kept, so that only one is in memory at a time.

    Args:
        folder: where the files ``<run>_<class>.txt`` or ``.txt.gz`` lie. A run is called ``comp4_det_test``: comp3 or
            comp4, maybe with the salt of the original's ``use_salt``, ``_det_`` and an image set.
        classes: names of all classes, by which the files are told apart.
        wanted: those that must have a file; all when it is None.
        image_set: of several runs in the folder, one of this image set is preferred, then one of comp4.
        run: the run to take.

    Attributes:
        run: its name.
        image_set: the image set that the files are named after.
        others: names of the other runs in the folder.
        strangers: names of its files that are of none of the ``classes``.

    Raises:
        PortError: no such folder, no such file in it, a class without a file or with two, or several runs of which
            none is preferred.
    """

    def __init__(self, folder, classes, *, image_set: str, wanted=None, run: str | None = None):
        folder, classes = Path(folder), list(classes)
        wanted = classes if wanted is None else list(wanted)
        runs, unknown = _runs(folder, classes)
        self.run = run if run in runs else _preferred(runs, folder, image_set, run)
        self.image_set = self.run.partition("_det_")[2]
        self.others = sorted(set(runs) - {self.run})
        self.strangers = [path.name for path in unknown if path.name.startswith(self.run + "_")]
        self._paths = runs[self.run]
        missing = [name for name in wanted if name not in self._paths]
        if missing:
            raise PortError(
                f"has no file {self.run}_{missing[0]}.txt"
                + (f", nor those of {len(missing) - 1} more of {len(wanted)} classes" if missing[1:] else ""),
                file=folder,
                hint="A class without detections has an empty file. Name the classes to score where some are left out.",
            )

    def __getitem__(self, name: str) -> Detections:
        return read_detections(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, name: str) -> Path:
        """The file of a class."""
        return self._paths[name]


def read_detections(path) -> Detections:
    """One result file, plain or ``.gz``: image ids, scores [N] and boxes [N, 4], float64, in the order of its lines.

    Raises :class:`PortError` for a file that cannot be read, and for a malformed line, which it names.
    """
    path = Path(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            lines = file.read().rstrip().splitlines()
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as err:
        raise PortError(f"cannot be read: {getattr(err, 'strerror', None) or err}", file=path) from err
    if not lines:
        return [], np.empty(0), np.empty((0, 4))
    try:
        ids, values = _parse(lines)
    except ValueError:
        line = next(n for n, text in enumerate(lines, start=1) if not _is_detection(text))
        raise PortError(
            f"'{lines[line - 1][:80]}' is not a detection",
            file=path,
            line=line,
            hint="A line is: image score x1 y1 x2 y2.",
        ) from None
    return ids, values[:, 0], values[:, 1:]


def _files_of(source, prefix: str) -> list[Path]:
    if isinstance(source, Iterable) and not isinstance(source, (str, os.PathLike)):
        return [Path(path) for path in source]
    paths = _text_files(Path(source))
    wanted = [path for path in paths if path.name.startswith(prefix)]
    if not wanted:
        named = [path.name for path in paths if "_det_" in path.name]
        hint = f"There is {named[0]}; give its image_set and comp_id." if named else "Is it the right folder?"
        raise PortError(f"has no files named {prefix}<class>.txt", file=source, hint=hint)
    return wanted


def _text_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise PortError("there is no such folder", file=folder, hint="Give the folder of the comp4 files.")
    return sorted(path for path in folder.iterdir() if _SUFFIX.search(path.name))


def _runs(folder: Path, classes: list[str]) -> tuple[dict[str, dict[str, Path]], list[Path]]:
    """{run: {class: file}} of the result files in a folder, and those of no known class."""
    runs: dict[str, dict[str, Path]] = {}
    unknown = []
    for path in _text_files(folder):
        stem = _SUFFIX.sub("", path.name)
        name = max((name for name in classes if stem.endswith(f"_{name}")), key=len, default=None)
        run = stem.removesuffix(f"_{name}")
        if not _RUN.fullmatch(run):
            continue
        if name is None:
            unknown.append(path)
        elif name in runs.setdefault(run, {}):
            raise _twice(name, path)
        else:
            runs[run][name] = path
    if not runs:
        some = f"There is {unknown[0].name}, which is of no class here." if unknown else "Is it the right folder?"
        raise PortError("has no files named comp4_det_<image set>_<class>.txt", file=folder, hint=some)
    return runs, unknown


def _preferred(runs, folder: Path, image_set: str, wished: str | None) -> str:
    """The one run of a folder, or the best of several."""

    def rank(run):
        return run.endswith(f"_det_{image_set}"), run.startswith("comp4")

    best = [run for run in runs if rank(run) == max(map(rank, runs))]
    if wished is not None:
        raise PortError(f"has no files named {wished}_<class>.txt", file=folder, hint=f"There are {', '.join(runs)}.")
    if len(best) > 1:
        raise PortError(f"holds several runs: {', '.join(best)}", file=folder, hint="Say which one to score.")
    return best[0]


def _twice(name: str, path: Path) -> PortError:
    return PortError(f"class '{name}' is there twice", file=path, hint="Remove the plain file or the .gz.")


def _parse(lines: list[str]) -> tuple[list[str], np.ndarray]:
    """Image ids, and [N, 5] scores and boxes; a ValueError where a line is anything else."""
    values = np.loadtxt(lines, comments=None, dtype=_LINE, ndmin=1)["values"]
    if len(values) != len(lines) or not np.isfinite(values).all():  # empty lines are passed over
        raise ValueError
    return [line.split(None, 1)[0] for line in lines], values


def _is_detection(line: str) -> bool:
    try:
        return bool(line.strip()) and bool(_parse([line]))
    except ValueError:
        return False
