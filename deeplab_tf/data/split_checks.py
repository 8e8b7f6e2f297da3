"""Compares the splits of a dataset: shared or similar images, missing classes."""

from collections.abc import Iterator, Sequence

import numpy as np

from deeplab_tf.data import class_checks
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.near_duplicates import find_pairs
from deeplab_tf.data.validation import Problem, SplitReport, is_evaluation_split
from deeplab_tf.errors import pluralize


def compare_splits(reports: Sequence[SplitReport], info: DatasetInfo) -> list[Problem]:
    """Returns problems of the class names, and problems between splits."""
    return [
        *find_class_problems(reports, info),
        *find_leaked_images(reports),
        *find_similar_images(reports),
    ]


def _pair_splits(
    reports: Sequence[SplitReport],
) -> Iterator[tuple[SplitReport, SplitReport]]:
    """Yields each training split with each evaluation split.

    Splits named trainval, as in VOC, contain evaluation images on purpose.
    """
    for held_out in filter(lambda r: is_evaluation_split(r.split), reports):
        for report in reports:
            is_trainval = report.split.startswith("trainval")
            if not (is_evaluation_split(report.split) or is_trainval):
                yield report, held_out


def find_leaked_images(reports: Sequence[SplitReport]) -> list[Problem]:
    """Returns a problem for each training split that has evaluation images."""
    problems = []
    for report, held_out in _pair_splits(reports):
        shared = report.digests.keys() & held_out.digests.keys()
        if shared:
            some = min(held_out.digests[digest] for digest in shared)
            count = pluralize(len(shared), "image(s)")
            text = f"contains {count} of {held_out.split}, such as {some}"
            problems.append(Problem("leak", report.split, text))
    return problems


def find_similar_images(reports: Sequence[SplitReport]) -> list[Problem]:
    """Returns a problem for each evaluation image similar to a training image."""
    problems = []
    for report, held_out in _pair_splits(reports):
        hashes = [h for h in held_out.thumbnails if h not in report.digests]
        candidates = list(report.thumbnails)
        if not (hashes and candidates):
            continue
        ours = np.stack([held_out.thumbnails[h] for h in hashes])
        theirs = np.stack(list(report.thumbnails.values()))
        for pair in find_pairs(ours, theirs):
            first = report.digests[candidates[pair.second]]
            second = held_out.digests[hashes[pair.first]]
            mirrored = ", mirrored" if pair.is_mirrored else ""
            text = f"{first} looks like {second} of {held_out.split}{mirrored}"
            problems.append(Problem("similar", report.split, text))
    return problems


def find_class_problems(
    reports: Sequence[SplitReport], info: DatasetInfo
) -> list[Problem]:
    """Returns problems of the class names, and of classes missing from some splits."""
    problems = [
        Problem("names", "classes", t) for t in class_checks.find_odd_names(info)
    ]
    first, last = info.class_names[0], info.class_names[-1]
    is_complete = all(report.examined == report.images for report in reports)
    values = sum(report.values for report in reports)
    if (
        is_complete
        and class_checks.is_header(first)
        and not values[info.num_classes - 1]
    ):
        text = (
            f"class 0 is {first!r} and no image has the last class, {last!r}, so all "
            "names are shifted by one; remove the header from the class file and "
            "convert again"
        )
        problems = [Problem("header", "classes", text)]
    for report, held_out in _pair_splits(reports):
        if not (report.values.any() and held_out.values.any()):
            continue
        sides = report.values, held_out.values
        unseen = class_checks.find_missing_classes(*sides[::-1], info)
        unscored = class_checks.find_missing_classes(*sides, info)
        if unseen:
            text = f"lacks classes that {held_out.split} has: {unseen}"
            problems.append(Problem("unseen", report.split, text))
        if unscored:
            text = f"lacks classes that {report.split} has: {unscored}"
            problems.append(Problem("unscored", held_out.split, text))
    return problems
