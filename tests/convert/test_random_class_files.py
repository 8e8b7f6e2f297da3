"""Random class tables in every form, and corruptions of them."""

import json
import random
import re

import pytest

from deeplab_tf.convert.class_files import read_table
from deeplab_tf.errors import UserError


def read(text):
    content = text if isinstance(text, bytes) else text.encode()
    return read_table(content, "classes.txt", ".txt")


WORDS = "road walk tree car Bär sky-line café stop_sign o'clock (old) A4 2nd".split()


def make_table(generate):
    """Returns random names, ids and colours."""
    count = generate.randint(1, 12)
    names = set()
    while len(names) < count:
        first = generate.choice([w for w in WORDS if w[0].isalpha()])
        names.add(" ".join([first, *generate.sample(WORDS, generate.randint(0, 2))]))
    names = generate.sample(sorted(names), count)
    start = generate.choice((0, 0, 1, 7))
    ids = sorted(generate.sample(range(start, start + 2 * count), count))
    if generate.random() < 0.5:
        ids = list(range(count))
    colors = [
        (value // 65536, value // 256 % 256, value % 256)
        for value in generate.sample(range(2**24), count)
    ]
    return list(zip(names, ids, colors, strict=True))


def join(separator, *columns):
    return lambda name, i, c: separator.join(
        str(part)
        for part in (
            dict(
                n=name,
                i=i,
                h="#{:02x}{:02x}{:02x}".format(*c),
                c=f"{c[0]} {c[1]} {c[2]}",
                C=separator.join(map(str, c)),
                q=f'"{name}"',
            )[k]
            for k in columns
        )
    )


# Form -> separators, columns, and the header.
COLUMN_FORMS = {
    "n": "name",
    "q": "name",
    "in": "id{}name",
    "ni": "name{}id",
    "iq": "id{}name",
    "nC": "name{}r{}g{}b",
    "Cn": "r{}g{}b{}name",
    "inC": "id{}name{}r{}g{}b",
    "nh": "name{}color",
    "hn": "color{}name",
    "inh": "id{}name{}color",
    "nc": "name{}color",
    "inc": "id{}name{}color",
    "niC": "name{}id{}r{}g{}b",
}


def write_text(generate, table):
    """Returns a text of the table, and whether it has ids and colours."""
    columns = generate.choice(list(COLUMN_FORMS))
    separators = [",", ", ", ";", ":", ": ", "\t", " = ", "|"]
    # A colour of three words needs another separator, and so do four numbers.
    if "c" not in columns and columns != "niC":
        separators.append(" ")
    separator = generate.choice(separators)
    rows = list(table)
    if "i" in columns:
        generate.shuffle(rows)
    lines = [join(separator, *columns)(*row) for row in rows]
    if columns == "niC" or (len(columns) > 1 and generate.random() < 0.4):
        header = COLUMN_FORMS[columns].replace("{}", separator)
        lines.insert(0, generate.choice((str.upper, str.title, str))(header))
    if generate.random() < 0.2:
        lines.insert(generate.randint(0, len(lines)), generate.choice(("", "# note")))
    return "\n".join(lines) + "\n", "i" in columns, bool(set("cCh") & set(columns))


def quote(name, generate):
    return generate.choice(
        (name, json.dumps(name), "'" + name.replace("'", "''") + "'")
    )


def write_yaml(generate, table):
    key = generate.choice(("names", "classes", "labels"))
    form = generate.choice(("list", "flow list", "map", "flow map", "colours", "maps"))
    rows = list(table)
    if "map" in form:
        generate.shuffle(rows)
    body = {
        "list": lambda n, i, c: f"- {quote(n, generate)}",
        "flow list": lambda n, i, c: json.dumps(n),
        "map": lambda n, i, c: f"  {i}: {quote(n, generate)}",
        "flow map": lambda n, i, c: f"{i}: {json.dumps(n)}",
        "colours": lambda n, i, c: f"  {json.dumps(n)}: {list(c)}",
        "maps": lambda n, i, c: f"- id: {i}\n  name: {n}\n  color: {list(c)}",
    }[form]
    texts = [body(*row) for row in rows]
    if "flow" in form:
        start, end = "{}" if form == "flow map" else "[]"
        lines = [f"{key}: {start}{', '.join(texts)}{end}"]
    else:
        lines = [f"{key}:", *texts]
    if generate.random() < 0.5:
        lines = ["path: data  # root", f"nc: {len(rows)}", *lines, "note: |", "  a: b"]
    return "\n".join(lines), "map" in form, form in ("colours", "maps")


def write_json(generate, table):
    rows = list(table)
    form = generate.choice(("list", "map", "ids", "colours", "objects", "id2label"))
    if form != "list" and form != "colours":
        generate.shuffle(rows)
    tree = {
        "list": [n for n, _, _ in rows],
        "map": {str(i): n for n, i, _ in rows},
        "ids": {n: i for n, i, _ in rows},
        "colours": {n: list(c) for n, _, c in rows},
        "objects": [{"Name": n, "id": i, "Color": list(c)} for n, i, c in rows],
        "id2label": {"id2label": {str(i): n for n, i, _ in rows}, "x": 1},
    }[form]
    text = json.dumps(
        tree, indent=generate.choice((None, 1)), ensure_ascii=generate.random() < 0.5
    )
    return text, form not in ("list", "colours"), form in ("colours", "objects")


def expect(table, has_ids, has_colors):
    names = tuple(name for name, _, _ in table)
    colors = tuple(color for _, _, color in table) if has_colors else ()
    values = {i: k for k, (_, i, _) in enumerate(table)} if has_ids else None
    is_identity = values == {k: k for k in range(len(names))}
    return names, colors, None if is_identity else values, (), ()


def write_any(seed):
    generate = random.Random(seed)
    table = make_table(generate)
    write = generate.choice((write_text, write_text, write_yaml, write_json))
    text, has_ids, has_colors = write(generate, table)
    return generate, text, expect(table, has_ids, has_colors)


@pytest.mark.parametrize("block", range(5))
def test_random_tables_are_read_in_every_form(block):
    for seed in range(block * 400, block * 400 + 400):
        generate, text, expected = write_any(seed)
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
    return re.sub(r"\b\d+\b", "999999", line, count=1)


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
        generate, text, expected = write_any(seed)
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
