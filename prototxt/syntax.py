"""Prototxt text to a tree of fields with their places, before any schema is looked at.

The grammar is protobuf's text format: ``name: value``, ``name { ... }``, ``name: [a, b]``, ``<`` ``>`` for braces,
``#`` comments, ``;`` or ``,`` between fields, adjacent strings joined.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass, field

from prototxt.errors import PrototxtError

MAX_DEPTH = 100  # protobuf's own limit; also keeps a hostile file from exhausting the stack

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\v\f]+ | \#[^\n]*)
      | (?P<newline>\n)
      | (?P<string>"(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')
      | (?P<number>0[xX][0-9a-fA-F]+ | (?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[fF]?)(?![A-Za-z0-9_.])
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<symbol>[{}<>\[\]:;,\-./])""",
    re.VERBOSE,
)
_CLOSES = {"{": "}", "<": ">"}


@dataclass(slots=True)
class Scalar:
    """One value as written: ``kind`` is 'string' (text without quotes and escapes), 'number' or 'word'."""

    kind: str
    text: str | bytes
    line: int

    def __str__(self) -> str:
        return repr(self.text.decode("utf-8", "replace")) if self.kind == "string" else self.text


@dataclass(slots=True)
class Entry:
    """One field as written: its values are scalars, or blocks (lists of entries); ``[a, b]`` gives several."""

    name: str
    line: int
    column: int
    values: list[Scalar | list[Entry]] = field(default_factory=list)

    def blocks(self) -> list[list[Entry]]:
        return [value for value in self.values if isinstance(value, list)]


def parse_tree(text: str, source: str) -> list[Entry]:
    """The fields of ``text`` in order. Raises PrototxtError with the line of what cannot be read."""
    return _Parser(text, source).fields(None, 0)


class _Parser:
    def __init__(self, text: str, source: str):
        self.source = source
        self.tokens = list(self._tokens(text))
        self.at = 0

    def fail(self, message, line, **where):
        return PrototxtError(message, file=self.source, line=line, **where)

    def _tokens(self, text):
        """(kind, text, line, column) of every token, then one ('end', '', line, column)."""
        position, line, start = 0, 1, 0
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._bad_token(text, position, line)
            kind = match.lastgroup
            if kind == "newline":
                line, start = line + 1, match.end()
            elif kind != "space":
                yield kind, match.group(), line, position - start + 1
            position = match.end()
        yield "end", "", line, position - start + 1

    def _bad_token(self, text, position, line):
        char, rest = text[position], text[position:].split("\n", 1)[0]
        if char in "\"'":
            return self.fail(f"this string is not closed: {rest[:40]}", line, hint=f"add the closing {char}")
        if char.isdigit() or char == ".":
            word = re.match(r"[^\s{}]+", rest).group()
            return self.fail(f"{word!r} is not a number", line)
        if "\udc80" <= char <= "\udcff":
            return self.fail("a byte that is not UTF-8 text", line, hint="save the file as UTF-8")
        return self.fail(f"{char!r} does not belong here", line, hint="comments start with #" if char == "/" else None)

    def take(self, *symbols):
        """The next token if it is one of ``symbols``, else None and nothing is consumed."""
        kind, text, _, _ = token = self.tokens[self.at]
        if kind == "symbol" and text in symbols:
            self.at += 1
            return token
        return None

    def fields(self, opened, depth) -> list[Entry]:
        """Fields up to the brace that closes ``opened`` (a token), or to the end of the text when None."""
        if depth > MAX_DEPTH:
            raise self.fail(f"blocks are nested more than {MAX_DEPTH} deep", opened[2])
        entries = []
        while True:
            kind, text, line, column = self.tokens[self.at]
            if kind == "end":
                if opened is not None:
                    message = f"the block '{opened[1]}' opened here is never closed"
                    raise self.fail(message, opened[2], hint=f"add the missing '{_CLOSES[opened[1]]}'")
                return entries
            if kind == "symbol" and text in "}>":
                if opened is None:
                    raise self.fail(f"'{text}' closes a block that was never opened", line)
                if text != _CLOSES[opened[1]]:
                    raise self.fail(f"'{text}' closes the '{opened[1]}' of line {opened[2]}", line)
                self.at += 1
                return entries
            entries.append(self.entry(depth))
            self.take(";", ",")

    def entry(self, depth) -> Entry:
        kind, text, line, column = self.tokens[self.at]
        self.at += 1
        if text == "[":  # an extension, [some.name]; no schema of Caffe has any
            while not text.endswith("]"):
                piece = self.tokens[self.at]
                if piece[0] == "end":
                    raise self.fail("this '[' is never closed", line)
                text += piece[1]
                self.at += 1
        elif kind != "word":
            raise self.fail(f"expected a field name, found {text or 'the end of the file'!r}", line)
        entry = Entry(text, line, column)
        colon = self.take(":")
        if self.take("["):
            while not self.take("]"):
                entry.values.append(self.value(entry, colon, depth))
                if not self.take(","):
                    if self.take("]"):
                        break
                    raise self.fail(f"expected ',' or ']' in the list of {entry.name}", self.tokens[self.at][2])
        else:
            entry.values.append(self.value(entry, colon, depth))
        return entry

    def value(self, entry, colon, depth):
        opened = self.take("{", "<")
        if opened:
            return self.fields(opened, depth + 1)
        kind, text, line, _ = self.tokens[self.at]
        if not colon:
            found = text or "the end of the file"
            raise self.fail(f"expected ':' or '{{' after '{entry.name}', found {found!r}", line)
        sign = "-" if self.take("-") else ""
        kind, text, _, _ = self.tokens[self.at]
        if kind == "string" and not sign:
            pieces = b""
            while self.tokens[self.at][0] == "string":
                pieces += self.unescape(self.tokens[self.at])
                self.at += 1
            return Scalar("string", pieces, line)
        if kind not in ("number", "word"):
            raise self.fail(f"{entry.name} has no value", entry.line)
        self.at += 1
        return Scalar(kind, sign + text, line)

    def unescape(self, token) -> bytes:
        _, quoted, line, _ = token
        simple = {"n": b"\n", "r": b"\r", "t": b"\t", "a": b"\a", "b": b"\b", "f": b"\f", "v": b"\v"}

        def one(match):
            code = match.group(1)
            if code[0] in "xX" and len(code) > 1:
                return bytes([int(code[1:], 16)])
            if code[0] in "01234567":
                return bytes([int(code, 8) & 255])
            if code[0] in "uU" and len(code) > 1:
                with contextlib.suppress(ValueError):  # beyond Unicode, or half a surrogate pair
                    return chr(int(code[1:], 16)).encode()
            if code in "\\'\"?":
                return code.encode()
            if code in simple:
                return simple[code]
            raise self.fail(
                f"'\\{code}' is not an escape that text format knows", line, hint="write \\\\ for a backslash"
            )

        escape = r"\\([xX][0-9a-fA-F]{1,2}|[0-7]{1,3}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)"
        pieces, end = [], 0
        body = quoted[1:-1]
        for match in re.finditer(escape, body):
            pieces += [body[end : match.start()].encode("utf-8", "surrogateescape"), one(match)]
            end = match.end()
        return b"".join(pieces) + body[end:].encode("utf-8", "surrogateescape")
