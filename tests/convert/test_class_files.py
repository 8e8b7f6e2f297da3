"""Class files of every form give the same table, or are refused with the line."""

import json
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
    "byte order mark": "\ufeffbackground 0 0 0\ncat 255 0 0\nbig dog 0 128 255\n",
    "tabs": "background\t0\t0\t0\ncat\t255\t0\t0\nbig dog\t0\t128\t255\n",
    "several tabs": "0 0 0\tbackground\n255 0 0\t\tcat\n0 128 255\tbig dog\n",
    "commas and spaces": "background, 0, 0, 0\ncat,255,0,0\nbig dog , 0, 128, 255\n",
    "commas": "background,0,0,0\ncat,255,0,0\nbig dog,0,128,255\n",
    "colour first": "0 0 0\tbackground\n255 0 0\tcat\n0 128 255\tbig dog\n",
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
def test_colors_are_read_from_every_format(kind):
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


def test_labelme_ignored_class_is_not_a_class():
    names = ("_background_", "cat")
    assert read("__ignore__\n_background_\ncat\n")[:3] == (names, (), None)
    table = read("-1 __ignore__\n0 _background_\n1 cat\n")
    assert table == (names, (), None, (), ())
    table = read("255 __ignore__\n0 _background_\n3 cat\n")
    assert table == (names, (), {0: 0, 3: 1}, (255,), ())
    table = read("__ignore__ 9 9 9\n_background_ 0 0 0\ncat 1 1 1\n")
    assert table == (names, ((0, 0, 0), (1, 1, 1)), None, (), ((9, 9, 9),))


def test_quoted_structure_is_a_name():
    table = read('"zone 1"\n"a: b"\n"say ""hi"""\n')
    assert table.names == ("zone 1", "a: b", 'say "hi"')
    assert read('0,"1, 2 or 3"\n1,zone 1\n').names == ("1, 2 or 3", "zone 1")


REFUSED = {
    "empty": ("\n# none\n", "lists no class; write one per line"),
    "one line": ("sky road car\n", "'sky road car', is the only class; write each"),
    "numbers": ("0\n1\n2\n", "line 1 of classes.txt, '0', has numbers but no name"),
    "colour alone": ("0 0 0\n", "line 1 of classes.txt, '0 0 0', has a colour but no"),
    "duplicate name": ("a\nb\na\n", "classes.txt has two classes named a; if numbers"),
    "missing colour": (
        "a 1 2 3\n\nb\n",
        "line 3 of classes.txt, 'b', is not written like line 1 of classes.txt, 'a 1",
    ),
    "missing name": ("a 1 2 3\n4 5 6\n", "'4 5 6', is not written like line 1 of"),
    "two colours": ("1 2 3 zone 4 5 6", "'1 2 3 zone 4 5 6', is ambiguous: which"),
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
    "text as id": ("id,name\n0,cat\nx,dog\n", "'x,dog': 'x' (column id) must be an"),
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
    "YAML mixed keys": ("names:\n  0: a\n  b: 1\n", "mixes ids with other keys"),
    "YAML without a value": (
        "names:\n  0: a\n  1:\n",
        "line 3 of classes.txt, '1:', i",
    ),
    "JSON of two tables": (
        '{"names": ["a", "b"], "classes": ["b", "a"]}',
        "lists different classes in names and classes",
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
        "a of classes.txt: '1,2' is not a colour; write r,g,b or #rrggbb",
    ),
    "JSON palette": (
        '{"classes": ["a", "b"], "palette": [[1, 2, 3]]}',
        "palette of classes.txt must be a list of 2 colours, one for each item of a "
        "list of names",
    ),
    "JSON of a table": ('{"a": "b"}', "a of classes.txt: 'b' is not a colour"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_structure_that_is_not_understood_is_refused(kind):
    text, message = REFUSED[kind]
    with pytest.raises(UserError, match=re.escape(message)):
        read(text)
