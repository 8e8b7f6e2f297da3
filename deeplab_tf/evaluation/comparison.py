"""Compares the metrics of two evaluations, for the report."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, pluralize
from deeplab_tf.evaluation.page import NOTHING, describe_class, format_percent

IMAGE_SCORES = "miou_per_image"
_IMAGES = 15  # listed as better, and as worse
_REQUIRED = ("miou", "iou_per_class", "class_names", "protocol")
# Entries of the protocol that differ between any two evaluations.
_ALWAYS_DIFFERENT = ("checkpoint", "eval_batch_size")


def read_metrics(path: str, class_names: Sequence[str]) -> dict:
    """Reads the metrics.json of another evaluation; adds its `path`.

    Raises:
        UserError: if it is not readable, no metrics.json, or has other classes.
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
    if list(metrics["class_names"]) != list(class_names):
        raise UserError(
            f"--compare={path} has the classes {', '.join(metrics['class_names'])}; "
            f"this evaluation has {', '.join(class_names)}"
        )
    return metrics | {"path": path}


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
        "text": " ".join(
            [f"Compared with {other['path']}.", *_list_differences(metrics, other)]
        ),
        "header": ["Class", "IoU, %", "Before, %", "Change"],
        "rows": [(name, cls, _format(*pair)) for name, cls, *pair in [total, *rows]],
    }


def _list_differences(metrics: Mapping, other: Mapping) -> list[str]:
    """Returns a sentence for each part of the protocol that differs."""
    own, before = metrics["protocol"], other["protocol"]
    names = [x for x in {**own, **before} if x not in _ALWAYS_DIFFERENT]
    return [
        f"The {name.replace('_', ' ')} differs: {own.get(name, NOTHING)}, before "
        f"{before.get(name, NOTHING)}."
        for name in names
        if own.get(name) != before.get(name)
    ]


def _compare_images(metrics: Mapping, other: Mapping) -> list[tuple[str, str, object]]:
    """Returns sections on the images that became worse or better, for the template."""
    own, before = metrics.get(IMAGE_SCORES), other.get(IMAGE_SCORES)
    if not own or not before:
        path = other["path"] if own else "this evaluation"
        text = f"The images cannot be compared, because {path} has no {IMAGE_SCORES}."
        return [("Changes by image", "note", text)]
    common = [name for name in own if None not in (own[name], before.get(name))]
    changes = {name: own[name] - before[name] for name in common}
    worse = sorted((n for n in common if changes[n] < 0), key=changes.__getitem__)
    better = sorted((n for n in common if changes[n] > 0), key=changes.__getitem__)
    text = (
        f"Of {pluralize(len(common), 'common image(s)')}, "
        f"{pluralize(len(better), '(is|are)')} better and "
        f"{pluralize(len(worse), '(is|are)')} worse."
    )
    sections: list[tuple[str, str, object]] = []
    for title, names in (("Worse images", worse), ("Better images", better[::-1])):
        shown = names[:_IMAGES]
        rows = [(name, None, _format(own[name], before[name])) for name in shown]
        header = ["Image", "mIoU, %", "Before, %", "Change"]
        table = {"label": title, "text": text, "header": header, "rows": rows}
        if rows:
            sections.append((title, "changes", table))
    return sections or [("Changes by image", "note", text)]


def _subtract(own: float | None, before: float | None) -> float:
    return np.nan if own is None or before is None else own - before


def _format(own: float | None, before: float | None) -> list[str]:
    change = _subtract(own, before)
    text = NOTHING if np.isnan(change) else f"{100 * change:+.2f}"
    return [format_percent(own), format_percent(before), text]
