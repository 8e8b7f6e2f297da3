"""The documentation site builds without warnings and has no broken links."""

import html
import inspect
import os
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest
from conftest import ROOT
from html_pages import Page

import deeplab_tf

for _package in ("mkdocs", "material", "mkdocstrings", "griffe"):
    pytest.importorskip(_package)
pytestmark = pytest.mark.slow
# Attributes of tags that load something, unlike `href` of <a>.
LOADED = {"script": "src", "img": "src", "link": "href", "iframe": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> dict[pathlib.Path, Page]:
    """The pages of the site, by path."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    result = subprocess.run(
        [*command, folder],
        cwd=ROOT,
        env={
            **os.environ,
            "NO_MKDOCS_2_WARNING": "1",
        },  # a notice of the theme about its next version
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr
    paths = [path for path in folder.rglob("*.html") if path.name != "404.html"]
    return {path: Page(path.read_text()) for path in paths}


def find_target(page: pathlib.Path, link: str) -> tuple[pathlib.Path, str]:
    """Returns the file and the anchor of a relative link."""
    name, _, anchor = urllib.parse.unquote(link).partition("#")
    return (page.parent / name).resolve() if name else page, anchor


def test_links_resolve(site):
    anchors = {path: set() for path in site}
    for path, page in site.items():
        anchors[path] = {attributes.get("id") for _, attributes in page.tags}
    lines = 0
    for path, page in site.items():
        links = [link for tag in page.all("a") if (link := tag.get("href"))]
        for link in links:
            if link.startswith("https://"):
                continue
            target, anchor = find_target(path, link)
            assert target.exists(), f"{path.name} links {link}"
            assert not anchor or anchor in anchors[target], f"{path.name} links {link}"
            lines += target != path and anchor.startswith("__codelineno")
    assert lines > 50  # of the architecture page


def test_nothing_is_loaded_from_other_servers(site):
    loaded = 0
    [root] = [path.parent for path in site if path.name == "reference.html"]
    styles = [sheet.read_text() for sheet in root.rglob("*.css")]
    styles += re.findall("<style.*?</style>", " ".join(p.source for p in site.values()))
    for text in styles:
        assert not re.search(r"@import\s|url\(\s*['\"]?(http|//)", text)
    for path, page in site.items():
        for tag, attribute in LOADED.items():
            for link in filter(None, (tag.get(attribute) for tag in page.all(tag))):
                assert find_target(path, link)[0].exists(), f"{path.name} loads {link}"
                loaded += 1
    assert loaded > 4 * len(site)


def test_every_public_name_is_in_the_reference(site):
    [page] = [page for path, page in site.items() if path.name == "reference.html"]
    sections = re.split(r'<h3 id="deeplab_tf\.(\w+)" class="doc', page.source)
    sections = dict(zip(sections[1::2], sections[2::2], strict=True))
    assert sorted(sections) == deeplab_tf.__all__
    for name, text in sections.items():
        summary = inspect.getdoc(getattr(deeplab_tf, name)).partition("\n\n")[0]
        first = re.search("doc-contents.*?<p>(?!<small>|Bases)(.*?)</p>", text, re.S)[1]
        shown = html.unescape(re.sub("<[^>]+>", "", first))
        assert shown.split() == summary.replace("`", "").split(), name
