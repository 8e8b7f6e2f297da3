"""Trains on two logical CPUs in one process and writes the results to a file.

    python two_replicas.py FILE.npz

Run by test_two_replicas.py, since a process has one set of devices.
"""

import quiet_tensorflow  # noqa: F401

import sys

# isort: split
import keras
import numpy as np
import tensorflow as tf
from toy_model import toy_model

from deeplab_tf import (
    TrainConfig,
    Trainer,
    UserError,
    tf1_variables,
)
from deeplab_tf.models.variables import batch_normalizations
from deeplab_tf.training.batch_norm import set_batch_norm
from deeplab_tf.training.distribution import make_strategy

STEPS = 2
# Options of `TrainConfig`, trained for two steps each with frozen statistics.
OPTIONS = {
    "mined": {"top_k_percent_pixels": 0.25, "accumulate_steps": 2},
    "averaged": {
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "adam_epsilon": 0.1,
        "ema_decay": 0.75,
    },
    "mixed_float16": {"weight_decay": 1.0},
}
GAMMA, BETA, EPSILON = (0.5, 1.0, 2.0), (3.0, 0.0, -1.0), 1e-3


def batch():
    """Returns eight images; the fifth to seventh have no labels."""
    random = np.random.RandomState(0)
    images = random.uniform(0, 255, (8, 33, 33, 3)).astype("float32")
    labels = random.randint(0, 5, (8, 33, 33)).astype(np.uint8)
    labels[4:7] = 255
    return images, labels


def train_two_steps(trainer) -> dict:
    """Trains two steps; returns losses, weights and averages."""
    losses = [trainer.train_step(*batch())["data_loss"] for _ in range(STEPS)]
    results = {"losses": np.array(losses), **tf1_variables(trainer.model)}
    with trainer.averaged_weights():
        averages = tf1_variables(trainer.model)
    return results | {f"average/{name}": a for name, a in averages.items()}


def features():
    """Returns features with a large mean and little variance, and their gradients."""
    random = np.random.RandomState(0)
    scales = np.array([1.0, 0.3, 0.1])
    x = 1e4 + scales * random.standard_normal((2, 2, 9, 9, 3))
    x[1] += 0.5
    return x.astype(np.float32), random.normal(0, 1, x.shape).astype(np.float32)


def normalize(strategy) -> dict:
    """Returns outputs, moments and gradients of synchronised batch normalisation."""
    with strategy.scope():
        model = toy_model()
        gamma, beta = (keras.Variable(np.array(a, np.float32)) for a in (GAMMA, BETA))
    set_batch_norm(model, "sync", 2)
    (synchronized,) = {x.normalize_batch for x in batch_normalizations(model)}

    def run():
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        x, upstream = (tf.gather(tf.constant(of), replica) for of in features())
        with tf.GradientTape() as tape:
            tape.watch(x)
            y, mean, variance = synchronized(x, gamma, beta, EPSILON)
            loss = tf.reduce_sum(y * upstream)
        return y, mean, variance, *tape.gradient(loss, [x, gamma.value, beta.value])

    names = ("y", "mean", "variance", "dx", "dgamma", "dbeta")
    arrays = tf.function(lambda: strategy.run(run))()
    return {
        name: np.stack(strategy.experimental_local_results(per_replica))
        for name, per_replica in zip(names, arrays, strict=True)
    }


def jit_error(model) -> str:
    """Returns the error of jit=on with several replicas."""
    try:
        Trainer(model, TrainConfig(jit="on"))
    except UserError as error:
        return str(error)
    return ""


def broken_image_error(policy: str, strategy) -> str:
    """Returns the error of a broken image in the second replica."""
    keras.config.set_dtype_policy(policy)
    with strategy.scope():
        model = toy_model()
    images, labels = batch()
    data = tf.data.Dataset.from_tensors((images, labels)).repeat(2)
    images[6, 0, 0, 0] = np.nan
    data = data.concatenate(tf.data.Dataset.from_tensors((images, labels)))
    config = TrainConfig(steps_per_call=5, training_number_of_steps=5)
    try:
        Trainer(model, config).train(data, describe_samples=lambda *args: str(args))
    except UserError as error:
        return str(error)
    return ""


def main(path: str) -> None:
    """Writes all results to one file."""
    strategy = make_strategy("mirrored", 2)
    arrays = {f"sync/{n}": a for n, a in normalize(strategy).items()}
    for case, options in OPTIONS.items():
        policy = case if case.startswith("mixed") else "float32"
        keras.config.set_dtype_policy(policy)
        with strategy.scope():
            model = toy_model()
        config = TrainConfig(batch_norm="freeze", base_learning_rate=0.1, **options)
        results = train_two_steps(Trainer(model, config))
        arrays |= {f"{case}/{name}": a for name, a in results.items()}
    arrays["jit error"] = jit_error(model)
    for policy in ("mixed_float16", "float32"):
        arrays[f"broken image/{policy}"] = broken_image_error(policy, strategy)
    np.savez(path, **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:])
