"""Evaluates a toy model on logical CPUs and prints the results as JSON.

    python evaluate_on_replicas.py COUNT

Run by evaluation/test_evaluator.py, since a process has one set of devices.
"""

import quiet_tensorflow  # noqa: F401

import json
import sys

# isort: split
import numpy as np
import tensorflow as tf
from toy_model import NUM_CLASSES, toy_model

from deeplab_tf.evaluation.calibration import Calibration
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.training.distribution import make_strategy

# An odd number of batches of different sizes.
SHAPES = ((2, 33, 41), (1, 20, 65), (3, 17, 17), (1, 1, 5), (2, 33, 41))


def dataset():
    """Returns named batches."""

    def batches():
        random = np.random.RandomState(0)
        for i, shape in enumerate(SHAPES):
            labels = random.randint(0, NUM_CLASSES + 1, (*shape, 1)).astype(np.uint8)
            labels[labels == NUM_CLASSES] = 255
            images = random.uniform(0, 255, (*shape, 3)).astype(np.float32)
            yield images, labels, [f"{i}.{row}" for row in range(shape[0])]

    return tf.data.Dataset.from_generator(
        batches,
        output_signature=(
            tf.TensorSpec([None, None, None, 3], tf.float32),
            tf.TensorSpec([None, None, None, 1], tf.uint8),
            tf.TensorSpec([None], tf.string),
        ),
    )


def evaluate_toy_model(strategy) -> dict:
    """Returns metrics, calibration and gallery of an evaluation under a strategy."""
    with strategy.scope():
        model = toy_model(size=(None, None))
    gallery = Gallery(NUM_CLASSES, 255, first=9, extremes=2)
    calibration = Calibration(NUM_CLASSES, 255)
    evaluator = Evaluator(model)
    for _ in range(2):  # the second time from the start
        metrics = evaluator.evaluate(dataset(), None, [calibration], gallery)
    return {
        "metrics": metrics,
        "calibration": calibration.metrics(),
        "names": [scored.name for scored in gallery.first],
        "worst": [(scored.name, scored.miou) for scored in gallery.worst],
        "best": [(scored.name, scored.miou) for scored in gallery.best],
    }


if __name__ == "__main__":
    count = int(sys.argv[1])
    print(json.dumps(evaluate_toy_model(make_strategy("mirrored", count))))
