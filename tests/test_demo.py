"""demo.sh from start to end."""

import json
import re
import subprocess

import pytest
from conftest import ROOT
from PIL import Image


@pytest.mark.slow
def test_demo_learns_shapes(tmp_path):
    folder = tmp_path / "demo"
    output = subprocess.run(
        [ROOT / "demo.sh", folder], check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    print(output[-2000:])
    scores = re.search(
        r"mIoU on unseen images: ([\d.]+) \(labelled by the nearest mean colour: "
        r"([\d.]+)\)",
        output,
    )
    learned, colour = map(float, scores.groups())
    metrics = json.loads((folder / "eval/metrics.json").read_text())
    assert learned == pytest.approx(metrics["miou"], abs=5.1e-5)
    assert learned >= 0.80
    assert colour < 0.45
    assert (folder / "exported/saved_model.pb").exists()
    with Image.open(folder / "pictures/overview.png") as overview:
        assert min(overview.size) > 128
    result = subprocess.run(
        [ROOT / "demo.sh", tmp_path], text=True, stderr=subprocess.PIPE
    )
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1
