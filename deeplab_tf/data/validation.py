"""Validates a dataset before training and reports problems.

`ERRORS` make it unsafe to train on; `WARNINGS` may be intended. The program is
`python -m deeplab_tf.data.doctor`.
"""

import collections
import dataclasses
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.record_checks import RecordChecker, RecordReport
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError

# Kinds of problems that would stop training or teach it something wrong.
ERRORS = {
    "broken": "broken records",
    "size": "labels whose size differs from the image",
    "format": "labels that are not a grey 8-bit PNG",
    "value": "label values that are not a class",
    "one-sided": "splits with only class 0 or only the ignored value",
    "white": "labels with only 0 and the ignored value",
    "leak": "images of an evaluation split in a training split",
}
WARNINGS = {
    "rotated": "images that viewers rotate by their EXIF tag but networks do not",
    "unlikely": "samples without any class",
    "void": "labels without a labelled pixel",
    "background": "labels with only class 0",
    "absent": "classes that are in no image",
    "repeated": "images that occur twice in a split",
}
_QUICK_CHECK_RECORDS = 200


class Problem(NamedTuple):
    """A problem of a split; `kind` is a key of `ERRORS` or `WARNINGS`."""

    kind: str
    split: str
    text: str


@dataclasses.dataclass
class SplitReport:
    """Statistics and problems of a split.

    `values` and `images_with` are the pixels and images with each label value, `[256]`;
    `sizes` counts the images of each (height, width); `digests` maps the hash of an
    image's pixels to its record.
    """

    split: str
    images: int
    examined: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)
    values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, int))
    images_with: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(256, int)
    )
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None
    digests: dict[bytes, str] = dataclasses.field(default_factory=dict)


def is_safe(problems: Iterable[Problem]) -> bool:
    """Returns whether there are no errors, only warnings."""
    return not any(problem.kind in ERRORS for problem in problems)


def examine_split(
    source: Source, split: str, at_most: int | None = None
) -> SplitReport:
    """Examines all records of a split, or `at_most` evenly spaced ones."""
    count = len(source.index)
    positions = np.arange(count)
    if at_most is not None and count > at_most:
        positions = np.linspace(0, count - 1, at_most).astype(np.int64)
    report = SplitReport(split, count)
    moments, pixels = 0.0, 0
    for examined in RecordChecker(source).check(positions, f"checking {split}"):
        report.examined += 1
        report.problems += [Problem(k, split, text) for k, text in examined.problems]
        if examined.values is not None:
            report.values += examined.values
            report.images_with += examined.values > 0
        if examined.size is not None:
            _add_image(report, examined)
            moments = moments + examined.moments
            pixels += examined.size[0] * examined.size[1]
    if pixels:
        report.mean = moments[0] / pixels
        variance = moments[1] / pixels - report.mean**2
        report.deviation = np.sqrt(np.maximum(variance, 0))
    report.problems += _label_problems(report, source.info)
    return report


def _add_image(report: SplitReport, examined: RecordReport) -> None:
    report.sizes[examined.size] += 1
    first = report.digests.setdefault(examined.digest, examined.where)
    if first != examined.where:
        text = f"{examined.where} and {first} have the same pixels"
        report.problems.append(Problem("repeated", report.split, text))


def _label_problems(report: SplitReport, info: DatasetInfo) -> list[Problem]:
    """Returns the problems of the label values of a split."""
    values, split = report.values, report.split
    classes = [i for i in range(info.num_classes) if i != info.ignore_label]
    present = [i for i in classes if values[i]]
    if not values.sum():
        return []
    if present == [0] and values[info.ignore_label] and len(classes) > 1:
        text = (
            f"0 and {info.ignore_label} are the only values: is {info.ignore_label} a "
            "class painted white? Class ids are 0, 1, 2, ..."
        )
        return [Problem(_downgrade_if_unsure("white", report), split, text)]
    if not present or (present == [0] and len(classes) > 1):
        what = f"class 0 ({info.class_names[0]})" if present else "the ignored value"
        text = f"the only value is {what}"
        return [Problem(_downgrade_if_unsure("one-sided", report), split, text)]
    if report.examined < report.images:
        return []  # rare classes may be in the rest
    absent = ", ".join(info.class_names[i] for i in classes if not values[i])
    return [Problem("absent", split, absent)] if absent else []


def _downgrade_if_unsure(kind: str, report: SplitReport) -> str:
    """Returns an error kind, or a warning if the error may be a false alarm.

    The rest of the records may contain rare classes, and test splits may lack labels.
    """
    is_sure = report.examined == report.images and not _is_evaluation_split(
        report.split
    )
    return kind if is_sure else "unlikely"


def _is_evaluation_split(split: str) -> bool:
    return split.startswith(("val", "test"))


def find_leaked_images(reports: Sequence[SplitReport]) -> list[Problem]:
    """Returns a problem for each training split with images of an evaluation split.

    Splits named trainval, as in VOC, are meant to contain them.
    """
    problems = []
    for held_out in filter(lambda r: _is_evaluation_split(r.split), reports):
        for report in reports:
            shared = report.digests.keys() & held_out.digests.keys()
            is_intended = report.split.startswith("trainval")
            if _is_evaluation_split(report.split) or is_intended or not shared:
                continue
            some = min(held_out.digests[digest] for digest in shared)
            text = f"has {len(shared)} images of {held_out.split}, such as {some}"
            problems.append(Problem("leak", report.split, text))
    return problems


def check_quickly(source: Source, split: str) -> list[Problem]:
    """Checks a sample of the records and returns the warnings.

    Raises:
        UserError: if there is an error.
    """
    report = examine_split(source, split, _QUICK_CHECK_RECORDS)
    errors = [problem for problem in report.problems if problem.kind in ERRORS]
    if errors:
        first = errors[0]
        of_kind = sum(problem.kind == first.kind for problem in errors)
        raise UserError(
            f"{split} is not safe to train on, {ERRORS[first.kind]}: {first.text} "
            f"({of_kind} in {report.examined} checked records; run python -m "
            "deeplab_tf.data.doctor to check all)"
        )
    return report.problems
