"""Label maps and scores as pictures: palette, overlay, panel, errors, diagrams."""

import io
import warnings
from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from deeplab_tf.data.info import DatasetInfo, voc_colors

# The colour in which the VOC devkit shows pixels that are not scored.
_IGNORED_COLOR = (224, 224, 192)
_FONT_SIZE, _LINE = 13, 20  # pixels
# The text of a legend below a video is the higher the larger the video; a legend that
# is higher than this share of the video is left out.
_FONTS_PER_SIDE, _MOST_LEGEND = 54, 0.5
_CELL = 512  # pixels of the longer side of a picture in a panel
_MARGIN = 4  # pixels around a picture in a contact sheet
# The most pixels of a contact sheet are the square of this, 100 MB as RGB.
SHEET_SIDE = 5792
_READABLE_CLASSES = 40  # of a confusion matrix that has figures in its cells
_ABSENT_COLOR = "0.9"  # grey, of the row of a class that the truth lacks
_RIGHT_COLOR, _UNSCORED_COLOR = (240, 243, 238), (200, 200, 200)  # of an error map
_BLUE, _RED = "#3b6ea8", "#d1604d"  # of diagrams
_SHARP = 200  # dots per inch of diagrams, for screens of narrow pixels


def _palette(info: DatasetInfo) -> np.ndarray:
    """Returns uint8 `[256, 3]`: the colour of every label value."""
    palette = np.array(voc_colors(256), np.uint8)
    palette[: info.num_classes] = info.colors
    palette[info.ignore_label] = _IGNORED_COLOR
    return palette


def colorize(labels: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Returns labels `[height, width]` in the colours of their classes, uint8 RGB."""
    return _palette(info)[np.asarray(labels, np.uint8)]


def overlay(
    image: np.ndarray, labels: np.ndarray, info: DatasetInfo, opacity: float = 0.6
) -> np.ndarray:
    """Returns the image with class colours laid over it, uint8 `[h, w, 3]`.

    A class named "background" stays clear.

    Args:
        image: RGB 0..255 `[height, width, 3]`.
        labels: Class ids `[height, width]`, 0..255; the ignored one has a colour too.
        info: Names and colours of the classes.
        opacity: Share of the class colour in the mixture, 0..1.
    """
    labels = np.asarray(labels)
    strength = np.full(256, opacity, np.float32)
    for label, name in enumerate(info.class_names):
        if name == "background":
            strength[label] = 0.0
    share = strength[labels.astype(np.uint8)][..., None]
    mixed = (1 - share) * np.asarray(image, np.float32) + share * colorize(labels, info)
    return np.rint(mixed).astype(np.uint8)


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Returns an image of any channels as uint8 RGB `[height, width, 3]`.

    Args:
        image: 0..255, `[height, width, channels]`; of more than three channels the
            first three are shown, of fewer the first as grey.
    """
    image = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
    if image.shape[-1] < 3:
        image = image[..., :1]
    return np.broadcast_to(image[..., :3], (*image.shape[:2], 3))


def _shares(labels: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Returns the share of each class in all pixels, `[num_classes]`."""
    counts = np.bincount(np.asarray(labels).ravel(), minlength=info.num_classes)
    return counts[: info.num_classes] / np.size(labels)


def add_legend(
    picture: np.ndarray, labels: np.ndarray, info: DatasetInfo
) -> np.ndarray:
    """Returns the picture with the classes that occur listed at its right.

    Args:
        picture: uint8 `[height, width, 3]`.
        labels: Class ids `[height, width]`.
        info: Names and colours of the classes.
    """
    shares = _shares(labels, info)
    classes = [i for i in np.argsort(-shares, kind="stable") if shares[i]]
    rows = [(f"{info.class_names[i]} {shares[i]:.1%}", info.colors[i]) for i in classes]
    return _with_rows(picture, rows)


def shrink(picture: np.ndarray, side: int) -> np.ndarray:
    """Returns a picture whose sides are at most `side`, its every n-th pixel.

    Pixels are not averaged, so that colours of classes stay those of classes.

    Args:
        picture: `[height, width, ...]`.
        side: The longest side in pixels.
    """
    step = -(-max(picture.shape[:2]) // side)
    # A view would keep the original in memory.
    return picture if step < 2 else picture[::step, ::step].copy()


def _with_rows(picture: np.ndarray, rows: Sequence[tuple]) -> np.ndarray:
    """Returns the picture with texts and their colours, or None, at its right.

    They are left out where they would more than double a picture and exceed the size
    of a contact sheet: next to one that is wide and low.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    width = int(max((font.getlength(text) for text, _ in rows), default=0)) + 38
    height = max(picture.shape[0], _LINE * len(rows) + 8)
    width += picture.shape[1]
    pixels = picture.shape[0] * picture.shape[1]
    if height * width > max(SHEET_SIDE**2, 2 * pixels):
        return picture
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (text, color) in enumerate(rows):
        left, top = picture.shape[1] + 10, 8 + i * _LINE
        if color is not None:
            box = (left, top, left + 14, top + 12)
            draw.rectangle(box, fill=tuple(map(int, color)), outline="black")
        draw.text((left + 20, top - 2), text, fill="black", font=font)
    return np.array(canvas)


def legend_strip(info: DatasetInfo, height: int, width: int) -> np.ndarray:
    """Returns all classes that an overlay colours, for below a video.

    Args:
        info: Names and colours of the classes.
        height: Of the video, in pixels.
        width: Of the video, in pixels.

    Returns:
        uint8 `[legend height, width, 3]`, of no height where it would be too high.
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
    if legend_height > _MOST_LEGEND * height:
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


def with_captions(sheet: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Returns a row of pictures, equally wide, with a text above each."""
    height, width = sheet.shape[:2]
    canvas = Image.new("RGB", (width, height + _LINE), "white")
    canvas.paste(Image.fromarray(sheet), (0, _LINE))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(_FONT_SIZE)
    for i, caption in enumerate(captions):
        place = (i * width // len(captions) + 4, 6)
        draw.text(place, caption, fill="black", font=font)
    return np.array(canvas)


def panel(
    image: np.ndarray, truth: np.ndarray, prediction: np.ndarray, info: DatasetInfo
) -> np.ndarray:
    """Returns image, truth and prediction side by side, and a legend, uint8 RGB.

    The legend has the classes of either, with their shares of all pixels in the truth
    and in the prediction. Large pictures are shrunk.

    Args:
        image: RGB 0..255 `[height, width, 3]`.
        truth: Labels `[height, width]`.
        prediction: Class ids `[height, width]`.
        info: Names and colours of the classes.
    """
    pictures = [as_rgb(image), colorize(truth, info), colorize(prediction, info)]
    sheet = contact_sheet([shrink(picture, _CELL) for picture in pictures])
    shares = np.stack([_shares(truth, info), _shares(prediction, info)], 1)
    rows: list[tuple] = [("truth / prediction", None)]
    for i in np.argsort(-shares.max(1), kind="stable"):
        if shares[i].any():
            text = f"{info.class_names[i]} {shares[i, 0]:.1%} / {shares[i, 1]:.1%}"
            rows.append((text, info.colors[i]))
    return _with_rows(with_captions(sheet, ("image", "truth", "prediction")), rows)


def error_map(
    truth: np.ndarray, prediction: np.ndarray, info: DatasetInfo
) -> np.ndarray:
    """Returns where a prediction is wrong, uint8 RGB `[height, width, 3]`.

    What is wrong has the colour of the predicted class, what is right is pale, and
    what is not scored is grey.

    Args:
        truth: Labels `[height, width]`.
        prediction: Class ids `[height, width]`.
        info: Colours of the classes, and the label to ignore.
    """
    truth = np.asarray(truth)
    # Not `colorize`: a class may have the ignored label (ADE20K), and be predicted.
    picture = np.array(info.colors, np.uint8)[prediction]
    picture[truth == prediction] = _RIGHT_COLOR
    picture[(truth >= info.num_classes) | (truth == info.ignore_label)] = (
        _UNSCORED_COLOR
    )
    return picture


def contact_sheet(pictures: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """Returns the pictures side by side on white, row by row.

    Where the sheet would have more than `SHEET_SIDE` squared pixels, large pictures
    are shrunk.

    Args:
        pictures: uint8 `[height_i, width_i, 3]`, at least one.
        columns: Pictures per row.
    """
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    height, width = _cell_size(pictures)
    if rows * height * columns * width > SHEET_SIDE**2:
        side = int(SHEET_SIDE / (rows * columns) ** 0.5) - 2 * _MARGIN
        pictures = [shrink(picture, max(1, side)) for picture in pictures]
        height, width = _cell_size(pictures)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height + _MARGIN, i % columns * width + _MARGIN
        sheet[top:, left:][: picture.shape[0], : picture.shape[1]] = picture
    return sheet


def _cell_size(pictures: Sequence[np.ndarray]) -> tuple[int, int]:
    """Returns height and width of the cells of a contact sheet."""
    height, width = (max(picture.shape[i] for picture in pictures) for i in (0, 1))
    return height + 2 * _MARGIN, width + 2 * _MARGIN


def drawn(figure: Figure) -> np.ndarray:
    """Returns a Matplotlib figure as a uint8 picture `[height, width, 3]`."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Of class names in scripts that Matplotlib's font lacks; it draws boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(file, format="png", bbox_inches="tight")
    return np.array(Image.open(file).convert("RGB"))


def confusion_picture(counts: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    """Returns a confusion matrix as a uint8 picture: where the pixels of a class went.

    Every row is divided by its sum; that of a class without pixels is grey. Up to some
    forty classes, cells of 0.5 % and more also have the figure, in percent.

    Args:
        counts: Pixels `[truth, prediction]`.
        class_names: Names of the classes.
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
    return drawn(figure)


def _write_shares(axes: Axes, shares: np.ndarray) -> None:
    """Writes percentages into the cells of a confusion matrix."""
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


def trimap_picture(widths: Sequence[int], mious: Sequence[float | None]) -> np.ndarray:
    """Returns the curve of the mIoU in bands around boundaries, a uint8 picture.

    Args:
        widths: Widths of the bands in pixels.
        mious: mIoU 0..1 in each band; None where nothing was scored.
    """
    figure = Figure((6, 3.4), dpi=_SHARP)
    axes = figure.add_subplot()
    # None becomes NaN, which is a gap in the curve.
    percent = 100 * np.array(mious, np.float64)
    axes.plot(widths, percent, color=_BLUE, marker="o", markersize=4)
    axes.set_xlim(left=0)
    axes.set_xlabel("width of the band in pixels")
    axes.set_ylabel("mIoU in %")
    axes.grid(color=_ABSENT_COLOR)
    return drawn(figure)


def reliability_picture(
    confidences: Sequence[float | None],
    accuracies: Sequence[float | None],
    pixels: Sequence[int],
) -> np.ndarray:
    """Returns a reliability diagram as a uint8 picture (arXiv:1706.04599, Fig. 1).

    Args:
        confidences: Mean confidence 0..1 in each of equally wide bins of 0..1; None
            where a bin is empty.
        accuracies: Share of right pixels in each bin; None where it is empty.
        pixels: Number of pixels in each bin.
    """
    figure = Figure((5, 5), dpi=_SHARP)
    upper, lower = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    bins = len(pixels)
    places = {"x": (np.arange(bins) + 0.5) / bins, "width": 1 / bins}
    # None becomes NaN, which is no bar.
    heights, means = (np.array(v, np.float64) for v in (accuracies, confidences))
    upper.bar(
        height=heights, color=_BLUE, edgecolor="white", label="accuracy", **places
    )
    gaps = {"height": means - heights, "bottom": heights, "color": _RED, "alpha": 0.5}
    upper.bar(**gaps, edgecolor="white", label="gap to the confidence", **places)
    upper.plot((0, 1), (0, 1), color="0.4", linestyle="--", linewidth=1)
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.legend(loc="upper left", frameon=False)
    shares = 100 * np.array(pixels) / max(1, np.sum(pixels))
    lower.bar(height=shares, color="0.6", edgecolor="white", **places)
    lower.set(xlabel="confidence", ylabel="pixels in %")
    return drawn(figure)


def png_bytes(picture: np.ndarray) -> bytes:
    """Returns a uint8 picture, `[h, w]` or `[h, w, 3]`, as a PNG."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def palette_png_bytes(labels: np.ndarray, info: DatasetInfo) -> bytes:
    """Returns labels `[h, w]` as a PNG with a palette, as VOC keeps them."""
    picture = Image.fromarray(np.asarray(labels, np.uint8), "P")
    picture.putpalette(_palette(info).tobytes())
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
