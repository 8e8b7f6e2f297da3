"""Prints the rows of a table that contain some words."""

import os
import sys
from collections.abc import Callable, Mapping

from deeplab_tf.errors import suggest_similar
from deeplab_tf.programs import print_text
from deeplab_tf.programs.flag_help import describe_version


def run_listing(
    doc: str,
    load_rows: Callable[[], Mapping[str, str]],
    argv: list[str] | None = None,
) -> None:
    """Prints the rows that contain every word of a command line.

    Args:
        doc: The text of `--help`.
        load_rows: Returns the description of each row by its name.
        argv: Command line; None is `sys.argv`.
    """
    program, *words = sys.argv if argv is None else argv
    if {"--help", "-h", "--helpfull"} & {*words}:
        print_text(doc.rstrip())
        return
    if "--version" in words:
        print_text(describe_version())
        return
    rows = load_rows()
    found = [
        row for row in rows.values() if all(w.lower() in row.lower() for w in words)
    ]
    if not found:
        similar = suggest_similar(words[-1], rows)
        called = os.path.basename(program)
        sys.exit(
            f"{called}: no name contains {' and '.join(words)}; {similar}"
            "without words, all are listed"
        )
    print_text("\n".join(found))
