"""Random class tables in every form, and corruptions of them."""

import random
import re

import pytest
from random_class_tables import make_table, write_any

from deeplab_tf.convert.class_files import read_table
from deeplab_tf.errors import UserError


def read(text):
    content = text if isinstance(text, bytes) else text.encode()
    return read_table(content, "classes.txt", ".txt")


def expect(table, has_ids, has_colors):
    names = tuple(name for name, _, _ in table)
    colors = tuple(color for _, _, color in table) if has_colors else ()
    values = {i: k for k, (_, i, _) in enumerate(table)} if has_ids else None
    is_identity = values == {k: k for k in range(len(names))}
    return names, colors, None if is_identity else values, (), ()


def write_table(seed):
    generate = random.Random(seed)
    table = make_table(generate)
    text, has_ids, has_colors = write_any(generate, table)
    return generate, text, expect(table, has_ids, has_colors)


@pytest.mark.parametrize("block", range(5))
def test_random_tables_are_read_in_every_form(block):
    for seed in range(block * 400, block * 400 + 400):
        generate, text, expected = write_table(seed)
        text = text.replace("\n", generate.choice(("\n", "\r\n")))
        content = text.encode(generate.choice(("utf-8", "utf-8-sig", "utf-16")))
        assert read(content) == expected, f"seed {seed}:\n{text}"


def drop_separator(generate, line):
    return re.sub(r"[,;:=|\t]", "", line, count=1)


def drop_number(generate, line):
    return re.sub(r"\b\d+\b", "", line, count=1)


def add_number(generate, line):
    return f"{line}{generate.choice(',;:')}{generate.randint(0, 300)}"


def add_column(generate, line):
    return f"{line}{generate.choice(',;:|')}other"


def change_separator(generate, line):
    return re.sub(r"[,;:=|\t]", generate.choice("/.-"), line)


def break_quote(generate, line):
    return re.sub(r"[\"\]}]", "", line, count=1)


def large_number(generate, line):
    return re.sub(r"\b\d+\b", "9999999", line, count=1)


def duplicate(generate, line):
    return f"{line}\n{line}"


CORRUPTIONS = (
    drop_separator,
    drop_number,
    add_number,
    add_column,
    change_separator,
    break_quote,
    large_number,
    duplicate,
)


@pytest.mark.parametrize("corrupt", CORRUPTIONS)
def test_corrupted_tables_are_refused_or_unchanged(corrupt):
    """A line of several is changed, so that its structure differs from the rest."""
    refused = 0
    for seed in range(500):
        generate, text, expected = write_table(seed)
        lines = text.split("\n")
        at = generate.randrange(len(lines))
        lines[at] = corrupt(generate, lines[at])
        if lines[at] == text.split("\n")[at] or len(expected[0]) < 3:
            continue
        try:
            table = read("\n".join(lines))
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert table == expected, f"seed {seed}:\n{text}\n->\n{lines[at]}"
    assert refused > 30
