"""Damaged, hostile and invalid text files are refused with a one-line error."""

import collections
import copy
import json
import os
import random
import re
import time

import mutations
import pytest
import text_formats
from text_formats import FORMATS

from deeplab_tf.checkpoints import tf1
from deeplab_tf.errors import UserError
from deeplab_tf.files import text_files


def read_file(kind, folder, capsys):
    """Returns the value read, and the warning or error message."""
    tf1._warn_once.cache_clear()
    capsys.readouterr()
    try:
        value = FORMATS[kind].read(str(folder))
    except UserError as error:
        return None, str(error)
    return value, capsys.readouterr().err


def assert_refused(kind, folder, capsys, reason=""):
    value, message = read_file(kind, folder, capsys)
    # An invalid manifest is ignored with a warning.
    assert not value
    assert "\n" not in message.removesuffix("\n")
    assert os.path.basename(kind) in message
    assert re.search(reason, message), message


@pytest.mark.parametrize("kind", FORMATS)
def test_valid_file_is_read(kind, tmp_path, capsys):
    FORMATS[kind].write(tmp_path)
    value, message = read_file(kind, tmp_path, capsys)
    assert value and not message


@pytest.mark.parametrize("kind", ["dataset_info.json", "classes.txt", "names.txt"])
def test_byte_order_mark_and_crlf_are_ignored(kind, tmp_path, capsys):
    FORMATS[kind].write(tmp_path)
    expected = read_file(kind, tmp_path, capsys)
    FORMATS[kind].write(tmp_path, "\ufeff" + FORMATS[kind].text.replace("\n", "\r\n"))
    assert read_file(kind, tmp_path, capsys) == expected


# Invalid in every kind of file.
INVALID_TEXTS = {
    "not UTF-8": (b'{"a": "\xe4"}', r"UTF-8 \(byte 0x(e4|ff)\)|damaged"),
    # Class files may be UTF-16.
    "UTF-16": ('{"a": 1.5}'.encode("utf-16"), r"UTF-8 \(byte 0xff\)|not a colour"),
    "NUL": (b"\0" * 9, "control|Expecting value|damaged"),
    "control character": (b"a\x1bb\n", "control|Expecting value|damaged"),
    "line separator": ("a\u2028b\n".encode(), "U\\+2028|Expecting value|damaged"),
}


@pytest.mark.parametrize("content", INVALID_TEXTS)
@pytest.mark.parametrize("kind", FORMATS)
def test_invalid_text_is_refused(kind, content, tmp_path, capsys):
    content, reason = INVALID_TEXTS[content]
    FORMATS[kind].write(tmp_path, content)
    assert_refused(kind, tmp_path, capsys, reason)


@pytest.mark.parametrize("kind", [k for k in FORMATS if k != "export.json"])
def test_huge_file_is_refused_before_reading(kind, tmp_path, capsys):
    FORMATS[kind].write(tmp_path)
    os.truncate(tmp_path / kind, 1 << 40)
    assert_refused(kind, tmp_path, capsys, "has 1,099,511,627,776 bytes")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
@pytest.mark.parametrize("kind", [k for k in FORMATS if k != "export.json"])
def test_folder_or_pipe_is_refused_at_once(kind, make, tmp_path, capsys):
    FORMATS[kind].write(tmp_path)
    (tmp_path / kind).unlink()
    make(tmp_path / kind)
    assert_refused(
        kind, tmp_path, capsys, "is a (directory|FIFO); a file is needed|is not a file"
    )


INVALID_JSON = {
    "empty": ("", "is empty"),
    "blank": (" \n\t", "is empty"),
    "list": ("[]", "must be (a JSON|an) object|a list or a map|no class"),
    "number": ("3", "must be (a JSON|an) object|a list or a map|no class"),
    "null": ("null", "must be (a JSON|an) object|a list or a map|no class"),
    "truncated": ('{"a": [1, ', "column 11: Expecting value|must have"),
    "NaN": ('{"a": NaN}', "NaN is not a number"),
    "infinity": ('{"a": -Infinity}', "-Infinity is not a number"),
    "overflow": ('{"a": 1e999}', "the number 1e999 is too large"),
    "5,000 digits": (f'{{"a": {"9" * 5000}}}', "column 7: a number with too many"),
    "5,000 decimals": (f'{{"a": 0.{"9" * 5000}}}', "column 9: a number with too many"),
    "high surrogate": (r'{"a": "\ud800"}', r"column 8: \\ud800 is half of a surrogate"),
    "low surrogate": (r'{"a": "\uDFFF\ud83d"}', r"column 8: \\uDFFF is half"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "nested objects": ('{"a":' * 100_000, "nested too deeply"),
    "duplicate key": ('{"a": 1, "b": {"c": 1, "c": 1}}', 'the key "c" occurs twice'),
    "raw newline": ('{"a": "b\nc"}', "Invalid control character|Unterminated"),
    "single quotes": ("{'a': 1}", "column 2: Expecting property name"),
    "unknown key": ('{"nonsense": 1.5}', 'unknown key "nonsense"|nonsense|step'),
}


@pytest.mark.parametrize("content", INVALID_JSON)
@pytest.mark.parametrize("kind", [*text_formats.JSON_FORMATS, "history.jsonl"])
def test_invalid_json_error_gives_its_position(kind, content, tmp_path, capsys):
    content, reason = INVALID_JSON[content]
    FORMATS[kind].write(tmp_path, content)
    assert_refused(kind, tmp_path, capsys, reason)


MANY = [f"class {i}" for i in range(256)]
MEMBER = '["a", "a", "b", "c", {"0": %s}, "0f"]'
SHARD = "shards.train-00001-of-00002.tfrecord"
# File, key path, value and pattern of the error; `...` removes the key.
INVALID_VALUES = [
    ("dataset_info.json", "name", ..., '"name" is missing'),
    ("dataset_info.json", "name", None, "name must be a string; received null"),
    ("dataset_info.json", "name", "a\nb", "name has the control character U\\+000A"),
    ("dataset_info.json", "class_names", ..., '"class_names" is missing'),
    ("dataset_info.json", "class_names", "abcd", 'must be a list; received "abcd"'),
    ("dataset_info.json", "class_names", {"a": 1}, "must be a list; received an obj"),
    ("dataset_info.json", "class_names", [], "has no classes"),
    ("dataset_info.json", "class_names", MANY, "has 256 classes"),
    ("dataset_info.json", "class_names.1", 7, r"class_names\[1\] must be a string"),
    ("dataset_info.json", "class_names.1", " \t", r"names\[1\] has the control"),
    ("dataset_info.json", "class_names.1", "  ", r"class_names\[1\] is blank"),
    ("dataset_info.json", "class_names.1", "a\x7f", r"names\[1\] .* U\+007F"),
    ("dataset_info.json", "class_names.1", "a\u2029", r"names\[1\] .* U\+2029"),
    ("dataset_info.json", "class_names.1", "a" * 201, r"\[1\] has 201 characters"),
    ("dataset_info.json", "ignore_label", True, "must be an integer; received tr"),
    ("dataset_info.json", "ignore_label", 256, "ignore_label must be an integer in 0"),
    ("dataset_info.json", "channels", "3", 'channels must be .*received "3"'),
    ("dataset_info.json", "channels", 3.0, "channels must be an integer.*received 3.0"),
    ("dataset_info.json", "colors.3", [1, 2], r"colors\[3\] must have 3 values"),
    ("dataset_info.json", "colors.3", [1, 2, 256], r"colors\[3\] must be r,g,b with"),
    ("dataset_info.json", "colors.3.0", -1, r"colors\[3\] must be r,g,b"),
    ("dataset_info.json", "colors.3.0", 0.5, r"colors\[3\]\[0\] must be an integer"),
    ("dataset_info.json", "colors.3.0", False, r"colors\[3\]\[0\] must be an integer"),
    ("dataset_info.json", "colors.3.0", "0", r"colors\[3\]\[0\] must be an integer"),
    ("dataset_info.json", "split_sizes", [1], "split_sizes must be an object"),
    ("dataset_info.json", "split_sizes.val", -1, "must not be negative"),
    ("dataset_info.json", "split_sizes.val", 1.5, "split_sizes.val must be an integer"),
    ("dataset_info.json", "split_sizes.val", 2**63, "split_sizes.val is too large"),
    ("dataset_info.json", "split_sizes.val", 10**300, "split_sizes.val is too large"),
    ("dataset_info.json", "split_sizes.a\n", 1, "split_sizes: a key .* U\\+000A"),
    ("dataset_info.json", "class_pixels.val", [1, 2, 3], "4 counts, one per class; r"),
    ("dataset_info.json", "class_pixels.val.2", -5, r"val\[2\] must not be negative"),
    ("dataset_info.json", "class_pixels.val.2", None, r"val\[2\] must be an integer"),
    ("dataset_info.json", "content_hashes.val", "xyz", "must be hexadecimal; .*'xyz'"),
    ("dataset_info.json", "content_hashes.val", 12, "must be a string; received 12"),
    ("dataset_info.json", "contents", 1, 'unknown key "contents"'),
    ("experiment.json", "format_version", ..., '"format_version" is missing'),
    ("experiment.json", "format_version", 2, "format_version 2 needs a newer"),
    ("experiment.json", "model", None, "model must be an object; received null"),
    (
        "experiment.json",
        "model.num_classes",
        4.0,
        "model.num_classes must be an integer",
    ),
    ("experiment.json", "model.backbone", ["a"], "model.backbone must be a string"),
    (
        "experiment.json",
        "model.context.rates",
        [None],
        r"rates\[0\] must be an integer",
    ),
    ("experiment.json", "model.context.aspp", 1, "aspp must be true or false"),
    ("experiment.json", "data.crop_size", [65], "crop_size must have 2 values"),
    ("experiment.json", "train.momentum", 10**309, "too many|finite number"),
    ("experiment.json", "train.momentum", "0.9", 'a finite number; received "0.9"'),
    ("experiment.json", "train.train_logdir", 7, "train_logdir must be a string"),
    ("experiment.json", "train.momentun", 0.5, 'did you mean "momentum"'),
    ("experiment.json", "info.colors.0", [0, 0, 300], r"info\.colors\[0\] must be r,g"),
    ("experiment.json", "info.class_names.0", "\r", r"info\.class_names\[0\]"),
    ("experiment.json", "info.checksum", "a", 'info: unknown key "checksum"'),
    ("assets.extra/model.json", "num_classes", ..., '"num_classes" is missing'),
    ("assets.extra/model.json", "num_classes", 0, "num_classes must be at least"),
    ("assets.extra/model.json", "num_classes", None, "num_classes must be an integer"),
    ("assets.extra/model.json", "decoder", [], "decoder must be an object"),
    ("conversion.json", "shards", ..., '"shards" is missing'),
    ("conversion.json", "skipped", {"train": ["[1]"]}, "'.1.' is not a list of 3 str"),
    ("conversion.json", f"{SHARD}.size", True, "size must be an integer"),
    ("conversion.json", f"{SHARD}.members", ..., '"members" is missing'),
    ("conversion.json", f"{SHARD}.members.0", "[" * 9999, "a member is not a record"),
    ("conversion.json", f"{SHARD}.members.0", '["a"]', "a member is not a record: "),
    ("conversion.json", f"{SHARD}.members.1", MEMBER % -1, "a member is not a record"),
    ("conversion.json", f"{SHARD}.members.1", MEMBER % '"x"', "is not a record: "),
    ("export.json", "mean_pixel", "127.5", "mean_pixel must be a list"),
    ("export.json", "mean_pixel", [1.0, 2.0], "mean_pixel must have 3 values"),
    ("export.json", "mean_pixel.1", True, r"mean_pixel\[1\] must be a finite number"),
    ("export.json", "precision", 16, "precision must be a string; received 16"),
]


def set_value(values, path, value):
    """Changes the value at a key path of parsed JSON."""
    keys, parent = path.split("."), values
    if path.startswith("shards."):
        keys = ["shards", SHARD.partition(".")[2], *path[len(SHARD) + 1 :].split(".")]
    keys = [int(part) if part.isdigit() else part for part in keys]
    for key in keys[:-1]:
        parent = parent[key]
    if value is ...:
        del parent[keys[-1]]
    else:
        parent[keys[-1]] = value
    return values


@pytest.mark.parametrize(("kind", "path", "value", "reason"), INVALID_VALUES)
def test_invalid_json_values_are_refused(kind, path, value, reason, tmp_path, capsys):
    values = set_value(json.loads(FORMATS[kind].text), path, value)
    # A wrong checksum is reported first, as damage.
    FORMATS[kind].write(tmp_path, json.dumps(values))
    assert_refused(kind, tmp_path, capsys, "changed after deeplab_tf wrote it|too many")
    del values["checksum"]
    FORMATS[kind].write(tmp_path, json.dumps(values))
    assert_refused(kind, tmp_path, capsys, reason)


@pytest.mark.parametrize("kind", text_formats.JSON_FORMATS)
def test_checksum_must_match_or_be_absent(kind, tmp_path, capsys):
    values = json.loads(FORMATS[kind].text)
    assert next(iter(values)) == "checksum"
    for checksum in (None, "", 7, "sha256:0123456789abcdef", values["checksum"] + "0"):
        FORMATS[kind].write(tmp_path, json.dumps(values | {"checksum": checksum}))
        assert_refused(kind, tmp_path, capsys, 'delete its "checksum" entry')
    FORMATS[kind].write(tmp_path)
    expected = read_file(kind, tmp_path, capsys)
    del values["checksum"]
    FORMATS[kind].write(tmp_path, json.dumps(values))
    assert read_file(kind, tmp_path, capsys) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"road 1 2 {'9' * 5000}\n", "must be r,g,b with each value in 0..255"),
        (
            "road\x0bside\n",
            r"line 1 of .*classes.txt has the control character U\+000B",
        ),
        ("a\nb\x85c\n", r"line 2 of .*classes.txt has the control character U\+0085"),
        ("a" * 201, r"class_names\[0\] has 201 characters"),
        ("".join(f"c{i}\n" for i in range(256)), "has 256 classes"),
    ],
)
def test_invalid_class_lists_are_refused(text, reason, tmp_path, capsys):
    FORMATS["classes.txt"].write(tmp_path, text)
    assert_refused("classes.txt", tmp_path, capsys, reason)


# ---- Mutations of text, in addition to those of bytes.


def split_lines(content):
    return content.splitlines(keepends=True)


def duplicate_line(content, rng):
    lines = split_lines(content)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"".join(lines)


def remove_line(content, rng):
    lines = split_lines(content)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def swap_lines(content, rng):
    lines = split_lines(content)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


_HOSTILE_TEXTS = (
    *("NaN", "-Infinity", "1e999", "9" * 400, "true", "null", "[", "{", "}", '"'),
    *(
        "\\ud800",
        "\\u0000",
        "\\n",
        "\0",
        "\x85",
        "\u2028",
        "\ufeff",
        "\r",
        "-",
        "0",
        "1",
    ),
    *(",", ":", "[" * 3000, '"checksum": null, ', '"checksum": "a", ', "é", ".0", "e1"),
    *("# ", "model.ckpt-1", "/", "../"),
)


def insert_text(content, rng):
    position = rng.randrange(len(content) + 1)
    return content[:position] + rng.choice(_HOSTILE_TEXTS).encode() + content[position:]


def replace_text(content, rng):
    position = rng.randrange(len(content))
    end = min(len(content), position + rng.randint(1, 12))
    return content[:position] + rng.choice(_HOSTILE_TEXTS).encode() + content[end:]


def change_digit(content, rng):
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    content = bytearray(content)
    if digits:
        content[rng.choice(digits)] = ord(rng.choice("0123456789"))
    return bytes(content)


def swap_words(content, rng):
    """Swaps two words, which may be keys or values."""
    words = list(re.finditer(rb'"[^"\n]*"|[\w.+-]+', content))
    first, second = sorted(rng.sample(range(len(words)), 2))
    a, b = words[first], words[second]
    parts = (content[: a.start()], b[0], content[a.end() : b.start()], a[0])
    return b"".join((*parts, content[b.end() :]))


def remove_checksum(content, rng):
    """Removes the checksum and some of the content after it."""
    start = content.find(b'"checksum"')
    start = rng.randrange(len(content)) if start < 0 else start - rng.randrange(3)
    return content[:start] + content[rng.randrange(start, len(content)) :]


def change_spaces(content, rng):
    """Adds spaces, which JSON ignores."""
    return content.replace(rng.choice((b" ", b"\n", b",")), rng.choice((b"  ", b", ")))


MUTATIONS = (
    *mutations.BYTE_MUTATIONS,
    *(
        duplicate_line,
        remove_line,
        swap_lines,
        insert_text,
        insert_text,
        replace_text,
        replace_text,
    ),
    *(change_digit, change_digit, swap_words, swap_words, remove_checksum),
    change_spaces,
)


def is_class_list(classes):
    """Checks that classes are valid: 1 to 255 unique names and colours."""
    names, colors = classes.info.class_names, classes.info.colors
    return (
        1 <= len(names) <= 255
        and len(set(names)) == len(names) == len(set(colors))
        and all(name.strip() and "\n" not in name for name in names)
        and all(0 <= value <= 255 for color in colors for value in color)
    )


def is_list_of_words(words):
    return all(word.split() == [word] for word in words)


def classify_result(kind, value, message, expected):
    """Returns "same", "refused" or, for files without a checksum, "changed"."""
    assert "\n" not in message.removesuffix("\n"), message
    if value == expected and not message:
        return "same"
    if message:
        assert os.path.basename(kind) in message
        # Only a checkpoint state may be read despite a warning.
        assert kind == "checkpoint" or not value, (value, message)
        return "refused"
    assert not FORMATS[kind].detects_changes, f"{kind} was read as {value}"
    assert is_class_list(value) if kind == "classes.txt" else is_list_of_words(value)
    return "changed"


def mutate_all(count, folder, capsys, seed):
    """Returns counts of "same", "refused" and "changed" for each kind of file."""
    counts = collections.defaultdict(collections.Counter)
    rng = random.Random(seed)
    expected = {}
    for name, kind in FORMATS.items():
        kind.write(folder / name.replace("/", "_"))
        expected[name] = read_file(name, folder / name.replace("/", "_"), capsys)[0]
    for i in range(count):
        name = list(FORMATS)[i % len(FORMATS)]
        kind_folder = folder / name.replace("/", "_")
        change = rng.choice(MUTATIONS)
        content = change(FORMATS[name].text.encode(), rng)
        FORMATS[name].write(kind_folder, content)
        try:
            found = read_file(name, kind_folder, capsys)
            counts[name][
                classify_result(name, *found, copy.deepcopy(expected[name]))
            ] += 1
        except Exception as error:
            raise AssertionError(f"{i}: {change.__name__} {content!r}") from error
    return counts


def test_200_mutated_files_are_read_identically_or_refused(tmp_path, capsys):
    counts = mutate_all(200, tmp_path, capsys, seed=1)
    assert all(counter["refused"] for counter in counts.values())


@pytest.mark.slow
def test_10000_mutated_files_are_read_identically_or_refused(tmp_path, capsys):
    start = time.monotonic()
    counts = mutate_all(10_000, tmp_path, capsys, seed=0)
    with capsys.disabled():
        print()
        for kind, counter in counts.items():
            print(f"{kind:24}", dict(counter))
        print(f"{time.monotonic() - start:.0f} s")
    assert sum(counter.total() for counter in counts.values()) == 10_000


def test_read_words_splits_at_whitespace(tmp_path):
    path = tmp_path / "train.txt"
    path.write_text("a b_1\r\n\n  ö\n", encoding="utf-8")
    assert text_files.read_words(path) == ["a", "b_1", "ö"]
    path.write_bytes(b"a\n\xffb")
    with pytest.raises(UserError, match=f"^{path}: line 2 is not UTF-8 .*0xff"):
        text_files.read_words(path)
