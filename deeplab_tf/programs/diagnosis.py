"""Validates records with the flags of deeplab-doctor."""

import os
import re
import shlex
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf.data import sources
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.reader import Reader
from deeplab_tf.data.record_checks import DECODING_ERRORS
from deeplab_tf.data.source import Source
from deeplab_tf.data.split_checks import compare_splits
from deeplab_tf.data.suggestions import Suggestion, choose_split, suggest_training
from deeplab_tf.data.validation import (
    Problem,
    SplitReport,
    examine_split,
    find_size_problems,
    group_problems,
    is_safe,
)
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.evaluation.dataset_report import Diagnosis, write_dataset_report
from deeplab_tf.files import outputs
from deeplab_tf.programs import read_command_line
from deeplab_tf.visualize import (
    add_legend,
    contact_sheet,
    convert_to_rgb,
    overlay,
    shrink,
)

_SHEET, _PAGE = "doctor.png", "doctor.html"
_SHOWN = 5  # problems of each kind
# A model zoo checkpoint, as in docs/own_data.md.
_CHECKPOINT = "mobilenetv2_coco_voc_trainval"
_LONG = 10_000  # minimum steps for the official momentum of batch normalisation
_CELL = 320  # longer side of an image in the sheet, in pixels


def _open_splits(values) -> dict[str, Source]:
    """Opens the splits that the flags name, by default all in the folder."""
    folder = values.dataset_dir or ""
    info = sources.resolve_info(values.dataset, folder)
    splits = values.splits or sources.list_splits(info, folder)
    if not splits:
        raise UserError(
            f"{folder} has no records; their names are like "
            "train-00000-of-00004.tfrecord"
        )
    return {s: sources.open_split(info.name, folder, s) for s in splits}


def _print_problems(problems: Sequence[Problem]) -> None:
    for severity, meaning, found in group_problems(problems):
        print(f"\n{severity}: {meaning} ({len(found)})")
        for problem in found[:_SHOWN]:
            print(f"  {problem.split}: {problem.text}")
        if len(found) > _SHOWN:
            print(f"  and {len(found) - _SHOWN} more")


def _format_training(values, suggestion: Suggestion, info: DatasetInfo) -> str:
    """Returns the command line of a training with the suggested settings."""
    name = re.sub(r"[^\w.-]+", "_", info.name)
    settings = {
        "dataset": values.dataset,
        "dataset_dir": values.dataset_dir,
        "train_logdir": f"logs_{name}",
        "train_split": suggestion.split if suggestion.split != "train" else None,
        "model_variant": "mobilenet_v2",
        "decoder_output_stride": 4,
        # The checkpoint was trained on RGB images.
        "tf_initial_checkpoint": _CHECKPOINT if info.channels == 3 else None,
        "output_stride": suggestion.output_stride,
        "train_crop_size": ",".join(map(str, suggestion.crop_size)),
        "train_batch_size": suggestion.batch_size,
        "training_number_of_steps": suggestion.steps,
        "label_weights": ",".join(f"{w:g}" for w in suggestion.label_weights) or None,
        "optimizer": "adamw",
        "base_learning_rate": 0.001,
        "weight_decay": 0.01,
        "fine_tune_batch_norm": "true",
        # The official value is too slow for so few steps.
        "batch_norm_momentum": 0.99 if suggestion.steps < _LONG else None,
    }
    if suggestion.eval_split:
        settings["eval_interval_steps"] = max(50, suggestion.steps // 20)
        if suggestion.eval_split != "val":
            settings["eval_split"] = suggestion.eval_split
    program = "python train.py" if os.path.exists("train.py") else "deeplab-train"
    given = [f"--{k}={v}" for k, v in settings.items() if v is not None]
    return " \\\n  ".join([program, *map(shlex.quote, given)])


def _print_training(diagnosis: Diagnosis) -> None:
    if diagnosis.suggestion is None:
        return
    print("\nsuggested training:")
    for line in diagnosis.suggestion.describe(diagnosis.info):
        print(f"  {line}")
    print(f"\n{diagnosis.command}")


def _print_labels(reports: Sequence[SplitReport], info: DatasetInfo) -> None:
    """Prints the share of pixels and the image count of each label value, per split."""
    names = {i: name for i, name in enumerate(info.class_names)}
    names[info.ignore_label] = "(ignored)"
    present = np.flatnonzero(sum(report.values for report in reports))
    values = sorted({*range(info.num_classes), *present.tolist()})
    width = max(len(name) for name in names.values()) + 5
    print(f"\n{'label':<{width}}" + "".join(f"{r.split:>20}" for r in reports))
    print(" " * width + len(reports) * f"{'pixels    images':>20}")
    for value in values:
        row = f"{value:>3} {names.get(value, '(no class)'):<{width - 4}}"
        for report in reports:
            share = report.values[value] / max(1, report.values.sum())
            row += f"{100 * share:>10.3f}%{report.images_with[value]:>9}"
        print(row)


def _print_images(reports: Sequence[SplitReport]) -> None:
    """Prints number, sizes, mean and standard deviation of each split's images."""
    for report in reports:
        print(f"\n{report.split}: {pluralize(report.images, 'image(s)')}")
        if not report.sizes:
            continue
        sizes = np.array(list(report.sizes.elements()))
        (height, width), count = report.sizes.most_common(1)[0]
        low, high = sizes.min(0), sizes.max(0)
        print(
            f"  width {low[1]} to {high[1]}, height {low[0]} to {high[0]}; "
            f"{width}x{height} is the most frequent size "
            f"({pluralize(count, 'image(s)')})"
        )
        mean, deviation = (
            ", ".join(f"{x:.2f}" for x in xs) for xs in (report.mean, report.deviation)
        )
        print(f"  channel means {mean}; standard deviations {deviation}")


def _draw_sample(image, label, info: DatasetInfo) -> np.ndarray:
    """Draws an image and its label side by side, shrunk, with a legend."""
    rgb = convert_to_rgb(np.asarray(image, np.float32) * (255.0 / info.max_value))
    image, label = shrink(rgb, _CELL), shrink(label, _CELL)
    pair = np.concatenate([image, overlay(image, label, info)], axis=1)
    return add_legend(pair, label, info)


def _draw_samples(
    splits: dict[str, Source], samples: int
) -> dict[str, list[np.ndarray]]:
    """Draws evenly spaced readable samples of every split."""
    drawn: dict[str, list[np.ndarray]] = {split: [] for split in splits}
    for split, source in splits.items():
        reader, count = Reader(source), len(source.index)
        for position in np.linspace(0, count - 1, min(samples, count)).astype(int):
            try:
                image, label, _ = reader.read_sample(tf.constant(position))
            except DECODING_ERRORS:
                continue  # already reported
            label = label.numpy()[..., 0]
            drawn[split].append(_draw_sample(image.numpy(), label, source.info))
    return drawn


def _output_dir(values) -> str:
    return values.output_dir or values.dataset_dir or "."


def _output_files(values) -> list[str]:
    return [*([_SHEET] if values.samples else []), *([_PAGE] if values.report else [])]


def _write_files(values, splits: dict[str, Source], diagnosis: Diagnosis) -> None:
    """Writes samples and report to the output folder and prints their paths."""
    samples = _draw_samples(splits, values.samples)
    drawn = [image for images in samples.values() for image in images]
    tf.io.gfile.makedirs(_output_dir(values))
    print()
    if drawn:
        path = os.path.join(_output_dir(values), _SHEET)
        sheet = tf.io.encode_png(contact_sheet(drawn)).numpy()
        outputs.write_bytes(sheet, path)
        print(f"samples with their labels: {path}")
    if values.report:
        path = os.path.join(_output_dir(values), _PAGE)
        write_dataset_report(path, diagnosis, samples, read_command_line())
        print(f"report: {path}")


def _diagnose(values, splits: dict[str, Source]) -> Diagnosis:
    """Examines all splits."""
    info = next(iter(splits.values())).info
    reports = [examine_split(source, split) for split, source in splits.items()]
    problems = [problem for report in reports for problem in report.problems]
    problems += compare_splits(reports, info)
    suggestion, command = suggest_training(reports, info), ""
    if suggestion is not None:
        stride, crop_size = suggestion.output_stride, suggestion.crop_size
        trained = choose_split(reports, False)
        problems += find_size_problems(trained, info, crop_size, stride)
        command = _format_training(values, suggestion, info)
    return Diagnosis(info, reports, problems, suggestion, command)


def main(values: absl_flags.FlagValues) -> None:
    """Validates the dataset; exits with status 1 if training on it is not safe."""
    splits = _open_splits(values)
    files = _output_files(values)
    outputs.claim(_output_dir(values), files, values.overwrite)
    diagnosis = _diagnose(values, splits)
    info = diagnosis.info
    print(
        f"{info.name}: {info.num_classes} classes, labels {info.known_labels}, "
        f"{pluralize(info.channels, 'channel(s)')} of 0..{info.max_value}"
    )
    _print_images(diagnosis.reports)
    _print_labels(diagnosis.reports, info)
    _print_problems(diagnosis.problems)
    if files:
        _write_files(values, splits, diagnosis)
    if not is_safe(diagnosis.problems):
        print("\nnot safe to train: see the errors above")
        sys.exit(1)
    _print_training(diagnosis)
    print("\nsafe to train")
