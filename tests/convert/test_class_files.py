"""Class files of every form give the same table, or are refused with the line."""

import json
import random
import re

import pytest

from deeplab_tf.convert.class_files import read_table
from deeplab_tf.errors import UserError

NAMES = ("background", "cat", "big dog")
COLORS = ((0, 0, 0), (255, 0, 0), (0, 128, 255))
ID_VALUES = {7: 0, 8: 1, 11: 2}


def read(text, suffix=".txt"):
    content = text if isinstance(text, bytes) else text.encode()
    return read_table(content, f"classes{suffix}", suffix)


# Names alone.
NAMES_ONLY = {
    "lines": "background\ncat\nbig dog\n",
    "blank lines and comments": "# classes\n\nbackground\n  cat  \n\nbig dog",
    "quotes": '"background"\n"cat"\n\'big dog\'\n',
    "CRLF": "background\r\ncat\r\nbig dog\r\n",
    "byte order mark": "\ufeffbackground\ncat\nbig dog\n",
    "UTF-16": "background\ncat\nbig dog\n".encode("utf-16"),
    "ids": "0 background\n1 cat\n2 big dog\n",
    "ids in another order": "2,big dog\n0,background\n1,cat\n",
    "ids with colons": "background:0\ncat:1\nbig dog:2\n",
    "ids with an equals sign": "0 = background\n1 = cat\n2 = big dog\n",
    "ids with tabs": "0\tbackground\n1\tcat\n2\tbig dog\n",
    "ids after the names": "background 0\ncat 1\nbig dog 2\n",
    "a header": "ID;Class\n0;background\n1;cat\n2;big dog\n",
    "a header of words": "name id\nbackground 0\ncat 1\nbig dog 2\n",
    "Roboflow": "Pixel Value, Class\n0, background\n1, cat\n2, big dog\n",
    "quoted CSV": '"Name","ID"\n"cat","1"\n"background","0"\n"big dog","2"\n',
    "YAML map": "names:\n  0: background\n  1: cat\n  2: big dog\n",
    "YAML list": "names:\n- background\n- cat\n- big dog\n",
    "YAML list, indented": "names:\n  - background\n  - 'cat'\n  - \"big dog\"\n",
    "YAML in one line": "nc: 3\nnames: ['background', 'cat', 'big dog']\n",
    "YAML in several lines": "names: [background,  # 0\n  cat, big dog]\nnc: 3\n",
    "YAML of ultralytics": (
        "# data\npath: ../datasets/pets\ntrain: images/train\n\nnames:\n"
        "  0: background # none\n  1: cat\n  2: big dog\n\n"
        "download: |\n  import os\n  os.remove('x')\n"
    ),
    "YAML map in one line": "names: {0: background, 1: cat, 2: big dog}\n",
    "YAML list without a key": "---\n- background\n- cat\n- big dog\n",
    "YAML list of maps": (
        "categories:\n- id: 1\n  name: cat\n- id: 0\n  name: background\n"
        "- {id: 2, name: big dog}\n"
    ),
    "JSON list": '["background", "cat", "big dog"]',
    "JSON map": '{"0": "background", "2": "big dog", "1": "cat"}',
    "JSON map of ids": '{"background": 0, "cat": 1, "big dog": 2}',
    "JSON with id2label": json.dumps(
        {
            "id2label": {"0": "background", "1": "cat", "2": "big dog"},
            "label2id": {"background": 0, "cat": 1, "big dog": 2},
            "model_type": "segformer",
        }
    ),
    "JSON list of objects": json.dumps(
        [
            {"id": 2, "name": "big dog"},
            {"id": 0, "name": "background"},
            {"id": 1, "name": "cat", "supercategory": "animal"},
        ]
    ),
    "JSON in UTF-16": '["background", "cat", "big dog"]'.encode("utf-16"),
}


@pytest.mark.parametrize("kind", NAMES_ONLY)
def test_names_in_every_form(kind):
    table = read(NAMES_ONLY[kind])
    assert table == (NAMES, (), None, (), ())


COLORED = {
    "spaces": "background 0 0 0\ncat 255 0 0\nbig dog 0 128 255\n",
    "commas": "background,0,0,0\ncat,255,0,0\nbig dog,0,128,255\n",
    "colour first": "0 0 0\tbackground\n255 0 0\tcat\n0 128 255\t\tbig dog\n".replace(
        "\t\t", "\t"
    ),
    "colons": "background:0,0,0\ncat:255,0,0\nbig dog:0,128,255\n",
    "colons and spaces": "background: 0 0 0\ncat: 255 0 0\nbig dog: 0 128 255\n",
    "hexadecimal": "background #000000\ncat #ff0000\nbig dog #0080FF\n",
    "hexadecimal first": "#000000,background\n#ff0000,cat\n#0080ff,big dog\n",
    "brackets": "background: (0, 0, 0)\ncat: [255 0 0]\nbig dog: rgb(0,128,255)\n",
    "quoted colours": 'background,"0,0,0"\ncat,"255,0,0"\nbig dog,"0,128,255"\n',
    "a header": "Name,R,G,B\nbackground,0,0,0\ncat,255,0,0\nbig dog,0,128,255\n",
    "another header": "r g b name\n0 0 0 background\n255 0 0 cat\n0 128 255 big dog\n",
    "CVAT": (
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:255,0,0:ear,tail:\n"
        "big dog:0,128,255::run\n"
    ),
    "ids": "2 big dog 0 128 255\n0 background 0 0 0\n1 cat 255 0 0\n",
    "ids, colons and colours": (
        "1: cat 255 0 0\n0: background 0 0 0\n2: big dog 0 128 255\n"
    ),
    "ids and a header": (
        "name,id,r,g,b\ncat,1,255,0,0\nbackground,0,0,0,0\nbig dog,2,0,128,255\n"
    ),
    "YAML": (
        "- name: background\n  color: [0, 0, 0]\n- name: cat\n  color: '#ff0000'\n"
        "-\n  name: big dog\n  color: 0,128,255\n"
    ),
    "YAML map of colours": (
        "labels:\n  background: [0, 0, 0]\n  cat: [255, 0, 0]\n"
        "  big dog: [0, 128, 255]\n"
    ),
    "JSON": json.dumps(
        [{"name": n, "color": list(c)} for n, c in zip(NAMES, COLORS, strict=True)]
    ),
    "JSON map of objects": json.dumps(
        {n: {"ID": i, "color": COLORS[i]} for i, n in reversed([*enumerate(NAMES)])}
    ),
    "JSON with a palette": json.dumps({"classes": NAMES, "palette": COLORS}),
}


@pytest.mark.parametrize("kind", COLORED)
def test_colors_in_every_form(kind):
    assert read(COLORED[kind]) == (NAMES, COLORS, None, (), ())


WITH_VALUES = {
    "text": "11 big dog\n7 background\n8 cat\n",
    "header": "class;pixel value\nbackground;7\nbig dog;11\ncat;8\n",
    "YAML": "names:\n  7: background\n  8: cat\n  11: big dog\n",
    "JSON": '{"7": "background", "8": "cat", "11": "big dog"}',
}


@pytest.mark.parametrize("kind", WITH_VALUES)
def test_other_ids_are_mask_values(kind):
    assert read(WITH_VALUES[kind]) == (NAMES, (), ID_VALUES, (), ())


def test_ignored_class_of_labelme_is_no_class():
    names = ("_background_", "cat")
    assert read("__ignore__\n_background_\ncat\n")[:3] == (names, (), None)
    table = read("-1 __ignore__\n0 _background_\n1 cat\n")
    assert table == (names, (), None, (), ())
    table = read("255 __ignore__\n0 _background_\n3 cat\n")
    assert table == (names, (), {0: 0, 3: 1}, (255,), ())
    table = read("__ignore__ 9 9 9\n_background_ 0 0 0\ncat 1 1 1\n")
    assert table == (names, ((0, 0, 0), (1, 1, 1)), None, (), ((9, 9, 9),))


def test_quotes_make_names_of_structure():
    table = read('"zone 1"\n"a: b"\n"say ""hi"""\n')
    assert table.names == ("zone 1", "a: b", 'say "hi"')
    assert read('0,"1, 2 or 3"\n1,zone 1\n').names == ("1, 2 or 3", "zone 1")


REFUSED = {
    "empty": ("\n# none\n", "lists no class; write one per line"),
    "numbers": ("0\n1\n2\n", "line 1 of classes.txt, '0', has numbers but no name"),
    "colour alone": ("0 0 0\n", "line 1 of classes.txt, '0 0 0', has a colour but no"),
    "two names": ("cat,animal\ndog,animal\n", "'cat,animal', is not understood"),
    "two columns": ("cat  animal\ndog  animal\n", "'cat  animal', has several columns"),
    "tabs": ("cat\tanimal\n", "is not understood"),
    "all in one line": ("background,cat,dog\n", "'background,cat,dog', is not under"),
    "numbered list": ("1. cat\n2. dog\n", "'1. cat', is not understood"),
    "bullets": ("* cat\n* dog\n", "'* cat', is not understood"),
    "numbered names": ("zone 1\nroad\n", "'road', is not written like line 1"),
    "names with equal ids": ("a 1\nb 1\n", "line 1 of classes.txt and line 2 of class"),
    "names that differ by number": ("zone 1\nzone 2\n", "two classes named zone; if "),
    "header of names": ("class\ncat\ndog\n", "'class', looks like a header; remove it"),
    "unknown header": ("id,name,trainId\n0,cat,1\n", "is not written like line "),
    "two names in the header": ("name,label\na,b\n", "'name,label', is an unclear hea"),
    "text as id": ("id,name\n0,cat\nx,dog\n", "'x,dog': 'x' must be an integer, the"),
    "missing column": ("id,name\n0,cat\n1,,\n", "'1,,', has 1 columns, not 2"),
    "ambiguous colour": ("a 1 2 3 4\nb 5 6 7 8\n", "is ambiguous: which numbers are"),
    "unknown number": ("0,a,1\n1,b,1\n", "'0,a,1', is not understood"),
    "colon in a name": ("a:b\nc:d\n", "'a:b', is not understood"),
    "brackets": ("cat {small}\n", "is not understood"),
    "missing id": ("0 cat\ndog\n", "line 2 of classes.txt, 'dog', is not written like"),
    "same id": ("0 cat\n0 dog\n", "line 1 of classes.txt and line 2 of classes.txt ha"),
    "negative id": ("-1 cat\n0 dog\n", "has the id -1; ids are mask values, 0..65535"),
    "large id": ("1 cat\n70000 dog\n", "has the id 70000; ids are mask values"),
    "void": ("0 cat\n255 void\n", "is void a class? If not, remove it and add"),
    "late __ignore__": ("cat\n__ignore__\n", "__ignore__ must be the first class"),
    "name next to quotes": ('"cat" big, 1\n', "is not understood"),
    "comment and colour": ("#decade list\ncat\n", "is not written like"),
    "YAML anchor": (
        "names:\n- &n a\n",
        "line 2 of classes.txt, '- &n a', is not under",
    ),
    "YAML tag": ("names:\n- !!str a\n", "line 2 of classes.txt, '- !!str a', is not "),
    "YAML word": ("names:\n- no\n- yes\n", "line 2 of classes.txt, '- no', is not und"),
    "YAML number": ("names:\n- 1\n- 2\n", "item 0 of names of classes.txt: '1' is not"),
    "YAML indentation": (
        "names:\n  0: a\n   1: b\n",
        "line 3 of classes.txt, '1: b', ",
    ),
    "YAML bracket": ("names: [a, b\n", "line 1 of classes.txt, 'names: [a, b', is not"),
    "YAML text block": ("names:\n  0: |\n    a\n", "line 2 of classes.txt, '0: |', is"),
    "YAML key twice": (
        "names:\n  0: a\n  0: b\n",
        "line 3 of classes.txt: the key '0'",
    ),
    "YAML count": ("nc: 3\nnames: [a, b]\n", "has nc 3, but lists 2 classes"),
    "YAML mixed keys": ("names:\n  0: a\n  b: 1\n", "maps ids and other keys"),
    "YAML without a value": (
        "names:\n  0: a\n  1:\n",
        "line 3 of classes.txt, '1:', i",
    ),
    "JSON of two tables": (
        '{"names": ["a", "b"], "classes": ["b", "a"]}',
        "lists other classes in classes than in names",
    ),
    "JSON numbers": ("[1, 2]", "item 0 of classes.txt: 1 is not a name"),
    "JSON without a name": ('[{"id": 0}]', "item 0 of classes.txt has no name"),
    "JSON with two ids": (
        '[{"name": "a", "id": 7, "trainId": 0}]',
        "item 0 of classes.txt has id and trainid; keep one of them",
    ),
    "JSON with some colours": (
        '[{"name": "a", "color": [1, 2, 3]}, {"name": "b"}]',
        "item 1 of classes.txt has no color, but item 0 of classes.txt has one",
    ),
    "JSON with a short colour": (
        '{"a": [1, 2]}',
        "a of classes.txt: '1,2' is not a colour, r,g,b or #rrggbb",
    ),
    "JSON palette": (
        '{"classes": ["a", "b"], "palette": [[1, 2, 3]]}',
        "palette of classes.txt must be a list of 2 colours, next to a list of names",
    ),
    "JSON of a table": ('{"a": "b"}', "a of classes.txt: 'b' is not a colour"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_structure_that_is_not_understood_is_refused(kind):
    text, message = REFUSED[kind]
    with pytest.raises(UserError, match=re.escape(message)):
        read(text)


# ---- Random tables in every form.

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
