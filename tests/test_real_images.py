"""The official checkpoint scores like the official graph on real images."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import real_predictions
from conftest import ROOT
from listing import list_outputs
from PIL import Image
from program_runs import run

from deeplab_tf.checkpoints.tf1 import load_tf1_checkpoint
from deeplab_tf.config import DataConfig, EvalConfig, ModelConfig
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.evaluation.evaluator import evaluate
from deeplab_tf.images.inputs import read_image
from deeplab_tf.inference import Predictor
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.serving.cpu_optimization import optimize_for_cpu

CROP = (513, 513)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def load_model(checkpoint, output_stride):
    model = build_model(
        ModelConfig.from_official_flags({"output_stride": output_stride})
    )
    assert load_tf1_checkpoint(model, checkpoint).complete
    return model


@pytest.fixture(scope="module")
def model(voc_checkpoint):
    """The official network at output stride 16."""
    return load_model(voc_checkpoint, 16)


def score(model, dataset_dir, **options):
    data = DataConfig(dataset_dir, batch_size=1)
    dataset = load_dataset(data, "val", training=False)
    return evaluate(model, dataset, EvalConfig(eval_crop_size=CROP, **options))


def assert_official(metrics, path):
    official = json.loads(path.read_text())
    assert metrics["images"] == official["images"] == 60
    assert metrics["miou"] == pytest.approx(official["miou"], abs=1e-4)
    np.testing.assert_allclose(
        metrics["iou_per_class"], official["iou_per_class"], atol=1e-3
    )
    # The number of pixels of each true class does not depend on predictions.
    np.testing.assert_array_equal(
        np.sum(metrics["confusion_matrix"], 1), np.sum(official["confusion_matrix"], 1)
    )


def test_miou_at_output_stride_16_matches_official(
    model, voc_records, official_results
):
    metrics = score(model, voc_records)
    assert metrics["miou"] == pytest.approx(0.760358, abs=1e-4)
    assert_official(metrics, official_results / "voc2012_sample_val_os16.json")


def test_miou_at_output_stride_8_matches_official(
    voc_checkpoint, voc_records, official_results
):
    metrics = score(load_model(voc_checkpoint, 8), voc_records)
    assert metrics["miou"] == pytest.approx(0.779409, abs=1e-4)
    assert_official(metrics, official_results / "voc2012_sample_val_os8.json")


@pytest.mark.slow
def test_miou_with_scales_and_flips_matches_official(
    model, voc_records, official_results
):
    metrics = score(model, voc_records, eval_scales=SCALES, add_flipped_images=True)
    assert metrics["miou"] == pytest.approx(0.774717, abs=1e-4)
    name = "voc2012_sample_val_os16_multiscale_flip.json"
    assert_official(metrics, official_results / name)


def test_label_maps_match_official_for_four_images(model, voc_root, official_results):
    paths = sorted((official_results / "voc2012_sample_predictions_os16").glob("*.png"))
    assert len(paths) == 4
    images = [voc_root / f"JPEGImages/{path.stem}.jpg" for path in paths]
    for path, labels in zip(
        paths, predict_labels(model, images, crop_size=CROP), strict=True
    ):
        with Image.open(path) as official:
            same = np.array(official) == labels
        assert same.mean() > 0.999


@pytest.mark.slow
def test_vis_writes_official_label_maps(
    voc_checkpoint, voc_records, official_results, tmp_path
):
    paths = (f"--checkpoint_dir={voc_checkpoint}", f"--dataset_dir={voc_records}")
    flags = ("--vis_crop_size=513,513", "--also_save_raw_predictions")
    run("deeplab_tf.programs.vis", *paths, f"--vis_logdir={tmp_path}", *flags)
    assert len(list_outputs(tmp_path / "segmentation_results")) == 120
    raw = tmp_path / "raw_segmentation_results"
    assert len(list_outputs(raw)) == 60
    official = official_results / "voc2012_sample_predictions_os16"
    for path in sorted(official.glob("*.png")):
        with Image.open(path) as expected, Image.open(raw / path.name) as found:
            same = np.array(expected) == np.array(found)
        assert same.mean() > 0.999


def test_labels_of_an_even_size_follow_the_official_protocol(model, voc_root):
    path = min((voc_root / "JPEGImages").glob("*.jpg"))
    with Image.open(path) as opened:
        image = np.array(opened.resize((512, 512)))
    labels = predict_labels(model, image, crop_size=CROP)
    expected = Predictor(model, crop_size=CROP).labels(image[None])[0]
    np.testing.assert_array_equal(labels, expected)
    assert np.mean(labels != predict_labels(model, image)) < 0.1


def test_bfloat16_changes_few_labels(
    model, voc_checkpoint, voc_root, official_results, precision
):
    precision("mixed_bfloat16")
    half = optimize_for_cpu(load_model(voc_checkpoint, 16))
    precision("float32")
    exact, rounded = Predictor(model), Predictor(half)
    changed = []
    paths = sorted((official_results / "voc2012_sample_predictions_os16").glob("*.png"))
    for path in paths[:2]:
        image = read_image(str(voc_root / f"JPEGImages/{path.stem}.jpg"))[None]
        changed.append(np.mean(exact.labels(image) != rounded.labels(image)))
    assert 0 < np.mean(changed) < 0.01


@pytest.mark.slow
def test_batch_size_and_device_count_change_few_labels(
    voc_checkpoint, voc_records, tmp_path
):
    single = real_predictions.predictions(voc_checkpoint, voc_records, 1)
    command = (sys.executable, real_predictions.__file__, voc_checkpoint, voc_records)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for batch, devices in ((4, 1), (7, 1), (1, 2)):
        arguments = (str(batch), str(devices), str(tmp_path / "found.npz"))
        subprocess.run([*command, *arguments], env=environment, check=True)
        batched = np.load(tmp_path / "found.npz")
        assert set(batched) == set(single) and len(single) == 60
        changed = sum(
            np.sum(batched[name] != labels) for name, labels in single.items()
        )
        pixels = sum(labels.size for labels in single.values())
        assert changed / pixels <= 1e-5, (batch, devices, changed)
