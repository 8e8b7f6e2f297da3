"""Whether a data set can be trained on: every record read, and what is odd about it.

    python -m deeplab_tf.data.doctor --dataset_dir=tfrecord

The exit status is 0 if it is safe to train. What makes it unsafe is in `ERRORS`;
everything else is worth a look.
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

# Kinds of problems with which a training would stop, or learn something wrong.
ERRORS = {
    "broken": "broken records",
    "size": "labels of another size than their images",
    "picture": "labels that are no grey 8-bit PNG",
    "value": "label values that are no class",
    "one-sided": "splits of which every label is empty",
    "white": "labels of 0 and the ignored value alone",
    "leak": "images of an evaluation split in a training split",
}
WARNINGS = {
    "rotated": "images that EXIF turns: viewers show them so, networks do not",
    "unlikely": "samples that hold no class",
    "void": "labels without a labelled pixel",
    "background": "labels of class 0 alone",
    "absent": "classes that no image holds",
    "repeated": "images twice in a split",
}
_QUICK = 200


class Problem(NamedTuple):
    """Something that is odd about a data set.

    Attributes:
        kind: Key of `ERRORS` or `WARNINGS`.
        split: Name of the split.
        text: What was found, and where.
    """

    kind: str
    split: str
    text: str


@dataclasses.dataclass
class SplitReport:
    """What a split holds.

    Attributes:
        split: Its name.
        images: Number of its records.
        examined: Number of them that were examined.
        problems: What is odd about them.
        values: Pixels of each label value, `[256]`.
        images_with: Images with each label value, `[256]`.
        sizes: (height, width) to number of images.
        mean: Mean of each channel over all pixels, 0..max_value.
        deviation: Standard deviation of each channel.
        digests: Hash of the pixels of each image to where it is.
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
    """Whether nothing of what was found speaks against training."""
    return not any(problem.kind in ERRORS for problem in problems)


def examine_split(source: Source, split: str, at_most: int | None = None):
    """Returns the report of a split.

    Args:
        source: Its records.
        split: Its name.
        at_most: Number of records to examine, evenly spaced; None is all.

    Returns:
        A `SplitReport`.
    """
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
            _count_image(report, examined)
            moments = moments + examined.moments
            pixels += examined.size[0] * examined.size[1]
    if pixels:
        report.mean = moments[0] / pixels
        variance = moments[1] / pixels - report.mean**2
        report.deviation = np.sqrt(np.maximum(variance, 0))
    report.problems += _label_problems(report, source.info)
    return report


def _count_image(report: SplitReport, examined: RecordReport) -> None:
    report.sizes[examined.size] += 1
    twin = report.digests.setdefault(examined.digest, examined.where)
    if twin != examined.where:
        text = f"{examined.where} and {twin} have the same pixels"
        report.problems.append(Problem("repeated", report.split, text))


def _label_problems(report: SplitReport, info: DatasetInfo) -> list[Problem]:
    """Returns what the label values of a whole split say."""
    values, split = report.values, report.split
    classes = [i for i in range(info.num_classes) if i != info.ignore_label]
    there = [i for i in classes if values[i]]
    if not values.sum():
        return []
    if there == [0] and values[info.ignore_label] and len(classes) > 1:
        text = (
            f"0 and {info.ignore_label} are the only values: is {info.ignore_label} a "
            "class painted white? Class ids are 0, 1, 2, ..."
        )
        return [Problem(_if_all(report, "white"), split, text)]
    if not there or (there == [0] and len(classes) > 1):
        what = f"class 0 ({info.class_names[0]})" if there else "the ignored value"
        text = f"{what} is all that there is"
        return [Problem(_if_all(report, "one-sided"), split, text)]
    if report.examined < report.images:
        return []  # rare classes may be in the others
    absent = ", ".join(info.class_names[i] for i in classes if not values[i])
    return [Problem("absent", split, absent)] if absent else []


def _if_all(report: SplitReport, kind: str) -> str:
    """Returns a kind of error, unless it may be none.

    Rare classes may be in what was not examined, and test splits may have no labels.
    """
    is_sure = report.examined == report.images and not _is_evaluation(report.split)
    return kind if is_sure else "unlikely"


def _is_evaluation(split: str) -> bool:
    return split.startswith(("val", "test"))


def find_leaked_images(reports: Sequence[SplitReport]) -> list[Problem]:
    """Returns images of evaluation splits that a training split has too.

    A split named trainval, as VOC's, is meant to hold them.
    """
    problems = []
    for held_out in filter(lambda r: _is_evaluation(r.split), reports):
        for report in reports:
            shared = report.digests.keys() & held_out.digests.keys()
            is_meant = report.split.startswith("trainval")
            if _is_evaluation(report.split) or is_meant or not shared:
                continue
            some = min(held_out.digests[digest] for digest in shared)
            text = f"{len(shared)} images of {held_out.split} are there, such as {some}"
            problems.append(Problem("leak", report.split, text))
    return problems


def check_quickly(source: Source, split: str) -> list[Problem]:
    """Refuses a split of which a sample of records cannot be trained on.

    Returns:
        What is odd about the sample.

    Raises:
        UserError: telling the first error and how many there are of its kind.
    """
    report = examine_split(source, split, _QUICK)
    errors = [problem for problem in report.problems if problem.kind in ERRORS]
    if errors:
        first = errors[0]
        of_kind = sum(problem.kind == first.kind for problem in errors)
        raise UserError(
            f"{split} is not safe to train on, {ERRORS[first.kind]}: {first.text} "
            f"({of_kind} in {report.examined} records that were checked; python -m "
            "deeplab_tf.data.doctor checks all of them)"
        )
    return report.problems
