"""Validates a dataset before training and reports problems.

    python -m deeplab_tf.data.doctor --dataset_dir=tfrecord

It prints the contents of the labels and every problem, and draws samples with their
labels into doctor.png. The exit status is 0 if it is safe to train, else 1.
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
    is_safe,
    shared_images,
)
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.visualize import add_legend, as_rgb, contact_sheet, overlay, shrink

_SHEET = "doctor.png"
_SHOWN = 5  # of each kind of problem
_MOST_SAMPLES = 100  # of a split
_CELL = 320  # pixels of the longer side of an image in the sheet

_FLAGS = {
    "splits": (flags.STRINGS, None, "Splits to examine; default: all."),
    "output_dir": (
        *(flags.STRING, None),
        "Folder of doctor.png; default: the folder of the records.",
    ),
    "samples": (
        *(functools.partial(flags.at_least(0), upper_bound=_MOST_SAMPLES), 12),
        "Images of each split in doctor.png; 0 draws none.",
    ),
}


def define_flags() -> absl_flags.FlagValues:
    """Returns the flags of the program."""
    values = absl_flags.FlagValues()
    flags.define_dataset_location(values)
    flags.define_flags(values, _FLAGS)
    flags.define_overwrite(values)
    return values


def _open_splits(values) -> dict[str, Source]:
    """Returns the splits to examine."""
    flags.require_dataset_dir(values.dataset, values.dataset_dir)
    folder = values.dataset_dir or ""
    info = sources.resolve_info(values.dataset, folder)
    splits = values.splits or sources.split_names(info, folder)
    if not splits:
        raise UserError(f"no records in {folder}; they are named train-00000-of-00004")
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
    """Prints, by split, the share of the pixels and the images with each value."""
    names = {i: name for i, name in enumerate(info.class_names)}
    names[info.ignore_label] = "(ignored)"
    there = np.flatnonzero(sum(report.values for report in reports))
    values = sorted({*range(info.num_classes), *there.tolist()})
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
        (height, width), often = report.sizes.most_common(1)[0]
        low, high = sizes.min(0), sizes.max(0)
        print(
            f"  width {low[1]} to {high[1]}, height {low[0]} to {high[0]}; "
            f"{width}x{height} is the most frequent size ({often} images)"
        )
        mean, deviation = (
            ", ".join(f"{x:.2f}" for x in xs) for xs in (report.mean, report.deviation)
        )
        print(f"  mean of each channel {mean}; standard deviation {deviation}")


def _to_rgb(image, info: DatasetInfo) -> np.ndarray:
    """Returns an image of any channels and depth as uint8 RGB."""
    return as_rgb(np.asarray(image, np.float32) * (255.0 / info.max_value))


def _picture(image, label, info: DatasetInfo) -> np.ndarray:
    """Returns an image and its label side by side, small, with a legend."""
    image, label = shrink(_to_rgb(image, info), _CELL), shrink(label, _CELL)
    pair = np.concatenate([image, overlay(image, label, info)], axis=1)
    return add_legend(pair, label, info)


def _sheet(splits: dict[str, Source], samples: int) -> np.ndarray | None:
    """Returns samples of every split in rows; None if none is readable."""
    pictures = []
    for source in splits.values():
        reader, count = Reader(source), len(source.index)
        for position in np.linspace(0, count - 1, min(samples, count)).astype(int):
            try:
                image, label, _ = reader.sample(tf.constant(position))
            except DECODING_ERRORS:
                continue  # it is in the report
            label = label.numpy()[..., 0]
            pictures.append(_picture(image.numpy(), label, source.info))
    return contact_sheet(pictures) if pictures else None


def _output_dir(values) -> str:
    return values.output_dir or values.dataset_dir or "."


def _draw(values, splits: dict[str, Source]) -> None:
    sheet = _sheet(splits, values.samples) if values.samples else None
    if sheet is None:
        return
    tf.io.gfile.makedirs(_output_dir(values))
    path = os.path.join(_output_dir(values), _SHEET)
    outputs.write_bytes(tf.io.encode_png(sheet).numpy(), path)
    print(f"\nsamples with their labels: {path}")


def main(values: absl_flags.FlagValues) -> None:
    """Examines, prints and draws; ends with status 1 if it is not safe to train."""
    splits = _open_splits(values)
    if values.samples:
        outputs.claim(_output_dir(values), [_SHEET], values.overwrite)
    info = next(iter(splits.values())).info
    reports = [examine_split(source, split) for split, source in splits.items()]
    problems = [problem for report in reports for problem in report.problems]
    problems += shared_images(reports)
    print(
        f"{info.name}: {info.num_classes} classes, labels {info.known_labels}, "
        f"{info.channels} channels of 0..{info.max_value}"
    )
    _print_images(reports)
    _print_labels(reports, info)
    _print_problems(problems)
    _draw(values, splits)
    if not is_safe(problems):
        print("\nnot safe to train: see the errors above")
        sys.exit(1)
    print("\nsafe to train")
