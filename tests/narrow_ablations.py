"""Runs the ablations with narrow models and small crops.

Usage: `python -m tests.narrow_ablations`, in its own process: two replicas need a
TensorFlow that has not used any device yet.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import dataclasses

from benchmarks import ablations
from benchmarks.ablation_rows import BASE, BASE_EVALUATION, SUITE
from deeplab_tf.programs import run_program

NARROW = dataclasses.replace(
    BASE,
    model=dataclasses.replace(
        BASE.model,
        depth_multiplier=0.1,
        context=dataclasses.replace(BASE.model.context, filters=16),
        decoder=dataclasses.replace(BASE.model.decoder, filters=16),
    ),
    data=dataclasses.replace(BASE.data, crop_size=(33, 65), batch_size=4),
    train=dataclasses.replace(BASE.train, save_interval_steps=0),
)
NARROW_SUITE = dataclasses.replace(
    SUITE,
    base=NARROW,
    evaluation=dataclasses.replace(BASE_EVALUATION, eval_crop_size=(65, 65)),
)


if __name__ == "__main__":
    ablations.SUITE = NARROW_SUITE
    run_program("benchmarks.ablations")
