"""The programs with PyTorch weights."""

import json

import numpy as np
import pytest
import tensorflow as tf
from golden_case import FOLDER
from program_runs import run
from pytorch_networks import procedural_weights, read_case
from safetensors.numpy import save_file

import deeplab_tf
from deeplab_tf.checkpoints.tf1 import read_variables
from deeplab_tf.training.resume import read_experiment

PROGRAM = "deeplab_tf.programs.{}"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The path of an LR-ASPP of torchvision."""
    shapes, _ = read_case(FOLDER / "pytorch" / "torchvision_lraspp.npz")
    path = str(tmp_path_factory.mktemp("pytorch") / "lraspp.safetensors")
    save_file(procedural_weights(shapes), path)
    return path


@pytest.fixture
def eager():
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_training_starts_with_weights_and_conventions(
    weights, tiny_records, tmp_path, eager
):
    command = (
        *(f"--tf_initial_checkpoint={weights}", f"--dataset_dir={tiny_records}"),
        *(f"--train_logdir={tmp_path}/logs", "--base_learning_rate=0"),
        *("--training_number_of_steps=1", "--train_crop_size=33,33"),
        *("--train_batch_size=2", "--batch_norm=freeze"),
    )
    model = deeplab_tf.from_pretrained(weights)
    count = len(deeplab_tf.tf1_variables(model))
    assert f"{weights}: {count} restored\n" in run(PROGRAM.format("train"), *command)
    trained = read_experiment(f"{tmp_path}/logs")
    assert trained.model == model.model_config
    assert trained.data.mean_pixel == (123.675, 116.28, 103.53)
    tuned = read_variables(f"{tmp_path}/logs/model.ckpt-1")
    for name, array in deeplab_tf.tf1_variables(model).items():
        np.testing.assert_array_equal(tuned[name], array, name)
    # Resuming does not read the weights again.
    gone = [x.replace("lraspp.safe", "gone.safe") for x in command]
    assert "resuming from" in run(PROGRAM.format("train"), *gone)


def test_evaluation_needs_no_model_flags(weights, tiny_records, tmp_path, eager):
    run(
        PROGRAM.format("eval"),
        *(f"--checkpoint_dir={weights}", f"--dataset_dir={tiny_records}"),
        *(f"--eval_logdir={tmp_path}", "--eval_split=val"),
    )
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    labels, classes = [], 21
    confusion = np.zeros((classes, classes), int)
    model = deeplab_tf.from_pretrained(weights)
    data = deeplab_tf.load_dataset(
        deeplab_tf.DataConfig(dataset_dir=tiny_records, batch_size=1), "val", False
    )
    for image, label in data:
        predicted = np.argmax(model(image), -1)[label[..., 0] != 255]
        labels = np.array(label)[label[..., 0] != 255][:, 0]
        np.add.at(confusion, (labels, predicted), 1)
    assert metrics["confusion_matrix"] == confusion.tolist()
