"""Builds and runs every prototxt under a folder, with random weights and small inputs.

    python tests/corpus.py FOLDER [--json FILE] [--markdown FILE] [--jobs 2]

A net is built in the phases that it is made for, TEST where it has no loss, and runs
one forward, and backward where there is a loss. Layers that read data from files are replaced by inputs of the same
names, because their data are not here. Prints what failed and a table, one row for each folder at the top of FOLDER;
exits with 1 when a file does not parse or fewer than 95% of the nets run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path

_TESTS = Path(__file__).resolve().parent
sys.path[:] = [str(_TESTS.parent), *(p for p in sys.path if p != str(_TESTS)), str(_TESTS)]

import torch
from replays.standins import RunError, phases_of, run_net
from tqdm import tqdm

import prototxt
from ohem_caffe_port import python_layers  # noqa: F401  registers them
from ohem_caffe_port.layers import LAYERS, PYTHON_LAYERS
from prototxt import CaffePortError, caffe_pb2

SUFFIXES = {".prototxt", ".pt", ".pbtxt"}
ENOUGH = 0.95


def find_files(folder: Path, only: str = "") -> dict[str, list[str]]:
    """``{digest: paths below the folder}`` of the files whose path holds ``only``; binary ones that share a suffix with
    prototxts are left out."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if only in name and path.is_file() and SUFFIXES & set(path.suffixes):
            data = path.read_bytes()
            if b"\0" not in data:
                found[hashlib.sha256(data).hexdigest()].append(name)
    return found


def private_layers(net) -> list[str]:
    """Types, and ``module.layer`` of Python layers, that are not known here."""
    names = set()
    for layer in net.layer:
        if layer.type not in LAYERS:
            names.add(layer.type or "(no type)")
        elif layer.type == "Python":
            key = layer.python_param.module, layer.python_param.layer
            if key not in PYTHON_LAYERS and layer.bottom:
                names.add(".".join(key))
    return sorted(names)


def examine(path: Path, seconds: int) -> dict:
    """What became of one file: ``kind``, ``parsed``, and for a net ``ran`` (per phase, what it did) and ``reason``."""
    unknown: list = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            message = prototxt.read_any(path, lenient=True, unknown=unknown)
        except CaffePortError as error:
            return {"kind": "?", "parsed": False, "reason": error.message}
    kind = {"NetParameter": "net", "SolverParameter": "solver", "LabelMap": "label map"}[message.DESCRIPTOR.name]
    result = {"kind": kind, "parsed": True, "unknown": sorted({field.path for field in unknown})}
    if kind != "net":
        return result
    result["private"] = private_layers(message)
    result["phases"] = {}
    signal.signal(signal.SIGALRM, _too_long)
    for phase in phases_of(message):
        signal.alarm(seconds)
        started = time.perf_counter()
        try:
            copy = caffe_pb2.NetParameter()
            copy.CopyFrom(message)
            done = run_net(copy, phase, path)
        except (CaffePortError, RunError) as error:
            done = {"ran": False, "reason": str(error).splitlines()[0]}
        except TimeoutError:
            done = {"ran": False, "reason": f"took more than {seconds} s"}
        except Exception as error:  # a fault of ours: it must be seen, and must not end the run
            done = {"ran": False, "reason": f"{type(error).__name__}: {error}".splitlines()[0]}
        finally:
            signal.alarm(0)
        done["seconds"] = round(time.perf_counter() - started, 1)
        result["phases"][phase] = done
    result["ran"] = bool(result["phases"]) and all(done["ran"] for done in result["phases"].values())
    return result


def _too_long(*_):
    raise TimeoutError


def _examine(task):
    name, path, seconds = task
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return name, examine(path, seconds)


def summarize(results: dict[str, dict]) -> list[tuple]:
    """Rows ``(folder, files, parsed, nets, ran)``, and one of all in which each different file counts once."""
    groups = defaultdict(list)
    for result in results.values():
        folders = {name.split("/")[0].replace("+", "/") if "/" in name else "." for name in result["files"]}
        for folder in folders:
            groups[folder].append(result)
    rows = []
    for group, members in [*sorted(groups.items()), ("all", list(results.values()))]:
        nets = [r for r in members if r["kind"] == "net"]
        parsed = sum(r["parsed"] for r in members)
        rows.append((group, len(members), parsed, len(nets), sum(r["ran"] for r in nets)))
    return rows


def markdown(results: dict[str, dict]) -> str:
    """The page docs/corpus.md."""
    lines = [
        "# The corpus run",
        "",
        "Made by `python tests/corpus.py FOLDER --markdown docs/corpus.md` on prototxts of public repositories, which",
        "are no part of this project. A file that several repositories share counts in each of them, and once in all.",
        "A net *runs* when it is built in every phase it is made for and passes forward, and backward where it has a",
        "loss, with random weights and small inputs; layers that read data from files are replaced by inputs of the",
        "same names.",
        "",
        "| repository | files | parsed | nets | run |",
        "| --- | --- | --- | --- | --- |",
    ]
    for group, files, parsed, nets, ran in summarize(results):
        share = f"{ran} ({ran / nets:.1%})" if nets else "0"
        lines.append(f"| {group} | {files} | {parsed} | {nets} | {share} |")
    lines += ["", "## Nets that do not run", "", "| file | private layers | reason |", "| --- | --- | --- |"]
    for name, result in sorted(results.items()):
        if result["kind"] == "net" and not result["ran"]:
            private = ", ".join(f"`{layer}`" for layer in result["private"]) or "none"
            lines.append(f"| {name} | {private} | {_escape(reason_of(result))} |")
    lines += ["", "## Files that do not parse", "", "| file | reason |", "| --- | --- |"]
    lines += [f"| {name} | {_escape(r['reason'])} |" for name, r in sorted(results.items()) if not r["parsed"]]
    lines += [
        "",
        "## Fields that no schema here knows",
        "",
        "They are listed to the user and skipped with `--lenient`.",
        "",
    ]
    fields = defaultdict(int)
    for result in results.values():
        for field in result.get("unknown", ()):
            fields[field] += 1
    lines += [f"- `{field}` in {count} files" for field, count in sorted(fields.items())] or ["None."]
    return "\n".join(lines) + "\n"


def reason_of(result: dict) -> str:
    failed = [f"{phase}: {done['reason']}" for phase, done in result["phases"].items() if not done["ran"]]
    return "; ".join(failed) or "the process that ran it ended"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every file's result")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the page of the documentation")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--only", default="", help="files whose path holds this text")
    parser.add_argument("--seconds", type=int, default=120, help="for one net in one phase")
    args = parser.parse_args()
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder")
    files = find_files(args.folder, args.only)
    tasks = [(digest, args.folder / names[0], args.seconds) for digest, names in files.items()]
    if not tasks:
        parser.error(f"no prototxt under {args.folder}")
    results = {}
    with multiprocessing.get_context("spawn").Pool(args.jobs, maxtasksperchild=50) as pool:
        done = pool.imap_unordered(_examine, tasks)
        for _ in tqdm(tasks, disable=not sys.stderr.isatty()):
            try:
                digest, result = done.next(timeout=4 * args.seconds)
            except multiprocessing.TimeoutError:  # a process was killed, for memory perhaps, and its file is lost
                break
            name = files[digest][0]
            results[name] = result | {"files": files[digest]}
            if not result["parsed"]:
                tqdm.write(f"PARSE {name}: {result['reason']}", file=sys.stdout)
            elif result["kind"] == "net" and not result["ran"]:
                tqdm.write(f"RUN   {name}: {reason_of(result)}", file=sys.stdout)
    for names in files.values():
        lost = {"kind": "net", "parsed": True, "private": [], "unknown": [], "phases": {}, "ran": False, "files": names}
        results.setdefault(names[0], lost)
    results = dict(sorted(results.items()))
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    if args.markdown:
        args.markdown.write_text(markdown(results))
    rows = summarize(results)
    for group, files, parsed, nets, ran in rows:
        print(f"{group:60} files {files:4} parsed {parsed:4} nets {nets:4} ran {ran:4}")
    _, files, parsed, nets, ran = rows[-1]
    return 0 if parsed == files and ran >= ENOUGH * nets else 1


if __name__ == "__main__":
    sys.exit(main())
