"""Label maps as pictures: palette, overlay and legend."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from deeplab_tf.data.info import DatasetInfo, voc_colors

# The colour in which the VOC devkit shows pixels that are not scored.
_IGNORED_COLOR = (224, 224, 192)


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
        labels: Class ids `[height, width]`.
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


def add_legend(
    picture: np.ndarray, labels: np.ndarray, info: DatasetInfo
) -> np.ndarray:
    """Returns the picture with the classes that occur listed at its right.

    Args:
        picture: uint8 `[height, width, 3]`.
        labels: Class ids `[height, width]`.
        info: Names and colours of the classes.
    """
    values, counts = np.unique(labels, return_counts=True)
    rows = [
        (info.class_names[v], tuple(map(int, info.colors[v])), count / labels.size)
        for v, count in zip(values, counts, strict=True)
        if v < info.num_classes
    ]
    rows.sort(key=lambda row: -row[2])
    font, line = ImageFont.load_default(13), 20
    texts = [f"{name} {share:.1%}" for name, _, share in rows]
    width = int(max((font.getlength(text) for text in texts), default=0)) + 38
    height = max(picture.shape[0], line * len(rows) + 8)
    canvas = Image.new("RGB", (picture.shape[1] + width, height), "white")
    canvas.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for i, (text, (_, color, _)) in enumerate(zip(texts, rows, strict=True)):
        left, top = picture.shape[1] + 10, 8 + i * line
        draw.rectangle((left, top, left + 14, top + 12), fill=color, outline="black")
        draw.text((left + 20, top - 2), text, fill="black", font=font)
    return np.array(canvas)


def contact_sheet(pictures: Sequence[np.ndarray], columns: int = 3) -> np.ndarray:
    """Returns the pictures side by side on white, row by row.

    Args:
        pictures: uint8 `[height_i, width_i, 3]`, at least one.
        columns: Pictures per row.
    """
    height = max(picture.shape[0] for picture in pictures) + 8
    width = max(picture.shape[1] for picture in pictures) + 8
    columns = min(columns, len(pictures))
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = i // columns * height + 4, i % columns * width + 4
        sheet[top:, left:][: picture.shape[0], : picture.shape[1]] = picture
    return sheet


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
