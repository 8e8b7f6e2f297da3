"""Evaluates a model on a split and writes metrics.json and report.html."""

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from deeplab_tf.config import DataConfig, Experiment
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.reader import count_batches
from deeplab_tf.errors import pluralize
from deeplab_tf.evaluation.comparison import IMAGE_SCORES
from deeplab_tf.evaluation.gallery import Gallery
from deeplab_tf.evaluation.report import write_report
from deeplab_tf.evaluation.unpredicted import NEVER_PREDICTED, explain_metrics
from deeplab_tf.files.outputs import write_text

METRICS_FILE, REPORT_FILE = "metrics.json", "report.html"
_BATCHES_PER_PART = 50
_EXTREMES = 12  # worst and best images in the report


@dataclasses.dataclass(frozen=True)
class Split:
    """A split to evaluate on; `name` is its official name."""

    data: DataConfig
    name: str
    info: DatasetInfo

    def list_parts(self) -> list[tuple[int, int]]:
        """Returns the arguments of `load` for parts of about 50 batches."""
        batches = count_batches(self.load()) or 0
        parts = max(1, math.ceil(batches / _BATCHES_PER_PART))
        return [(i, parts) for i in range(parts)]

    def load(self, part: int = 0, num_parts: int = 1) -> tf.data.Dataset:
        """Loads a part of the split: images, labels and names."""
        # The batch size of `load_dataset` is that of all parts together.
        size = self.data.batch_size * num_parts
        data = dataclasses.replace(self.data, batch_size=size)
        where = {"worker": part, "num_workers": num_parts}
        return load_dataset(data, self.name, False, **where, named=True)


def list_result_files(with_report: bool) -> list[str]:
    """Returns the names of the files that `write_results` writes."""
    return [METRICS_FILE, REPORT_FILE] if with_report else [METRICS_FILE]


def make_gallery(info: DatasetInfo) -> Gallery:
    """Makes a gallery of the worst and best images for the report."""
    return Gallery(info.num_classes, info.ignore_label, extremes=_EXTREMES)


def add_details(
    metrics: dict,
    split: Split,
    checkpoint: str,
    measures: Mapping[str, Any],
    gallery: Gallery | None = None,
    experiment: Experiment | None = None,
) -> dict:
    """Adds measures, protocol and scores of images to the metrics of an `Evaluator`.

    Also adds the likely reasons for classes that are never predicted.

    Args:
        metrics: The metrics, which are changed and returned.
        split: The split, for the protocol.
        checkpoint: Prefix of the checkpoint, for the protocol.
        measures: Additional measures by name; see `make_measures`.
        gallery: Has the scores of the images, if given.
        experiment: Settings of the training run; None if unknown.
    """
    if gallery is not None:
        metrics[IMAGE_SCORES] = dict(gallery.scores)
    metrics |= {name: measure.metrics() for name, measure in measures.items()}
    data = split.data
    metrics["protocol"] |= {
        "checkpoint": checkpoint,
        "dataset": split.info.name,
        "split": split.name,
        "min_resize_value": data.min_resize_value,
        "max_resize_value": data.max_resize_value,
        "resize_factor": data.resize_factor,
    }
    metrics["class_names"] = list(split.info.class_names)
    reasons = explain_metrics(metrics, data, split.name, split.info, experiment)
    if reasons:
        metrics[NEVER_PREDICTED] = reasons
    return metrics


def write_results(
    folder: str,
    metrics: dict,
    info: DatasetInfo,
    gallery: Gallery | None,
    command: Sequence[str],
    compared: Mapping | None = None,
) -> list[str]:
    """Atomically writes metrics.json and the report, and returns their paths.

    `metrics` come from `add_details`; without `gallery`, no report is written;
    `command` is the command line that produced the results; `compared` are the metrics
    of another evaluation, from `comparison.read_metrics`.
    """
    paths = [write_metrics(metrics, folder)]
    if gallery is not None:
        paths.append(os.path.join(folder, REPORT_FILE))
        images = gallery.worst, gallery.best
        write_report(paths[1], metrics, info, *images, command, compared)
    return paths


def format_class_table(metrics: dict, info: DatasetInfo) -> str:
    """Formats the scores of each class as a text table."""
    pixels = np.sum(metrics["confusion_matrix"], 1)
    columns = [metrics[f"{name}_per_class"] for name in ("iou", "accuracy", "f_score")]
    width = max(map(len, ("class", *info.class_names)))
    lines = [f"{'class':<{width}}  {'IoU':>7}  accuracy  F-score  {'pixels':>12}"]

    def add(name: str, scores: Iterable[float | None], count: int) -> None:
        iou, accuracy, f_score = (
            "-" if score is None else f"{score:.4f}" for score in scores
        )
        iou = "absent" if iou == "-" else iou
        lines.append(
            f"{name:<{width}}  {iou:>7}  {accuracy:>8}  {f_score:>7}  {count:>12,}"
        )

    for name, *scores, count in zip(info.class_names, *columns, pixels, strict=True):
        add(name, scores, count)
    means = [np.mean([x for x in column if x is not None]) for column in columns]
    add("mean", (metrics["miou"], *means[1:]), pixels.sum())
    lines.append(
        f"pixel accuracy {metrics['pixel_accuracy']:.4f}, "
        f"frequency-weighted IoU {metrics['frequency_weighted_iou']:.4f}, "
        + pluralize(metrics["images"], "image(s)")
    )
    return "\n".join(lines)


def write_metrics(metrics: dict, folder: str) -> str:
    """Atomically writes `metrics.json` to a folder and returns its path."""
    path = os.path.join(folder, METRICS_FILE)
    write_text(json.dumps(metrics, indent=2) + "\n", path)
    return path
