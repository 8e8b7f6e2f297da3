"""UserError, the exception for mistakes of the user, and text helpers."""

import difflib
import importlib
import re
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """An invalid setting, file or path, described in one line.

    The message names the value received, where it is from and what is valid. Programs
    print it and exit with status 1. Any other exception is a bug in this package and
    keeps its traceback.
    """


class UnclearError(UserError):
    """A file that is intact, but whose meaning the user must declare by a flag.

    `--skip_broken` does not skip it: all images with some class may be concerned.
    """


def import_extra(module: str, extra: str, needed_by: str) -> Any:
    """Imports a module of an optional dependency.

    Args:
        module: Name of the module.
        extra: The extra of deeplab_tf that installs it.
        needed_by: Start of the error, such as "x.onnx: ONNX files need".

    Raises:
        UserError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'{needed_by} {module}; run pip install "deeplab_tf[{extra}]" ({error})'
        ) from error


def escape(text: object) -> str:
    """Returns a text with unprintable characters escaped.

    File names may contain line breaks, terminal sequences and, if they are not UTF-8,
    surrogates.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def pluralize(count: int, phrase: str) -> str:
    """Returns a count with a phrase in the singular or the plural.

    In the phrase, `(s)`, `(es)` and `(is|are)` mark what differs: `image(s) (is|are)`.
    """
    phrase = re.sub(r"\((\w+)\|(\w+)\)", r"\1" if count == 1 else r"\2", phrase)
    phrase = re.sub(r"\((e?s)\)", "" if count == 1 else r"\1", phrase)
    return f"{count:,} {phrase}"


def suggest_similar(name: str, choices: Iterable[str]) -> str:
    """Returns `similar: a, b; ` for the choices similar to a name, else ""."""
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    return f"similar: {', '.join(near)}; " if near else ""


def one_line(text: object) -> str:
    """Returns a text, such as an error message, as one printable line."""
    return escape(re.sub(r"\s*\n\s*", " ", str(text).strip()))
