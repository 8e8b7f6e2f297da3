"""Explains why a model never predicts some of the classes in the ground truth."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from deeplab_tf.config import DataConfig, Experiment, ModelConfig
from deeplab_tf.data import sources
from deeplab_tf.data.class_checks import join_names
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.statistics import LabelEstimate, estimate_labels
from deeplab_tf.data.suggestions import MIN_SIGHTINGS
from deeplab_tf.errors import UserError

# A class with a smaller fraction of the labelled pixels is rare.
_RARE = 0.005
_MOST = 0.5  # fraction of a class's objects
_SHOWN = 20  # classes to list with a reason
NEVER_PREDICTED = "never_predicted"  # key in the metrics


class Evidence(NamedTuple):
    """Labels and settings of the training, or labels of the evaluation if unknown.

    Attributes:
        labels: Pixels, images and objects of each class.
        output_stride: Output stride of the model.
        samples: Number of samples the model was trained on; None if unknown.
        crop_size: Height and width of the training crops; None if unknown.
        is_weighted: Whether classes have different weights in the loss.
    """

    labels: LabelEstimate
    output_stride: int
    samples: int | None = None
    crop_size: tuple[int, int] | None = None
    is_weighted: bool = False


def find_unpredicted(metrics: Mapping) -> list[int]:
    """Returns the classes in the ground truth that have no predicted pixels."""
    counts = np.array(metrics.get("confusion_matrix", [[0]]))
    return np.flatnonzero((counts.sum(1) > 0) & (counts.sum(0) == 0)).tolist()


def explain_unpredicted(
    metrics: Mapping, info: DatasetInfo, evidence: Evidence | None
) -> dict[str, str]:
    """Returns the likely reason for each class that is never predicted, by name.

    Args:
        metrics: Metrics with a `confusion_matrix`.
        info: Names of the classes.
        evidence: Labels and settings of the training; if None, reasons are "unknown".
    """
    return {
        info.class_names[label]: _explain(label, evidence) if evidence else "unknown"
        for label in find_unpredicted(metrics)
    }


def explain_metrics(
    metrics: Mapping,
    data: DataConfig,
    split: str,
    info: DatasetInfo,
    experiment: Experiment | None,
) -> dict[str, str]:
    """Calls `explain_unpredicted` with the metrics of `results.add_details`.

    Reasons come from the training records of `experiment` or, if these cannot be read,
    from the labels of the evaluated split.
    """
    if not find_unpredicted(metrics):
        return {}
    protocol, evidence = metrics["protocol"], None
    if experiment is not None:
        evidence = gather_evidence(experiment, protocol["checkpoint"])
    if evidence is None:
        labels = estimate_split(data, split, info.num_classes)
        stride = protocol.get("output_stride") or ModelConfig().output_stride
        evidence = labels and Evidence(labels, stride)
    return explain_unpredicted(metrics, info, evidence)


def _explain(label: int, evidence: Evidence) -> str:
    """Returns the likely reasons why a class is never predicted."""
    split, images, pixels, images_with, objects = evidence.labels
    if not pixels[label]:
        return f"{split} has no pixels of this class"
    reasons = []
    if evidence.samples is not None:
        seen = evidence.samples * min(1, images_with[label] / images)
        if seen < MIN_SIGHTINGS:
            reasons.append(
                f"too few steps (about {seen:,.0f} training samples contained it; at "
                f"least {MIN_SIGHTINGS:,} are recommended)"
            )
    share = pixels[label] / pixels.sum()
    if share < _RARE:
        advice = "" if evidence.is_weighted else "; weight it with --class_weighting"
        reasons.append(f"too few pixels ({100 * share:.2g}% of {split}{advice})")
    stride = evidence.output_stride
    tiny = objects.tiny_shares(stride)[label]
    if tiny >= _MOST:
        reasons.append(
            f"objects too small ({tiny:.0%} are below {stride}x{stride} pixels, one "
            "cell of the output stride)"
        )
    side = max(evidence.crop_size or (0,))
    huge = objects.huge_shares(side)[label] if side else 0
    if huge >= _MOST:
        reasons.append(f"objects too large ({huge:.0%} are longer than the crop)")
    if not reasons:
        return (
            f"no reason found in the labels of {split}; check learning rate and masks"
        )
    return f"likely {', '.join(reasons)}"


def gather_evidence(experiment: Experiment, checkpoint: str) -> Evidence | None:
    """Collects evidence from the split that a model was trained on.

    Returns None if its records cannot be read or the number of steps is unknown.

    Args:
        experiment: Settings of the training run.
        checkpoint: Prefix of the checkpoint; it ends with the number of steps.
    """
    data, train = experiment.data, experiment.train
    number = re.search(r"-(\d+)$", checkpoint)
    labels = estimate_split(data, experiment.split, experiment.model.num_classes)
    if number is None or labels is None:
        return None
    steps = int(number[1])
    return Evidence(
        labels,
        experiment.model.output_stride,
        steps * data.batch_size,
        data.crop_size,
        bool(train.label_weights),
    )


def estimate_split(
    data: DataConfig, split: str, num_classes: int
) -> LabelEstimate | None:
    """Estimates label statistics; None if a split is missing or its classes differ."""
    try:
        source = sources.open_split(data.dataset, data.dataset_dir, split)
        has_classes = source.info.num_classes == num_classes
        return estimate_labels(source, split) if has_classes else None
    except UserError:
        return None


def describe_unpredicted(reasons: Mapping[str, str], num_classes: int) -> list[str]:
    """Returns a line per class that is never predicted, and a final summary."""
    if not reasons:
        return []
    lines = [f"{name} is never predicted: {why}" for name, why in reasons.items()]
    names, verb = join_names(list(reasons)), "is" if len(reasons) == 1 else "are"
    summary = f"{len(reasons)} of {num_classes} classes {verb} never predicted: {names}"
    return [*lines[:_SHOWN], summary]
