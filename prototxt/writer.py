"""Write messages as text that Caffe reads back."""

from __future__ import annotations

from google.protobuf import text_format

from prototxt.files import replacing


def to_text(message) -> str:
    """The message as prototxt: one field a line, floats in their shortest form (0.1), text as UTF-8."""
    return text_format.MessageToString(message, as_utf8=True)


def write_text(message, path) -> None:
    """Write :func:`to_text` to ``path``; the file is replaced only once it is complete. Raises CaffePortError."""
    with replacing(path, "w", encoding="utf-8") as file:
        file.write(to_text(message))
