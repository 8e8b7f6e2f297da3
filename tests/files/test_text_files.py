"""Every text file that is read: damaged, hostile or wrong, it is refused in a line."""

import collections
import copy
import json
import os
import random
import re
import time

import mutations
import pytest
import text_kinds
from text_kinds import KINDS

from deeplab_tf.checkpoints import tf1
from deeplab_tf.errors import UserError


def outcome(kind, folder, capsys):
    """Returns what is read, and a warning or an error."""
    tf1._warn.cache_clear()
    capsys.readouterr()
    try:
        value = KINDS[kind].read(str(folder))
    except UserError as error:
        return None, str(error)
    return value, capsys.readouterr().err


def assert_refused(kind, folder, capsys, reason=""):
    value, message = outcome(kind, folder, capsys)
    # A manifest that is ignored costs time only.
    assert not value
    assert "\n" not in message.removesuffix("\n")
    assert os.path.basename(kind) in message
    assert re.search(reason, message), message


@pytest.mark.parametrize("kind", KINDS)
def test_a_valid_file_is_read(kind, tmp_path, capsys):
    KINDS[kind].write(tmp_path)
    value, message = outcome(kind, tmp_path, capsys)
    assert value and not message


@pytest.mark.parametrize("kind", ["dataset_info.json", "classes.txt", "names.txt"])
def test_a_byte_order_mark_and_other_ends_of_lines_change_nothing(
    kind, tmp_path, capsys
):
    KINDS[kind].write(tmp_path)
    expected = outcome(kind, tmp_path, capsys)
    KINDS[kind].write(tmp_path, "\ufeff" + KINDS[kind].text.replace("\n", "\r\n"))
    assert outcome(kind, tmp_path, capsys) == expected


# Of any kind.
TEXTS = {
    "not UTF-8": (b'{"a": "\xe4"}', r"UTF-8 \(byte 0x(e4|ff)\)|damaged"),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), r"UTF-8 \(byte 0xff\)"),
    "NUL": (b"\0" * 9, "control|Expecting value|damaged"),
    "control character": (b"a\x1bb\n", "control|Expecting value|damaged"),
    "line separator": ("a\u2028b\n".encode(), "U\\+2028|Expecting value|damaged"),
}


@pytest.mark.parametrize("content", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_text_is_refused(kind, content, tmp_path, capsys):
    content, reason = TEXTS[content]
    KINDS[kind].write(tmp_path, content)
    assert_refused(kind, tmp_path, capsys, reason)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "export.json"])
def test_a_huge_file_is_refused_before_it_is_read(kind, tmp_path, capsys):
    KINDS[kind].write(tmp_path)
    os.truncate(tmp_path / kind, 1 << 40)
    assert_refused(kind, tmp_path, capsys, "has 1,099,511,627,776 bytes")


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "export.json"])
def test_a_folder_or_a_pipe_is_refused_at_once(kind, make, tmp_path, capsys):
    KINDS[kind].write(tmp_path)
    (tmp_path / kind).unlink()
    make(tmp_path / kind)
    assert_refused(
        kind, tmp_path, capsys, "is a (directory|FIFO); a file is needed|is not a file"
    )


SYNTAX = {
    "empty": ("", "is empty"),
    "blank": (" \n\t", "is empty"),
    "a list": ("[]", "must be (a JSON|an) object"),
    "a number": ("3", "must be (a JSON|an) object"),
    "null": ("null", "must be (a JSON|an) object"),
    "cut": ('{"a": [1, ', "column 11: Expecting value|must have"),
    "NaN": ('{"a": NaN}', "NaN is not a number"),
    "infinity": ('{"a": -Infinity}', "-Infinity is not a number"),
    "overflow": ('{"a": 1e999}', "the number 1e999 is too large"),
    "5,000 digits": (f'{{"a": {"9" * 5000}}}', "column 7: a number with too many"),
    "5,000 decimals": (f'{{"a": 0.{"9" * 5000}}}', "column 9: a number with too many"),
    "surrogate": (r'{"a": "\ud800"}', r"column 8: \\ud800 is half of a surrogate"),
    "other half": (r'{"a": "\uDFFF\ud83d"}', r"column 8: \\uDFFF is half"),
    "nested": ("[" * 100_000, "nested too deeply"),
    "nested objects": ('{"a":' * 100_000, "nested too deeply"),
    "twice": ('{"a": 1, "b": {"c": 1, "c": 1}}', 'the key "c" occurs twice'),
    "raw newline": ('{"a": "b\nc"}', "Invalid control character|Unterminated"),
    "single quotes": ("{'a': 1}", "column 2: Expecting property name"),
    "unknown key": ('{"nonsense": 1}', 'unknown key "nonsense"|nonsense|step'),
}


@pytest.mark.parametrize("content", SYNTAX)
@pytest.mark.parametrize("kind", [*text_kinds.JSON, "history.jsonl"])
def test_other_json_is_refused_with_its_place(kind, content, tmp_path, capsys):
    content, reason = SYNTAX[content]
    KINDS[kind].write(tmp_path, content)
    assert_refused(kind, tmp_path, capsys, reason)


MANY = [f"class {i}" for i in range(256)]
SHARD = "shards.train-00001-of-00002.tfrecord"
# File, key path, value and what is said of it; `...` removes the key.
VALUES = [
    ("dataset_info.json", "name", ..., '"name" is missing'),
    ("dataset_info.json", "name", None, "name must be a string; received null"),
    ("dataset_info.json", "name", "a\nb", "name has the control character U\\+000A"),
    ("dataset_info.json", "class_names", ..., '"class_names" is missing'),
    ("dataset_info.json", "class_names", "abcd", 'must be a list; received "abcd"'),
    ("dataset_info.json", "class_names", {"a": 1}, "must be a list; received an obj"),
    ("dataset_info.json", "class_names", [], "names no class"),
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
    ("dataset_info.json", "colors.3", [1, 2, 256], r"colors\[3\] must be r,g,b of 0"),
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
    ("dataset_info.json", "class_pixels.val", [1, 2, 3], "one count per class, 4; r"),
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
    ("conversion.json", f"{SHARD}.images", -1, "a count is negative"),
    ("conversion.json", f"{SHARD}.images", True, "images must be an integer"),
    ("conversion.json", f"{SHARD}.sources", ..., '"sources" is missing'),
    ("conversion.json", f"{SHARD}.content_hash", "0x1", "must be hexadecimal"),
    ("conversion.json", f"{SHARD}.class_pixels.0", 2**70, r"pixels\[0\] is too large"),
    ("export.json", "mean_pixel", "127.5", "mean_pixel must be a list"),
    ("export.json", "mean_pixel", [1.0, 2.0], "mean_pixel must have 3 values"),
    ("export.json", "mean_pixel.1", True, r"mean_pixel\[1\] must be a finite number"),
    ("export.json", "precision", 16, "precision must be a string; received 16"),
]


def with_value(values, path, value):
    """Changes the value at a key path of parsed JSON."""
    parts, place = path.split("."), values
    if path.startswith("shards."):
        parts = ["shards", SHARD.partition(".")[2], *path[len(SHARD) + 1 :].split(".")]
    keys = [int(part) if part.isdigit() else part for part in parts]
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return values


@pytest.mark.parametrize(("kind", "path", "value", "reason"), VALUES)
def test_wrong_values_are_refused_by_key(kind, path, value, reason, tmp_path, capsys):
    values = with_value(json.loads(KINDS[kind].text), path, value)
    # With the checksum it is damage, without it a person's mistake.
    KINDS[kind].write(tmp_path, json.dumps(values))
    assert_refused(kind, tmp_path, capsys, "changed after deeplab_tf wrote it|too many")
    del values["checksum"]
    KINDS[kind].write(tmp_path, json.dumps(values))
    assert_refused(kind, tmp_path, capsys, reason)


@pytest.mark.parametrize("kind", text_kinds.JSON)
def test_a_change_is_accepted_once_its_checksum_is_gone(kind, tmp_path, capsys):
    values = json.loads(KINDS[kind].text)
    assert next(iter(values)) == "checksum"
    for checksum in (None, "", 7, "sha256:0123456789abcdef", values["checksum"] + "0"):
        KINDS[kind].write(tmp_path, json.dumps(values | {"checksum": checksum}))
        assert_refused(kind, tmp_path, capsys, 'delete its "checksum" entry')
    KINDS[kind].write(tmp_path)
    expected = outcome(kind, tmp_path, capsys)
    del values["checksum"]
    KINDS[kind].write(tmp_path, json.dumps(values))
    assert outcome(kind, tmp_path, capsys) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (f"road 1 2 {'9' * 5000}\n", "must be r,g,b of 0..255 each"),
        (
            "road\x0bside\n",
            r"line 1 of .*classes.txt has the control character U\+000B",
        ),
        ("a\nb\x85c\n", r"line 2 of .*classes.txt has the control character U\+0085"),
        ("a" * 201, r"class_names\[0\] has 201 characters"),
        ("".join(f"c{i}\n" for i in range(256)), "has 256 classes"),
    ],
)
def test_bad_class_lists_are_refused(text, reason, tmp_path, capsys):
    KINDS["classes.txt"].write(tmp_path, text)
    assert_refused("classes.txt", tmp_path, capsys, reason)


# ---- Mutations of texts, on top of those of bytes.


def lines_of(content):
    return content.splitlines(keepends=True)


def line_doubled(content, rng):
    lines = lines_of(content)
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
    return b"".join(lines)


def line_lost(content, rng):
    lines = lines_of(content)
    del lines[rng.randrange(len(lines))]
    return b"".join(lines)


def lines_swapped(content, rng):
    lines = lines_of(content)
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[i], lines[j] = lines[j], lines[i]
    return b"".join(lines)


_HOSTILE = (
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


def inserted(content, rng):
    place = rng.randrange(len(content) + 1)
    return content[:place] + rng.choice(_HOSTILE).encode() + content[place:]


def replaced(content, rng):
    place = rng.randrange(len(content))
    end = min(len(content), place + rng.randint(1, 12))
    return content[:place] + rng.choice(_HOSTILE).encode() + content[end:]


def digit_changed(content, rng):
    digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
    content = bytearray(content)
    if digits:
        content[rng.choice(digits)] = ord(rng.choice("0123456789"))
    return bytes(content)


def words_swapped(content, rng):
    """Swaps two words: keys, values, or one of each."""
    words = list(re.finditer(rb'"[^"\n]*"|[\w.+-]+', content))
    first, second = sorted(rng.sample(range(len(words)), 2))
    a, b = words[first], words[second]
    parts = (content[: a.start()], b[0], content[a.end() : b.start()], a[0])
    return b"".join((*parts, content[b.end() :]))


def gap_at_checksum(content, rng):
    """Loses the checksum and some of what follows."""
    start = content.find(b'"checksum"')
    start = rng.randrange(len(content)) if start < 0 else start - rng.randrange(3)
    return content[:start] + content[rng.randrange(start, len(content)) :]


def other_spelling(content, rng):
    """Changes spaces, which mean nothing in JSON."""
    return content.replace(rng.choice((b" ", b"\n", b",")), rng.choice((b"  ", b", ")))


MUTATIONS = (
    *mutations.BYTES,
    *(line_doubled, line_lost, lines_swapped, inserted, inserted, replaced, replaced),
    *(digit_changed, digit_changed, words_swapped, words_swapped, gap_at_checksum),
    other_spelling,
)


def is_class_list(classes):
    """Whether a list of classes is one that labels can have."""
    names, colors = classes.info.class_names, classes.info.colors
    return (
        1 <= len(names) <= 255
        and len(set(names)) == len(names) == len(set(colors))
        and all(name.strip() and "\n" not in name for name in names)
        and all(0 <= value <= 255 for color in colors for value in color)
    )


def is_words(words):
    return all(word.split() == [word] for word in words)


def verdict(kind, value, message, expected):
    """Returns "same", "refused" or "another", of a list that people write."""
    assert "\n" not in message.removesuffix("\n"), message
    if value == expected and not message:
        return "same"
    if message:
        assert os.path.basename(kind) in message
        # Another checkpoint is not taken in silence.
        assert kind == "checkpoint" or not value, (value, message)
        return "refused"
    assert not KINDS[kind].is_sealed, f"{kind} was read as {value}"
    assert is_class_list(value) if kind == "classes.txt" else is_words(value)
    return "another"


def mutate_all(count, folder, capsys, seed):
    """Returns how often each kind was the same, refused or another."""
    counts = collections.defaultdict(collections.Counter)
    rng = random.Random(seed)
    expected = {}
    for name, kind in KINDS.items():
        kind.write(folder / name.replace("/", "_"))
        expected[name] = outcome(name, folder / name.replace("/", "_"), capsys)[0]
    for i in range(count):
        name = list(KINDS)[i % len(KINDS)]
        place = folder / name.replace("/", "_")
        change = rng.choice(MUTATIONS)
        content = change(KINDS[name].text.encode(), rng)
        KINDS[name].write(place, content)
        try:
            found = outcome(name, place, capsys)
            counts[name][verdict(name, *found, copy.deepcopy(expected[name]))] += 1
        except Exception as error:
            raise AssertionError(f"{i}: {change.__name__} {content!r}") from error
    return counts


def test_some_mutated_files_are_read_identically_or_refused(tmp_path, capsys):
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
