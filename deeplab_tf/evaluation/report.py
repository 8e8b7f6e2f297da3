"""An evaluation as one HTML file that stands alone: `report.html`.

It loads nothing, neither fonts nor scripts, so that it can be sent and kept.
"""

import base64
import html
import io
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import deeplab_tf
from deeplab_tf import visualize
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.evaluation.gallery import ScoredImage
from deeplab_tf.files import write_text

_SIDE = 480  # pixels of the longer side of a thumbnail
_CONFUSIONS = 10
_NAMED_CLASSES = 12  # below an image
_NOTHING = "&ndash;"
# What identifies an evaluation comes first; the rest follows as it is.
_FIRST = ("checkpoint", "dataset", "split", "output_stride", "eval_scales")
# Whatever a name may hold, the page runs and loads nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"

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


def _page(title: str, headline: str, sections: Sequence[tuple[str, str]]) -> str:
    links, bodies = [], []
    for i, (name, body) in enumerate(sections):
        links.append(f'<a href="#part{i}">{name}</a>')
        bodies.append(f'<section id="part{i}">\n<h2>{name}</h2>\n{body}\n</section>\n')
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{headline}
<nav>{" ".join(links)}</nav>
{"".join(bodies)}</main>
</body>
</html>
"""


def _text(value) -> str:
    """Returns anything as text that is safe between tags and in attributes."""
    # A command line may hold bytes that are no UTF-8, as surrogates.
    return html.escape(str(value).encode(errors="replace").decode())


def _percent(share: float | None) -> str:
    """Returns a share in per cent, without the sign; a dash for None and NaN."""
    if share is None or np.isnan(share):
        return _NOTHING
    return f"{100 * share:.2f}"


def _title(metrics: Mapping, info: DatasetInfo) -> str:
    split = metrics["protocol"].get("split", "")
    return _text(f"Evaluation on {info.name} {split}".rstrip())


def _headline(metrics: Mapping) -> str:
    shares = {
        "mIoU": metrics["miou"],
        "Pixel accuracy": metrics["pixel_accuracy"],
        "Frequency-weighted IoU": metrics["frequency_weighted_iou"],
    }
    figures = {name: f"{_percent(share)}&nbsp;%" for name, share in shares.items()}
    figures["Images"] = f"{metrics['images']:,}"
    rows = (f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in figures.items())
    return f"<dl>{''.join(rows)}</dl>"


def _row(cells: Iterable[str]) -> str:
    first, *others = cells
    columns = "".join(f"<td>{cell}</td>" for cell in others)
    return f'<tr><th scope="row">{first}</th>{columns}</tr>\n'


def _scroll(label: str, content: str) -> str:
    """Returns content in a box that scrolls by itself, by keyboard too."""
    attributes = f'class="scroll" tabindex="0" role="region" aria-label="{label}"'
    return f"<div {attributes}>{content}</div>"


def _figures(label: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of figures; all but its label is HTML already."""
    head = "".join(f'<th scope="col">{name}</th>' for name in header)
    body = "".join(map(_row, rows))
    table = f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody>"
    return _scroll(_text(label), f'<table class="figures">{table}</table>')


def _protocol(protocol: Mapping) -> str:
    names = [name for name in _FIRST if name in protocol]
    names += [name for name in protocol if name not in _FIRST]
    rows = ((_text(n.replace("_", " ")), _value(protocol[n])) for n in names)
    return f"<table>{''.join(map(_row, rows))}</table>"


def _value(value) -> str:
    """Returns a setting as one reads it."""
    if value is None:
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value)) or _NOTHING
    return _text(value)


def _swatch(label: int, info: DatasetInfo) -> str:
    """Returns the name of a class with its colour before it."""
    red, green, blue = info.colors[label]
    style = f"background: rgb({red}, {green}, {blue})"
    return f'<i class="swatch" style="{style}"></i>{_text(info.class_names[label])}'


def _bar(share: float | None) -> str:
    if share is None:
        return "absent"
    width = f"width: {100 * share:.1f}%"
    return f'{_percent(share)}<span class="bar"><i style="{width}"></i></span>'


def _classes(metrics: Mapping, info: DatasetInfo) -> str:
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
    return _figures("Scores of the classes", ("Class", *columns), rows)


def _confusion_matrix(metrics: Mapping, info: DatasetInfo) -> str:
    counts = np.array(metrics["confusion_matrix"])
    picture = visualize.confusion_picture(counts, info.class_names)
    alt = "Confusion matrix: a row for each class of the truth, a column for each "
    alt += "predicted class; the most frequent confusions follow in words."
    return _scroll("Confusion matrix", _diagram(picture, alt))


def _diagram(picture: np.ndarray, alt: str, density: int = 1) -> str:
    """Returns a drawing as HTML.

    Args:
        picture: uint8 `[height, width, 3]`.
        alt: What it shows.
        density: Pixels of the picture per pixel of the page.
    """
    data = visualize.png_bytes(picture)
    size = picture.shape[1] // density, picture.shape[0] // density
    return _picture(data, "png", alt, size, 'class="diagram" ')


def _picture(
    data: bytes, kind: str, alt: str, size: tuple[int, int], attributes: str = ""
) -> str:
    width, height = size
    source = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    attributes += f'width="{width}" height="{height}" alt="{_text(alt)}"'
    return f'<img {attributes} src="{source}">'


def _confusions(metrics: Mapping, info: DatasetInfo) -> str:
    counts = np.array(metrics["confusion_matrix"])
    sums = counts.sum(1)
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    rows = []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:_CONFUSIONS]:
        truth, predicted = divmod(int(cell), len(counts))
        count = wrong[truth, predicted]
        if count:
            names = f"{_swatch(truth, info)} predicted as {_swatch(predicted, info)}"
            share = _percent(count / sums[truth])
            of = f"{share}&nbsp;% of {_text(info.class_names[truth])}"
            rows.append(f"<li>{names}: {count:,} pixels, {of}</li>\n")
    return f"<ol>{''.join(rows)}</ol>" if rows else "<p>No pixel is confused.</p>"


def _measured(metrics: Mapping) -> list[tuple[str, str]]:
    """Returns the sections of what only some evaluations measure."""
    kinds = {
        "trimap": ("Near boundaries", _trimap),
        "boundary_iou": ("Boundary IoU", _boundary_iou),
        "calibration": ("Calibration", _calibration),
        "robustness": ("Robustness", _robustness),
    }
    there = {key: kind for key, kind in kinds.items() if metrics.get(key)}
    return [(title, body(metrics[key])) for key, (title, body) in there.items()]


def _trimap(trimap: Mapping) -> str:
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
    table = _figures("Scores near boundaries", header, rows)
    text = f"Scores of the pixels in bands around {_text(place)}."
    return f"<p>{text}</p>\n{_diagram(picture, alt, 2)}\n{table}"


def _boundary_iou(boundary: Mapping) -> str:
    mean, ratio = (_percent(boundary[name]) for name in ("boundary_iou", "ratio"))
    return (
        f"<p>Mean over the classes: <b>{mean}&nbsp;%</b>. Of every mask only the rim "
        f"counts, as wide as {ratio}&nbsp;% of the image's diagonal. The table of the "
        "classes has the value of each.</p>"
    )


def _calibration(calibration: Mapping) -> str:
    parts = [calibration[name] for name in ("confidence", "accuracy", "pixels")]
    alt = f"Reliability diagram: accuracy in {calibration['bins']} bins of confidence."
    expected, maximum = (
        f"<b>{_percent(calibration[f'{kind}_calibration_error'])}&nbsp;%</b>"
        for kind in ("expected", "maximum")
    )
    text = f"Expected calibration error {expected}, maximum {maximum}."
    picture = visualize.reliability_picture(*parts)
    return f"<p>{text}</p>\n{_diagram(picture, alt, 2)}"


def _robustness(robustness: Mapping) -> str:
    mious = {_text(name): values for name, values in robustness["miou"].items()}
    mious["<b>mean</b>"] = np.mean(list(mious.values()), 0).tolist()
    rows = [
        (name, *map(_percent, values), _percent(np.mean(values)))
        for name, values in mious.items()
    ]
    header = ("mIoU, %", *(f"Severity {s}" for s in robustness["severities"]), "Mean")
    text = f"mIoU of the clean images: <b>{_percent(robustness['clean'])}&nbsp;%</b>."
    table = _figures("Scores of corrupted images", header, rows)
    return f"<p>{text}</p>\n{table}"


def _images(
    title: str, images: Sequence[ScoredImage], info: DatasetInfo
) -> list[tuple[str, str]]:
    if not images:
        return []
    text = "<p>Errors have the colour of what was predicted; what is right is pale, "
    text += "what is not scored grey. mIoU is over the classes of the image.</p>\n"
    return [(title, text + "".join(_scored_image(image, info) for image in images))]


def _scored_image(scored: ScoredImage, info: DatasetInfo) -> str:
    views = (
        f"<figure>{view}<figcaption>{caption}</figcaption></figure>"
        for caption, view in _thumbnails(scored, info).items()
    )
    return (
        f'<div class="image">\n<h3>{_text(scored.name)}</h3>\n'
        f'<div class="soft">mIoU {_percent(scored.miou)}&nbsp;%</div>\n'
        f'<div class="views">{"".join(views)}</div>\n{_legend(scored, info)}</div>\n'
    )


def _thumbnails(scored: ScoredImage, info: DatasetInfo) -> dict[str, str]:
    """Returns small pictures as HTML, by what they show."""
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
    photograph, size = _jpeg(scored.image, (width, height)), (width, height)
    views = {"Image": _picture(photograph, "jpeg", scored.name, size)}
    for name, picture in shown.items():
        alt, data = f"{name} of {scored.name}", visualize.png_bytes(picture)
        views[name] = _picture(data, "png", alt, size)
    return views


def _jpeg(image: np.ndarray, size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    small = Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=85)
    return file.getvalue()


def _legend(scored: ScoredImage, info: DatasetInfo) -> str:
    """Returns the classes of truth or prediction, the largest first."""
    pixels = np.zeros(256, np.int64)
    for labels in (scored.truth, scored.prediction):
        pixels += np.bincount(labels.ravel(), minlength=256)
    pixels[info.ignore_label] = 0
    order = np.argsort(-pixels[: info.num_classes], kind="stable")
    classes = [int(label) for label in order if pixels[label]]
    rows = [f"<span>{_swatch(label, info)}</span>" for label in classes]
    if len(rows) > _NAMED_CLASSES:
        rows[_NAMED_CLASSES:] = [f"<span>and {len(rows) - _NAMED_CLASSES} more</span>"]
    return f'<div class="legend">{" ".join(rows)}</div>'


def _origin(command: Sequence[str]) -> str:
    versions = {
        "deeplab_tf": deeplab_tf.__version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
        "Python": platform.python_version(),
    }
    text = ", ".join(f"{name} {_text(version)}" for name, version in versions.items())
    return f"<pre>{_text(shlex.join(command))}</pre>\n<p>With {text}.</p>"
