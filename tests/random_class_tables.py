"""Random class tables, written in every form of class files."""

import json

WORDS = "road walk tree car Bär sky-line café stop_sign o'clock (old) A4 2nd".split()


def make_table(generate):
    """Returns random names, ids and colours."""
    count = generate.randint(2, 12)  # several words on a single line are refused
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
    """Returns the table as text, and whether it has ids and colours."""
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


def write_labelmap(generate, table):
    """Returns CVAT's labelmap.txt."""
    rows = [f"{name}:{r},{g},{b}::" for name, _, (r, g, b) in table]
    return "\n".join(["# label:color_rgb:parts:actions", *rows, ""]), False, True


def write_roboflow(generate, table):
    """Returns Roboflow's _classes.csv."""
    rows = [f"{i}, {name}" for name, i, _ in table]
    return "\n".join(["Pixel Value, Class", *rows, ""]), True, False


def write_any(generate, table):
    """Returns a class file in any form, and whether it has ids and colours."""
    others = (write_yaml, write_json, write_labelmap, write_roboflow)
    write = generate.choice((write_text,) * 4 + others)
    return write(generate, table)


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
