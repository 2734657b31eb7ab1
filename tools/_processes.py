"""Running another tool as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from ohem_caffe_port.errors import PortError


def run_command(command: list[str], log: Path) -> str:
    """Runs a tool, shows what it prints and keeps it in ``log``; returns it.

    Being told to stop is passed on as an interrupt, and waited for: a training writes a snapshot then.

    Raises:
        PortError: it failed; its own message has been printed.
    """
    lines = []
    with log.open("a", encoding="utf-8") as file, _start([sys.executable, *command[1:]]) as process:

        def follow():
            for line in process.stdout:
                print(line, end="", flush=True)
                file.write(line)
                file.flush()
                lines.append(line)

        try:
            follow()
        except BaseException:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            follow()
            raise
    if process.returncode:
        raise PortError(
            f"{command[1]} ended with exit code {process.returncode}", hint=f"its messages are above, and in {log}"
        )
    return "".join(lines)


def _start(argv: list[str]) -> subprocess.Popen:
    """A process that gets interrupts from us alone, and heeds them though we may ignore them (in the background)."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": "1"}, encoding="utf-8",
            errors="replace", start_new_session=True,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, previous)
