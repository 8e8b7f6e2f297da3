"""The one exception that stands for a mistake of the person at the keyboard."""

import difflib
import re
from collections.abc import Iterable


class UserError(ValueError):
    """A setting, file or path that cannot work, told in one line.

    The message names what was received, where, and what would be right; the
    command line programs print it and exit with status 1. Anything else that
    is raised is a defect of this package and keeps its traceback.
    """


def escape(text: object) -> str:
    """Returns a text in which characters that cannot be printed are escaped.

    File names may hold line breaks, terminal sequences and, where they are not UTF-8,
    surrogates.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def near_hint(name: str, choices: Iterable[str]) -> str:
    """Returns `near it are a, b; ` for the choices that a name resembles, else ""."""
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    return f"near it are {', '.join(near)}; " if near else ""


def one_line(text: object) -> str:
    """Returns a text, such as an error's, as one printable line."""
    return escape(re.sub(r"\s*\n\s*", " ", str(text).strip()))
