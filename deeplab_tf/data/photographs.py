"""Image files to be labelled: found, checked by their headers, read upright."""

import io
import os

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf import text_files
from deeplab_tf.data.pictures import PICTURE_FORMATS, decode_image, exif_orientation
from deeplab_tf.errors import UserError

_SUFFIXES = (".jpg", ".jpeg", ".png")
# Larger pictures are refused from their header, before they fill the memory.
_MOST_PIXELS = 100_000_000
# EXIF orientation -> how to turn the stored picture upright.
_UPRIGHT = {
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.swapaxes(x, 0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.rot90(np.swapaxes(x, 0, 1), 2),
    8: lambda x: np.rot90(x, 1),
}


def find_images(pattern: str, image_list: str | None = None) -> list[str]:
    """Returns the images of a file, a folder or a glob, sorted.

    Args:
        pattern: The file, folder or glob.
        image_list: Text file of their names without suffix, if only some are wanted.

    Raises:
        UserError: if there is none, one of the list is missing, or two would be
            written to one name.
    """
    if tf.io.gfile.isdir(pattern):
        names = tf.io.gfile.listdir(pattern)
        paths = [os.path.join(pattern, name) for name in names]
    elif tf.io.gfile.exists(pattern):  # its name may hold brackets
        paths = [pattern]
    else:
        paths = tf.io.gfile.glob(pattern)
    paths = sorted(p for p in paths if p.lower().endswith(_SUFFIXES))
    if not paths:
        raise UserError(f"{pattern} matches no JPEG or PNG file")
    if image_list:
        paths = _listed(paths, image_list)
    stems: dict[str, str] = {}
    for path in paths:
        other = stems.setdefault(image_name(path), path)
        if other != path:
            raise UserError(f"{other} and {path} would be written to the same name")
    return paths


def _listed(paths: list[str], image_list: str) -> list[str]:
    """Returns those paths whose names a text file lists."""
    names = text_files.read_words(image_list)
    if not names:
        raise UserError(f"{image_list} names no image")
    found = {image_name(path) for path in paths}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{missing[0]} of {image_list} is not among the images; {len(missing)} "
            f"of its {len(names)} names are missing"
        )
    wanted = set(names)
    return [path for path in paths if image_name(path) in wanted]


def image_name(path: str) -> str:
    """Returns the name of a file without folder and suffix."""
    return os.path.splitext(os.path.basename(path))[0]


def check_image(path: str) -> None:
    """Refuses a file that is no picture or too large, by its header.

    Raises:
        UserError: naming the file.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        _opened(file, path)


def _opened(file, path: str) -> Image.Image:
    """Returns a picture of which only the header was read."""
    try:
        picture = Image.open(file)
    except (
        *(OSError, SyntaxError, ValueError, Image.DecompressionBombError),
        tf.errors.OutOfRangeError,  # how a GFile ends
    ) as error:
        raise UserError(f"{path} is no picture: {error}") from error
    if picture.format not in PICTURE_FORMATS:
        raise UserError(f"{path} is {picture.format}; JPEG and PNG are read")
    if picture.width * picture.height > _MOST_PIXELS:
        raise UserError(
            f"{path} has {picture.width}x{picture.height} pixels; at most "
            f"{_MOST_PIXELS:,} are read"
        )
    return picture


def read_image(path: str) -> np.ndarray:
    """Returns an image file upright, uint8 RGB `[height, width, 3]`.

    Raises:
        UserError: if the file is no JPEG or PNG, broken, or too large.
    """
    with tf.io.gfile.GFile(path, "rb") as file:
        content = file.read()
    picture = _opened(io.BytesIO(content), path)
    try:
        picture.load()  # tells a broken file in one line, TensorFlow in several
        orientation = exif_orientation(content)
        image = decode_image(tf.constant(content)).numpy()
    except (OSError, SyntaxError, ValueError, tf.errors.InvalidArgumentError) as error:
        raise UserError(f"{path} is broken: {error}") from error
    return np.ascontiguousarray(_UPRIGHT.get(orientation, np.asarray)(image))
