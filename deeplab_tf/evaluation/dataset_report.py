"""Writes the doctor's report on a dataset, the self-contained `doctor.html`.

The template is `templates/dataset.html`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.suggestions import Suggestion, choose_split
from deeplab_tf.data.validation import Problem, SplitReport, group_problems, is_safe
from deeplab_tf.evaluation.page import (
    NOTHING,
    describe_class,
    describe_origin,
    embed_jpeg,
    write_page,
)

_SHOWN = 50  # problems shown of each kind


class Diagnosis(NamedTuple):
    """All findings of the doctor on a dataset.

    Attributes:
        info: Description of the dataset.
        reports: One report per split.
        problems: All problems.
        suggestion: Suggested settings; None if no training split is readable.
        command: Command line that trains with these settings.
    """

    info: DatasetInfo
    reports: Sequence[SplitReport]
    problems: Sequence[Problem]
    suggestion: Suggestion | None
    command: str


def write_dataset_report(
    path: str,
    diagnosis: Diagnosis,
    samples: Mapping[str, Sequence[np.ndarray]],
    command: Sequence[str],
) -> None:
    """Writes the report atomically.

    Args:
        path: Output file; its folder must exist.
        diagnosis: The findings.
        samples: Images of samples of each split, uint8 RGB.
        command: Arguments of the command line that created the report.
    """
    info, reports, problems, suggestion, training = diagnosis
    sections = [
        ("Findings", "findings", _describe_problems(problems)),
        ("Images", "splits", [_describe_split(report) for report in reports]),
        ("Labels", "labels", describe_labels(reports, info)),
    ]
    if suggestion is not None:
        settings = {"lines": suggestion.describe(info), "command": training}
        sections += [
            ("Objects", "objects", _describe_objects(reports, info, suggestion)),
            ("Suggested training", "training", settings),
        ]
    for split, images in samples.items():
        if images:
            shown = [_embed_sample(image, split) for image in images]
            sections.append((f"Samples of {split}", "samples", shown))
    sections.append(("How to reproduce", "origin", describe_origin(command)))
    headline = {
        "Verdict": "safe to train" if is_safe(problems) else "not safe to train",
        "Classes": f"{info.num_classes}",
    }
    headline |= {f"Images of {r.split}": f"{r.images:,}" for r in reports}
    write_page(
        path,
        "dataset.html",
        title=f"Dataset report: {info.name}",
        headline=headline,
        sections=sections,
    )


def _describe_problems(problems: Sequence[Problem]) -> list[tuple]:
    """Returns severity, meaning and texts of each kind of problem."""
    return [
        (
            severity,
            meaning,
            [f"{problem.split}: {problem.text}" for problem in found[:_SHOWN]],
            max(0, len(found) - _SHOWN),
        )
        for severity, meaning, found in group_problems(problems)
    ]


def _describe_split(report: SplitReport) -> list[str]:
    """Returns the row of a split: images, sizes, and mean and deviation of pixels."""
    if not report.sizes:
        return [report.split, f"{report.images:,}", *[NOTHING] * 5]
    sizes = np.array(list(report.sizes))
    (low_height, low_width), (height, width) = sizes.min(0), sizes.max(0)
    common = report.sizes.most_common(1)[0][0]
    moments = (
        ", ".join(f"{x:.1f}" for x in v) for v in (report.mean, report.deviation)
    )
    ranges = (
        f"{low}" if low == high else f"{low} to {high}"
        for low, high in ((low_width, width), (low_height, height))
    )
    frequent = f"{common[1]}\u00d7{common[0]}"
    return [report.split, f"{report.images:,}", *ranges, frequent, *moments]


def describe_labels(reports: Sequence[SplitReport], info: DatasetInfo) -> dict:
    """Returns a table of label values: their share of pixels and images by split."""
    columns = [
        f"{r.split}: {unit}" for r in reports for unit in ("pixels, %", "images")
    ]
    present = np.flatnonzero(sum(report.values for report in reports))
    rows = []
    for value in sorted({*range(info.num_classes), *present.tolist()}):
        cells = []
        for report in reports:
            share = report.values[value] / max(1, report.values.sum())
            cells += [f"{100 * share:.3f}", f"{report.images_with[value]:,}"]
        shown = None
        if value < info.num_classes:
            shown = describe_class(value, info)
        if value == info.ignore_label:
            shown = {"name": "(ignored)", "color": (224, 224, 192)}
        rows.append((str(value), shown, cells))
    return {"columns": columns, "rows": rows}


def _describe_objects(
    reports: Sequence[SplitReport], info: DatasetInfo, suggestion: Suggestion
) -> dict:
    """Returns a table of object counts and sizes by class of the training split."""
    report = choose_split(reports, False)
    sizes, crop = report.objects, max(suggestion.crop_size)
    columns = (
        sizes.counts,
        sizes.median_sides,
        sizes.tiny_shares(suggestion.output_stride),
        sizes.tiny_pixel_shares(suggestion.output_stride),
        sizes.huge_shares(crop),
    )
    rows = [
        (
            describe_class(label, info),
            [f"{count:,}", f"{side}", *(f"{100 * share:.1f}" for share in shares)],
        )
        for label, (count, side, *shares) in enumerate(zip(*columns, strict=True))
        if label != info.ignore_label
    ]
    stride = suggestion.output_stride
    return {"split": report.split, "stride": stride, "crop": crop, "rows": rows}


def _embed_sample(image: np.ndarray, split: str) -> dict:
    size = image.shape[1], image.shape[0]
    return embed_jpeg(image, f"A sample of {split} with its label", size)
