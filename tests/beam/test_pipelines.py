"""Tasks on runners of Apache Beam, in an environment with Beam."""

import pytest
import wheels
from PIL import Image

pytestmark = pytest.mark.slow

# Each of the failing tasks fails the first time that it runs.
REPEAT = """
import functools, os, sys

from deeplab_tf.beam import pipelines
from deeplab_tf.beam.workers import Work

FAILING = set(map(int, sys.argv[1:]))


def run(folder, state, task):
    path = os.path.join(folder, str(task))
    is_first = not os.path.exists(path)
    open(path, "w").close()
    if is_first and task in FAILING:
        raise OSError("lost")
    return task**2


if __name__ == "__main__":
    os.mkdir("runs")
    work = Work(dict, dict, functools.partial(run, os.path.abspath("runs")))
    runner = pipelines.Runner("BundleBasedDirectRunner")
    found = pipelines.run_tasks(work, range(20), os.getcwd(), runner)
    assert found == [task**2 for task in range(20)], found
"""


# The only runner in Python that repeats failed bundles; it tries each four times.
@pytest.mark.parametrize("failing", [(0, 7, 19), (3, 4)])
def test_failed_bundles_are_repeated(beam_environment, tmp_path, failing):
    (tmp_path / "script.py").write_text(REPEAT)
    command = [beam_environment / "python", "-W", "ignore", "script.py"]
    result = wheels.run(*command, *map(str, failing), folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 20
    assert not list(tmp_path.glob(".deeplab_tf-*"))


# Only the process itself reaches files in its memory.
MEMORY = """
import pathlib, sys

import tensorflow as tf

from deeplab_tf.programs import run_program

photos, model = sys.argv[1:]
for path in pathlib.Path(photos).iterdir():
    tf.io.gfile.copy(str(path), f"ram://photos/{path.name}")
arguments = [f"--model={model}", "--images=ram://photos/*.jpg", "--skip_broken"]
arguments += ["--output_dir=ram://labels", "--runner=DirectRunner"]
run_program("deeplab_tf.programs.predict", ["predict", *arguments])
for name in tf.io.gfile.listdir("ram://labels"):
    tf.io.gfile.copy(f"ram://labels/{name}", f"labels/{name}")
"""


def test_images_and_labels_may_be_in_memory(
    beam_environment, voc_root, tiny_export, tmp_path
):
    for name in ("photos", "labels"):
        (tmp_path / name).mkdir()
    for path in sorted((voc_root / "JPEGImages").iterdir())[:3]:
        Image.open(path).resize((96, 64)).save(tmp_path / "photos" / path.name)
    (tmp_path / "photos/broken.jpg").write_bytes(b"broken")
    (tmp_path / "script.py").write_text(MEMORY)
    command = [beam_environment / "python", "-W", "ignore", "script.py"]
    result = wheels.run(*command, "photos", tiny_export, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    result = wheels.run(
        *(beam_environment / "deeplab-predict", f"--model={tiny_export}"),
        *("--images=photos", "--output_dir=expected", "--skip_broken"),
        folder=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    expected = sorted((tmp_path / "expected").glob("*_*.png"))
    assert len(expected) == 9
    for path in expected:
        found = tmp_path / "labels" / path.name
        assert found.read_bytes() == path.read_bytes()
    assert "broken.jpg" in (tmp_path / "labels/skipped.txt").read_text()
