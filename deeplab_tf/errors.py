"""UserError, the exception for user mistakes, and helpers for messages."""

import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """An invalid setting, file or path, described in one line.

    The message names the value received, its source and the valid choices. Programs
    print it and exit with status 1. Any other exception is a bug in this package and
    keeps its traceback.
    """


class UnclearError(UserError):
    """A file is intact, but the user must give a flag that declares its meaning.

    `--skip_broken` does not skip such files, which may be all images with some class.
    """


def import_extra(module: str, extra: str, needed_by: str) -> Any:
    """Imports a module of an optional dependency.

    Args:
        module: Name of the module.
        extra: The extra of deeplab_tf that installs it.
        needed_by: Start of the error, such as "x.onnx: ONNX files need".

    Raises:
        UserError: if the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise _make_missing_error(module, extra, needed_by, error) from error


def require_extra(modules: Iterable[str], extra: str, needed_by: str) -> None:
    """Raises the error of `import_extra` without importing the modules."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise _make_missing_error(
                module, extra, needed_by, f"No module named {module!r}"
            )


def _make_missing_error(
    module: str, extra: str, needed_by: str, reason: object
) -> UserError:
    return UserError(
        f'{needed_by} {module}; run pip install "deeplab_tf[{extra}]" ({reason})'
    )


def escape(text: object) -> str:
    """Escapes the unprintable characters in a string.

    File names may contain line breaks, terminal sequences and, if they are not UTF-8,
    surrogates.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))


def pluralize(count: int, phrase: str) -> str:
    """Returns a count followed by a phrase in the singular or plural.

    In the phrase, `(s)`, `(es)` and `(is|are)` mark the differences: `image(s)
    (is|are)`.
    """
    phrase = re.sub(r"\((\w+)\|(\w+)\)", r"\1" if count == 1 else r"\2", phrase)
    phrase = re.sub(r"\((e?s)\)", "" if count == 1 else r"\1", phrase)
    return f"{count:,} {phrase}"


def suggest_similar(name: str, choices: Iterable[str]) -> str:
    """Returns `similar: a, b; ` if some choices are similar to a name, else ""."""
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    return f"similar: {', '.join(near)}; " if near else ""


def one_line(text: object) -> str:
    """Converts a string, such as an error message, to one printable line."""
    return escape(re.sub(r"\s*\n\s*", " ", str(text).strip()))
