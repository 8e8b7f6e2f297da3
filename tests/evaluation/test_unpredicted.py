"""Classes that are never predicted come with the likely reasons."""

import dataclasses
import json

import numpy as np
import pytest
from drawn_scenes import draw_scene
from html_pages import Page
from program_runs import run
from record_files import make_record, write_shards

from deeplab_tf import ModelConfig, build_model, save_tf1_checkpoint
from deeplab_tf.data import records, statistics
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.objects import ObjectSizes
from deeplab_tf.data.sources import open_split
from deeplab_tf.data.statistics import LabelEstimate
from deeplab_tf.evaluation.unpredicted import (
    Evidence,
    describe_unpredicted,
    explain_metrics,
    explain_unpredicted,
    find_unpredicted,
)
from deeplab_tf.models.variables import official_variables
from deeplab_tf.training.resume import read_experiment

INFO = DatasetInfo("toys", ("floor", "ball", "cat"))
SCENES = DatasetInfo("scenes", ("floor", "shape", "speck"))
# Cats are never predicted.
METRICS = {"confusion_matrix": [[9, 1, 0], [2, 3, 0], [4, 0, 0]]}


def make_evidence(pixels=100, images_with=50, side=20, extent=20, **settings):
    """Returns evidence about cats: 1000 floor pixels, 10 objects, 100 images."""
    objects = ObjectSizes(3)
    objects.add(np.array([[2, side, extent]] * 10))
    counts = np.array([1000, 0, pixels]), np.array([100, 0, images_with])
    labels = LabelEstimate("train", 100, *counts, objects)
    known = {"samples": 80_000, "crop_size": (65, 65)}
    return Evidence(labels, 16, **(known | settings))


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        (
            make_evidence(),
            "no reason found in the labels of train; check learning rate and masks",
        ),
        (make_evidence(pixels=0), "train has no pixels of this class"),
        (
            make_evidence(images_with=1),
            "likely too few steps (about 800 training samples contained it; at "
            "least 1,000 are recommended)",
        ),
        (
            make_evidence(pixels=5),
            "likely too few pixels (0.5% of train; weight it with --class_weighting)",
        ),
        (
            make_evidence(pixels=4, is_weighted=True),
            "likely too few pixels (0.4% of train)",
        ),
        (
            make_evidence(side=15),
            "likely objects too small (100% are below 16x16 pixels, one cell of the "
            "output stride)",
        ),
        (
            make_evidence(extent=66),
            "likely objects too large (100% are longer than the crop)",
        ),
        (
            make_evidence(images_with=1, extent=66),
            "likely too few steps (about 800 training samples contained it; at "
            "least 1,000 are recommended)"
            ", objects too large (100% are longer than the crop)",
        ),
        # Unknown settings give no reasons.
        (
            make_evidence(images_with=1, extent=66, samples=None, crop_size=None),
            "no reason found in the labels of train; check learning rate and masks",
        ),
        (None, "unknown"),
    ],
)
def test_reasons_follow_from_labels_and_settings(evidence, reason):
    assert explain_unpredicted(METRICS, INFO, evidence) == {"cat": reason}


def test_absent_and_predicted_classes_are_not_listed():
    predicted = {"confusion_matrix": [[9, 1, 1], [2, 3, 0], [4, 0, 0]]}
    absent = {"confusion_matrix": [[9, 1, 0], [2, 3, 0], [0, 0, 0]]}
    assert find_unpredicted(predicted) == find_unpredicted(absent) == []
    assert find_unpredicted({"accuracy": 1.0}) == find_unpredicted({}) == []
    assert describe_unpredicted({}, 3) == []


def test_summary_names_the_classes():
    reasons = {"cat": "likely a", "dog": "likely b"}
    assert describe_unpredicted(reasons, 9) == [
        "cat is never predicted: likely a",
        "dog is never predicted: likely b",
        "2 of 9 classes are never predicted: cat, dog",
    ]
    *_, summary = describe_unpredicted({"cat": "likely a"}, 9)
    assert summary == "1 of 9 classes is never predicted: cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of scenes whose third class, "speck", is three pixels of one image."""
    folder = tmp_path_factory.mktemp("scenes")
    records.write_info(SCENES, str(folder))
    for split, seeds in (("train", range(4)), ("val", (9,))):
        contents = []
        for seed in seeds:
            image, label = draw_scene(seed, 48, 64)
            label = np.minimum(label, 1)
            if seed in (0, 9):
                label[4, 4:7] = 2
            contents.append(make_record(image, label, f"scene_{seed}"))
        write_shards(folder, *contents, split=split)
    return folder


@pytest.mark.parametrize("has_counts", [False, True])
def test_labels_are_estimated(folder, has_counts):
    source = open_split(None, str(folder), "train")
    counts = statistics.count_labels(source)
    if has_counts:
        pixels, image_pixels = (c.tolist() for c in counts[:2])
        info = dataclasses.replace(
            source.info,
            class_pixels={"train": pixels},
            class_image_pixels={"train": image_pixels},
        )
        source = dataclasses.replace(source, info=info)
    labels = statistics.estimate_labels(source, "train")
    assert labels.images == 4 and labels.images_with[2] == 1
    np.testing.assert_array_equal(labels.class_pixels, counts.class_pixels)
    assert labels.objects.extents[2, 3] == labels.objects.counts[2] == 1


@pytest.fixture(scope="module")
def start(shallow, tmp_path_factory):
    """The checkpoint of a model that predicts floor everywhere."""
    model = build_model(ModelConfig(num_classes=3, depth_multiplier=0.1))
    variables = official_variables(model)
    variables["logits/semantic/biases"].assign([99, 0, 0])
    prefix = str(tmp_path_factory.mktemp("start") / "model.ckpt-0")
    save_tf1_checkpoint(model, prefix)
    return prefix


def test_programs_name_classes_that_are_never_predicted(
    folder, tmp_path, start, eager_execution
):
    logs = tmp_path / "logs"
    out = run(
        "deeplab_tf.programs.train",
        *(f"--dataset_dir={folder}", f"--train_logdir={logs}"),
        *(f"--tf_initial_checkpoint={start}", "--model_variant=mobilenet_v2"),
        "--depth_multiplier=0.1",
        *("--train_crop_size=33,33", "--train_batch_size=2"),
        *("--training_number_of_steps=2", "--eval_interval_steps=2"),
    )
    reason = (
        "speck is never predicted: likely too few steps (about 1 training samples "
        "contained it; at least 1,000 are recommended), too few pixels (0.024% of "
        "train; weight it with --class_weighting), objects too small "
        "(100% are below 16x16 pixels, one cell of the output stride)"
    )
    assert reason in out.splitlines()
    summary = "2 of 3 classes are never predicted: shape, speck"
    assert out.splitlines()[-1] == summary
    out = run(
        "deeplab_tf.programs.eval",
        *(f"--checkpoint_dir={logs}", f"--eval_logdir={tmp_path / 'eval'}"),
    )
    assert reason in out.splitlines()
    assert out.splitlines()[-1] == summary
    metrics = json.loads((tmp_path / "eval/metrics.json").read_text())
    assert metrics["never_predicted"]["speck"] in reason
    page = Page((tmp_path / "eval/report.html").read_text())
    assert "Never predicted" in page.headings
    assert f"speck: {metrics['never_predicted']['speck']}" in page.text
    # Without training records, reasons come from the evaluated split.
    shard = folder / "train-00000-of-00001.tfrecord"
    moved = shard.rename(tmp_path / shard.name)
    experiment = read_experiment(str(logs))
    reasons = explain_metrics(metrics, experiment.data, "val", SCENES, experiment)
    assert reasons["speck"].startswith("likely too few pixels (0.098% of val")
    moved.rename(shard)
