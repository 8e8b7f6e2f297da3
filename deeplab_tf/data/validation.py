"""Validates a dataset before training and reports problems.

A dataset with `ERRORS` is not safe to train on; `WARNINGS` may be intended. The program
is `python -m deeplab_tf.data.doctor`.
"""

import collections
import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from deeplab_tf.data.class_checks import join_names
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.mask_fit import Edges, find_misfit
from deeplab_tf.data.objects import ObjectSizes
from deeplab_tf.data.record_checks import RecordChecker, RecordReport
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError

# Kinds of problems that would stop training or make it learn something wrong.
ERRORS = {
    "broken": "broken records",
    "size": "labels whose size differs from that of the image",
    "format": "labels that are not a grey 8-bit PNG",
    "value": "label values that are not classes",
    "one-sided": "nothing but class 0 or the ignored value",
    "white": "labels with only 0 and the ignored value",
    "leak": "images of an evaluation split in a training split",
    "header": "class names that start with a table header",
    "misplaced": "masks that fit their images better in a different placement",
}
WARNINGS = {
    "rotated": "images whose EXIF rotation viewers apply but networks ignore",
    "unlikely": "samples without any class",
    "void": "labels without labelled pixels",
    "background": "labels with only class 0",
    "absent": "classes that are in no image",
    "repeated": "images that occur more than once in a split",
    "names": "class names that look like ids, colours or a header",
    "unseen": "classes in an evaluation split that a training split lacks",
    "unscored": "classes in a training split that an evaluation split lacks",
    "similar": "training images that look like images of an evaluation split",
    "unrelated": "masks that do not fit their images",
    "tiny": "classes whose objects are mostly smaller than a cell of the output stride",
    "huge": "classes whose objects are mostly larger than the crop",
}
# Limits on the edges and thumbnails kept for a split: 9 MB and 50 MB.
_MAX_EDGES, _MAX_THUMBNAILS = 2000, 50_000
# Warn if this fraction of a class's objects are tiny or huge, and if tiny objects cover
# at least this fraction of its pixels.
_MOST, _RELEVANT = 0.5, 0.1
_QUICK_CHECK_RECORDS = 200


class Problem(NamedTuple):
    """A problem of a split; `kind` is a key of `ERRORS` or `WARNINGS`."""

    kind: str
    split: str
    text: str


@dataclasses.dataclass
class SplitReport:
    """Statistics and problems of a split.

    `values` and `images_with` are the pixels and the images with each label value,
    `[256]`; `image_pixels` are the labelled pixels of those images; `sizes` counts the
    images of each (height, width); `digests` maps the hash of an image's pixels to its
    record; `thumbnails` maps it to the thumbnail; `edges` are pairs of an image name
    and the edges of image and mask.
    """

    split: str
    images: int
    examined: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)
    values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, int))
    images_with: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(256, int)
    )
    image_pixels: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(256, int)
    )
    objects: ObjectSizes = dataclasses.field(default_factory=lambda: ObjectSizes(0))
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None
    digests: dict[bytes, str] = dataclasses.field(default_factory=dict)
    thumbnails: dict[bytes, np.ndarray] = dataclasses.field(default_factory=dict)
    edges: list[tuple[str, Edges]] = dataclasses.field(default_factory=list)


def group_problems(
    problems: Iterable[Problem],
) -> list[tuple[str, str, list[Problem]]]:
    """Returns severity, "ERROR" or "warning", meaning and problems of each kind."""
    problems = list(problems)
    groups = [
        (severity, meaning, [problem for problem in problems if problem.kind == kind])
        for kinds, severity in ((ERRORS, "ERROR"), (WARNINGS, "warning"))
        for kind, meaning in kinds.items()
    ]
    return [group for group in groups if group[2]]


def is_safe(problems: Iterable[Problem]) -> bool:
    """Returns whether there are no errors; warnings are allowed."""
    return not any(problem.kind in ERRORS for problem in problems)


def examine_split(
    source: Source, split: str, at_most: int | None = None
) -> SplitReport:
    """Examines all records of a split, or `at_most` evenly spaced ones."""
    count = len(source.index)
    positions = np.arange(count)
    if at_most is not None and count > at_most:
        positions = np.linspace(0, count - 1, at_most).astype(np.int64)
    report = SplitReport(split, count, objects=ObjectSizes(source.info.num_classes))
    # Keep evenly spaced edges, to limit memory.
    every = -(-len(positions) // _MAX_EDGES)
    moments, pixels = 0.0, 0
    for examined in RecordChecker(source).check(positions, f"checking {split}"):
        report.examined += 1
        report.problems += [Problem(k, split, text) for k, text in examined.problems]
        if examined.values is not None:
            _add_label(report, examined, source.info)
        if examined.edges is not None and report.examined % every == 0:
            report.edges.append((examined.name, examined.edges))
        if examined.size is not None:
            _add_image(report, examined)
            moments = moments + examined.moments
            pixels += examined.size[0] * examined.size[1]
    if pixels:
        report.mean = moments[0] / pixels
        variance = moments[1] / pixels - report.mean**2
        report.deviation = np.sqrt(np.maximum(variance, 0))
    report.problems += _label_problems(report, source.info)
    report.problems += _find_misfits(report)
    return report


def _add_label(report: SplitReport, examined: RecordReport, info: DatasetInfo) -> None:
    """Adds the label statistics of a record to the report of its split."""
    values = examined.values
    labelled = values[: info.num_classes].sum()
    if info.ignore_label < info.num_classes:
        labelled -= values[info.ignore_label]
    report.values += values
    report.images_with += values > 0
    report.image_pixels += (values > 0) * labelled
    report.objects.add(examined.objects)


def _add_image(report: SplitReport, examined: RecordReport) -> None:
    """Adds the image statistics of a record to the report of its split."""
    report.sizes[examined.size] += 1
    first = report.digests.setdefault(examined.digest, examined.where)
    if first != examined.where:
        text = f"{examined.where} and {first} have the same pixels"
        report.problems.append(Problem("repeated", report.split, text))
    elif len(report.thumbnails) < _MAX_THUMBNAILS:
        report.thumbnails[examined.digest] = examined.thumbnail


def _find_misfits(report: SplitReport) -> list[Problem]:
    """Returns a problem if the masks of a split do not fit their images."""
    edges = [pair for _, pair in sorted(report.edges, key=lambda item: item[0])]
    is_complete = len(edges) == report.images
    misfit = find_misfit(edges, in_order=is_complete)
    if misfit is None:
        return []
    kind = "misplaced" if misfit.is_placement else "unrelated"
    if report.examined < report.images:
        kind = "unlikely"
    return [Problem(kind, report.split, misfit.text)]


def _label_problems(report: SplitReport, info: DatasetInfo) -> list[Problem]:
    """Returns problems with the label values of a split."""
    values, split = report.values, report.split
    classes = [i for i in range(info.num_classes) if i != info.ignore_label]
    present = [i for i in classes if values[i]]
    if not values.sum():
        return []
    if present == [0] and values[info.ignore_label] and len(classes) > 1:
        text = (
            f"the only label values are 0 and {info.ignore_label}: is a class painted "
            f"as {info.ignore_label} (white)? Class ids are 0, 1, 2, ..."
        )
        return [Problem(_downgrade_if_unsure("white", report), split, text)]
    if not present or (present == [0] and len(classes) > 1):
        what = f"class 0 ({info.class_names[0]})" if present else "the ignored value"
        text = f"the only label is {what}"
        return [Problem(_downgrade_if_unsure("one-sided", report), split, text)]
    if report.examined < report.images:
        return []  # rare classes may be in the rest
    absent = ", ".join(info.class_names[i] for i in classes if not values[i])
    return [Problem("absent", split, absent)] if absent else []


def _downgrade_if_unsure(kind: str, report: SplitReport) -> str:
    """Returns an error kind, or "unlikely" if it may be a false alarm.

    Records not examined may contain rare classes, and test splits may lack labels.
    """
    is_sure = report.examined == report.images and not is_evaluation_split(report.split)
    return kind if is_sure else "unlikely"


def is_evaluation_split(split: str) -> bool:
    """Returns whether a split is for evaluation, judging by its name."""
    return split.startswith(("val", "test"))


def find_size_problems(
    report: SplitReport, info: DatasetInfo, crop_size: tuple[int, int], stride: int
) -> list[Problem]:
    """Returns problems for classes whose objects are mostly tiny or huge.

    Args:
        report: Report on a training split.
        info: Names of the classes.
        crop_size: Height and width of the crops; a longer object is huge.
        stride: Output stride of the model; an object with a smaller side is tiny.
    """
    sizes, side = report.objects, max(crop_size)
    tiny = sizes.tiny_shares(stride)
    is_tiny = (tiny >= _MOST) & (sizes.tiny_pixel_shares(stride) >= _RELEVANT)
    huge = sizes.huge_shares(side)
    parts = [
        ("tiny", is_tiny, tiny, f"smaller than {stride}x{stride} pixels"),
        ("huge", huge >= _MOST, huge, f"longer than {side} pixels"),
    ]
    problems = []
    for kind, is_found, shares, meaning in parts:
        names = [
            f"{info.class_names[i]} ({shares[i]:.0%})" for i in np.flatnonzero(is_found)
        ]
        if names:
            text = f"objects {meaning}: {join_names(names)}"
            problems.append(Problem(kind, report.split, text))
    return problems


def check_quickly(source: Source, split: str) -> list[Problem]:
    """Checks a sample of the records and returns warnings.

    Raises:
        UserError: if there are errors; names the first.
    """
    report = examine_split(source, split, _QUICK_CHECK_RECORDS)
    errors = [problem for problem in report.problems if problem.kind in ERRORS]
    if errors:
        first = errors[0]
        of_kind = sum(problem.kind == first.kind for problem in errors)
        raise UserError(
            f"{split} is not safe to train on: it has {ERRORS[first.kind]}: "
            f"{first.text} ({of_kind} in {report.examined} checked records; to check "
            "all, run python -m deeplab_tf.data.doctor)"
        )
    return report.problems
