"""Keeps coined words out of code, comments, messages and documentation."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Folders and files whose language is checked.
CHECKED = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "CHANGELOG.md",
    "demo.sh",
    "test.sh",
    "pyproject.toml",
    "docs",
    "benchmarks",
    "tools",
    "datasets",
    "deeplab_tf",
    "tests",
)
SUFFIXES = {".md", ".py", ".sh", ".toml"}
# A pattern of a coined use, and the words to use instead. `_` is a word boundary here,
# so that names of variables are checked, too.
COINAGES = {
    r"told": "reported, logged, printed",
    r"behind": "after",
    r"whole": "complete, intact, full",
    r"what (became|becomes|came|comes) of": "the result of",
    r"(go|goes|going|gone|went) on": "resumes, continues",
    r"by heart": "overfit",
    r"luck|chance": "random, noise",
    r"views?": "scale, crop, inference pass",
    r"(look|looks|looked|looking) at": "reads, checks, open",
    r"sinks?": "output, writer",
    r"twins?": "copy, counterpart",
    r"facts": "metrics, properties",
    r"pictures?|photographs?": "image, photo",
    r"(take|takes|took|taking|taken) (its|their) place": "is published, replaces",
    r"the others": "peers, the rest",
    r"in the place of": "instead of",
    r"beside": "next to, as well as",
}
# Ordinary uses, which are removed from a line before it is checked, and why.
ORDINARY = {
    r"[/=\"]pictures\b|\bpictures(/|_my_data)": "folders in published commands",
    r"\b(the|a) whole\b(?! (and|once)\b)|\bwhole (number|second)s?\b": "entire",
    r"\b(leave|leaves|leaving|left)\b.*\bbehind\b": "leftovers",
    r"\.(numpy_)?view\(|\b(numpy|array|memory|dictionary) views?\b": "shared memory",
    r"\bsink(?=[;,\"'])": "a class of ADE20K",
}
WORD = "(?<![A-Za-z])(?:{})(?![A-Za-z])"
PATTERNS = {
    re.compile(WORD.format(pattern), re.IGNORECASE): instead
    for pattern, instead in COINAGES.items()
}
ALLOWED = re.compile("|".join(ORDINARY), re.IGNORECASE)
# Docstrings say what a function does or returns, not what there is.
OPENING = re.compile(r"(What|Whether|Which|Where|How|Returns what|Yields what)\b")


def files():
    for name in CHECKED:
        path = ROOT / name
        found = sorted(path.rglob("*")) if path.is_dir() else [path]
        yield from (
            file
            for file in found
            if file.suffix in SUFFIXES and file.name != pathlib.Path(__file__).name
        )


def find_coinages(text):
    """Yields line number, coined word and the words to use instead."""
    for number, line in enumerate(text.splitlines(), 1):
        line = ALLOWED.sub("", line)
        for pattern, instead in PATTERNS.items():
            for match in pattern.finditer(line):
                yield number, match[0], instead


def find_openings(source):
    """Yields line number and first line of docstrings with an unwanted opening."""
    for node in ast.walk(ast.parse(source)):
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        # Docstrings of properties read like those of attributes.
        if is_function and "property" not in map(ast.unparse, node.decorator_list):
            first = (ast.get_docstring(node) or "").partition("\n")[0]
            if OPENING.match(first):
                yield node.lineno, first


def test_checked_paths_exist():
    assert all((ROOT / name).exists() for name in CHECKED)
    assert len(list(files())) > 40


@pytest.mark.parametrize("name", CHECKED)
def test_no_coined_words(name):
    hits = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}; say {instead}"
        for path in files()
        if path.is_relative_to(ROOT / name)
        for line, word, instead in find_coinages(path.read_text())
    ]
    assert not hits, "\n".join(hits)


def test_function_docstrings_have_no_unwanted_opening():
    hits = [
        f"{path.relative_to(ROOT)}:{line}: {first}"
        for path in files()
        if path.suffix == ".py"
        for line, first in find_openings(path.read_text())
    ]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("A broken record is told by file and number.", ["told"]),
        ("_TOLD = ('loss',)  # facts", ["TOLD", "facts"]),
        ("training goes on behind the checkpoint", ["behind", "goes on"]),
        ("--output_dir=pictures  # open pictures/overview.png", []),
        ("a picture, or one of its views", ["views", "picture"]),
        ("until the file is whole", ["whole"]),
        ("reads the whole file, as a whole; leaves nothing behind", []),
        ("momentum updates weights in place of a copy", []),
        ("in the place of max pooling", ["in the place of"]),
        ("besides a whole number, the overview and array views", []),
    ],
)
def test_coined_words_are_found(line, words):
    assert [word for _, word, _ in find_coinages(line)] == words


def test_unwanted_docstring_openings_are_found():
    def source(first):
        return f'def f():\n    """{first}\n\n    More.\n    """\n'

    for first in ("What is told.", "Whether it fits.", "Returns what a step gives."):
        assert list(find_openings(source(first))) == [(1, first)]
    for first in ("Returns whether a file exists.", "Whatever.", "Fits what is."):
        assert list(find_openings(source(first))) == []
