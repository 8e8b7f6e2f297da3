"""Finds the images to label, checks their headers and reads them upright."""

import os
import re

import numpy as np
from PIL import Image

from deeplab_tf.errors import UserError, escape
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.images import decoding, encoding, formats, image_files
from deeplab_tf.images.decoding import (
    PNG_HEADER_LENGTH,
    read_exif_orientation,
    read_png_format,
)

# The longest suffix of an output file.
_LONGEST_OUTPUT_SUFFIX = "_overlay.png"


def find_images(
    pattern: str, image_list: str | None = None, output_dir: str = ""
) -> dict[str, str]:
    """Finds the images of a file, folder or glob; returns paths by name, sorted.

    A name is a path without suffix, relative to the folder, or to the part of the glob
    before its first wildcard. Folders are searched recursively; `**` in a glob matches
    any number of subfolders.

    Matches in a folder or glob that are not files are skipped, and those that are not
    images are ignored; stderr gets one line about each. Paths that the pattern or the
    list names must be files.

    Args:
        pattern: The file, folder or glob.
        image_list: A text file with the names of the images to select, with or without
            their folders.
        output_dir: A folder whose images are left out, unless it is the folder of the
            pattern.

    Raises:
        UserError: if there are no images, a listed image is missing or not a file, two
            outputs would have the same name, or the name of an output is too long.
    """
    root, entries = _list_candidates(pattern, output_dir)
    entries = [p for p in entries if not _is_hidden(p.removeprefix(root))]
    paths = [path for path in entries if formats.is_image_name(path)]
    if image_list and paths:
        file_kinds.require_file(image_list)
        paths = _select_listed(paths, image_list, root)
        for path in file_kinds.find_non_files(paths):
            file_kinds.require_file(path)
    else:
        other = [path for path in entries if not formats.is_image_name(path)]
        other = [p for p in other if p not in file_kinds.find_non_files(other)]
        formats.report_other_formats(other, pattern)
        paths = file_kinds.keep_files(paths, pattern)
    if not paths:
        suffixes = ", ".join(formats.IMAGE_SUFFIXES)
        raise UserError(f"{escape(pattern)} matches no images ({suffixes})")
    return _name_images(paths, root)


def _list_candidates(pattern: str, output_dir: str) -> tuple[str, list[str]]:
    """Returns the folder that names are relative to, and the matches of a pattern."""
    kind = file_kinds.find_kind(pattern)
    left_out = _real_path(output_dir) if output_dir else ""
    if kind is file_kinds.Kind.DIRECTORY:
        left_out = "" if left_out == _real_path(pattern) else left_out
        names = file_kinds.list_tree(pattern, {left_out})
        return pattern, [os.path.join(pattern, name) for name in names]
    if kind is file_kinds.Kind.MISSING:
        root = os.path.dirname(re.split(r"[*?[]", pattern)[0])
        paths = file_kinds.expand_glob(pattern)
        if left_out and left_out != _real_path(root):
            below = os.path.join(left_out, "")
            paths = [p for p in paths if not _real_path(p).startswith(below)]
        if "**" in pattern:  # it also matches the folders themselves
            paths = [p for p in paths if file_kinds.find_kind(p) is not kind.DIRECTORY]
        return root, paths
    file_kinds.require_file(pattern)  # not a glob, even if the name has brackets
    return os.path.dirname(pattern), [pattern]


def _is_hidden(path: str) -> bool:
    return any(map(file_kinds.is_hidden, path.split(os.sep)))


def _real_path(path: str) -> str:
    return path if file_kinds.is_remote(path) else os.path.realpath(path)


def _name_images(paths: list[str], root: str) -> dict[str, str]:
    """Returns paths by the name of their outputs; the names must be unique."""
    images: dict[str, str] = {}
    for path in paths:
        other = images.setdefault(make_image_name(path, root), path)
        if other != path:
            raise UserError(
                f"{other} and {path} would have outputs with the same name; rename one"
            )
        file_kinds.require_room_in_name(path, _LONGEST_OUTPUT_SUFFIX)
    return images


def _select_listed(paths: list[str], image_list: str, root: str) -> list[str]:
    """Returns the paths that a file lists by name; refuses names without an image."""
    wanted = text_files.read_words(image_list)
    if not wanted:
        raise UserError(f"{image_list} lists no images; give one name per line")
    names = {
        path: {make_image_name(path), make_image_name(path, root)} for path in paths
    }
    found = set().union(*names.values())
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{image_list} lists {missing[0]}, which matches no image; "
            f"{len(missing)} of its {len(wanted)} names match none"
        )
    return [path for path in paths if names[path] & set(wanted)]


def make_image_name(path: str, root: str | None = None) -> str:
    """Returns the path of a file without suffix, relative to `root` if given."""
    if root is None:
        path = os.path.basename(path)
    elif root:
        path = path.removeprefix(os.path.join(root, ""))
    return os.path.splitext(path)[0]


def check_header(path: str) -> Image.Image | None:
    """Opens an image to read its header; returns None for a .npy file or a TIFF.

    Raises:
        UserError: if the image is broken, too large or in an unsupported format.
    """
    with file_kinds.open_file(path) as file:
        if formats.is_npy(path) or formats.is_tiff(file.read(4)):
            return None
        file.seek(0)
        header = image_files.open_image(path, file)
        image_files.require_image_format(path, header)
    return header


def check_image(path: str, channels: int = 3, max_value: int = 255) -> tuple[int, int]:
    """Returns the height and width of an image file, before any rotation.

    Reads only the header if that is sufficient.

    Raises:
        UserError: if its format is not supported, its number of channels is not
            `channels`, it has values above `max_value`, or it is too large.
    """
    header = check_header(path)
    if header is not None and channels in (1, 3) and max_value < 256:
        with file_kinds.open_file(path) as file:
            is_deep = read_png_format(file.read(PNG_HEADER_LENGTH))[0] == 16
        if not is_deep and not header.mode.startswith("I"):
            return header.height, header.width
    content = file_kinds.read_bytes(path)
    image = encoding.encode(path, content, channels, max_value)
    return image.height, image.width


def read_image(path: str, channels: int = 3, max_value: int = 255) -> np.ndarray:
    """Reads an image file; see `decode_image`."""
    return decode_image(path, file_kinds.read_bytes(path), channels, max_value)


def decode_image(
    path: str, content: bytes, channels: int = 3, max_value: int = 255
) -> np.ndarray:
    """Decodes an image file, `[height, width, channels]`, and turns it upright.

    Accepts the same files as conversion does, and decodes them like training. The
    pixels are uint8, or uint16 if `max_value` is above 255.

    Raises:
        UserError: if the file is broken or too large, its format is not supported, its
            number of channels is not `channels`, or it has values above `max_value`.
    """
    image = encoding.encode(path, content, channels, max_value)
    pixels = encoding.decode(path, image, max_value)
    return decoding.turn_upright(pixels, image.orientation)


def check_pil_image(image: Image.Image, name: str) -> tuple[int, int]:
    """Returns the height and width of a PIL image, before any rotation.

    Raises:
        UserError: if the image has more than 8 bits per channel.
    """
    if image.mode[0] in "IF":
        raise UserError(
            f"{name} has mode {image.mode}; scale it to 8 bits and convert it to RGB"
        )
    return image.height, image.width


def convert_pil_image(image: Image.Image, name: str) -> np.ndarray:
    """Converts a PIL image to an upright RGB array, uint8 `[height, width, 3]`.

    Greyscale, palettes and transparency are converted as in `read_image`.

    Args:
        image: An image that `check_pil_image` accepts.
        name: Its name in errors.

    Raises:
        UserError: if the image cannot be decoded or converted.
    """
    orientation = read_exif_orientation(image)
    try:
        rgb = image_files.decode(name, image).convert("RGB")
    except ValueError as error:
        raise UserError(f"{name} has mode {image.mode}: {error}") from error
    return decoding.turn_upright(np.array(rgb), orientation)
