"""Writing files whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from .errors import CaffePortError


@contextmanager
def replacing(path: str | os.PathLike, mode: str = "wb", **options) -> Iterator[IO]:
    """Open a temporary file beside ``path``; when the block ends well it takes the place of ``path`` at once.

    An error inside the block leaves ``path`` as it was and removes the temporary file. ``options`` go to ``open``.

    Raises :class:`CaffePortError` when the folder is missing or not writable, the disk is full, or ``path`` is there
    and no ordinary file: a folder, or a device such as ``/dev/null``, which a file must not replace.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no ordinary file"
        raise CaffePortError(f"cannot be written: it is {what}", file=path, hint="Name a file.")
    temporary = temporary_name(path)
    try:
        with temporary.open(mode, **options) as file:
            yield file
        temporary.replace(path)
    except OSError as err:
        temporary.unlink(missing_ok=True)
        hint = None if path.parent.is_dir() else f"Create the folder {path.parent} first."
        raise CaffePortError(f"cannot be written: {err.strerror or err}", file=path, hint=hint) from err
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_name(path: str | os.PathLike) -> Path:
    """The file that :func:`replacing` writes in this process until ``path`` is complete."""
    path = Path(path)
    start = os.fsdecode(os.fsencode(path.name)[:200])  # names have 255 bytes at most
    return path.with_name(f".{start}.{os.getpid()}.tmp")
