"""Evaluates the checkpoints of the official zoo next to their published figures.

    python benchmarks/model_zoo.py --dataset_dir=tfrecord

Downloads every checkpoint for the dataset in that folder and evaluates it with the
protocols of its presets. Splits without records, such as test splits, are skipped with
a message; --eval_split evaluates a different split, --images only its first images.
8-bit checkpoints are evaluated in floating point.
"""

import benchmarks.quiet_tensorflow  # noqa: F401

import dataclasses

import keras
from absl import flags as absl_flags

from benchmarks import measuring
from deeplab_tf import flags
from deeplab_tf.checkpoints.pretrained import from_pretrained
from deeplab_tf.checkpoints.zoo import ZOO, ZooCheckpoint
from deeplab_tf.data import records, sources
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.evaluator import Evaluator
from deeplab_tf.presets import Preset
from deeplab_tf.programs import run_program

_ALL = -1  # for `Dataset.take`
_MEASURES = ("miou", "pixel_accuracy")


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = measuring.make_flags(
        checkpoints=([], "Names in the zoo; default: all."),
        eval_split=(None, "Split to evaluate instead of the published one."),
        cache_dir=(None, "Folder for downloads."),
    )
    flags.define_dataset_location(values)
    images = "Images per split; default: all."
    absl_flags.DEFINE_integer("images", None, images, lower_bound=1, flag_values=values)
    return values


def select_checkpoints(names: list[str], dataset: str) -> list[ZooCheckpoint]:
    """Returns the named checkpoints of a dataset; all for an empty list."""
    known = [c for c in ZOO.values() if c.info and c.info.name == dataset]
    for name in names:
        if name not in (c.name for c in known):
            raise UserError(
                f"--checkpoints={name} is not a zoo checkpoint of {dataset}; these are "
                f"{', '.join(c.name for c in known)}"
            )
    return [c for c in known if not names or c.name in names]


def score(
    checkpoint: ZooCheckpoint, preset: Preset, split: str, values: absl_flags.FlagValues
) -> dict:
    """Returns the metrics of a checkpoint under one of its protocols."""
    folder, stride = values.dataset_dir, preset.eval_output_stride
    records.find_shards(folder, split)  # raises before the download
    keras.backend.clear_session()
    model = from_pretrained(
        checkpoint.name, output_stride=stride, cache_dir=values.cache_dir
    )
    data = dataclasses.replace(
        preset.data,
        dataset_dir=folder,
        dataset=checkpoint.info.name,
        batch_size=preset.evaluation.eval_batch_size,
    )
    dataset = load_dataset(data, split, training=False).take(values.images or _ALL)
    return Evaluator(model, preset.evaluation).evaluate(dataset)


def show(preset: Preset, split: str, metrics: dict) -> None:
    """Prints a row per published figure."""
    remark = "" if split == preset.eval_split else f"  published: {preset.eval_split}"
    for measure in _MEASURES:
        published = getattr(preset.published, measure)
        if published is None:
            continue
        ours = 100 * metrics[measure]
        print(
            f"{preset.name:<50}{split:>10}{metrics['images']:>7}  {measure:<14}"
            f"{ours:>7.2f}{published:>11.2f}{ours - published:>+8.2f}{remark}",
            flush=True,
        )


def main(values: absl_flags.FlagValues) -> None:
    """Evaluates and prints each checkpoint."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    info = sources.resolve_info(values.dataset, values.dataset_dir or "")
    checkpoints = select_checkpoints(values.checkpoints, info.name)
    scored = 0
    print(
        f"{'checkpoint and protocol':<50}{'split':>10}{'images':>7}  {'per cent':<14}"
        f"{'ours':>7}{'published':>11}{'':>8}"
    )
    for checkpoint in checkpoints:
        for preset in checkpoint.evaluations:
            split = values.eval_split or preset.eval_split
            try:
                show(preset, split, score(checkpoint, preset, split, values))
                scored += 1
            except UserError as error:
                print(f"{preset.name:<50}{split:>10}  skipped: {error}", flush=True)
    if not scored:
        raise UserError(f"no checkpoint of {info.name} in the zoo could be scored")


if __name__ == "__main__":
    run_program(__name__)
