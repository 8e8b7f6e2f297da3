"""Every command and every Python block of README and docs runs as written."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import small_sources
from conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
CHECKPOINT = "deeplabv3_mnv2_pascal_trainval"
# Tested by tests/test_demo.py and by whoever runs this; they install packages.
SCRIPTS = ("./demo.sh", "./test.sh", "pip install")


def blocks(language: str) -> list[str]:
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.M | re.S)
    return [block for page in PAGES for block in pattern.findall(page.read_text())]


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [line for line in lines if line and not line.startswith(SCRIPTS)]


@pytest.fixture(scope="module")
def workplace(voc_root, voc_checkpoint, tmp_path_factory) -> pathlib.Path:
    """A folder as the docs suppose it, with real images and weights, and other data
    sets in small."""
    folder = tmp_path_factory.mktemp("docs")
    for name in ("datasets", "train.py", "eval.py", "export.py"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "VOCdevkit").symlink_to(voc_root.parent)
    (folder / CHECKPOINT).symlink_to(pathlib.Path(voc_checkpoint).parent)
    (folder / "photos").mkdir()
    for photo in sorted((voc_root / "JPEGImages").glob("*.jpg"))[:3]:
        shutil.copy(photo, folder / "photos")
    small_sources.cityscapes(folder / "cityscapes")
    small_sources.ade20k(folder / "ADEChallengeData2016")
    small_sources.coco(folder / "coco")
    return folder


def test_the_pages_hold_commands():
    programs = {re.match(r"python (-m )?(\S+)", line)[2] for line in commands()}
    assert programs == {
        *("datasets.voc2012", "datasets.cityscapes", "datasets.ade20k"),
        *("datasets.coco_voc", "train.py", "eval.py", "export.py"),
        *("deeplab_tf.predict", "deeplab_tf.presets", "deeplab_tf.models.complexity"),
    }
    assert (ROOT / "README.md").read_text().split("```")[1] == (
        "bash\n./demo.sh\n./test.sh\n"
    )


@pytest.mark.slow
def test_every_command_runs(workplace):
    for command in commands():
        # Two steps on two images stand for the training; all else is as written.
        short = re.sub(r"(--training_number_of_steps)=\d+", r"\1=2", command)
        short = re.sub(r"(--train_batch_size)=\d+", r"\1=2", short)
        short = short.replace("python", sys.executable, 1)
        subprocess.run(short, shell=True, cwd=workplace, check=True, env=environment())
    assert (workplace / "eval/metrics.json").exists()
    assert (workplace / "pictures/overview.png").exists()
    for name in ("cityscapes", "ade20k", "coco_voc"):
        assert (workplace / "tfrecord" / name / "dataset_info.json").exists()


@pytest.mark.slow
def test_every_python_block_runs(workplace):
    sources = blocks("python")
    assert sources
    for source in sources:
        subprocess.run(
            [sys.executable, "-c", source], cwd=workplace, check=True, env=environment()
        )


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}
