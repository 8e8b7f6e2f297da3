"""Checks class names, and compares the classes in different splits."""

import re
from collections.abc import Sequence

import numpy as np

from deeplab_tf.data.info import DatasetInfo

# Words in the header of a class table.
_HEADERS = {
    *("class", "classes", "classname", "name", "names", "label", "labels"),
    *("category", "categories", "id", "ids", "index", "color", "colour", "rgb", "hex"),
}
_NUMBER = r"\d+"
_ID_AND_NAME = r"\d+\s*[,:;=\t ]\s*\D.*"
_NAME_AND_ID = r".*\D\s*[,:;=]\s*\d+"
_NAME_AND_COLOR = r".*\D[\s,:;]+\d+([\s,]+\d+){2}|.*#[0-9a-fA-F]{6}"
_ODD = {
    "a number": _NUMBER,
    "an id and a name": f"{_ID_AND_NAME}|{_NAME_AND_ID}",
    "a name and a colour": _NAME_AND_COLOR,
}


def is_header(name: str) -> bool:
    """Returns whether a class name looks like a table header, such as "id,name"."""
    words = set(re.findall("[a-z0-9]+", name.lower())) - {"r", "g", "b"}
    return bool(words) and words <= _HEADERS


def find_odd_names(info: DatasetInfo) -> list[str]:
    """Returns messages about class names that look like ids, colours or a header."""
    found = []
    for i, name in enumerate(info.class_names):
        matches = (m for m, p in _ODD.items() if re.fullmatch(p, name.strip()))
        meaning = "the header of a table" if is_header(name) else next(matches, None)
        if meaning:
            found.append(f"class {i} is {name!r}, which looks like {meaning}")
    return found


def find_missing_classes(
    present: np.ndarray, other: np.ndarray, info: DatasetInfo
) -> str:
    """Returns the names of the classes that occur in one split but not in another.

    Args:
        present: Pixels of each label value in the first split, `[256]`.
        other: The same for the second split.
        info: Names of the classes.
    """
    return join_names(
        [
            name
            for i, name in enumerate(info.class_names)
            if i != info.ignore_label and present[i] and not other[i]
        ]
    )


def join_names(names: Sequence[str], at_most: int = 20) -> str:
    """Joins names with commas; beyond `at_most`, appends "and N more"."""
    more = len(names) - at_most
    return ", ".join(names[:at_most]) + (f" and {more} more" if more > 0 else "")
