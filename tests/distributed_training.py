"""Trains a toy model under the strategy of the command line; prints its losses.

    python distributed_training.py STRATEGY BATCH_NORM [differing]

With "differing", the workers start with different weights.
Run by test_distribution.py, since a process has one set of devices.
"""

import quiet_tensorflow  # noqa: F401

import json
import sys

# isort: split
import keras
import numpy as np
from toy_model import NUM_CLASSES, toy_model

from deeplab_tf import TrainConfig, Trainer, tf1_variables
from deeplab_tf.training.distribution import make_strategy
from deeplab_tf.training.divergence import STEP_METRICS

BATCH, STEPS = 4, 20


def batches():
    """Yields batches whose second half and part of the second image are unlabelled."""
    random = np.random.RandomState(0)
    for _ in range(STEPS):
        images = random.uniform(0, 255, (BATCH, 5, 5, 3)).astype("float32")
        images = np.kron(images, np.ones((1, 13, 13, 1), np.float32))
        labels = np.kron(
            random.randint(0, NUM_CLASSES, (BATCH, 5, 5, 1), np.uint8),
            np.ones((1, 13, 13, 1), np.uint8),
        )
        labels[1, 20:] = 255
        labels[BATCH // 2 :] = 255
        yield images, labels


def main(strategy: str, batch_norm: str, differing: str = "") -> None:
    """Trains and prints losses and norms of the weights as JSON."""
    clones = 2 if strategy == "mirrored" else None
    strategy = make_strategy(strategy, clones)
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = toy_model(size=(65, 65))
    config = TrainConfig(
        training_number_of_steps=STEPS,
        base_learning_rate=0.003,
        weight_decay=1e-3,
        batch_norm=batch_norm,
    )
    trainer = Trainer(model, config)
    if differing:
        kernel = model.trainable_variables[0]
        kernel.assign(kernel + trainer.worker.index)
        trainer.train(batches())
    results = [trainer.train_step(*batch) for batch in batches()]
    norms = {n: float(np.linalg.norm(a)) for n, a in tf1_variables(model).items()}
    images, labels = next(batches())
    images[BATCH - 1] = np.nan
    [row], _ = trainer.train_steps(trainer.iterate([(images, labels)]), 1)
    broken = row[STEP_METRICS.index("broken_image")]
    result = {"worker": trainer.worker.index, "broken": int(broken)}
    print(json.dumps({**result, "results": results, "norms": norms}))


if __name__ == "__main__":
    main(*sys.argv[1:])
