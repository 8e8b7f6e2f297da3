"""Draws label maps and scores: colours, overlays, panels, error maps and diagrams.

Unless noted, images are uint8 RGB `[height, width, 3]`, labels are class ids `[height,
width]`, and `info` has the names and colours of the classes.
"""

import dataclasses
import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config.options import Range
from deeplab_tf.data.info import DatasetInfo, voc_colors
from deeplab_tf.errors import UserError
from deeplab_tf.palette import choose_colors

# Colour of pixels that are not scored, from the VOC devkit.
_IGNORED_COLOR = (224, 224, 192)
_FONT_SIZE, _LINE = 13, 20  # pixels
# Shorter side of a video divided by the font size of its legend, and the maximum height
# of the legend as a fraction of the video.
_FONTS_PER_SIDE, _MAX_LEGEND = 54, 0.5
_CELL = 512  # longer side of an image in a panel, in pixels
_MARGIN = 4  # around an image in a contact sheet, in pixels
# A contact sheet has at most the square of this many pixels, 100 MB as RGB.
SHEET_SIDE = 5792
_READABLE_CLASSES = 40  # up to this many, a confusion matrix shows percentages
_ABSENT_COLOR = "0.9"  # grey
# Of an error map; unscored pixels are striped.
_RIGHT_COLOR, _UNSCORED_COLORS = (240, 243, 238), ((200, 200, 200), (130, 130, 130))
_BLACK = (0, 0, 0)
_STRIPE = 3  # width in pixels
_BLUE, _RED = "#3b6ea8", "#d1604d"  # of diagrams
_DPI = 200  # of diagrams, for high-density screens


def _palette(info: DatasetInfo) -> np.ndarray:
    """Returns the colour of each label value, uint8 `[256, 3]`."""
    palette = np.array(voc_colors(256), np.uint8)
    palette[: info.num_classes] = info.colors
    palette[info.ignore_label] = _IGNORED_COLOR
    return palette


def colorize(labels: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Colours labels `[height, width]` by class, uint8 RGB."""
    return _palette(info)[np.asarray(labels, np.uint8)]


@check_arguments(opacity=Range(at_least=0, at_most=1))
def overlay(
    image: np.ndarray, labels: np.ndarray, info: DatasetInfo, opacity: float = 0.6
) -> np.ndarray:
    """Blends an image with class colours, uint8 RGB `[height, width, 3]`.

    A class named "background" stays transparent; the ignored label is also coloured.

    Args:
        image: RGB 0..255 `[height, width, 3]`.
        labels: Class ids 0..255 `[height, width]`.
        info: Names and colours of the classes.
        opacity: Opacity of the class colours, 0..1.

    Raises:
        UserError: if an argument has a wrong type or shape, or is out of range.
    """
    image, labels = np.asarray(image), np.asarray(labels)
    if image.ndim != 3 or image.shape[2] != 3:
        raise UserError(
            f"image must be [height, width, 3]; received the shape {list(image.shape)}"
        )
    if labels.shape != image.shape[:2]:
        raise UserError(
            f"labels must be {list(image.shape[:2])}, the size of the image; "
            f"received the shape {list(labels.shape)}"
        )
    strength = np.full(256, opacity, np.float32)
    for label, name in enumerate(info.class_names):
        if name == "background":
            strength[label] = 0.0
    share = strength[labels.astype(np.uint8)][..., None]
    mixed = (1 - share) * image.astype(np.float32) + share * colorize(labels, info)
    return np.rint(mixed).astype(np.uint8)


def convert_to_rgb(image: np.ndarray) -> np.ndarray:
    """Converts an image with any number of channels to uint8 RGB `[height, width, 3]`.

    Args:
        image: Pixels 0..255, `[height, width, channels]`. If there are fewer than three
            channels, the first becomes grey; otherwise, the first three are used.
    """
    image = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
    if image.shape[-1] < 3:
        image = image[..., :1]
    return np.broadcast_to(image[..., :3], (*image.shape[:2], 3))


def _class_shares(labels: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Returns the fraction of pixels of each class, `[num_classes]`."""
    counts = np.bincount(np.asarray(labels).ravel(), minlength=info.num_classes)
    return counts[: info.num_classes] / np.size(labels)


def add_legend(image: np.ndarray, labels: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Adds a legend of the classes in `labels` to the right of an image."""
    shares = _class_shares(labels, info)
    classes = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
    rows = [(f"{info.class_names[i]} {shares[i]:.1%}", info.colors[i]) for i in classes]
    return _add_rows(image, rows)


def shrink(image: np.ndarray, side: int) -> np.ndarray:
    """Shrinks an image to sides of at most `side` pixels by taking every n-th pixel.

    Averaging would mix the colours of classes.
    """
    step = -(-max(image.shape[:2]) // side)
    # Copy, so that the memory of the original can be freed.
    return image if step < 2 else image[::step, ::step].copy()


def _add_rows(image: np.ndarray, rows: Sequence[tuple]) -> np.ndarray:
    """Adds rows of (text, colour or None) to the right of an image.

    If the image is so wide and short that this would more than double its size and
    exceed a contact sheet, the rows are left out.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    width = int(max((font.getlength(text) for text, _ in rows), default=0)) + 38
    height = max(image.shape[0], _LINE * len(rows) + 8)
    width += image.shape[1]
    pixels = image.shape[0] * image.shape[1]
    if height * width > max(SHEET_SIDE**2, 2 * pixels):
        return image
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (text, color) in enumerate(rows):
        left, top = image.shape[1] + 10, 8 + i * _LINE
        if color is not None:
            box = (left, top, left + 14, top + 12)
            draw.rectangle(box, fill=tuple(map(int, color)), outline="black")
        draw.text((left + 20, top - 2), text, fill="black", font=font)
    return np.array(canvas)


def draw_video_legend(info: DatasetInfo, height: int, width: int) -> np.ndarray:
    """Draws the legend of a video, with all classes except the background.

    The result is as wide as the video; its height is 0 if the legend does not fit.
    """
    every = zip(info.class_names, info.colors, strict=True)
    classes = [(name, color) for name, color in every if name != "background"]
    size = max(_FONT_SIZE, min(height, width) // _FONTS_PER_SIDE)
    font = ImageFont.load_default(size)
    line, box, margin = size * 3 // 2, size, size // 2
    longest = max((font.getlength(name) for name, _ in classes), default=0)
    cell = int(box + 2 * margin + longest + margin)
    columns = max(1, (width - margin) // cell)
    legend_height = line * -(-len(classes) // columns) + margin
    if legend_height > _MAX_LEGEND * height:
        return np.zeros((0, width, 3), np.uint8)
    canvas = Image.new("RGB", (width, legend_height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (name, color) in enumerate(classes):
        left, top = margin + i % columns * cell, margin + i // columns * line
        corners = (left, top, left + box, top + box)
        draw.rectangle(corners, fill=tuple(map(int, color)), outline="black")
        middle = (left + box + margin, top + box / 2)
        draw.text(middle, name, fill="black", font=font, anchor="lm")
    return np.array(canvas)


def add_captions(sheet: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Adds a caption above each of a row of equally wide images."""
    height, width = sheet.shape[:2]
    canvas = Image.new("RGB", (width, height + _LINE), "white")
    canvas.paste(Image.fromarray(sheet), (0, _LINE))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT_SIZE)
    for i, caption in enumerate(captions):
        place = (i * width // len(captions) + 4, 6)
        draw.text(place, caption, fill="black", font=font)
    return np.array(canvas)


def draw_panel(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, info: DatasetInfo
) -> np.ndarray:
    """Draws image, ground truth and prediction side by side, with a legend.

    The legend lists the classes in both label maps, with their percentages of pixels.
    Large images are shrunk.
    """
    images = [convert_to_rgb(image), colorize(truth, info), colorize(prediction, info)]
    sheet = contact_sheet([shrink(x, _CELL) for x in images])
    shares = np.stack([_class_shares(truth, info), _class_shares(prediction, info)], 1)
    rows: list[tuple] = [("truth / prediction", None)]
    for i in np.argsort(-shares.max(1), kind="stable"):
        if shares[i].any():
            text = f"{info.class_names[i]} {shares[i, 0]:.1%} / {shares[i, 1]:.1%}"
            rows.append((text, info.colors[i]))
    return _add_rows(add_captions(sheet, ("image", "truth", "prediction")), rows)


def error_map(
    truth: np.ndarray, prediction: np.ndarray, info: DatasetInfo
) -> np.ndarray:
    """Draws a map of the errors of a prediction.

    Wrong pixels have the colour of the predicted class, correct ones are pale, and
    unscored ones have grey stripes.
    """
    truth = np.asarray(truth)
    rows, columns = np.indices(truth.shape)
    stripes = np.array(_UNSCORED_COLORS, np.uint8)[(rows + columns) // _STRIPE % 2]
    # Not with `colorize`: a class that is predicted can be the ignored label (ADE20K).
    image = np.array(info.colors, np.uint8)[prediction]
    image[truth == prediction] = _RIGHT_COLOR
    is_unscored = (truth >= info.num_classes) | (truth == info.ignore_label)
    image[is_unscored] = stripes[is_unscored]
    return image


def use_distinct_colors(info: DatasetInfo) -> DatasetInfo:
    """Replaces the colours of the classes by those of `palette.choose_colors`.

    A class named "background" becomes black.
    """
    reserved = (_BLACK, _RIGHT_COLOR, _IGNORED_COLOR, *_UNSCORED_COLORS)
    others = iter(choose_colors(info.num_classes, reserved))
    colors = [
        _BLACK if name == "background" else next(others) for name in info.class_names
    ]
    return dataclasses.replace(info, colors=tuple(colors))


def contact_sheet(images: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """Arranges images of any size in a grid on white, row by row.

    Large images are shrunk to keep the sheet within `SHEET_SIDE**2` pixels.
    """
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = _find_cell_size(images)
    if rows * height * columns * width > SHEET_SIDE**2:
        side = int(SHEET_SIDE / (rows * columns) ** 0.5) - 2 * _MARGIN
        images = [shrink(image, max(1, side)) for image in images]
        height, width = _find_cell_size(images)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * height + _MARGIN, i % columns * width + _MARGIN
        sheet[top:, left:][: image.shape[0], : image.shape[1]] = image
    return sheet


def _find_cell_size(images: Sequence[np.ndarray]) -> tuple[int, int]:
    """Returns height and width of the largest image with a margin."""
    height, width = (max(image.shape[i] for image in images) for i in (0, 1))
    return height + 2 * _MARGIN, width + 2 * _MARGIN


def render(figure: Figure) -> np.ndarray:
    """Renders a Matplotlib figure as an image."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Matplotlib's font lacks some scripts of class names and draws boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(file, format="png", bbox_inches="tight")
    return np.array(Image.open(file).convert("RGB"))


def plot_confusion(counts: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Plots a confusion matrix `[truth, prediction]` with normalised rows.

    Rows of classes without pixels are grey. With up to 40 classes, cells of at least
    0.5% show their percentage.
    """
    counts = np.asarray(counts, np.float64)
    sums = counts.sum(1, keepdims=True)
    shares = np.divide(counts, sums, out=np.full_like(counts, np.nan), where=sums > 0)
    readable = len(counts) <= _READABLE_CLASSES
    side = len(counts) * (0.34 if readable else 0.13)  # inches
    figure = Figure((side, side))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(shares, colormaps["Blues"], vmin=0, vmax=1, aspect="auto")
    axes.set_facecolor(_ABSENT_COLOR)
    size = 9 if readable else 7  # points
    ticks = range(len(counts))
    axes.set_xticks(ticks, class_names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(ticks, class_names, fontsize=size, parse_math=False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_title("prediction for the pixels of each class, in %")
    if readable:
        _write_shares(axes, shares)
    return render(figure)


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    """Writes the percentage into every cell of at least 0.5%."""
    for row, column in np.argwhere(shares >= 0.005):
        share = shares[row, column]
        color = "white" if share > 0.5 else "black"
        axes.text(
            column,
            row,
            f"{100 * share:.0f}",
            color=color,
            fontsize=8,
            ha="center",
            va="center",
        )


def plot_trimap(widths: Sequence[int], mious: Sequence[float | None]) -> np.ndarray:
    """Plots the mIoU (0..1 or None) in bands around boundaries, by their width."""
    figure = Figure((6, 3.4), dpi=_DPI)
    axes = figure.add_subplot()
    # None becomes NaN, a gap in the curve.
    percent = 100 * np.array(mious, np.float64)
    axes.plot(widths, percent, color=_BLUE, marker="o", markersize=4)
    axes.set_xlim(left=0)
    axes.set_xlabel("width of the band in pixels")
    axes.set_ylabel("mIoU in %")
    axes.grid(color=_ABSENT_COLOR)
    return render(figure)


def plot_reliability(
    confidences: Sequence[float | None],
    accuracies: Sequence[float | None],
    pixels: Sequence[int],
) -> np.ndarray:
    """Plots a reliability diagram (1706.04599, Fig. 1).

    Args:
        confidences: Mean confidence 0..1 in each of equally wide bins of 0..1; None in
            empty bins.
        accuracies: Accuracy 0..1 in each bin; None in empty bins.
        pixels: Number of pixels in each bin.
    """
    figure = Figure((5, 5), dpi=_DPI)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    bins = len(pixels)
    bars = {"x": (np.arange(bins) + 0.5) / bins, "width": 1 / bins}
    # None becomes NaN, which draws no bar.
    heights, means = (np.array(v, np.float64) for v in (accuracies, confidences))
    upper.bar(height=heights, color=_BLUE, edgecolor="white", label="accuracy", **bars)
    gaps = {"height": means - heights, "bottom": heights, "color": _RED, "alpha": 0.5}
    upper.bar(**gaps, edgecolor="white", label="gap to the confidence", **bars)
    upper.plot((0, 1), (0, 1), color="0.4", linestyle="--", linewidth=1)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.legend(loc="upper left", frameon=False)
    shares = 100 * np.array(pixels) / max(1, np.sum(pixels))
    lower.bar(height=shares, color="0.6", edgecolor="white", **bars)
    lower.set(xlabel="confidence", ylabel="pixels in %")
    return render(figure)


def encode_png(image: np.ndarray) -> bytes:
    """Encodes a uint8 image, `[height, width]` or `[height, width, 3]`, as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def encode_palette_png(labels: np.ndarray, info: DatasetInfo) -> bytes:
    """Encodes labels `[height, width]` as PNG with a palette, as VOC does."""
    image = Image.fromarray(np.asarray(labels, np.uint8), "P")
    image.putpalette(_palette(info).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
