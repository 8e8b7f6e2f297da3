"""Label pictures of one's own: class ids, or the colours of classes."""

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

    Colours are taken exactly: a mask with smoothed edges has colours between those
    of the classes, and is refused.

    Args:
        path: PNG of class ids (one channel, or a palette read as indices) or in the
            colours of the classes (RGB, RGBA, or a palette of them).
        classes: The classes.

    Raises:
        UserError: if the file is broken or has a colour of no class.
    """
    content = file_kinds.read_bytes(path)
    image = image_files.load_label(path, content)
    if image.mode in ("RGB", "RGBA"):
        return _of_colors(path, np.asarray(image.convert("RGB")), classes)
    label = image_files.to_class_ids(path, image, content)
    if image.mode == "P" and classes.has_colors:
        return _of_palette(path, image, label, classes)
    _check_grey(path, label, classes)
    return label


def _check_grey(path: epath.Path, label: np.ndarray, classes: ClassList) -> None:
    """Raises UserError for what may be white paint as well as the label 255."""
    values, ids = np.unique(label).tolist(), classes.color_ids()
    is_paint = all((value, value, value) in ids for value in values)
    if is_paint and 255 in values and ids[(255, 255, 255)] != 255:
        # As labels, all of a class would be void.
        raise UserError(
            f"{path} has one channel with the values {values}: are these labels, or "
            "black and white paint? Save paint as RGB; for labels leave the colours "
            "out of --classes"
        )


def _packed(colors: np.ndarray) -> np.ndarray:
    """Returns one number per colour of the last axis."""
    return colors.astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)


def _of_colors(path: epath.Path, pixels: np.ndarray, classes: ClassList) -> np.ndarray:
    ids = classes.color_ids()
    if not ids:
        grey = (pixels == pixels[..., :1]).all()
        raise UserError(
            f"{path} is a grey mask saved in colour; save it with one channel"
            if grey
            else f"{path} is in colour, but the classes have none; add r g b to each "
            "line of --classes"
        )
    known = np.array(sorted(ids))
    keys, packed = _packed(known), _packed(pixels)
    # Packing keeps the order of colours.
    place = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
    wrong = keys[place] != packed
    if wrong.any():
        y, x = np.argwhere(wrong)[0].tolist()
        color = tuple(pixels[y, x].tolist())
        count = int((packed == packed[y, x]).sum())
        raise UserError(
            f"{path} has the colour {color} of no class, first at (x, y) = ({x}, {y}), "
            f"in {count} of {packed.size} pixels"
        )
    return np.array([ids[tuple(c)] for c in known.tolist()], np.uint8)[place]


def _of_palette(
    path: epath.Path, image: Image.Image, label: np.ndarray, classes: ClassList
) -> np.ndarray:
    """Returns what a palette means: the colours if all of them are known."""
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
    """Returns the colour of each index that occurs and has one."""
    palette = np.reshape(image.getpalette("RGB"), (-1, 3)).tolist()
    return {i: tuple(palette[i]) for i in np.unique(label).tolist() if i < len(palette)}


def _check_palette(
    path: epath.Path, colors: Mapping[int, Color], ids: Mapping[Color, int]
) -> None:
    """Raises UserError where indices and colours disagree, so that one is wrong."""
    for index, color in colors.items():
        if ids.get(color, index) != index:
            unknown = next(c for c in colors.values() if c not in ids)
            raise UserError(
                f"{path} has the colour {unknown} of no class, but {color} at index "
                f"{index} is that of class {ids[color]}; correct its palette, or "
                "leave the colours out of --classes to read the indices"
            )
