"""Extends MkDocs for the documentation site.

Pages link to source files, the notebook and README, relative to the repository. The
hooks add a page below `source/` for each of these files, and make the links lead there.
"""

import dataclasses
import importlib
import inspect
import json
import os
import pathlib
import re
import sys

import griffe
from mkdocs.structure.files import File

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tools import documentation  # noqa: E402

DOCS = ROOT / "docs"
# Fenced blocks, which contain no links, or the target of a link or an image.
_LINK = re.compile(r"^(```+).*?^\1$|(?<=\]\()[^)\s]+(?=\))", re.MULTILINE | re.DOTALL)


def on_files(files, config):
    """Adds a page for each file that pages link to, directly or through others."""
    pages = sorted(DOCS.glob("*.md"))
    for page in pages:
        links = (link[0] for link in _LINK.finditer(_format_page(page)))
        for path in {_resolve_link(page, link) for link in links if _is_file(link)}:
            if DOCS not in path.parents and path not in pages:
                pages.append(path)
                files.append(
                    File.generated(
                        config, _find_site_path(path), content=_format_page(path)
                    )
                )
    return files


def on_page_markdown(markdown, page, config, files):
    """Lists all flags; turns links to files of the repository into links to pages."""
    if page.file.src_uri == "flags.md":
        return documentation.format_flags_page(on_site=True)
    folder, _, path = page.file.src_uri.partition("source/")
    origin = ROOT / path.removesuffix(".md") if not folder else DOCS / folder
    origin = origin if origin.exists() else origin.with_suffix(".md")

    def rewrite(link):
        if not _is_file(link[0]):
            return link[0]
        target = _find_site_path(_resolve_link(origin, link[0]))
        anchor = re.sub("^L(?=[0-9]+$)", "__codelineno-0-", link[0].partition("#")[2])
        relative = os.path.relpath(target, os.path.dirname(page.file.src_uri) or ".")
        return f"{relative}#{anchor}" if anchor else relative

    return _LINK.sub(rewrite, markdown)


def _is_file(link: str) -> bool:
    return not link.startswith(("```", "#")) and "://" not in link


def _resolve_link(page: pathlib.Path, link: str) -> pathlib.Path:
    return pathlib.Path(os.path.normpath(page.parent / link.partition("#")[0]))


def _find_site_path(path: pathlib.Path) -> str:
    """Returns the path of a page, or of another file in docs/, on the site."""
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    return f"source/{path.relative_to(ROOT).as_posix().removesuffix('.md')}.md"


def _format_page(path: pathlib.Path) -> str:
    """Returns a page that shows a file, or lists a folder."""
    if path.suffix == ".md":
        return path.read_text()
    if path.suffix == ".ipynb":
        return "\n\n".join(map(_format_cell, json.loads(path.read_text())["cells"]))
    title = f"---\nsearch: {{exclude: true}}\n---\n# {path.relative_to(ROOT)}\n\n"
    if path.is_dir():
        return title + "".join(f"- `{file.name}`\n" for file in sorted(path.iterdir()))
    language = {".py": "python", ".sh": "bash"}.get(path.suffix, "text")
    return f'{title}````{language} linenums="1"\n{path.read_text()}````\n'


def _format_cell(cell: dict) -> str:
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


class ConfigFields(griffe.Extension):
    """Shows the fields of configs as `help` does, instead of their `option(...)`."""

    def on_class_members(self, *, cls, **_):
        """Takes docstring and defaults from the imported class."""
        decorators = [str(decorator.value) for decorator in cls.decorators]
        in_config = cls.path.startswith("deeplab_tf.config.")
        if in_config and "document_fields" in decorators:
            config = getattr(importlib.import_module(cls.module.path), cls.name)
            cls.docstring = griffe.Docstring(inspect.getdoc(config), parent=cls)
            for field in dataclasses.fields(config):
                nested = dataclasses.is_dataclass(field.default)
                name = f"{type(field.default).__name__}()"
                cls.members[field.name].value = name if nested else repr(field.default)
