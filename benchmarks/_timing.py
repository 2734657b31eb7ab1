"""How the benchmarks measure."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path


def medians(*ways, repeats: int) -> list[float]:
    """Median seconds of each function, called in turn so that a busy machine slows them all. Warm them up before."""
    spent = [[] for _ in ways]
    for _ in range(repeats):
        for way, seconds in zip(ways, spent, strict=True):
            start = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in spent]


def resident(what: str) -> int:
    """Bytes of memory that this process has (VmRSS) or had at most (VmHWM). Linux only."""
    return 1024 * int(re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def peak_memory(device: str) -> int:
    """The most bytes that this process has had: of CUDA's memory by torch's count, or of the machine's."""
    if not device.startswith("cuda"):
        return resident("VmHWM")
    import torch

    return torch.cuda.max_memory_allocated(device)


def in_own_process(script: str, *arguments) -> dict:
    """What ``script``, run with these arguments, prints in its last line as JSON.

    Raises:
        subprocess.CalledProcessError: it failed; what it wrote to stderr has been shown.
    """
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def check_device(parser, device: str) -> None:
    """Ends the program as ``parser.error`` does where torch cannot use ``device``."""
    import torch

    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:  # the latter where torch was built without CUDA
        parser.error(f"--device {device}: {str(error).splitlines()[0]}")
