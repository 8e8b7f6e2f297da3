"""Transforms for users' own pipelines, in an environment with Apache Beam."""

import json
import shutil

import numpy as np
import pytest
import wheels
from conftest import ROOT
from doc_pages import find_blocks
from PIL import Image

pytestmark = pytest.mark.slow

LABEL = """
import pathlib, sys

import apache_beam as beam
import numpy as np
from apache_beam.io import fileio
from apache_beam.options.pipeline_options import PipelineOptions
from deeplab_tf.beam.transforms import LabelImages

photos, out, batch_size, *options = sys.argv[1:]


def read(file):
    return file.metadata.path, file.read()


def save(pair):
    name = pathlib.Path(pair[0]).stem
    np.save(f"{out}/{name}.npy", pair[1])


def save_error(pair):
    name = pathlib.Path(pair[0]).stem
    pathlib.Path(f"{out}/{name}.txt").write_text(pair[1])


if __name__ == "__main__":
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        files = pipeline | fileio.MatchFiles(f"{photos}/*") | fileio.ReadMatches()
        images = files | beam.Map(read)
        labels, errors = images | LabelImages("export", int(batch_size))
        labels | "Save" >> beam.Map(save)
        errors | "SaveErrors" >> beam.Map(save_error)
"""

EVALUATE = """
import json, sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from deeplab_tf.beam.transforms import EvaluateRecords
from deeplab_tf.config import DataConfig

records, *options = sys.argv[1:]


def save(metrics):
    with open("metrics.json", "w") as file:
        json.dump(metrics, file)


if __name__ == "__main__":
    measures = dict(trimap="void", boundary_iou=True, calibration=True)
    with beam.Pipeline(options=PipelineOptions(options)) as pipeline:
        data = DataConfig(dataset_dir=records, batch_size=1)
        found = pipeline | EvaluateRecords("export", data, "val", **measures)
        found | beam.Map(save)
"""

PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]
THREADS = ["--direct_running_mode=multi_threading", "--direct_num_workers=3"]


@pytest.fixture(scope="module")
def export(asset, voc_checkpoint, tmp_path_factory):
    """A SavedModel of the official MobileNetV2, with probabilities."""
    from deeplab_tf import export_saved_model, from_pretrained

    folder = tmp_path_factory.mktemp("model") / "export"
    export_saved_model(from_pretrained(voc_checkpoint), str(folder))
    return folder


@pytest.fixture
def folder(tmp_path, export):
    """A folder with the export."""
    (tmp_path / "export").symlink_to(export)
    return tmp_path


def run(folder, environment, script, *arguments):
    (folder / "script.py").write_text(script)
    command = [environment / "python", "-W", "ignore", "script.py", *arguments]
    result = wheels.run(*map(str, command), folder=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("batch_size", "options"), [(1, PROCESSES), (1, THREADS), (4, [])]
)
def test_labels_are_those_of_predict(
    beam_environment, folder, voc_root, batch_size, options
):
    (folder / "photos").mkdir()
    (folder / "out").mkdir()
    for path in sorted((voc_root / "JPEGImages").iterdir())[:24]:
        shutil.copy(path, folder / "photos")
    image = Image.open(path)
    image.convert("L").save(folder / "photos/grey.png")
    image.getexif()[0x0112] = 6
    image.save(folder / "photos/turned.jpg", exif=image.getexif())
    (folder / "photos/broken.jpg").write_bytes(path.read_bytes()[:2000])
    arguments = ["photos", "out", batch_size, *options]
    run(folder, beam_environment, LABEL, *arguments)
    result = wheels.run(
        *(beam_environment / "deeplab-predict", "--model=export", "--skip_broken"),
        *("--images=photos", "--output_dir=expected"),
        folder=folder,
    )
    assert result.returncode == 0, result.stderr
    [line] = (folder / "expected/skipped.txt").read_text().splitlines()
    assert (folder / "out/broken.txt").read_text() == line
    paths = sorted((folder / "expected").glob("*_label.png"))
    assert len(paths) == len(list((folder / "out").glob("*.npy"))) == 26
    for path in paths:
        expected = np.asarray(Image.open(path))
        name = path.name.removesuffix("_label.png")
        found = np.load(folder / f"out/{name}.npy")
        assert found.dtype == np.uint8 and found.shape == expected.shape
        # Rounding depends on the batch size.
        assert (found != expected).sum() <= (0 if batch_size == 1 else 20)


@pytest.mark.parametrize("options", [PROCESSES, THREADS])
def test_metrics_are_those_of_eval(beam_environment, folder, voc_records, options):
    run(folder, beam_environment, EVALUATE, voc_records, *options)
    result = wheels.run(
        *(beam_environment / "deeplab-eval", "--checkpoint_dir=export"),
        *(f"--dataset_dir={voc_records}", "--eval_split=val", "--eval_logdir=expected"),
        *("--noreport", "--trimap=void", "--boundary_iou", "--calibration"),
        folder=folder,
    )
    assert result.returncode == 0, result.stderr
    expected = json.loads((folder / "expected/metrics.json").read_text())
    assert json.loads((folder / "metrics.json").read_text()) == expected
    assert np.sum(expected["confusion_matrix"]) > 10_000_000


def test_documented_pipeline_runs(beam_environment, folder, voc_root):
    (folder / "photos").mkdir()
    for path in sorted((voc_root / "JPEGImages").iterdir())[:4]:
        shutil.copy(path, folder / "photos")
    (folder / "photos/broken.jpg").write_bytes(b"broken")
    [script] = find_blocks("py", [ROOT / "docs/scale.md"])
    run(folder, beam_environment, script)
    assert len((folder / "classes.txt").read_text().splitlines()) == 4
    [error] = (folder / "errors.txt").read_text().splitlines()
    assert "photos/broken.jpg is broken" in error
