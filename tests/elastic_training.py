"""Trains without dropout, with the workers of TF_CONFIG, up to a step.

    python elastic_training.py RECORDS TRAIN_LOGDIR STEPS

Run by test_several_workers.py.
"""

import quiet_tensorflow  # noqa: F401

import dataclasses
import sys

# isort: split
import keras

from deeplab_tf import (
    DataConfig,
    ModelConfig,
    TrainConfig,
    Trainer,
    build_model,
    load_dataset,
)
from deeplab_tf.training.distribution import make_strategy


def main(records: str, logs: str, steps: str) -> None:
    """Resumes from the last checkpoint."""
    strategy = make_strategy()
    keras.utils.set_random_seed(1)
    config = ModelConfig.from_official_flags(
        {"depth_multiplier": 0.1, "aspp_convs_filters": 16, "num_classes": 21}
    )
    # Every replica draws its own dropout.
    context = dataclasses.replace(config.context, dropout=0.0)
    with strategy.scope():
        model = build_model(dataclasses.replace(config, context=context))
    train = TrainConfig(
        train_logdir=logs,
        training_number_of_steps=int(steps),
        # The poly schedule would depend on the number of steps.
        learning_policy="step",
        learning_rate_decay_step=1000,
        base_learning_rate=0.01,
        batch_norm="freeze",
        log_steps=1,
    )
    trainer = Trainer(model, train)
    trainer.restore_latest()
    data = DataConfig(records, crop_size=(33, 33), batch_size=8)

    def dataset(worker, num_workers):
        start = trainer.samples
        return load_dataset(data, "train", True, start, worker, num_workers)

    trainer.train(dataset)


if __name__ == "__main__":
    main(*sys.argv[1:])
