"""Predicts the label maps of the val split at a batch size and number of devices.

    python real_predictions.py CHECKPOINT RECORDS BATCH DEVICES FILE.npz

Run by test_real_images.py, since a process has one set of devices.
"""

import quiet_tensorflow  # noqa: F401

import sys

# isort: split
import numpy as np

from deeplab_tf import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    build_model,
    load_dataset,
    load_tf1_checkpoint,
)
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.training.distribution import make_local_strategy


def predictions(checkpoint: str, records: str, batch: int, devices: int = 1) -> dict:
    """Returns the label maps of `val` by name, predicted with the official weights."""
    with make_local_strategy(devices).scope():
        model = build_model(ModelConfig.from_official_flags({}))
    load_tf1_checkpoint(model, checkpoint)
    data = DataConfig(records, batch_size=batch)
    dataset = load_dataset(data, "val", training=False, named=True)
    gallery = Gallery(21, 255, first=1000)
    config = EvalConfig(eval_batch_size=batch)
    metrics = Evaluator(model, config).evaluate(dataset, gallery=gallery)
    found = {scored.name: scored.prediction for scored in gallery.first}
    assert len(found) == len(gallery.first) == metrics["images"]
    return found


if __name__ == "__main__":
    *paths, batch, devices, path = sys.argv[1:]
    np.savez(path, **predictions(*paths, int(batch), int(devices)))
