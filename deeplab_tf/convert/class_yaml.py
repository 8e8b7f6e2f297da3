"""Parses the YAML of class files strictly: maps, lists and plain text.

Anchors, tags and text blocks are refused where classes are listed; other top-level
keys, as in data.yaml, are not read.
"""

from collections.abc import Collection, Sequence
from typing import Any

import yaml

from deeplab_tf.errors import UserError

# YAML reads these as true, false or nothing.
_WORDS = {"yes", "no", "on", "off", "true", "false", "null", "~", "y", "n", ""}


class Plain(str):
    """An unquoted string."""


def parse_yaml(lines: Sequence[str], source: str, keys: Collection[str]) -> Any:
    """Parses YAML into lists, dictionaries and strings.

    Args:
        lines: The lines of the file.
        source: Name of the file for errors.
        keys: Top-level keys to read, in lower case, if there are any of them; else all
            are read.

    Raises:
        UserError: if the text is not simple YAML; names the line.
    """
    text = "\n".join(lines).rstrip()
    reader = _Reader(text, source)
    try:
        root = yaml.compose(text, yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        raise reader.error(error.problem_mark or error.context_mark) from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{source} is not valid YAML: {error}") from error
    if isinstance(root, yaml.MappingNode):
        known = [(k, v) for k, v in root.value if str(k.value).lower() in keys]
        root.value = known or root.value
    return None if root is None else reader.read(root)


class _Reader:
    """Converts YAML nodes to lists, dictionaries and strings; refuses the rest."""

    def __init__(self, text: str, source: str):
        self._text, self._source = text, source

    def error(self, mark: yaml.Mark) -> UserError:
        """Returns an error that names the line."""
        before, after = self._text[: mark.index], self._text[mark.index :]
        line = before.rpartition("\n")[2] + after.partition("\n")[0]
        return UserError(
            f"line {mark.line + 1} of {self._source}, {line.strip()!r}, is "
            "not understood; write classes in YAML as `names: [a, b]`, or as lines "
            "`0: a`"
        )

    def read(self, node: yaml.Node) -> Any:
        """Converts a node to a list, dictionary or string; refuses other YAML."""
        start, end = node.start_mark, node.end_mark
        if self._text[start.index : start.index + 1] in tuple("&!|>"):
            raise self.error(start)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item) for item in node.value]
        if isinstance(node, yaml.MappingNode):
            return self._read_map(node)
        is_word = node.style is None and node.value.lower() in _WORDS
        if is_word or start.line != end.line:
            raise self.error(start)
        return Plain(node.value) if node.style is None else node.value

    def _read_map(self, node: yaml.MappingNode) -> dict[str, Any]:
        """Converts a map with distinct string keys to a dictionary."""
        values: dict[str, Any] = {}
        for key_node, value in node.value:
            key = self.read(key_node)
            if not isinstance(key, str):
                raise self.error(key_node.start_mark)
            if key in values:
                raise UserError(
                    f"line {key_node.start_mark.line + 1} of {self._source}: the key "
                    f"{key!r} occurs twice"
                )
            values[key] = self.read(value)
        return values
