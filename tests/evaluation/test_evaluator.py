"""Metrics of a split, computed with a model that classifies colours exactly."""

import itertools
import json
import os
import subprocess
import sys

import evaluate_on_replicas
import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from deeplab_tf.config import EvalConfig, ModelConfig
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.calibration import Calibration
from deeplab_tf.evaluation.evaluator import Evaluator, evaluate
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.evaluation.results import format_class_table

INFO = DatasetInfo("colours", ("red", "green", "deep blue"))


def paint(predictions):
    """Returns images that `color_model` labels as `predictions`."""
    return 200.0 * np.eye(3, dtype=np.float32)[np.array(predictions)]


def samples(count):
    """Returns images, labels and their confusion matrix."""
    random = np.random.RandomState(0)
    predictions = random.randint(0, 3, (count, 9, 9))
    labels = random.randint(0, 4, (count, 9, 9, 1))
    labels[labels == 3] = 255
    counts = np.zeros((256, 3), int)
    np.add.at(counts, (labels[..., 0], predictions), 1)
    return paint(predictions), labels.astype(np.uint8), counts[:3]


def test_metrics_match_hand_computed_values(color_model):
    images = paint([[[0, 1, 1, 1, 0, 2]]])
    labels = np.array([0, 0, 1, 1, 2, 255], np.uint8).reshape(1, 1, 6, 1)
    dataset = tf.data.Dataset.from_tensors((images, labels))
    metrics = evaluate(color_model, dataset)
    assert metrics.pop("iou_per_class") == pytest.approx([1 / 3, 2 / 3, 0])
    assert metrics.pop("accuracy_per_class") == pytest.approx([1 / 2, 1, 0])
    assert metrics.pop("f_score_per_class") == pytest.approx([1 / 2, 4 / 5, 0])
    assert metrics == {
        "images": 1,
        "miou": pytest.approx(1 / 3),
        "pixel_accuracy": pytest.approx(3 / 5),
        "frequency_weighted_iou": pytest.approx((2 / 3 + 4 / 3 + 0) / 5),
        "confusion_matrix": [[1, 1, 0], [0, 2, 0], [1, 0, 0]],
        "protocol": {
            "output_stride": 8,
            "atrous_rates": [12, 24, 36],
            "precision": "float32",
            "eval_scales": (1.0,),
            "add_flipped_images": False,
            "prediction_with_upsampled_logits": True,
            "eval_crop_size": None,
            "eval_batch_size": 1,
            "ignore_label": 255,
            "window_size": None,
            "memory_limit_mb": None,
        },
    }


def test_absent_class_is_null_in_json(color_model):
    dataset = tf.data.Dataset.from_tensors(
        (paint([[[0, 1]]]), np.zeros((1, 1, 2, 1), np.uint8))
    )
    metrics = json.loads(json.dumps(evaluate(color_model, dataset), allow_nan=False))
    # Class 1 is only predicted: absent, but counted as 0 in the mean.
    assert metrics["iou_per_class"] == [0.5, None, None]
    assert metrics["miou"] == 0.25


def test_result_is_independent_of_batch_size_and_order(color_model):
    images, labels, counts = samples(7)
    expected = None
    for batch_size, order in (
        (1, slice(None)),
        (3, slice(None)),
        (4, slice(None, None, -1)),
    ):
        dataset = tf.data.Dataset.from_tensor_slices((images[order], labels[order]))
        metrics = evaluate(color_model, dataset.batch(batch_size))
        assert metrics["images"] == 7
        np.testing.assert_array_equal(metrics["confusion_matrix"], counts)
        expected = expected or metrics
        assert metrics == expected


def test_padding_is_not_scored(strided_model):
    images, labels, _ = samples(2)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(1)
    config = EvalConfig(eval_crop_size=(17, 33), ignore_label=0)
    metrics = evaluate(strided_model, dataset, config)
    assert np.sum(metrics["confusion_matrix"]) == (labels % 255 > 0).sum()


def test_crop_size_grows_with_a_note_for_larger_images(strided_model, capsys):
    images = np.random.RandomState(2).randint(0, 256, (3, 17, 25, 3))
    labels = np.random.RandomState(3).randint(0, 4, (3, 17, 25, 1))
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
    expected = evaluate(strided_model, dataset)
    assert "note" not in capsys.readouterr().out
    # 17 x 25 is already 8 k + 1, so that nothing is padded either way.
    metrics = evaluate(strided_model, dataset, EvalConfig(eval_crop_size=(17, 17)))
    assert metrics["confusion_matrix"] == expected["confusion_matrix"]
    assert np.sum(metrics["confusion_matrix"]) == labels.size
    out = capsys.readouterr().out
    assert out == "note: 3 images exceed eval_crop_size, which was enlarged to fit\n"


def test_scales_flips_and_crop_size_are_used(strided_model):
    images = np.random.RandomState(2).randint(0, 256, (1, 17, 25, 3))
    labels = np.random.RandomState(3).randint(0, 4, (1, 17, 25, 1))
    dataset = tf.data.Dataset.from_tensors((images, labels))
    matrices = {
        str(evaluate(strided_model, dataset, config)["confusion_matrix"])
        for config in (
            EvalConfig(),
            EvalConfig(add_flipped_images=True),
            EvalConfig(eval_scales=(0.5, 1.0)),
            # Not 8 k + 1, so that features and pixels are no longer aligned.
            EvalConfig(eval_crop_size=(30, 38)),
        )
    }
    assert len(matrices) == 4


@pytest.mark.parametrize("count", [0, 2])
def test_nothing_to_score_is_an_error(color_model, count):
    images, labels, _ = samples(2)
    void = (images, np.full_like(labels, 255))
    dataset = tf.data.Dataset.from_tensor_slices(void).batch(1).take(count)
    with pytest.raises(UserError, match=f"all {count} images are ignored .* are 0..2"):
        evaluate(color_model, dataset)


def test_compiled_step_is_reused(color_model):
    images, labels, counts = samples(5)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(2)
    evaluator = Evaluator(color_model)
    first = evaluator.evaluate(dataset)
    np.testing.assert_array_equal(first["confusion_matrix"], counts)
    # One trace for batches of 2 and of 1.
    assert evaluator._compiled_step.experimental_get_tracing_count() == 1
    half = evaluator.evaluate(dataset.take(1))
    assert half["images"] == 2 and half != first
    assert evaluator.evaluate(dataset) == first
    assert evaluator._compiled_step.experimental_get_tracing_count() == 1


def test_evaluator_uses_the_current_weights(strided_model):
    model = keras.models.clone_model(strided_model)
    model.model_config = strided_model.model_config
    images, labels, _ = samples(2)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(1)
    evaluator = Evaluator(model)
    kernel, bias = strided_model.get_layer("logits").get_weights()
    for weights in ([kernel, bias], [-kernel, bias], [0 * kernel, np.eye(4)[2]]):
        model.get_layer("logits").set_weights(weights)
        metrics = evaluator.evaluate(dataset)
        assert metrics == evaluate(model, dataset)
    # Every pixel is of class 2 now.
    hits = int((labels == 2).sum())
    assert metrics["pixel_accuracy"] == hits / (labels != 255).sum()


def test_counts_and_images_are_summed_over_workers(strided_model, capsys):
    images = np.random.RandomState(2).randint(0, 256, (3, 17, 25, 3))
    labels = np.random.RandomState(3).randint(0, 4, (3, 17, 25, 1))
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(1)
    config = EvalConfig(eval_crop_size=(17, 17))
    expected = Evaluator(strided_model, config).evaluate(dataset)
    note = capsys.readouterr().out
    evaluator, totals = Evaluator(strided_model, config), []
    evaluator.evaluate(dataset.skip(1), lambda a: totals.append(a) or a)
    assert capsys.readouterr().out == note.replace("3 images", "2 images")
    assert all(array.dtype == np.int64 for array in totals)
    calls = itertools.cycle(totals)
    evaluator = Evaluator(strided_model, config)
    for printed in (note, ""):  # printed once
        metrics = evaluator.evaluate(dataset.take(1), lambda a: a + next(calls))
        assert metrics == expected and expected["images"] == 3
        assert capsys.readouterr().out == printed


@pytest.mark.parametrize("shows_progress", [True, False])
def test_progress_is_shown_only_if_enabled(
    color_model, shows_progress, monkeypatch, capfd
):
    monkeypatch.setenv("TQDM_MININTERVAL", "0")  # stderr is not a terminal
    images, labels, _ = samples(2)
    dataset = tf.data.Dataset.from_tensors((images, labels))
    Evaluator(color_model, shows_progress=shows_progress).evaluate(dataset)
    assert ("evaluating: 1/1 batch" in capfd.readouterr().err) == shows_progress


def test_worker_without_images_gets_the_total_score(color_model):
    images, labels, counts = samples(2)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels)).batch(1)
    calls = iter([np.array([2, 0]), counts])
    metrics = Evaluator(color_model).evaluate(
        dataset.take(0), lambda a: a + next(calls)
    )
    assert metrics == evaluate(color_model, dataset)


def test_measures_and_gallery_get_every_image(color_model):
    images, labels, counts = samples(5)
    names = np.array([b"a", b"b", b"c", b"d", b"e"])
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, names)).batch(2)
    gallery = Gallery(3, 255, first=3)
    updates = []

    class Recorder:
        needs_confidences = True

        def reset(self):
            updates.clear()

        def update(self, truth, prediction, confidences):
            updates.append((truth, prediction, confidences))

    evaluator = Evaluator(color_model)
    for _ in range(2):
        metrics = evaluator.evaluate(dataset, measures=[Recorder()], gallery=gallery)
    np.testing.assert_array_equal(metrics["confusion_matrix"], counts)
    assert [scored.name for scored in gallery.first] == ["a", "b", "c"]
    for i, (truth, prediction, confidences) in enumerate(updates):
        np.testing.assert_array_equal(truth, labels[i, ..., 0])
        np.testing.assert_array_equal(prediction, images[i].argmax(-1))
        # The logits are the colours, 200 and twice 0.
        np.testing.assert_allclose(confidences, 1.0)
        if i < 3:
            np.testing.assert_array_equal(gallery.first[i].image, images[i])
            np.testing.assert_array_equal(gallery.first[i].truth, truth)
            np.testing.assert_array_equal(gallery.first[i].prediction, prediction)
    assert len(updates) == 5


def test_one_mirrored_replica_counts_every_image_once():
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    assert_equals_one_device(evaluate_on_replicas.evaluate_toy_model(strategy))


@pytest.mark.parametrize("replicas", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_replicas_count_every_image_once(replicas):
    folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    result = subprocess.run(
        [sys.executable, evaluate_on_replicas.__file__, str(replicas)],
        env=os.environ | {"PYTHONPATH": folders},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert_equals_one_device(json.loads(result.stdout))


def assert_equals_one_device(found):
    assert len(found["names"]) == found["metrics"]["images"] == 9
    expected = evaluate_on_replicas.evaluate_toy_model(tf.distribute.get_strategy())
    confidences = found.pop("calibration"), expected.pop("calibration")
    error = "expected_calibration_error"
    assert confidences[0][error] == pytest.approx(confidences[1][error], abs=1e-6)
    assert json.loads(json.dumps(found)) == json.loads(json.dumps(expected))


class Exported:
    """A stand-in for an export, with given label maps."""

    num_classes, protocol = 3, {}

    def __init__(self, labels):
        self.labels = labels


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            lambda x: np.zeros((1, 8, 9), int),
            r"shape \[1, 8, 9\] for images of shape \[1, 9, 8, 3\]",
        ),
        (lambda x: np.zeros((1, 9, 8, 1), int), r"labels of shape \[1, 9, 8, 1\]"),
        (lambda x: np.full((1, 9, 8), -1), "labels from -1 to -1; .* 3 classes"),
        (lambda x: np.full((1, 9, 8), 3), "labels from 3 to 3; .* 3 classes"),
    ],
)
def test_invalid_label_maps_are_refused(labels, message):
    image, truth = np.zeros((1, 9, 8, 3), np.float32), np.zeros((1, 9, 8, 1), np.uint8)
    dataset = tf.data.Dataset.from_tensors((image, truth))
    with pytest.raises(UserError, match=message):
        Evaluator(Exported(labels)).evaluate(dataset)


def test_images_without_a_name_are_numbered(color_model):
    images, labels, _ = samples(3)
    gallery = Gallery(3, 255, first=3)
    dataset = tf.data.Dataset.from_tensor_slices((images, labels, ["a", "", ""]))
    Evaluator(color_model).evaluate(dataset.batch(2), gallery=gallery)
    names = [scored.name for scored in gallery.first]
    assert names == ["a", "image 1", "image 2"]


def test_measures_do_not_change_the_counts(tiny_model):
    # These scores differ, but their probabilities are equal.
    scores = np.float32([1e-4 * 100, 1e-4 * 100.0002])
    image = keras.Input((None, None, 3))
    bias = keras.initializers.Constant(scores)
    logits = keras.layers.Dense(2, "linear", True, "zeros", bias, name="logits")(image)
    model = keras.Model(image, logits)
    model.model_config = ModelConfig(num_classes=2, output_stride=8)
    truth = np.ones((1, 9, 9, 1), np.uint8)
    dataset = tf.data.Dataset.from_tensors((np.zeros((1, 9, 9, 3), np.float32), truth))
    evaluator, calibration = Evaluator(model), Calibration(2, 255)
    for measures in ((), (calibration,)):
        assert evaluator.evaluate(dataset, measures=measures)["miou"] == 1.0
    assert calibration.metrics()["expected_calibration_error"] == pytest.approx(0.5)


def test_class_table_lists_scores_and_means():
    metrics = {
        "images": 2,
        "miou": 0.3125,
        "pixel_accuracy": 0.8,
        "frequency_weighted_iou": 0.75,
        "iou_per_class": [0.5, 0.125, None],
        "accuracy_per_class": [0.625, None, None],
        "f_score_per_class": [0.6, 0.2, None],
        "confusion_matrix": [[1200, 34, 0], [5, 0, 0], [0, 0, 0]],
    }
    short = DatasetInfo("short", ("a", "b", "c"))
    assert (
        len(
            {len(line) for line in format_class_table(metrics, short).splitlines()[:-1]}
        )
        == 1
    )
    assert format_class_table(metrics, INFO).splitlines() == [
        "class          IoU  accuracy  F-score        pixels",
        "red         0.5000    0.6250   0.6000         1,234",
        "green       0.1250         -   0.2000             5",
        "deep blue   absent         -        -             0",
        "mean        0.3125    0.6250   0.4000         1,239",
        "pixel accuracy 0.8000, frequency-weighted IoU 0.7500, 2 images",
    ]
