"""An evaluation as one HTML file that stands alone: `report.html`.

It loads nothing, neither fonts nor scripts, so that it can be sent and kept.
"""

import io
import platform
import shlex
from collections.abc import Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import deeplab_tf
from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.gallery import ScoredImage
from deeplab_tf.evaluation.markup import (
    Markup,
    element,
    fragment,
    image,
    row,
    scroll,
    table,
)
from deeplab_tf.files.outputs import write_text

_SIDE = 480  # pixels of the longer side of a thumbnail
_CONFUSIONS = 10
_NAMED_CLASSES = 12  # below an image
_NOTHING = "\u2013"
# What identifies an evaluation comes first; the rest follows as it is.
_FIRST = ("checkpoint", "dataset", "split", "output_stride", "eval_scales")
# Whatever a name may hold, the page runs and loads nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_VIEWPORT = "width=device-width, initial-scale=1"

_STYLE = """
:root {
  color-scheme: light;
  --text: #1c1e21; --soft: #5f6670; --line: #dfe2e6; --page: #fff; --card: #f5f6f8;
  --bar: #3b6ea8;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    color-scheme: dark;
    --text: #e3e5e8; --soft: #9aa1ab; --line: #343a41; --page: #15181b;
    --card: #1f2327; --bar: #6c9fd8;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere;
  -webkit-text-size-adjust: 100%;
}
main { max-width: 68rem; margin: 0 auto; padding: 1.5rem 1rem 3rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .5rem 0; max-width: 42rem; }
a { color: inherit; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; font-size: .9rem; }
.soft, nav a, dt, figcaption, thead th { color: var(--soft); }
dl {
  display: grid; gap: .75rem; margin: 1.25rem 0;
  grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr));
}
dl > div { background: var(--card); border-radius: .5rem; padding: .75rem 1rem; }
dt { font-size: .85rem; }
dd { margin: 0; font-size: 1.5rem; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; }
th, td {
  padding: .3rem 1rem .3rem 0; border-bottom: 1px solid var(--line);
  text-align: left; vertical-align: top; font-weight: normal;
}
th { white-space: nowrap; }
.figures th { min-width: 8.5rem; overflow-wrap: break-word; white-space: normal; }
.figures td, .figures thead th + th {
  min-width: 0; padding: .3rem 0 .3rem 1.5rem; text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums;
}
.swatch {
  display: inline-block; width: .8em; height: .8em; margin-right: .4em;
  border: 1px solid var(--soft); border-radius: 2px;
}
.bar { display: block; width: 5.5rem; height: 3px; margin-left: auto; }
.bar { background: var(--line); }
.bar i { display: block; height: 100%; background: var(--bar); }
img { display: block; height: auto; }
.diagram { max-width: 100%; background: #fff; border-radius: .5rem; }
.scroll > .diagram { max-width: none; }
.image { border-top: 1px solid var(--line); padding: 1rem 0; }
.views { display: grid; grid-template-columns: repeat(4, 1fr); gap: .5rem; }
.views figure { margin: .5rem 0 0; }
.views img { width: 100%; }
figcaption, .legend { font-size: .8rem; }
.legend span { display: inline-block; margin-right: .8rem; }
pre {
  background: var(--card); border-radius: .5rem; padding: .75rem 1rem; margin: 0;
  font-size: .85rem; white-space: pre-wrap;
}
@media (max-width: 40rem) {
  .views { grid-template-columns: repeat(2, 1fr); }
  .figures td, .figures thead th + th { padding-left: .6rem; }
  .bar { width: 3rem; }
}
@media print {
  body { font-size: 11px; }
  nav { display: none; }
  .swatch, .bar, .bar i { print-color-adjust: exact; }
  .scroll { overflow: visible; }
  .scroll > .diagram { max-width: 100%; }
  tr, .image, figure { break-inside: avoid; }
  h2 { break-after: avoid; }
}
"""


def write_report(
    path: str,
    metrics: Mapping,
    info: DatasetInfo,
    worst: Sequence[ScoredImage],
    best: Sequence[ScoredImage],
    command: Sequence[str],
) -> None:
    """Writes an evaluation as one HTML file, whole or not at all.

    Args:
        path: The file; its folder must exist.
        metrics: Those of `metrics.json`. What is in none but some evaluations
            (`trimap`, `boundary_iou`, `calibration`, `robustness`) has its section
            where it is there.
        info: Names and colours of the classes.
        worst: Images to show, the worst first.
        best: Images to show, the best first.
        command: Words of the command line that repeats the evaluation.

    Raises:
        UserError: if the metrics are of another number of classes than `info`.
    """
    classes = len(metrics["confusion_matrix"])
    if classes != info.num_classes:
        raise UserError(
            f"the metrics are of {classes} classes; {info.name} has {info.num_classes}"
        )
    sections = [
        ("Protocol", _protocol(metrics["protocol"])),
        ("Classes", _classes(metrics, info)),
        ("Confusion matrix", _confusion_matrix(metrics, info)),
        ("Most frequent confusions", _confusions(metrics, info)),
        *_measured(metrics),
        *_images("Worst images", worst, info),
        *_images("Best images", best, info),
        ("How to reproduce", _origin(command)),
    ]
    write_text(_page(_title(metrics, info), _headline(metrics), sections), path)


def _page(
    title: str, headline: Markup, sections: Sequence[tuple[str, Markup]]
) -> Markup:
    newline = Markup("\n")
    links, bodies = [], []
    for i, (name, body) in enumerate(sections):
        links += [element("a", name, href=f"#part{i}"), " "]
        parts = (newline, element("h2", name), newline, body, newline)
        bodies += [element("section", *parts, id=f"part{i}"), newline]
    head = (
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content=_VIEWPORT),
        element("title", title),
        element("style", Markup(_STYLE)),
    )
    heading = element("h1", title)
    main = element("main", heading, headline, element("nav", *links[:-1]), *bodies)
    page = element("html", element("head", *head), element("body", main), lang="en")
    return fragment(Markup("<!DOCTYPE html>\n"), page, newline)


def _percent(share: float | None) -> str:
    """Returns a share in per cent, without the sign; a dash for None and NaN."""
    if share is None or np.isnan(share):
        return _NOTHING
    return f"{100 * share:.2f}"


def _title(metrics: Mapping, info: DatasetInfo) -> str:
    split = metrics["protocol"].get("split", "")
    return f"Evaluation on {info.name} {split}".rstrip()


def _headline(metrics: Mapping) -> Markup:
    shares = {
        "mIoU": metrics["miou"],
        "Pixel accuracy": metrics["pixel_accuracy"],
        "Frequency-weighted IoU": metrics["frequency_weighted_iou"],
    }
    figures = {name: f"{_percent(share)}\xa0%" for name, share in shares.items()}
    figures["Images"] = f"{metrics['images']:,}"
    rows = (
        element("div", element("dt", name), element("dd", value))
        for name, value in figures.items()
    )
    return element("dl", *rows)


def _protocol(protocol: Mapping) -> Markup:
    names = [name for name in _FIRST if name in protocol]
    names += [name for name in protocol if name not in _FIRST]
    rows = ((name.replace("_", " "), _value(protocol[name])) for name in names)
    return element("table", *map(row, rows))


def _value(value: object) -> str:
    """Returns a setting as one reads it."""
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or _NOTHING
    return str(value)


def _swatch(label: int, info: DatasetInfo) -> Markup:
    """Returns the name of a class with its colour before it."""
    red, green, blue = info.colors[label]
    style = f"background: rgb({red}, {green}, {blue})"
    swatch = element("i", class_="swatch", style=style)
    return fragment(swatch, info.class_names[label])


def _bar(share: float | None) -> Markup | str:
    if share is None:
        return "absent"
    bar = element("i", style=f"width: {100 * share:.1f}%")
    return fragment(_percent(share), element("span", bar, class_="bar"))


def _classes(metrics: Mapping, info: DatasetInfo) -> Markup:
    columns = {
        "IoU, %": map(_bar, metrics["iou_per_class"]),
        "Accuracy, %": map(_percent, metrics["accuracy_per_class"]),
        "F-score, %": map(_percent, metrics["f_score_per_class"]),
    }
    if metrics.get("boundary_iou"):
        shares = metrics["boundary_iou"]["per_class"]
        columns["Boundary IoU, %"] = map(_percent, shares)
    # Of the truth, as in the table that eval.py prints.
    pixels = np.sum(metrics["confusion_matrix"], 1)
    columns["Pixels"] = (f"{count:,}" for count in pixels)
    names = (_swatch(label, info) for label in range(info.num_classes))
    rows = zip(names, *columns.values(), strict=True)
    return table("Scores of the classes", ("Class", *columns), rows)


def _confusion_matrix(metrics: Mapping, info: DatasetInfo) -> Markup:
    counts = np.array(metrics["confusion_matrix"])
    picture = visualize.confusion_picture(counts, info.class_names)
    alt = "Confusion matrix: a row for each class of the truth, a column for each "
    alt += "predicted class; the most frequent confusions follow in words."
    return scroll("Confusion matrix", _diagram(picture, alt))


def _diagram(picture: np.ndarray, alt: str, density: int = 1) -> Markup:
    """Returns a drawing as HTML.

    Args:
        picture: uint8 `[height, width, 3]`.
        alt: What it shows.
        density: Pixels of the picture per pixel of the page.
    """
    data = visualize.png_bytes(picture)
    size = picture.shape[1] // density, picture.shape[0] // density
    return image(data, "png", alt, size, class_="diagram")


def _confusions(metrics: Mapping, info: DatasetInfo) -> Markup:
    counts = np.array(metrics["confusion_matrix"])
    sums = counts.sum(1)
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    rows = []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]:
        truth, predicted = divmod(int(cell), len(counts))
        count = wrong[truth, predicted]
        if count:
            names = (_swatch(truth, info), " predicted as ", _swatch(predicted, info))
            share = _percent(count / sums[truth])
            of = f": {count:,} pixels, {share}\xa0% of {info.class_names[truth]}"
            rows += [element("li", *names, of), Markup("\n")]
    return element("ol", *rows) if rows else element("p", "No pixel is confused.")


def _measured(metrics: Mapping) -> list[tuple[str, Markup]]:
    """Returns the sections of what only some evaluations measure."""
    kinds = {
        "trimap": ("Near boundaries", _trimap),
        "boundary_iou": ("Boundary IoU", _boundary_iou),
        "calibration": ("Calibration", _calibration),
        "robustness": ("Robustness", _robustness),
    }
    there = {key: kind for key, kind in kinds.items() if metrics.get(key)}
    return [(title, body(metrics[key])) for key, (title, body) in there.items()]


def _trimap(trimap: Mapping) -> Markup:
    around = {"void": "unlabelled pixels", "classes": "boundaries between classes"}
    place = around.get(trimap["around"], trimap["around"])
    picture = visualize.trimap_picture(trimap["widths"], trimap["miou"])
    alt = f"mIoU in bands around {place}, by their width; the table has its values."
    rows = zip(
        map(str, trimap["widths"]),
        map(_percent, trimap["miou"]),
        map(_percent, trimap["pixel_accuracy"]),
        (f"{pixels:,}" for pixels in trimap["pixels"]),
        strict=True,
    )
    header = ("Width in pixels", "mIoU, %", "Pixel accuracy, %", "Pixels")
    text = element("p", f"Scores of the pixels in bands around {place}.")
    scores = table("Scores near boundaries", header, rows)
    return _paragraphs(text, _diagram(picture, alt, 2), scores)


def _paragraphs(*parts: Markup) -> Markup:
    """Returns elements, each on a line."""
    lines = [piece for part in parts for piece in (part, Markup("\n"))]
    return fragment(*lines[:-1])


def _bold_percent(share: float | None) -> Markup:
    return element("b", f"{_percent(share)}\xa0%")


def _boundary_iou(boundary: Mapping) -> Markup:
    return element(
        "p",
        "Mean over the classes: ",
        _bold_percent(boundary["boundary_iou"]),
        f". Of every mask only the rim counts, as wide as "
        f"{_percent(boundary['ratio'])}\xa0% of the image's diagonal. The table of the "
        "classes has the value of each.",
    )


def _calibration(calibration: Mapping) -> Markup:
    parts = [calibration[name] for name in ("confidence", "accuracy", "pixels")]
    alt = f"Reliability diagram: accuracy in {calibration['bins']} bins of confidence."
    expected, maximum = (
        _bold_percent(calibration[f"{kind}_calibration_error"])
        for kind in ("expected", "maximum")
    )
    text = ("Expected calibration error ", expected, ", maximum ", maximum, ".")
    picture = visualize.reliability_picture(*parts)
    return _paragraphs(element("p", *text), _diagram(picture, alt, 2))


def _robustness(robustness: Mapping) -> Markup:
    mious = dict(robustness["miou"])
    mean = np.mean(list(mious.values()), 0).tolist()
    rows = [
        (name, *map(_percent, values), _percent(np.mean(values)))
        for name, values in [*mious.items(), (element("b", "mean"), mean)]
    ]
    header = ("mIoU, %", *(f"Severity {s}" for s in robustness["severities"]), "Mean")
    clean = ("mIoU of the clean images: ", _bold_percent(robustness["clean"]), ".")
    scores = table("Scores of corrupted images", header, rows)
    return _paragraphs(element("p", *clean), scores)


def _images(
    title: str, images: Sequence[ScoredImage], info: DatasetInfo
) -> list[tuple[str, Markup]]:
    if not images:
        return []
    text = "Errors have the colour of what was predicted; what is right is pale, "
    text += "what is not scored grey. mIoU is over the classes of the image."
    shown = (_scored_image(scored, info) for scored in images)
    return [(title, fragment(element("p", text), Markup("\n"), *shown))]


def _scored_image(scored: ScoredImage, info: DatasetInfo) -> Markup:
    views = (
        element("figure", view, element("figcaption", caption))
        for caption, view in _thumbnails(scored, info).items()
    )
    newline = Markup("\n")
    parts = _paragraphs(
        element("h3", scored.name),
        element("div", f"mIoU {_percent(scored.miou)}\xa0%", class_="soft"),
        element("div", *views, class_="views"),
        _legend(scored, info),
    )
    return fragment(element("div", newline, parts, class_="image"), newline)


def _thumbnails(scored: ScoredImage, info: DatasetInfo) -> dict[str, Markup]:
    """Returns small images as HTML, by what they show."""
    sides = np.array(scored.truth.shape)
    small = np.maximum(1, np.rint(sides * min(1, _SIDE / sides.max()))).astype(int)
    height, width = small.tolist()
    # Class ids are picked, for a mean of them is none; the centre of each new pixel.
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
    views = {"Image": image(_jpeg(scored.image, size), "jpeg", scored.name, size)}
    for name, picture in shown.items():
        alt, data = f"{name} of {scored.name}", visualize.png_bytes(picture)
        views[name] = image(data, "png", alt, size)
    return views


def _jpeg(image: np.ndarray, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def _legend(scored: ScoredImage, info: DatasetInfo) -> Markup:
    """Returns the classes of truth or prediction, the largest first."""
    pixels = np.zeros(256, np.int64)
    for labels in (scored.truth, scored.prediction):
        pixels += np.bincount(labels.ravel(), minlength=256)
    pixels[info.ignore_label] = 0
    order = np.argsort(-pixels[: info.num_classes], kind="stable")
    classes = [int(label) for label in order if pixels[label]]
    names = [_swatch(label, info) for label in classes[:_NAMED_CLASSES]]
    if len(classes) > _NAMED_CLASSES:
        names.append(fragment(f"and {len(classes) - _NAMED_CLASSES} more"))
    spans = [part for name in names for part in (element("span", name), " ")]
    return element("div", *spans[:-1], class_="legend")


def _origin(command: Sequence[str]) -> Markup:
    versions = {
        "deeplab_tf": deeplab_tf.__version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
    }
    text = ", ".join(f"{name} {version}" for name, version in versions.items())
    return _paragraphs(
        element("pre", shlex.join(command)), element("p", f"With {text}.")
    )
