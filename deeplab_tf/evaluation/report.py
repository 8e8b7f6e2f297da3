"""The evaluation report, a self-contained HTML file: `report.html`.

It loads no fonts or scripts. The template, `templates/report.html`, is autoescaped.
"""

import base64
import functools
import io
import platform
import shlex
from collections.abc import Mapping, Sequence

import jinja2
import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import deeplab_tf
from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.gallery import ScoredImage
from deeplab_tf.files.outputs import write_text

_SIDE = 480  # longer side of a thumbnail in pixels
_CONFUSIONS = 10
_NAMED_CLASSES = 12  # listed below an image
_NOTHING = "\u2013"
# The first entries of the protocol; the rest follow in their order.
_FIRST = ("checkpoint", "dataset", "split", "output_stride", "eval_scales")
_BANDS = {"void": "unlabelled pixels", "classes": "boundaries between classes"}
# Titles of optional sections and their keys in the metrics.
_OPTIONAL = {
    "Near boundaries": "trimap",
    "Boundary IoU": "boundary_iou",
    "Calibration": "calibration",
    "Robustness": "robustness",
}


def _format_percent(share: float | None) -> str:
    """Formats a fraction in percent without the sign; a dash for None and NaN."""
    if share is None or np.isnan(share):
        return _NOTHING
    return f"{100 * share:.2f}"


def _format_setting(value: object) -> str:
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_format_setting, value)) or _NOTHING
    return str(value)


@functools.cache
def _load_template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("deeplab_tf.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    formats = {
        "percent": _format_percent,
        "setting": _format_setting,
        "thousands": "{:,}".format,
    }
    environment.filters.update(formats)
    return environment.get_template("report.html")


def write_report(
    path: str,
    metrics: Mapping,
    info: DatasetInfo,
    worst: Sequence[ScoredImage],
    best: Sequence[ScoredImage],
    command: Sequence[str],
) -> None:
    """Writes an evaluation report atomically.

    Args:
        path: Output file; its folder must exist.
        metrics: Content of `metrics.json`, optionally with `trimap`, `boundary_iou`,
            `calibration` and `robustness`.
        info: Names and colours of the classes.
        worst: Images to show, the worst first.
        best: Images to show, the best first.
        command: Arguments of the command line that repeats the evaluation.

    Raises:
        UserError: if metrics and `info` have different numbers of classes.
    """
    classes = len(metrics["confusion_matrix"])
    if classes != info.num_classes:
        raise UserError(
            f"the metrics have {classes} classes; {info.name} has {info.num_classes}"
        )
    sections = [
        ("Protocol", "protocol", _describe_protocol(metrics["protocol"])),
        ("Classes", "classes", _make_class_table(metrics, info)),
        ("Confusion matrix", "confusion_matrix", _draw_confusion_matrix(metrics, info)),
        ("Most frequent confusions", "confusions", _find_confusions(metrics, info)),
        *_make_optional_sections(metrics),
        *_make_gallery_section("Worst images", worst, info),
        *_make_gallery_section("Best images", best, info),
        ("How to reproduce", "origin", _describe_origin(command)),
    ]
    split = metrics["protocol"].get("split", "")
    page = _load_template().render(
        title=f"Evaluation on {info.name} {split}".rstrip(),
        headline={
            "mIoU": metrics["miou"],
            "Pixel accuracy": metrics["pixel_accuracy"],
            "Frequency-weighted IoU": metrics["frequency_weighted_iou"],
        },
        images_scored=metrics["images"],
        sections=sections,
    )
    # Arguments that are not UTF-8 contain surrogates.
    write_text(page.encode(errors="replace").decode() + "\n", path)


def _describe_protocol(protocol: Mapping) -> list[tuple[str, object]]:
    names = [name for name in _FIRST if name in protocol]
    names += [name for name in protocol if name not in _FIRST]
    return [(name.replace("_", " "), protocol[name]) for name in names]


def _describe_class(label: int, info: DatasetInfo) -> dict:
    return {"name": info.class_names[label], "color": info.colors[label]}


def _make_class_table(metrics: Mapping, info: DatasetInfo) -> dict:
    columns = {
        "Accuracy, %": metrics["accuracy_per_class"],
        "F-score, %": metrics["f_score_per_class"],
    }
    if metrics.get("boundary_iou"):
        columns["Boundary IoU, %"] = metrics["boundary_iou"]["per_class"]
    classes = [_describe_class(label, info) for label in range(info.num_classes)]
    # Pixels of the ground truth, as in the table printed by eval.py.
    pixels = np.sum(metrics["confusion_matrix"], 1)
    shares = zip(*columns.values(), strict=True)
    rows = zip(classes, metrics["iou_per_class"], shares, pixels, strict=True)
    return {"columns": list(columns), "rows": list(rows)}


def _draw_confusion_matrix(metrics: Mapping, info: DatasetInfo) -> dict:
    counts = np.array(metrics["confusion_matrix"])
    image = visualize.plot_confusion(counts, info.class_names)
    alt = "Confusion matrix: a row for each class of the truth, a column for each "
    alt += "predicted class; the most frequent confusions follow in words."
    return _embed_png(image, alt)


def _embed_png(image: np.ndarray, alt: str, density: int = 1) -> dict:
    """Returns a uint8 image `[height, width, 3]` for the template.

    `alt` is the alternative text; `density` counts image pixels per page pixel.
    """
    size = image.shape[1] // density, image.shape[0] // density
    return _embed_image(visualize.encode_png(image), "png", alt, size)


def _embed_image(data: bytes, kind: str, alt: str, size: tuple[int, int]) -> dict:
    text = base64.b64encode(data).decode()
    return {"kind": kind, "alt": alt, "width": size[0], "height": size[1], "data": text}


def _find_confusions(metrics: Mapping, info: DatasetInfo) -> list[dict]:
    counts = np.array(metrics["confusion_matrix"])
    sums = counts.sum(1)
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS].tolist()
    cells = [divmod(cell, len(counts)) for cell in order]
    return [
        {
            "truth": _describe_class(truth, info),
            "predicted": _describe_class(predicted, info),
            "pixels": wrong[truth, predicted],
            "share": wrong[truth, predicted] / sums[truth],
        }
        for truth, predicted in cells
        if wrong[truth, predicted]
    ]


def _make_optional_sections(metrics: Mapping) -> list[tuple[str, str, Mapping]]:
    data = {
        "trimap": _describe_trimap,
        "boundary_iou": dict,
        "calibration": _describe_calibration,
        "robustness": _describe_robustness,
    }
    present = {title: key for title, key in _OPTIONAL.items() if metrics.get(key)}
    return [(title, key, data[key](metrics[key])) for title, key in present.items()]


def _describe_trimap(trimap: Mapping) -> dict:
    place = _BANDS.get(trimap["around"], trimap["around"])
    image = visualize.plot_trimap(trimap["widths"], trimap["miou"])
    alt = f"mIoU in bands around {place}, by their width; the table has its values."
    rows = zip(
        trimap["widths"],
        map(_format_percent, trimap["miou"]),
        map(_format_percent, trimap["pixel_accuracy"]),
        map("{:,}".format, trimap["pixels"]),
        strict=True,
    )
    return {"place": place, "diagram": _embed_png(image, alt, 2), "rows": list(rows)}


def _describe_calibration(calibration: Mapping) -> dict:
    parts = [calibration[name] for name in ("confidence", "accuracy", "pixels")]
    alt = f"Reliability diagram: accuracy in {calibration['bins']} bins of confidence."
    return {
        "expected": calibration["expected_calibration_error"],
        "maximum": calibration["maximum_calibration_error"],
        "diagram": _embed_png(visualize.plot_reliability(*parts), alt, 2),
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
    classes = _sort_classes_by_size(scored, info)
    named = [_describe_class(label, info) for label in classes[:_NAMED_CLASSES]]
    return {
        "name": scored.name,
        "miou": scored.miou,
        "thumbnails": _make_thumbnails(scored, info),
        "classes": named,
        "unnamed": len(classes) - len(named),
    }


def _make_thumbnails(scored: ScoredImage, info: DatasetInfo) -> dict[str, dict]:
    sides = np.array(scored.truth.shape)
    small = np.maximum(1, np.rint(sides * min(1, _SIDE / sides.max()))).astype(int)
    height, width = small.tolist()
    # Nearest neighbour, because class ids cannot be averaged.
    centres = [
        ((np.arange(n) + 0.5) * side / n).astype(int)
        for n, side in zip(small, sides, strict=True)
    ]
    truth, prediction = (
        labels[np.ix_(*centres)] for labels in (scored.truth, scored.prediction)
    )
    shown = {
        "Truth": visualize.colorize(truth, info),
        "Prediction": visualize.colorize(prediction, info),
        "Errors": visualize.error_map(truth, prediction, info),
    }
    size = (width, height)
    thumbnails = {
        "Image": _embed_image(
            _encode_jpeg(scored.image, size), "jpeg", scored.name, size
        )
    }
    return thumbnails | {
        caption: _embed_png(image, f"{caption} of {scored.name}")
        for caption, image in shown.items()
    }


def _encode_jpeg(image: np.ndarray, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def _sort_classes_by_size(scored: ScoredImage, info: DatasetInfo) -> list[int]:
    """Returns the classes of ground truth or prediction by decreasing size."""
    pixels = np.zeros(256, np.int64)
    for labels in (scored.truth, scored.prediction):
        pixels += np.bincount(labels.ravel(), minlength=256)
    pixels[info.ignore_label] = 0
    order = np.argsort(-pixels[: info.num_classes], kind="stable")
    return [label for label in order.tolist() if pixels[label]]


def _describe_origin(command: Sequence[str]) -> dict:
    versions = {
        "deeplab_tf": deeplab_tf.__version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
    }
    return {"command": shlex.join(command), "versions": versions}
