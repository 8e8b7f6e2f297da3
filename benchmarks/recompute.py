"""Memory and time of a training step, with and without recomputation.

    python -m benchmarks.recompute --model_variant=mobilenet_v2,xception_65

Each is measured in a process of its own: the peak of the memory that it held, over
what it held before the first step, and the median of some later steps. The steps are
forward, backward and an update; the logits are not resized, so that a class count
does not matter.
"""

import json
import statistics
import subprocess
import sys
import time

import benchmarks.quiet_tensorflow  # noqa: F401

# isort: split
import keras
import numpy as np
import tensorflow as tf
from absl import flags

from deeplab_tf.config import ModelConfig
from deeplab_tf.flags import size_value
from deeplab_tf.memory import peak_bytes
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.recomputation import recompute_backbone
from deeplab_tf.models.variables import batch_normalizations
from deeplab_tf.programs import run_program
from deeplab_tf.training.batch_norm import fused_batch_norm


def define_flags() -> flags.FlagValues:
    """Returns the flags of the program."""
    values = flags.FlagValues()
    flags.DEFINE_list(
        "model_variant",
        ["mobilenet_v2", "xception_65"],
        "Backbones.",
        flag_values=values,
    )
    flags.DEFINE_multi_string("train_crop_size", "321,321", "Crop.", flag_values=values)
    flags.DEFINE_integer("train_batch_size", 4, "Images per batch.", flag_values=values)
    flags.DEFINE_integer("steps", 5, "Steps that are timed.", flag_values=values)
    flags.DEFINE_enum(
        "recompute",
        "both",
        ["both", "true", "false"],
        "Which to measure; one alone is measured in this process and printed as JSON.",
        flag_values=values,
    )
    return values


def training_step(backbone: str, recompute: bool):
    """Returns a compiled training step of a DeepLabv3+."""
    model = build_model(ModelConfig(backbone))
    for layer in batch_normalizations(model):
        layer.normalize_batch = fused_batch_norm
    network = keras.Model(model.input, model.get_layer("logits").output)
    network = recompute_backbone(network) if recompute else network
    variables = [v.value for v in model.trainable_variables]

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(network(images, training=True)))
        gradients = tape.gradient(loss, variables)
        for variable, gradient in zip(variables, gradients, strict=True):
            variable.assign_sub(1e-4 * gradient)
        return loss

    return step


def measured(backbone: str, values: flags.FlagValues) -> dict[str, float]:
    """Returns MiB and seconds of a step, measured in this process."""
    keras.utils.set_random_seed(0)
    step = training_step(backbone, values.recompute == "true")
    shape = (values.train_batch_size, *size_value(values, "train_crop_size"), 3)
    images = np.random.default_rng(0).uniform(0, 255, shape).astype("float32")
    images = tf.constant(images)
    before, seconds = peak_bytes(), []
    step(images)
    for _ in range(values.steps):
        start = time.perf_counter()
        step(images)
        seconds.append(time.perf_counter() - start)
    return {
        "mebibytes": (peak_bytes() - before) / 2**20,
        "seconds": statistics.median(seconds),
    }


def measured_apart(
    backbone: str, recompute: bool, values: flags.FlagValues
) -> dict[str, float]:
    """Returns MiB and seconds of a step, measured in a fresh process."""
    height, width = size_value(values, "train_crop_size")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.recompute"),
            f"--model_variant={backbone}",
            f"--recompute={str(recompute).lower()}",
            f"--train_crop_size={height},{width}",
            f"--train_batch_size={values.train_batch_size}",
            f"--steps={values.steps}",
        ],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return json.loads(ended.stdout.splitlines()[-1])


def compare(backbone: str, values: flags.FlagValues) -> None:
    """Prints both beside each other."""
    plain = measured_apart(backbone, False, values)
    again = measured_apart(backbone, True, values)
    memory, time_ = (again[x] / plain[x] for x in ("mebibytes", "seconds"))
    print(f"{backbone}, {values.train_batch_size} images of a step")
    for name, result in (("kept", plain), ("recomputed", again)):
        mebibytes, seconds = result["mebibytes"], result["seconds"]
        print(f"  {name:10s} {mebibytes:7.0f} MiB {seconds:7.2f} s")
    print(f"  {memory:.2f} of the memory, {time_:.2f} of the time")


def main(values: flags.FlagValues) -> None:
    """Measures and prints."""
    for backbone in values.model_variant:
        if values.recompute == "both":
            compare(backbone, values)
        else:
            print(json.dumps(measured(backbone, values)))


if __name__ == "__main__":
    run_program(__name__)
