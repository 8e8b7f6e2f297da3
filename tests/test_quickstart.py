"""The notebook in examples/."""

import ast
import json
import os
import re
import time

import pytest
from conftest import ROOT
from test_documentation import check_imports

NOTEBOOK = ROOT / "examples/quickstart.ipynb"


def test_notebook_is_clean_and_imports_existing_names():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    for cell in cells:
        assert not cell.get("outputs") and not cell.get("execution_count")
    sources = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    ast.parse("\n".join(sources))
    check_imports("\n".join(sources))


@pytest.mark.slow
def test_notebook_runs_in_five_minutes(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("MPLBACKEND", "agg")
    start = time.monotonic()
    notebook = client.execute(
        nbformat.read(NOTEBOOK, 4),
        cwd=str(tmp_path),
        timeout=900,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    minutes = (time.monotonic() - start) / 60
    text = "".join(
        output.get("text", "") for c in notebook.cells for output in c.get("outputs", [])
    )
    miou = float(re.search(r"^mIoU +([\d.]+)$", text, re.M)[1])
    print(f"{minutes:.1f} minutes, mIoU {miou}, {os.cpu_count()} cores")
    assert miou > 0.35
    assert (tmp_path / "quickstart/exported/saved_model.pb").exists()
