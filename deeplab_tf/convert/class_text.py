"""Reads class files of one class per line: names, ids and colours in columns.

Every line must have the same form. Text that may be structure but is not understood is
refused unless it is in quotes.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deeplab_tf.convert.class_rows import FIELD_WORDS, Row, normalize_title
from deeplab_tf.convert.value_map import Color, is_hex, parse_hex
from deeplab_tf.errors import UserError

# CVAT writes this above `name:r,g,b:parts:actions`.
_LABELMAP = "label:color_rgb:parts:actions"
_SEPARATORS = ",;:=|\t"
_QUOTED = r'"(?:[^"]|"")*"|\'[^\']*\''
# Colours in brackets are one column: (0, 0, 255), [0 0 255] or rgb(0, 0, 255).
_BRACKETS = re.compile(r"(?:rgb)?[(\[]\s*(\d+)[\s,;]+(\d+)[\s,;]+(\d+)\s*[)\]]", re.I)
_THREE_NUMBERS = re.compile(r"(-?\d+)[\s,]+(-?\d+)[\s,]+(-?\d+)")
# Words of a line, which may have numbers before and after the name.
_WORDS = re.compile(rf"{_QUOTED}|\S+")
# Words of headers, in addition to those of all formats.
_HEADER_WORDS = {
    "name": ("names", "classname", "category"),
    "id": ("ids", "classid", "mask_value", "pixel"),
    "r": ("r", "red"),
    "g": ("g", "green"),
    "b": ("b", "blue"),
    "color": ("colour_rgb", "color_hex"),
}
_ROLES = {
    word: role
    for words in (FIELD_WORDS, _HEADER_WORDS)
    for role, of_role in words.items()
    for word in of_role
}
# Valid columns of a line: n is a name, i an integer, c a colour; iii is a colour too.
_LAYOUTS = "n in ni nc cn inc icn nic nci cni cin niii iiin iniii iiini".split()
_MEANINGS = {"n": "name", "i": "id", "c": "color"}
_HELP = (
    "write each class in the same form, such as `name`, `id,name` or `name,r,g,b`, and "
    "names that contain numbers or separators in quotes"
)


class _Line(NamedTuple):
    """Columns of a line; `quoted` are the columns that were in quotes."""

    where: str
    text: str
    columns: list[str]
    quoted: frozenset[int]
    is_words: bool

    def __str__(self) -> str:
        return _describe(self.where, self.text)


def parse_text(lines: Sequence[str], source: str) -> list[Row]:
    """Returns the rows of a text file.

    Args:
        lines: The lines of the file.
        source: Name of the file for errors.

    Raises:
        UserError: if a line is not understood.
    """
    has_hex = any(map(_starts_with_color, lines))
    kept = [
        (f"line {number} of {source}", line.strip(" "))
        for number, line in enumerate(_drop_cvat_columns(lines), 1)
        if line.strip() and not _is_comment(line, has_hex)
    ]
    parsed = [_split_columns(where, text) for where, text in kept]
    roles = _read_header(parsed)
    if roles:
        kinds = [line.is_words for line in parsed]
        _require_same_form(parsed, kinds, parsed[0].is_words)
        return [_read_row(line, roles) for line in parsed[1:]]
    parsed = [_join_name(line) for line in parsed]
    if not parsed:
        return []
    kinds = [("".join(map(_classify, line.columns)), line.is_words) for line in parsed]
    usual = Counter(kinds).most_common(1)[0][0]
    _require_same_form(parsed, kinds, usual)
    columns, _ = usual
    if columns not in _LAYOUTS:
        raise UserError(f"{_describe_unknown(parsed[0], columns)}; {_HELP}")
    _refuse_likely_header(parsed[0])
    _refuse_likely_list(parsed)
    letters = columns.replace("iii", "rgb")
    roles = [_MEANINGS.get(letter, letter) for letter in letters]
    return [_read_row(line, roles) for line in parsed]


def _require_same_form(
    lines: Sequence[_Line], kinds: Sequence[object], usual: object
) -> None:
    """Raises `UserError` for the first line whose columns have unusual kinds."""
    for line, kind in zip(lines, kinds, strict=True):
        if kind != usual:
            other = lines[kinds.index(usual)]
            raise UserError(f"{line}, is not written like {other}; {_HELP}")


def _drop_cvat_columns(lines: Sequence[str]) -> Sequence[str]:
    """Removes the columns "parts" and "actions" of CVAT's labelmap.txt."""
    is_labelmap = any(line.lstrip("# ").lower().startswith(_LABELMAP) for line in lines)
    if not is_labelmap:
        return lines
    return [
        line if _is_comment(line) else ":".join(line.split(":")[:2]) for line in lines
    ]


def _starts_with_color(line: str) -> bool:
    return is_hex(re.split(rf"[\s{_SEPARATORS}]", line.strip(), maxsplit=1)[0])


def _is_comment(line: str, has_hex: bool = False) -> bool:
    """Returns whether a line is a comment; `has_hex`: lines may start with #ff0000."""
    return line.lstrip().startswith("# " if has_hex else "#") or line.strip() == "#"


def _split_columns(where: str, text: str) -> _Line:
    """Splits a line at separators or, if there are none, into words."""
    marked = _BRACKETS.sub(r'"\1 \2 \3"', text)
    pattern = rf"\s*({_QUOTED}|[^{_SEPARATORS}]*?)\s*([{_SEPARATORS}]|$)"
    columns, start = [], 0
    while True:
        match = re.compile(pattern).match(marked, start)
        if match is None:
            raise UserError(
                f"{_describe(where, text)}, has text next to quotes; {_HELP}"
            )
        columns.append(match[1])
        start = match.end()
        if not match[2]:
            break
    while len(columns) > 1 and not columns[-1]:
        columns.pop()
    is_words = not re.search(rf"[{_SEPARATORS}]", re.sub(_QUOTED, "", marked))
    if is_words:
        columns = _WORDS.findall(marked)
    quoted = frozenset(i for i, c in enumerate(columns) if re.fullmatch(_QUOTED, c))
    columns = [_unquote(c) if i in quoted else c for i, c in enumerate(columns)]
    return _Line(where, text, columns, quoted, is_words)


def _unquote(text: str) -> str:
    quote = text[0]
    return text[1:-1].replace(quote * 2, quote)


def _quote(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _describe(where: str, text: str) -> str:
    """Returns location and quoted text of a line."""
    return f"{where}, {_quote(text)}"


def _to_integer(text: str) -> int:
    """Converts digits to an integer; 10 or more become 10**9, which is out of range."""
    # Python refuses to convert thousands of digits.
    return int(text) if len(text) < 10 else 10**9


def _to_color(texts: Iterable[str]) -> Color:
    r, g, b = map(_to_integer, texts)
    return r, g, b


def _classify(text: str) -> str:
    """Returns "i" for an integer, "c" for a colour, "n" for a name, "-" for ""."""
    if re.fullmatch(r"-?\d+", text):
        return "i"
    if is_hex(text) or _THREE_NUMBERS.fullmatch(text):
        return "c"
    return "n" if text else "-"


def _join_name(line: _Line) -> _Line:
    """Joins the words of the name, which are between the numbers."""
    if not line.is_words:
        return _split_colors(line)
    columns = line.columns
    names = [i for i, column in enumerate(columns) if _classify(column) == "n"]
    if not names:
        return line
    first, last = names[0], names[-1]
    name = columns[first : last + 1]
    if len(name) > 1 and (
        line.quoted & set(range(first, last + 1)) or re.search(r"\S\s{2,}\S", line.text)
    ):
        raise UserError(f"{line}, has several columns; {_HELP}")
    is_quoted = first in line.quoted
    joined = [*columns[:first], " ".join(name), *columns[last + 1 :]]
    return line._replace(columns=joined, quoted=frozenset({first} if is_quoted else ()))


def _split_colors(line: _Line) -> _Line:
    """Splits `0: name 255 0 0` and `0: name #ff0000` into three columns."""
    last = line.columns[-1]
    match = re.fullmatch(r"(.*\S)\s+(\d+\s+\d+\s+\d+|#[0-9a-fA-F]{6})", last)
    if (
        match is None
        or len(line.columns) - 1 in line.quoted
        or _classify(match[1]) != "n"
    ):
        return line
    return line._replace(columns=[*line.columns[:-1], match[1], match[2]])


def _read_header(lines: Sequence[_Line]) -> tuple[str, ...] | None:
    """Returns the meaning of the columns if the first line names them."""
    if len(lines) < 2 or len(lines[0].columns) < 2:
        return None
    roles = tuple(
        _ROLES.get(normalize_title(column), "") for column in lines[0].columns
    )
    if "" in roles or "name" not in roles:
        return None
    color_columns = sum(role in "rgb" for role in roles)
    if len(set(roles)) < len(roles) or color_columns not in (0, 3):
        raise UserError(
            f"{lines[0]}, is an unclear header; name each column once: id, name, and "
            "r, g, b or color"
        )
    return roles


def _refuse_likely_header(line: _Line) -> None:
    """Refuses a first line of one column that is probably a header, not a class."""
    is_word = normalize_title(line.columns[0]) in _ROLES
    if len(line.columns) == 1 and is_word and not line.quoted:
        raise UserError(
            f"{line}, looks like a header; remove it, or put it in quotes if it is a "
            "class"
        )


def _refuse_likely_list(lines: Sequence[_Line]) -> None:
    """Refuses a single line that is probably a list of classes, not one name."""
    line = lines[0]
    is_list = re.fullmatch(r"\w+( \w+)+", " ".join(line.columns))
    if len(lines) == len(line.columns) == 1 and is_list and not line.quoted:
        raise UserError(
            f"{line}, is the only class; write each class on its own line, or put the "
            "name in quotes if it is one class"
        )


def _read_row(line: _Line, roles: Sequence[str]) -> Row:
    """Reads a line whose columns have these roles: id, name, colour, r, g, b."""
    if line.is_words and len(line.columns) != len(roles):
        line = _join_name(line)
    if len(line.columns) != len(roles):
        raise UserError(
            f"{line}, has {len(line.columns)} columns, not {len(roles)}; {_HELP}"
        )
    found = dict(zip(roles, line.columns, strict=True))
    for role, text in found.items():
        if role in ("id", "r", "g", "b") and _classify(text) != "i":
            raise UserError(
                f"{line}: {_quote(text)} (column {role}) must be an integer; {_HELP}"
            )
    _check_name(line, found["name"], list(roles).index("name") in line.quoted)
    color = None
    if "r" in found:
        color = _to_color(found[channel] for channel in "rgb")
    elif "color" in found:
        color = parse_color(found["color"], line.where)
    row_id = _to_integer(found["id"]) if "id" in found else None
    return Row(line.where, found["name"], row_id, color)


def parse_color(text: str, where: str) -> Color:
    """Parses a colour such as `255 0 0`, `255,0,0` or `#ff0000`.

    Raises:
        UserError: if it is not a colour; `where` is its location.
    """
    if is_hex(text):
        return parse_hex(text)
    match = _THREE_NUMBERS.fullmatch(text)
    if match is None:
        raise UserError(
            f"{where}: {_quote(text)} is not a colour; write r,g,b or #rrggbb"
        )
    return _to_color(match.groups())


def is_plain_name(name: str) -> bool:
    """Returns whether unquoted text is a name and not syntax."""
    return bool(
        re.fullmatch(r"[^,;:=|\t#{}\[\]<>\"`]+", name)
        and (name[0].isalnum() or name[0] in "_(")
        and (name[-1].isalnum() or name[-1] in "_)%+!?")
        and re.search(r"\w", name.split()[-1])
        and not re.match(r"\d+[.)]\s", name)
        and not re.search(r"\s{2,}", name)
    )


def is_name(name: str) -> bool:
    """Returns whether text, quoted or not, is a name and not a number."""
    return not re.fullmatch(r"[-+.\d\s]*", name)


def _check_name(line: _Line, name: str, is_quoted: bool) -> None:
    """Raises UserError for unquoted text that may be syntax, such as `{a}` or `a:`."""
    if not (is_name(name) and (is_quoted or is_plain_name(name))):
        raise UserError(f"{line}, is not understood; {_HELP}")


def _describe_unknown(line: _Line, kind: str) -> str:
    """Returns why the columns of a line, of these kinds, are not understood."""
    if "n" not in kind:
        found = "a colour" if kind in ("iii", "c") else "numbers"
        return f"{line}, has {found} but no name"
    if "iiii" in kind or re.search("iii.*iii", kind):
        return (
            f"{line}, is ambiguous: which numbers are the colour? Add a header, such "
            "as id,name,r,g,b"
        )
    return f"{line}, is not understood"
