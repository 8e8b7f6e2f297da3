"""Reads label images of class ids or of class colours."""

from collections.abc import Mapping

import numpy as np
from etils import epath
from PIL import Image

from deeplab_tf.convert.class_list import ClassList, Color
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import image_files


def read_label(path: epath.Path, classes: ClassList) -> np.ndarray:
    """Returns the class ids of a label PNG, uint8 `[height, width]`.

    It has class ids (one channel, or a palette read as indices) or class colours (RGB,
    RGBA, or a palette of them). Colours must match exactly: a mask with antialiased
    edges is refused.

    Raises:
        UserError: if the file is broken or has a colour that is not a class.
    """
    content = file_kinds.read_bytes(path)
    image = image_files.load_label(path, content)
    if image.mode in ("RGB", "RGBA"):
        return _convert_colors(path, np.asarray(image.convert("RGB")), classes)
    label = image_files.to_class_ids(path, image, content)
    if image.mode == "P" and classes.has_colors:
        return _convert_palette(path, image, label, classes)
    _check_grey(path, label, classes)
    return label


def _check_grey(path: epath.Path, label: np.ndarray, classes: ClassList) -> None:
    """Raises `UserError` if 255 may be the ignore label or the colour white."""
    values, ids = np.unique(label).tolist(), classes.color_ids()
    is_color = all((value, value, value) in ids for value in values)
    if is_color and 255 in values and ids[(255, 255, 255)] != 255:
        # Read as labels, every pixel of a class would be ignored.
        raise UserError(
            f"{path} has one channel with the values {values}: are these class "
            "ids, or the colours black and white? Save colours as RGB; for class ids "
            "remove the colours from --classes"
        )


def _pack(colors: np.ndarray) -> np.ndarray:
    """Packs colours along the last axis into integers, preserving their order."""
    return colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _convert_colors(
    path: epath.Path, pixels: np.ndarray, classes: ClassList
) -> np.ndarray:
    ids = classes.color_ids()
    if not ids:
        grey = (pixels == pixels[..., :1]).all()
        raise UserError(
            f"{path} is a grey mask saved in colour; save it with one channel"
            if grey
            else f"{path} is in colour, but the classes have no colours; add r g b "
            "to each line of --classes"
        )
    known = np.array(sorted(ids))
    keys, packed = _pack(known), _pack(pixels)
    index = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    wrong = keys[index] != packed
    if wrong.any():
        y, x = np.argwhere(wrong)[0].tolist()
        color = tuple(pixels[y, x].tolist())
        count = int((packed == packed[y, x]).sum())
        raise UserError(
            f"{path} has the colour {color}, which is not a class, first at (x, y) = "
            f"({x}, {y}), in {count} of {packed.size} pixels; add a class of this "
            "colour, or correct the label"
        )
    return np.array([ids[tuple(c)] for c in known.tolist()], np.uint8)[index]


def _convert_palette(
    path: epath.Path, image: Image.Image, label: np.ndarray, classes: ClassList
) -> np.ndarray:
    """Reads a palette as colours if all of them are classes, else as indices."""
    ids = classes.color_ids()
    colors = _used_colors(image, label)
    unknown = [color for color in colors.values() if color not in ids]
    if not unknown and len(colors) == len(np.unique(label)):
        table = np.zeros(256, np.uint8)
        for index, color in colors.items():
            table[index] = ids[color]
        return table[label]
    _check_palette(path, colors, ids)
    return label


def _used_colors(image: Image.Image, label: np.ndarray) -> dict[int, Color]:
    """Returns the palette colours of the indices that occur."""
    palette = np.reshape(image.getpalette("RGB"), (-1, 3)).tolist()
    return {i: tuple(palette[i]) for i in np.unique(label).tolist() if i < len(palette)}


def _check_palette(
    path: epath.Path, colors: Mapping[int, Color], ids: Mapping[Color, int]
) -> None:
    """Raises `UserError` if the colours of known classes disagree with the indices."""
    for index, color in colors.items():
        if ids.get(color, index) != index:
            unknown = next(c for c in colors.values() if c not in ids)
            raise UserError(
                f"{path} has the colour {unknown}, which is not a class, but {color} "
                f"at index {index} is that of class {ids[color]}; correct its palette, "
                "or remove the colours from --classes to read the indices"
            )
