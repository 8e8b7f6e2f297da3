"""Finds the images to label, checks their headers and reads them upright."""

import os

import numpy as np
from PIL import Image

from deeplab_tf.errors import UserError, escape
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.images import decoding, encoding, formats, image_files
from deeplab_tf.images.decoding import exif_orientation, png_format

_SUFFIXES = (".jpg", ".jpeg", ".png")
# The longest suffix of an output file.
_LONGEST_OUTPUT_SUFFIX = "_overlay.png"


def find_images(pattern: str, image_list: str | None = None) -> list[str]:
    """Returns the images of a file, a folder or a glob, sorted.

    `image_list` is a text file with the names, without suffix, of the wanted images.
    Entries that are not files are skipped with a line on stderr if a folder or glob
    matches them, and refused if the pattern or the list names them.

    Raises:
        UserError: if there is no image, a listed one is missing or not a file, or two
            outputs would have the same name or one a name that is too long.
    """
    paths = [p for p in _list_candidates(pattern) if p.lower().endswith(_SUFFIXES)]
    if image_list and paths:
        file_kinds.require_file(image_list)
        paths = _select_listed(paths, image_list)
        for path in file_kinds.find_non_files(paths):
            file_kinds.require_file(path)
    else:
        paths = file_kinds.keep_files(paths, pattern)
    if not paths:
        raise UserError(f"{escape(pattern)} matches no JPEG or PNG file")
    _check_output_names(paths)
    return paths


def _list_candidates(pattern: str) -> list[str]:
    kind = file_kinds.kind_of(pattern)
    if kind is file_kinds.Kind.DIRECTORY:
        names = file_kinds.list_names(pattern)
        return [os.path.join(pattern, name) for name in names]
    if kind is file_kinds.Kind.MISSING:
        return file_kinds.expand_glob(pattern)
    file_kinds.require_file(pattern)  # its name may contain brackets
    return [pattern]


def _check_output_names(paths: list[str]) -> None:
    stems: dict[str, str] = {}
    for path in paths:
        other = stems.setdefault(image_name(path), path)
        if other != path:
            raise UserError(
                f"{other} and {path} would be written to the same name; rename one"
            )
        file_kinds.require_room_in_name(path, _LONGEST_OUTPUT_SUFFIX)


def _select_listed(paths: list[str], image_list: str) -> list[str]:
    names = text_files.read_words(image_list)
    if not names:
        raise UserError(f"{image_list} lists no image")
    found = {image_name(path) for path in paths}
    missing = [name for name in names if name not in found]
    if missing:
        raise UserError(
            f"{image_list} lists {missing[0]}, which is not among the images; "
            f"{len(missing)} of its {len(names)} names are missing"
        )
    wanted = set(names)
    return [path for path in paths if image_name(path) in wanted]


def image_name(path: str) -> str:
    """Returns the name of a file without folder and suffix."""
    return os.path.splitext(os.path.basename(path))[0]


def check_image(path: str, channels: int = 3, max_value: int = 255) -> tuple[int, int]:
    """Returns height and width of an image file before any rotation.

    Reads only the header where it says enough.

    Raises:
        UserError: if it has another format, number of channels or values, or is too
            large.
    """
    if not formats.is_npy(path):
        with file_kinds.open_file(path) as file:
            head = file.read(32)
            file.seek(0)
            if not formats.is_tiff(head):
                header = image_files.open_image(path, file)
                image_files.require_image_format(path, header)
                is_deep = png_format(head)[0] == 16 or header.mode.startswith("I")
                if not is_deep and channels in (1, 3) and max_value < 256:
                    return header.height, header.width
    content = file_kinds.read_bytes(path)
    image = encoding.encode(path, content, channels, max_value)
    return image.height, image.width


def read_image(path: str, channels: int = 3, max_value: int = 255) -> np.ndarray:
    """Reads an image file upright, `[height, width, channels]`.

    Decodes and refuses the same files as training on converted records does. The pixels
    are uint8, or uint16 if `max_value` is above 255.

    Raises:
        UserError: if the file is of no known format, is broken or too large, or has
            other channels or values above `max_value`.
    """
    content = file_kinds.read_bytes(path)
    image = encoding.encode(path, content, channels, max_value)
    pixels = encoding.decode(path, image, max_value)
    return decoding.turn_upright(pixels, image.orientation)


def check_pil_image(image: Image.Image, name: str) -> tuple[int, int]:
    """Returns height and width of a PIL image, before any rotation.

    Raises:
        UserError: if it has more than 8 bits per channel.
    """
    if image.mode[0] in "IF":
        raise UserError(
            f"{name} has mode {image.mode}; scale it to 8 bits and convert it to RGB"
        )
    return image.height, image.width


def convert_pil_image(image: Image.Image, name: str) -> np.ndarray:
    """Returns a PIL image upright, uint8 RGB `[height, width, 3]`.

    Grey images, palettes and transparency become RGB as in `read_image`.

    Args:
        image: An image that `check_pil_image` accepts.
        name: Its name in errors.

    Raises:
        UserError: if it cannot be decoded or converted.
    """
    orientation = exif_orientation(image)
    try:
        rgb = image_files.decode(name, image).convert("RGB")
    except ValueError as error:
        raise UserError(f"{name} has mode {image.mode}: {error}") from error
    return decoding.turn_upright(np.array(rgb), orientation)
