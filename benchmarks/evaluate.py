"""Measures the overhead of a single-scale evaluation over the model alone.

    python -m benchmarks.evaluate --dataset_dir=tfrecord --eval_crop_size=513,513

"model" is the compiled `Predictor.labels` (network, last resize and argmax) on decoded
images in memory; "model again" shows the noise. `Evaluator.evaluate` processes the same
batches and also decodes, updates the confusion matrix and shows progress; optionally it
keeps a gallery or computes further measures. Without --checkpoint_dir the weights are
random, which does not change the speed. "first batch" is the time to build the input
pipeline, which does not depend on the number of images.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import collections
import functools
from collections.abc import Callable

import keras
import tensorflow as tf
from absl import flags as absl_flags

from benchmarks import measuring
from deeplab_tf import flags
from deeplab_tf.config import EvalConfig
from deeplab_tf.data import sources
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.evaluation.boundary import BoundaryIoU, TrimapCurve
from deeplab_tf.evaluation.calibration import Calibration
from deeplab_tf.evaluation.evaluator import Evaluator, make_predictor
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.models.precision import use_precision
from deeplab_tf.programs import run_program
from deeplab_tf.programs.checkpoint import require_channels, restore_model

_EXTREMES = 12  # worst and best images in the gallery


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = measuring.make_flags(
        turns=5,
        checkpoint_dir=(None, "Folder or prefix; default: random weights."),
        eval_crop_size=((513, 513), "Size of padded images."),
        eval_batch_size=(1, "Images per forward pass.", 1),
        images=(200, "Images to evaluate, rounded up to full batches.", 1),
    )
    flags.define_model_flags(values, "eval")
    flags.define_dataset_flags(values, "eval_split", "val")
    return values


def make_model(values: absl_flags.FlagValues, num_classes: int) -> keras.Model:
    """Returns the model of a checkpoint, else an untrained one from the flags."""
    if values.checkpoint_dir:
        return restore_model(values, values.checkpoint_dir, num_classes)
    preset = flags.read_preset(values)
    base = preset and preset.eval_model
    use_precision(values.precision)
    return build_model(flags.read_model_config(values, base, num_classes=num_classes))


def make_dataset(
    values: absl_flags.FlagValues, info: DatasetInfo, model: keras.Model
) -> tf.data.Dataset:
    """Returns the dataset of a turn."""
    preset = flags.read_preset(values)
    data = flags.read_data_config(
        values,
        model.model_config,
        preset and preset.data,
        dataset=info.name,
        batch_size=values.eval_batch_size,
    )
    split = flags.read_split(values, "eval_split", preset)
    batches = -(-values.images // values.eval_batch_size)
    return load_dataset(data, split, training=False).take(batches)


def make_workloads(
    labels: Callable, evaluator: Evaluator, dataset: tf.data.Dataset, info: DatasetInfo
) -> dict[str, Callable]:
    """Returns the functions to measure, by name."""
    classes = info.num_classes, info.ignore_label
    gallery = Gallery(*classes, extremes=_EXTREMES)
    measures = [TrimapCurve(*classes), BoundaryIoU(*classes), Calibration(*classes)]
    decoded = list(dataset)

    def predict() -> None:
        for images, _ in decoded:
            predictions = labels(images)
        predictions.numpy()  # waits for a GPU

    evaluate = functools.partial(evaluator.evaluate, dataset)
    return {
        "model": predict,
        "model again": predict,
        "evaluate": evaluate,
        "evaluate decoded images": functools.partial(evaluator.evaluate, decoded),
        "evaluate with gallery": functools.partial(evaluate, gallery=gallery),
        "evaluate with measures": functools.partial(evaluate, measures=measures),
        "decode": functools.partial(collections.deque, dataset, 0),
        "first batch": lambda: next(iter(dataset)),
    }


def main(values: absl_flags.FlagValues) -> None:
    """Runs the benchmark."""
    flags.check_flags(values, "eval")
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    keras.utils.set_random_seed(0)
    info = sources.resolve_info(values.dataset, values.dataset_dir or "")
    config = EvalConfig(
        eval_crop_size=flags.read_size(values, "eval_crop_size"),
        eval_batch_size=values.eval_batch_size,
        ignore_label=info.ignore_label,
    )
    model = make_model(values, info.num_classes)
    require_channels(model, info.channels, f"the records of {info.name}")
    dataset = make_dataset(values, info, model)
    predictor = make_predictor(model, config)
    labels = tf.function(predictor.labels, reduce_retracing=True)
    shapes = [tuple(images.shape) for images, _ in dataset]
    workloads = make_workloads(labels, Evaluator(model, config), dataset, info)
    series = measuring.measure_in_process(workloads, values.turns)
    images, graphs = sum(s[0] for s in shapes), labels.experimental_get_tracing_count()
    rows = measuring.summarize(series, images)
    title = f"Evaluation of {images} images, batches of {len(set(shapes))} shapes, "
    title += f"{graphs} graphs"
    measuring.report(values, title, {"rows": rows}, measuring.table(rows))


if __name__ == "__main__":
    run_program(__name__)
