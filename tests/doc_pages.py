"""Finds the commands and code blocks of README and docs."""

import re

from conftest import ROOT

# The first two create files that commands of other pages use.
START = [ROOT / "README.md", ROOT / "docs/index.md"]
PAGES = [*START, *sorted(set((ROOT / "docs").glob("*.md")) - set(START))]
# tests/test_own_data.py runs it.
OWN_DATA = ROOT / "docs/own_data.md"
SHARED_PAGES = [page for page in PAGES if page != OWN_DATA]
# Not run here: they install packages. tests/test_demo.py runs demo.sh.
SCRIPTS = ("./demo.sh", "./test.sh", "pip install")


def find_blocks(language: str, pages=SHARED_PAGES) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.M | re.S)
    return [block for page in pages for block in pattern.findall(page.read_text())]


def find_commands(pages=SHARED_PAGES) -> list[str]:
    """Returns the distinct commands of some pages."""
    lines = "\n".join(find_blocks("bash", pages)).replace("\\\n", " ").splitlines()
    lines = dict.fromkeys(" ".join(line.split()) for line in lines)
    return [line for line in lines if line and not line.startswith(SCRIPTS)]
