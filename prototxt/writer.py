"""Write messages as text that Caffe reads back."""

from __future__ import annotations

import os
from pathlib import Path

from google.protobuf import text_format

from prototxt.errors import PrototxtError


def to_text(message) -> str:
    """The message as prototxt: one field a line, floats in their shortest form (0.1), text as UTF-8."""
    return text_format.MessageToString(message, as_utf8=True)


def write_text(message, path) -> None:
    """Write :func:`to_text` to ``path``; the file is replaced only once it is complete. Raises PrototxtError."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(to_text(message), encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise PrototxtError(f"cannot be written: {error.strerror}", file=str(path)) from None
