"""Weight files into other formats: what is found, what the outputs are called, and the writing."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from prototxt import CaffePortError

from .binaryproto import write_binaryproto
from .caffemodel import CaffeModel, write_caffemodel
from .errors import WeightsError
from .formats import kind_of, read
from .named import NamedArrays
from .naming import from_named, to_named
from .npz import write_npz
from .safetensors import write_safetensors
from .solverstate import SolverState, write_solverstate
from .torch_state import write_pt

_ARRAY_WRITERS = {"safetensors": write_safetensors, "pt": write_pt, "npz": write_npz}
FORMATS = (*_ARRAY_WRITERS, "caffemodel", "h5", "onnx")
# The formats of Caffe's own files, and how a file of each content is called in them.
_CAFFE_SUFFIXES = {
    "model": {"caffemodel": ".caffemodel", "h5": ".caffemodel.h5"},
    "solver state": {"caffemodel": ".solverstate", "h5": ".solverstate.h5"},
    "mean": {"caffemodel": ".binaryproto"},
}
_FORMAT_OF_SUFFIX = {
    **{".safetensors": "safetensors", ".pt": "pt", ".pth": "pt", ".npz": "npz", ".onnx": "onnx", ".h5": "h5"},
    **{".caffemodel": "caffemodel", ".solverstate": "caffemodel", ".binaryproto": "caffemodel"},
}
_CAFFE_NAMES = [suffix for suffixes in _CAFFE_SUFFIXES.values() for suffix in suffixes.values()]
_ARRAY_NAMES = [suffix for suffix, format_ in _FORMAT_OF_SUFFIX.items() if format_ in _ARRAY_WRITERS]


@dataclass
class Job:
    """One file and what becomes of it.

    ``below`` is its path below the folder that was named, None for a file that was named itself; ``kind`` is what
    :func:`kind_of` says. ``to`` and ``target`` are set by :func:`plan_outputs`. A file that cannot be read or converted
    has an ``error`` instead.
    """

    source: Path
    below: Path | None = None
    kind: str = ""
    to: str = ""
    target: Path | None = None
    error: CaffePortError | None = None

    @property
    def outputs(self) -> list[Path]:
        """The files that may be written: the target, and where weights too large for an ONNX file go."""
        return [self.target, *([self.target.with_name(f"{self.target.name}.data")] if self.to == "onnx" else [])]

    @cached_property
    def content(self) -> str:
        """What the file holds: "model", "solver state" or "mean"."""
        kind = read(self.source).metadata.get("kind", "") if self.kind in _ARRAY_WRITERS else self.kind
        return {"solverstate": "solver state", "binaryproto": "mean"}.get(kind.split(".")[0], "model")


def find_files(
    paths: Iterable[str | os.PathLike], to: str | None = None, *, every_kind: bool = False
) -> tuple[list[Job], int]:
    """A job for each weight file in ``paths``, and how many files in folders were left alone.

    In a folder, and in the folders below it, files are known by their extensions, those without one and ``.h5`` by
    their content. Into an array format (also when ``to`` is None) go the files of Caffe; into one of Caffe's formats
    goes what has another format. With ``every_kind`` all are taken, and a file that is named itself always is.

    Raises :class:`WeightsError` for a folder that cannot be read.
    """
    jobs: dict[str, Job] = {}  # by real path: a file may be named twice
    skipped = 0
    for path in map(Path, paths):
        if not path.is_dir():
            jobs.setdefault(os.path.realpath(path), _job(path))
            continue
        for folder, subfolders, names in os.walk(path, onerror=_complain):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for file in (Path(folder, name) for name in sorted(names) if not name.startswith(".")):
                job = _job_in_folder(file, file.relative_to(path), to, every_kind)
                if job is None:
                    skipped += 1
                else:
                    jobs.setdefault(os.path.realpath(file), job)
    return list(jobs.values()), skipped


def _complain(error: OSError):
    raise WeightsError(f"cannot be read: {error.strerror}", file=error.filename)


def _job(path: Path, below: Path | None = None) -> Job:
    try:
        return Job(path, below, kind_of(path))
    except CaffePortError as error:
        return Job(path, below, error=error)


def _job_in_folder(path: Path, below: Path, to: str | None, every_kind: bool) -> Job | None:
    by_name = path.name.endswith((*_CAFFE_NAMES, *_ARRAY_NAMES))
    arrays = every_kind or to in ("caffemodel", "h5")
    if not (by_name or path.suffix in ("", ".h5")) or (path.suffix in _ARRAY_NAMES and not arrays):
        return None
    job = _job(path, below)
    if job.error:
        return job if by_name else None
    if every_kind:
        return job
    if arrays:
        return job if _format_of(job.kind) != to and (job.kind, to) != ("binaryproto", "h5") else None
    return job if job.kind not in _ARRAY_WRITERS and (to != "onnx" or job.kind.startswith("caffemodel")) else None


def _format_of(kind: str) -> str:
    return kind if kind in _ARRAY_WRITERS else "h5" if kind.endswith(".h5") else "caffemodel"


def plan_outputs(
    jobs: list[Job], to: str | None = None, out: str | None = None, *, force: bool = False, inputs: Iterable = ()
) -> None:
    """Sets ``to`` and ``target`` of each job that has no error, and the error of one that has no form in that format.

    ``to`` None stands for the format that the name ``out`` tells, or else safetensors for a file of Caffe and
    caffemodel for others. ``out`` is a folder when it is one, ends in a slash, or there are several jobs or a folder's;
    otherwise the file to write. ``inputs`` are other files that no output may replace.

    Raises :class:`WeightsError`, before anything is written: an output that is an input or another file's output, or
    that is there already and ``force`` is not given; a name that says another format.
    """
    as_file = out is not None and len(jobs) == 1 and jobs[0].below is None
    as_file = as_file and not out.endswith(("/", os.sep)) and not Path(out).is_dir()
    if as_file:
        told = _FORMAT_OF_SUFFIX.get(Path(out).suffix)
        to = to or told
        if told not in (None, to) or (to == "h5" and told != "h5"):
            hint = "Caffe takes for HDF5 what ends in .h5, and nothing else." if "h5" in (told, to) else None
            raise WeightsError(f"is no name for the format {to}", file=out, hint=hint)
    for job in jobs:
        if job.error:
            continue
        try:
            job.to = to or ("caffemodel" if job.kind in _ARRAY_WRITERS else "safetensors")
            name = output_name(job.source.name, job.content, job.to)
            folder = job.source.parent if out is None else Path(out, *(job.below.parts[:-1] if job.below else ()))
            job.target = Path(out) if as_file else folder / name
            told = Path(out).suffix if as_file else ""
            if told in (".caffemodel", ".solverstate", ".binaryproto") and not name.endswith(told):
                raise WeightsError(f"is no name for a {job.content}; {name} would be", file=out)
        except CaffePortError as error:
            error.file = error.file or job.source
            job.error = error
    _check_targets([job for job in jobs if not job.error], force, [*inputs, *(job.source for job in jobs)])


def output_name(name: str, content: str, to: str) -> str:
    """What ``name`` is called in the format ``to``, when it holds ``content``: "model", "solver state" or "mean".

    A known extension is replaced, another is kept: ``x.caffemodel.h5`` -> ``x.safetensors``. The arrays of a solver
    state are called ``x.solverstate.safetensors``, for the model of the same snapshot has the same name.

    Raises :class:`WeightsError` for a content that the format has no form for.
    """
    stem = name
    for suffix in (".h5", *_FORMAT_OF_SUFFIX):
        stem = stem.removesuffix(suffix)
    in_caffe = _CAFFE_SUFFIXES[content]
    if to in in_caffe:
        return stem + in_caffe[to]
    if to in _ARRAY_WRITERS or (to == "onnx" and content == "model"):
        return f"{stem}{'.solverstate' if content == 'solver state' else ''}.{to}"
    raise WeightsError(f"holds a {content}, which has no form as {to}", hint=f"Give --to {', '.join(_ARRAY_WRITERS)}.")


def _check_targets(jobs: list[Job], force: bool, inputs) -> None:
    taken = {os.path.realpath(path) for path in inputs}
    writers: dict[str, Job] = {}
    for path, job in ((path, each) for each in jobs for path in each.outputs):
        if os.path.realpath(path) in taken:
            raise WeightsError("would be written over, but it is an input", file=path, hint="Name another --out.")
        other = writers.setdefault(os.path.realpath(path), job)
        if other is not job:
            raise WeightsError(
                f"would be the output of both {other.source} and {job.source}",
                file=path,
                hint="Convert them one by one, with --out.",
            )
    there = [str(path) for job in jobs for path in job.outputs if path.is_file()]  # else refused by `replacing`
    if there and not force:
        more = f" (and {len(there) - 1} more outputs)" if len(there) > 1 else ""
        raise WeightsError(f"is there already{more}", file=there[0], hint="Give --force to write over it.")


def convert(source, target, to: str, *, net=None, caffe_names: bool = False) -> list[str]:
    """Reads ``source`` and writes ``target``: :func:`read` and :func:`write` in one."""
    return write(read(source), target, to, net=net, caffe_names=caffe_names)


def write(content, target, to: str, *, net=None, caffe_names: bool = False) -> list[str]:
    """Writes what :func:`converters.formats.read` gave in the format ``to``, any of :data:`FORMATS` but onnx; returns
    notes of what was decided on the way.

    ``net`` is a ``NetParameter`` that tells types, order and sharing where the file does not. With ``caffe_names``
    arrays are called ``conv1.0`` and hold what Caffe has, otherwise ``conv1.weight`` and what PyTorch would have.
    ``target`` appears whole or not at all, its folder is created.

    Raises :class:`WeightsError` for arrays that make no Caffe file, :class:`CaffePortError` when it cannot be written.
    """
    notes = []
    if isinstance(content, CaffeModel) and content.shared_once and net is None and to != "h5":
        hint = "HDF5 files tell neither types and order of layers nor what Caffe left out because it is shared"
        notes.append(f"{hint}: give --prototxt")
    if to in _ARRAY_WRITERS:
        if not isinstance(content, NamedArrays) or net is not None or caffe_names:
            content = to_named(as_caffe(content, net=net), caffe_names=caffe_names, net=net)
        notes += content.notes
    else:
        content = as_caffe(content, net=net)
        if to == "h5" and isinstance(content, CaffeModel):  # copies of a shared tensor become one
            content = from_named(to_named(content, caffe_names=True))
    make_folder(target)
    if isinstance(content, NamedArrays):
        _ARRAY_WRITERS[to](target, content)
    elif isinstance(content, CaffeModel):
        write_caffemodel(target, content)
    elif isinstance(content, SolverState):
        write_solverstate(target, content)
    elif to == "caffemodel":
        write_binaryproto(target, content)
    else:
        raise WeightsError(f"a mean has no form as {to}")
    return notes


def make_folder(target: str | os.PathLike) -> None:
    """Makes the folder that ``target`` will lie in.

    Raises :class:`CaffePortError` when that cannot be.
    """
    folder = Path(target).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise CaffePortError("cannot be created: a file is there", file=folder, hint="Name another --out.") from None
    except OSError as error:
        raise CaffePortError(f"cannot be created: {error.strerror}", file=folder) from None


def as_caffe(content, *, net=None, path=None) -> CaffeModel | SolverState | np.ndarray:
    """What :func:`converters.formats.read` gave as what Caffe has: arrays by name become a model, a solver state or a
    mean; a model is completed by ``net``. Errors tell ``path``."""
    try:
        if isinstance(content, CaffeModel) and net is not None:
            content = to_named(content, caffe_names=True, net=net)
        return from_named(content, net=net) if isinstance(content, NamedArrays) else content
    except CaffePortError as error:
        error.file = error.file or path
        raise
