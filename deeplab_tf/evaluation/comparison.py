"""Compares the metrics of two evaluations, for the report."""

import json
import reprlib
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.evaluation.page import (
    NOTHING,
    describe_class,
    format_percent,
    format_setting,
)

IMAGE_SCORES = "miou_per_image"
_IMAGES = 15  # listed as better, and as many as worse
_REQUIRED = ("miou", "iou_per_class", "class_names", "protocol")
# Entries of the protocol that differ between any two evaluations.
_ALWAYS_DIFFERENT = ("checkpoint", "eval_batch_size")


def read_metrics(path: str, class_names: Sequence[str]) -> dict:
    """Reads the metrics.json of another evaluation; adds its `path`.

    Raises:
        UserError: if it is not readable, not a valid metrics.json, or has other
            classes.
    """
    try:
        with tf.io.gfile.GFile(path) as file:
            metrics = json.load(file)
    except (tf.errors.OpError, OSError) as error:
        raise UserError(
            f"--compare={path} cannot be read; give the metrics.json of an evaluation"
        ) from error
    except ValueError as error:
        raise UserError(f"--compare={path} is not JSON: {error}") from error
    missing = [
        x for x in _REQUIRED if not isinstance(metrics, dict) or x not in metrics
    ]
    if missing:
        raise UserError(
            f"--compare={path} lacks {missing[0]}; give the metrics.json that eval.py "
            "wrote into --eval_logdir"
        )
    if metrics["class_names"] != list(class_names):
        raise UserError(
            f"--compare={path} has the classes {format_setting(metrics['class_names'])}"
            f"; this evaluation has {', '.join(class_names)}"
        )
    _check_values(metrics, path)
    return metrics | {"path": path}


def _check_values(metrics: Mapping, path: str) -> None:
    """Raises UserError if a value of metrics to compare with is invalid."""
    scores, images = metrics["iou_per_class"], metrics.get(IMAGE_SCORES) or {}
    is_valid = {
        "miou": _is_score(metrics["miou"]),
        "iou_per_class": isinstance(scores, list)
        and len(scores) == len(metrics["class_names"])
        and all(x is None or _is_score(x) for x in scores),
        "protocol": isinstance(metrics["protocol"], dict),
        IMAGE_SCORES: isinstance(images, dict)
        and all(x is None or _is_score(x) for x in images.values()),
    }
    for name, valid in is_valid.items():
        if not valid:
            raise UserError(
                f"--compare={path} has an invalid {name}, "
                f"{reprlib.repr(metrics[name])}; give an unchanged metrics.json"
            )


def _is_score(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def make_comparison_sections(
    metrics: Mapping, other: Mapping | None, info: DatasetInfo
) -> list[tuple[str, str, object]]:
    """Returns sections for the template: changes by class and by image."""
    if other is None:
        return []
    return [
        ("Changes by class", "changes", _compare_classes(metrics, other, info)),
        *_compare_images(metrics, other),
    ]


def _compare_classes(metrics: Mapping, other: Mapping, info: DatasetInfo) -> dict:
    """Returns a table of each class's IoU in both evaluations, for the template."""
    ious = zip(metrics["iou_per_class"], other["iou_per_class"], strict=True)
    rows = [
        (None, describe_class(label, info), own, before)
        for label, (own, before) in enumerate(ious)
    ]
    total = ("mIoU", None, metrics["miou"], other["miou"])
    # Absent classes come last.
    rows.sort(key=lambda row: np.nan_to_num(_subtract(*row[2:]), nan=np.inf))
    return {
        "label": "IoU of each class in both evaluations",
        "text": f"Compared with {other['path']}.{_list_differences(metrics, other)}",
        "header": ["Class", "IoU, %", "Before, %", "Change"],
        "rows": [(name, cls, _format(*pair)) for name, cls, *pair in [total, *rows]],
    }


def _list_differences(metrics: Mapping, other: Mapping) -> str:
    """Returns a sentence on what else differs, or nothing."""
    own, before = (
        {"images": x.get("images")} | x["protocol"] for x in (metrics, other)
    )
    names = [x for x in {**own, **before} if x not in _ALWAYS_DIFFERENT]
    # As text: a tuple is a list in the file, and older files lack newer settings.
    pairs = [(x, *(format_setting(y.get(x)) for y in (own, before))) for x in names]
    differences = [
        f"{name.replace('_', ' ')} {now} (before {then})"
        for name, now, then in pairs
        if now != then
    ]
    return f" Differences: {'; '.join(differences)}." if differences else ""


def _compare_images(metrics: Mapping, other: Mapping) -> list[tuple[str, str, object]]:
    """Returns sections on the images that got worse or better, for the template."""
    own, before = metrics.get(IMAGE_SCORES), other.get(IMAGE_SCORES)
    if not own or not before:
        path = other["path"] if own else "this evaluation"
        text = f"The images cannot be compared, because {path} has no {IMAGE_SCORES}."
        return [("Changes by image", "note", text)]
    common = [name for name in own if None not in (own[name], before.get(name))]
    changes = {name: _subtract(own[name], before[name]) for name in common}
    worse = sorted((n for n in common if changes[n] < 0), key=changes.__getitem__)
    better = sorted((n for n in common if changes[n] > 0), key=changes.__getitem__)
    of_all = f"of {pluralize(len(common), 'image(s)')} scored in both evaluations"
    sections: list[tuple[str, str, object]] = []
    for title, names in (
        ("Images that got worse", worse),
        ("Images that got better", better[::-1]),
    ):
        shown = names[:_IMAGES]
        text = f"{len(names):,} {of_all}."
        if len(names) > len(shown):
            text += f" The {len(shown)} largest changes are listed."
        rows = [(name, None, _format(own[name], before[name])) for name in shown]
        header = ["Image", "mIoU, %", "Before, %", "Change"]
        table = {"label": title, "text": text, "header": header, "rows": rows}
        if rows:
            sections.append((title, "changes", table))
    unchanged = ("Changes by image", "note", f"None {of_all} got better or worse.")
    return sections or [unchanged]


def _subtract(own: float | None, before: float | None) -> float:
    """Returns a change in percentage points, as precise as shown; NaN if unknown."""
    if own is None or before is None:
        return np.nan
    return round(100 * (own - before), 2) + 0.0  # not -0.0


def _format(own: float | None, before: float | None) -> list[str]:
    change = _subtract(own, before)
    text = NOTHING if np.isnan(change) else f"{change:+.2f}"
    return [format_percent(own), format_percent(before), text]
