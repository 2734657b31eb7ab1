"""The one family of errors that every package of this project raises for a user's mistake.

``tools/`` turns any :class:`CaffePortError` into one message and exit code 2.
"""

from __future__ import annotations


class CaffePortError(Exception):
    """What is wrong, where, and what to do about it.

    ``file``, ``line``, ``layer`` and ``field`` say where; each may be unknown. ``hint`` says what to do.
    The message reads ``file:line: layer 'conv1': convolution_param.pad: <message>`` with the hint on its own line.
    """

    def __init__(self, message, *, file=None, line=None, layer=None, field=None, hint=None):
        super().__init__(message)
        self.message = message
        self.file, self.line, self.layer, self.field, self.hint = file, line, layer, field, hint

    def __str__(self) -> str:
        where = ""
        if self.file is not None:
            where += f"{self.file}:{self.line}: " if self.line is not None else f"{self.file}: "
        if self.layer is not None:
            where += f"layer '{self.layer}': "
        if self.field is not None:
            where += f"{self.field}: "
        return where + self.message + (f"\n  {self.hint}" if self.hint else "")


class PrototxtError(CaffePortError):
    """A prototxt that cannot be read: syntax, unknown field, wrong value."""


def nearest(word: str, known) -> str | None:
    """The spelling in ``known`` nearest to ``word``, or None when nothing is near."""
    import difflib

    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else None
