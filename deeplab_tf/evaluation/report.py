"""Writes the evaluation report, the self-contained `report.html`.

The template is `templates/report.html`.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.comparison import make_comparison_sections
from deeplab_tf.evaluation.gallery import ScoredImage
from deeplab_tf.evaluation.page import (
    describe_class,
    describe_origin,
    embed_jpeg,
    embed_labels,
    embed_png,
    fit,
    format_percent,
    shrink_labels,
    write_page,
)
from deeplab_tf.evaluation.unpredicted import NEVER_PREDICTED

_SIDE = 480  # longer side of a thumbnail in pixels
_CONFUSIONS = 10
_NAMED_CLASSES = 12  # listed below an image
# Confusions listed for a class, and the fraction of its pixels from which they are.
_TYPICAL, _NOTABLE = 2, 0.01
# Entries of the protocol to show first; the rest keep their order.
_FIRST = ("checkpoint", "dataset", "split", "output_stride", "eval_scales")
_BANDS = {"void": "unlabelled pixels", "classes": "boundaries between classes"}
# Title of each optional section -> key in the metrics.
_OPTIONAL = {
    "Near boundaries": "trimap",
    "Boundary IoU": "boundary_iou",
    "Calibration": "calibration",
    "Robustness": "robustness",
}


def write_report(
    path: str,
    metrics: Mapping,
    info: DatasetInfo,
    worst: Sequence[ScoredImage],
    best: Sequence[ScoredImage],
    command: Sequence[str],
    compared: Mapping | None = None,
) -> None:
    """Writes an evaluation report atomically.

    Args:
        path: Output file; its folder must exist.
        metrics: Content of `metrics.json`, optionally with `never_predicted`, `trimap`,
            `boundary_iou`, `calibration` and `robustness`.
        info: Names and colours of the classes.
        worst: Images to show, the worst first.
        best: Images to show, the best first.
        command: Arguments of the command line that created the report.
        compared: Content of another `metrics.json` to compare with, with the `path` of
            the file.

    Raises:
        UserError: if the metrics and `info` have different numbers of classes.
    """
    classes = len(metrics["confusion_matrix"])
    if classes != info.num_classes:
        raise UserError(
            f"the metrics have {classes} classes, but {info.name} has "
            f"{info.num_classes}"
        )
    # Those of many datasets look alike, at least to colour-blind readers.
    info = visualize.use_distinct_colors(info)
    sections = [
        *_make_gallery_section("Worst images", worst, info),
        *make_comparison_sections(metrics, compared, info),
        ("Classes", "classes", _make_class_table(metrics, info)),
        ("Most frequent confusions", "confusions", _find_confusions(metrics, info)),
        ("Confusion matrix", "confusion_matrix", _draw_confusion_matrix(metrics, info)),
        *_make_unpredicted_section(metrics, info),
        *_make_optional_sections(metrics),
        *_make_gallery_section("Best images", best, info),
        ("Protocol", "protocol", _describe_protocol(metrics["protocol"])),
        ("How to reproduce", "origin", describe_origin(command)),
    ]
    split = metrics["protocol"].get("split", "")
    shares = {
        "mIoU": metrics["miou"],
        "Pixel accuracy": metrics["pixel_accuracy"],
        "Frequency-weighted IoU": metrics["frequency_weighted_iou"],
    }
    headline = {name: f"{format_percent(x)}%" for name, x in shares.items()}
    write_page(
        path,
        "report.html",
        title=f"Evaluation on {info.name} {split}".rstrip(),
        headline=headline | {"Images": f"{metrics['images']:,}"},
        sections=sections,
    )


def _describe_protocol(protocol: Mapping) -> list[tuple[str, object]]:
    names = [name for name in _FIRST if name in protocol]
    names += [name for name in protocol if name not in _FIRST]
    return [(name.replace("_", " "), protocol[name]) for name in names]


def _make_class_table(metrics: Mapping, info: DatasetInfo) -> dict:
    """Returns the table of scores by class, for the template."""
    columns = {
        "Accuracy, %": metrics["accuracy_per_class"],
        "F-score, %": metrics["f_score_per_class"],
    }
    if metrics.get("boundary_iou"):
        columns["Boundary IoU, %"] = metrics["boundary_iou"]["per_class"]
    classes = [describe_class(label, info) for label in range(info.num_classes)]
    # Pixels of the ground truth, as in the table printed by eval.py.
    counts = np.array(metrics["confusion_matrix"])
    ious, shares = metrics["iou_per_class"], zip(*columns.values(), strict=True)
    confusions = [
        _describe_confusions(row, label, info) for label, row in enumerate(counts)
    ]
    rows = list(zip(classes, ious, shares, counts.sum(1), confusions, strict=True))
    # The worst come first, and absent classes last.
    rows.sort(key=lambda row: (row[1] is None, row[1]))
    return {"columns": list(columns), "rows": rows}


def _describe_confusions(
    counts: np.ndarray, label: int, info: DatasetInfo
) -> list[dict]:
    """Returns the classes that pixels of a class are most often predicted as."""
    wrong = np.where(np.arange(len(counts)) == label, 0, counts)
    return [
        describe_class(other, info) | {"share": wrong[other] / counts.sum()}
        for other in np.argsort(-wrong, kind="stable")[:_TYPICAL].tolist()
        if wrong[other] >= _NOTABLE * counts.sum() and wrong[other]
    ]


def _draw_confusion_matrix(metrics: Mapping, info: DatasetInfo) -> dict:
    counts = np.array(metrics["confusion_matrix"])
    image = visualize.plot_confusion(counts, info.class_names)
    alt = "Confusion matrix with one row per true class and one column per predicted "
    alt += "class; the most frequent confusions are listed below."
    return embed_png(image, alt)


def _find_confusions(metrics: Mapping, info: DatasetInfo) -> list[dict]:
    """Returns the most frequent confusions, for the template."""
    counts = np.array(metrics["confusion_matrix"])
    sums = counts.sum(1)
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS].tolist()
    cells = [divmod(cell, len(counts)) for cell in order]
    return [
        {
            "truth": describe_class(truth, info),
            "predicted": describe_class(predicted, info),
            "pixels": wrong[truth, predicted],
            "share": wrong[truth, predicted] / sums[truth],
        }
        for truth, predicted in cells
        if wrong[truth, predicted]
    ]


def _make_unpredicted_section(metrics: Mapping, info: DatasetInfo) -> list[tuple]:
    """Returns the section on classes that are never predicted, if any."""
    ids = {name: label for label, name in enumerate(info.class_names)}
    reasons = metrics.get(NEVER_PREDICTED, {})
    rows = [(describe_class(ids[name], info), why) for name, why in reasons.items()]
    return [("Never predicted", "never_predicted", rows)] if rows else []


def _make_optional_sections(metrics: Mapping) -> list[tuple[str, str, Mapping]]:
    """Returns the sections of those measures that are in the metrics."""
    data = {
        "trimap": _describe_trimap,
        "boundary_iou": dict,
        "calibration": _describe_calibration,
        "robustness": _describe_robustness,
    }
    present = {title: key for title, key in _OPTIONAL.items() if metrics.get(key)}
    return [(title, key, data[key](metrics[key])) for title, key in present.items()]


def _describe_trimap(trimap: Mapping) -> dict:
    """Returns the table of mIoU by trimap width, for the template."""
    place = _BANDS.get(trimap["around"], trimap["around"])
    image = visualize.plot_trimap(trimap["widths"], trimap["miou"])
    alt = f"mIoU in bands around {place}, by width; the table lists the values."
    rows = zip(
        trimap["widths"],
        map(format_percent, trimap["miou"]),
        map(format_percent, trimap["pixel_accuracy"]),
        map("{:,}".format, trimap["pixels"]),
        strict=True,
    )
    return {"place": place, "diagram": embed_png(image, alt, 2), "rows": list(rows)}


def _describe_calibration(calibration: Mapping) -> dict:
    """Returns calibration errors and reliability diagram, for the template."""
    parts = [calibration[name] for name in ("confidence", "accuracy", "pixels")]
    alt = f"Reliability diagram: accuracy in {calibration['bins']} confidence bins."
    return {
        "expected": calibration["expected_calibration_error"],
        "maximum": calibration["maximum_calibration_error"],
        "diagram": embed_png(visualize.plot_reliability(*parts), alt, 2),
    }


def _describe_robustness(robustness: Mapping) -> dict:
    mious = dict(robustness["miou"])
    mean = np.mean(list(mious.values()), 0).tolist()
    rows = [(n, [*x, np.mean(x)]) for n, x in [*mious.items(), ("mean", mean)]]
    return {**robustness, "rows": rows}


def _make_gallery_section(
    title: str, images: Sequence[ScoredImage], info: DatasetInfo
) -> list[tuple[str, str, list[dict]]]:
    shown = [_describe_image(scored, info) for scored in images]
    return [(title, "images", shown)] if shown else []


def _describe_image(scored: ScoredImage, info: DatasetInfo) -> dict:
    """Returns name, score, thumbnails and classes of an image, for the template."""
    classes = _sort_classes_by_size(scored, info)
    named = [describe_class(label, info) for label in classes[:_NAMED_CLASSES]]
    return {
        "name": scored.name,
        "miou": scored.miou,
        "thumbnails": _make_thumbnails(scored, info),
        "classes": named,
        "unnamed": len(classes) - len(named),
    }


def _make_thumbnails(scored: ScoredImage, info: DatasetInfo) -> dict[str, dict]:
    """Returns shrunk image, ground truth, prediction and errors by caption."""
    size = fit(scored.truth.shape, _SIDE)
    truth, prediction = (
        shrink_labels(labels, size) for labels in (scored.truth, scored.prediction)
    )
    errors = visualize.error_map(truth, prediction, info)
    return {
        "Image": embed_jpeg(scored.image, scored.name, size),
        "Truth": embed_labels(truth, info, f"Truth of {scored.name}"),
        "Prediction": embed_labels(prediction, info, f"Prediction of {scored.name}"),
        "Errors": embed_png(errors, f"Errors of {scored.name}"),
    }


def _sort_classes_by_size(scored: ScoredImage, info: DatasetInfo) -> list[int]:
    """Returns the classes in ground truth or prediction, largest first."""
    pixels = np.zeros(256, np.int64)
    for labels in (scored.truth, scored.prediction):
        pixels += np.bincount(labels.ravel(), minlength=256)
    pixels[info.ignore_label] = 0
    order = np.argsort(-pixels[: info.num_classes], kind="stable")
    return [label for label in order.tolist() if pixels[label]]
