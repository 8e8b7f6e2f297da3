"""Parses the simple YAML of class files strictly: maps, lists and plain text.

Anchors, tags, text blocks and further documents are refused where classes are listed;
other top-level keys, as in data.yaml, are not read.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from deeplab_tf.errors import UserError

_QUOTED = r'"(?:[^"\\]|\\.)*"|\'(?:[^\']|\'\')*\''
_KEY = re.compile(rf"({_QUOTED}|[^\s\"'\[\]{{}},#&*!|>%@`][^:#]*?)\s*:(?:\s+|$)")
_COMMENT = re.compile(rf"^((?:{_QUOTED}|[^\"'#]|(?<=\S)#|(?<=\w)')*?)(?:(?<!\S)#.*)?$")
_FLOW_TOKEN = re.compile(
    rf"\s*({_QUOTED}|[\[\]{{}},:]|[^\[\]{{}},:\"'\s][^\[\]{{}},:]*)"
)
# YAML reads these as true, false or nothing.
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "~", "y", "n"}


class Plain(str):
    """A text without quotes."""


class _Line(NamedTuple):
    number: int
    indent: int
    text: str


def top_level_keys(lines: Sequence[str]) -> list[str]:
    """Returns the keys without indentation, in lower case."""
    matches = (_KEY.match(line) for line in lines if line[:1] not in " -")
    return [match[1].strip("\"'").lower() for match in matches if match]


def parse_yaml(lines: Sequence[str], source: str, keys: Sequence[str] = ()) -> Any:
    """Returns the lists, dictionaries and strings of a text.

    Args:
        lines: The lines of the file.
        source: Name of the file for errors.
        keys: Top-level keys to read, in lower case, if there are any of them; else all
            are read.

    Raises:
        UserError: if the text is not simple YAML; names the line.
    """
    if any(key in keys for key in top_level_keys(lines)):
        lines = _keep_keys(lines, keys)
    parser = _Parser(lines, source)
    if not parser.lines:
        return None
    value = parser.read_block(0)
    if parser.position < len(parser.lines):
        raise parser.error(parser.lines[parser.position])
    return value


def _keep_keys(lines: Sequence[str], keys: Sequence[str]) -> list[str]:
    """Replaces the lines of other top-level keys by blank ones."""
    kept, is_kept = [], False
    for line in lines:
        if line.strip() and line[0] not in " \t-#]}":
            is_kept = bool(set(top_level_keys([line])) & set(keys))
        kept.append(line if is_kept else "")
    return kept


class _Parser:
    def __init__(self, lines: Sequence[str], source: str):
        self.source = source
        self.position = 0
        self.lines = []
        for number, line in enumerate(lines, 1):
            match = _COMMENT.match(line)
            text = (match[1] if match else line).rstrip()
            indent = len(text) - len(text.lstrip(" "))
            if text.strip() and not (number == 1 and text == "---"):
                self.lines.append(_Line(number, indent, text.strip()))

    def error(self, line: _Line) -> UserError:
        return UserError(
            f"line {line.number} of {self.source}, {line.text!r}, is not understood; "
            "write classes in YAML as `names: [a, b]`, or as lines `0: a`"
        )

    def read_block(self, indent: int) -> Any:
        """Reads the lines from `position` that have at least an indentation."""
        line = self.lines[self.position]
        if line.indent < indent:
            raise self.error(line)
        if _is_item(line):
            return self._read_list(line.indent)
        if _KEY.match(line.text) and line.text[0] not in "[{":
            return self._read_map(line.indent)
        self.position += 1
        return self._read_value(line, line.text)

    def _block_lines(self, indent: int):
        while self.position < len(self.lines):
            line = self.lines[self.position]
            if line.indent < indent:
                return
            if line.indent > indent:
                raise self.error(line)
            yield line

    def _read_list(self, indent: int) -> list:
        items = []
        for line in self._block_lines(indent):
            if not _is_item(line):
                break
            rest = line.text[1:].strip()
            if not rest:
                self.position += 1
                items.append(self._read_nested(line, indent + 1))
            elif _KEY.match(rest) and rest[0] not in "[{":
                # A map whose first key is on the line of the dash.
                inner = indent + len(line.text) - len(rest)
                self.lines[self.position] = line._replace(indent=inner, text=rest)
                items.append(self._read_map(inner))
            else:
                self.position += 1
                items.append(self._read_value(line, rest))
        return items

    def _read_map(self, indent: int) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for line in self._block_lines(indent):
            match = _KEY.match(line.text)
            if _is_item(line) or match is None:
                raise self.error(line)
            key, rest = self._scalar(line, match[1]), line.text[match.end() :]
            if key in values:
                raise UserError(
                    f"line {line.number} of {self.source}: the key {key!r} occurs twice"
                )
            self.position += 1
            values[key] = (
                self._read_value(line, rest)
                if rest
                else self._read_nested(line, indent)
            )
        return values

    def _read_nested(self, line: _Line, indent: int) -> Any:
        """Reads the value on the lines after a key or a dash."""
        following = self.lines[self.position : self.position + 1]
        if following and (
            following[0].indent > indent
            or (_is_item(following[0]) and following[0].indent == indent)
        ):
            return self.read_block(indent)
        raise self.error(line)

    def _read_value(self, line: _Line, text: str) -> Any:
        if text[0] not in "[{":
            return self._scalar(line, text)
        while _depth(text) > 0 and self.position < len(self.lines):
            text += " " + self.lines[self.position].text
            self.position += 1
        tokens, start = [], 0
        while start < len(text.rstrip()):
            match = _FLOW_TOKEN.match(text, start)
            if match is None:
                raise self.error(line)
            tokens.append(match[1].strip())
            start = match.end()
        value = self._read_flow(line, tokens)
        if tokens:
            raise self.error(line)
        return value

    def _read_flow(self, line: _Line, tokens: list[str]) -> Any:
        """Reads a value of `[...]` or `{...}` and removes its tokens."""
        token = tokens.pop(0) if tokens else ""
        if token == "[":
            return [
                self._read_flow(line, tokens) for _ in self._items(line, tokens, "]")
            ]
        if token != "{":
            return self._scalar(line, token)
        values: dict[str, Any] = {}
        for _ in self._items(line, tokens, "}"):
            key = self._scalar(line, tokens.pop(0))
            if tokens[:1] != [":"] or key in values:
                raise self.error(line)
            tokens.pop(0)
            values[key] = self._read_flow(line, tokens)
        return values

    def _items(self, line: _Line, tokens: list[str], end: str):
        """Yields at each item of a list or map, and removes commas and the end."""
        while tokens and tokens[0] != end:
            yield
            if tokens[:1] == [","]:
                tokens.pop(0)
            elif tokens[:1] != [end]:
                raise self.error(line)
        if not tokens:
            raise self.error(line)
        tokens.pop(0)

    def _scalar(self, line: _Line, text: str) -> str:
        if re.fullmatch(_QUOTED, text):
            if text[0] == "'":
                return text[1:-1].replace("''", "'")
            try:
                return json.loads(text)
            except ValueError:
                raise self.error(line) from None
        is_plain = re.fullmatch(r"-\d+|[^&*!|>%@`\"'\[\]{},?#:-].*", text)
        if not is_plain or re.search(r":\s|\s#|:$", text) or text.lower() in _WORDS:
            raise self.error(line)
        return Plain(text)


def _is_item(line: _Line) -> bool:
    return line.text == "-" or line.text.startswith("- ")


def _depth(text: str) -> int:
    """Returns the number of brackets that are still open."""
    text = re.sub(_QUOTED, "", text)
    return sum((c in "[{") - (c in "]}") for c in text)
