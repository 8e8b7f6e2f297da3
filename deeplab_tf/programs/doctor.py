"""Validates a dataset before training and reports problems.

    python -m deeplab_tf.data.doctor --dataset_dir=tfrecord

Prints image and label statistics and all problems, and writes doctor.png, which shows
samples with their labels. Exits with 1 if training on the dataset is not safe, else 0.
"""

import functools
import os
import sys
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
from absl import flags as absl_flags

from deeplab_tf import flags
from deeplab_tf.data import sources
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.reader import Reader
from deeplab_tf.data.record_checks import DECODING_ERRORS
from deeplab_tf.data.source import Source
from deeplab_tf.data.validation import (
    ERRORS,
    WARNINGS,
    Problem,
    SplitReport,
    examine_split,
    find_leaked_images,
    is_safe,
)
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.visualize import add_legend, as_rgb, contact_sheet, overlay, shrink

_SHEET = "doctor.png"
_SHOWN = 5  # problems of each kind
_MAX_SAMPLES = 100  # per split
_CELL = 320  # longer side of an image in the sheet, in pixels

_FLAGS = {
    "splits": (flags.STRINGS, None, "Splits to examine; default: all."),
    "output_dir": (
        *(flags.STRING, None),
        "Folder to write doctor.png to; default: --dataset_dir.",
    ),
    "samples": (
        *(functools.partial(flags.at_least(0), upper_bound=_MAX_SAMPLES), 12),
        "Images per split in doctor.png; 0 writes no doctor.png.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Defines the flags of the program and returns them."""
    values = absl_flags.FlagValues()
    flags.define_dataset_location(values)
    flags.define_flags(values, _FLAGS)
    flags.define_overwrite(values)
    return values


def _open_splits(values) -> dict[str, Source]:
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    folder = values.dataset_dir or ""
    info = sources.resolve_info(values.dataset, folder)
    splits = values.splits or sources.split_names(info, folder)
    if not splits:
        raise UserError(
            f"no records in {folder}, such as train-00000-of-00004.tfrecord"
        )
    return {s: sources.open_split(info.name, folder, s) for s in splits}


def _print_problems(problems: Sequence[Problem]) -> None:
    for kinds, severity in ((ERRORS, "ERROR"), (WARNINGS, "warning")):
        for kind, meaning in kinds.items():
            found = [problem for problem in problems if problem.kind == kind]
            if found:
                print(f"\n{severity}: {meaning} ({len(found)})")
            for problem in found[:_SHOWN]:
                print(f"  {problem.split}: {problem.text}")
            if len(found) > _SHOWN:
                print(f"  and {len(found) - _SHOWN} more")


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
    for report in reports:
        print(f"\n{report.split}: {report.images} images")
        if not report.sizes:
            continue
        sizes = np.array(list(report.sizes.elements()))
        (height, width), count = report.sizes.most_common(1)[0]
        low, high = sizes.min(0), sizes.max(0)
        print(
            f"  width {low[1]} to {high[1]}, height {low[0]} to {high[0]}; "
            f"{width}x{height} is the most frequent size ({count} images)"
        )
        mean, deviation = (
            ", ".join(f"{x:.2f}" for x in xs) for xs in (report.mean, report.deviation)
        )
        print(f"  channel means {mean}; standard deviations {deviation}")


def _draw_sample(image, label, info: DatasetInfo) -> np.ndarray:
    """Draws an image and its label side by side, shrunk, with a legend."""
    rgb = as_rgb(np.asarray(image, np.float32) * (255.0 / info.max_value))
    image, label = shrink(rgb, _CELL), shrink(label, _CELL)
    pair = np.concatenate([image, overlay(image, label, info)], axis=1)
    return add_legend(pair, label, info)


def _draw_sheet(splits: dict[str, Source], samples: int) -> np.ndarray | None:
    """Draws samples of every split in rows; returns None if no sample is readable."""
    drawn = []
    for source in splits.values():
        reader, count = Reader(source), len(source.index)
        for position in np.linspace(0, count - 1, min(samples, count)).astype(int):
            try:
                image, label, _ = reader.read_sample(tf.constant(position))
            except DECODING_ERRORS:
                continue  # already reported
            label = label.numpy()[..., 0]
            drawn.append(_draw_sample(image.numpy(), label, source.info))
    return contact_sheet(drawn) if drawn else None


def _output_dir(values) -> str:
    return values.output_dir or values.dataset_dir or "."


def _write_sheet(values, splits: dict[str, Source]) -> None:
    sheet = _draw_sheet(splits, values.samples) if values.samples else None
    if sheet is None:
        return
    tf.io.gfile.makedirs(_output_dir(values))
    path = os.path.join(_output_dir(values), _SHEET)
    outputs.write_bytes(tf.io.encode_png(sheet).numpy(), path)
    print(f"\nsamples with their labels: {path}")


def main(values: absl_flags.FlagValues) -> None:
    """Validates the dataset; exits with status 1 if training on it is not safe."""
    splits = _open_splits(values)
    if values.samples:
        outputs.claim(_output_dir(values), [_SHEET], values.overwrite)
    info = next(iter(splits.values())).info
    reports = [examine_split(source, split) for split, source in splits.items()]
    problems = [problem for report in reports for problem in report.problems]
    problems += find_leaked_images(reports)
    print(
        f"{info.name}: {info.num_classes} classes, labels {info.known_labels}, "
        f"{info.channels} channels of 0..{info.max_value}"
    )
    _print_images(reports)
    _print_labels(reports, info)
    _print_problems(problems)
    _write_sheet(values, splits)
    if not is_safe(problems):
        print("\nnot safe to train: see the errors above")
        sys.exit(1)
    print("\nsafe to train")
