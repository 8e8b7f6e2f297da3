"""Image files to be labelled: found, checked by their headers, read upright."""

import os

import numpy as np
import tensorflow as tf

from deeplab_tf.errors import UserError, escape
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.images import image_files
from deeplab_tf.images.decoding import decode_image, exif_orientation, png_format

_SUFFIXES = (".jpg", ".jpeg", ".png")
# The longest of what replaces the suffix in the name of an output.
_OUTPUT_ENDING = "_overlay.png"
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

    Directories, FIFOs and other entries that are not files are skipped with one line
    on stderr if a folder or glob gave them, and refused if the pattern or the list
    names them.

    Args:
        pattern: The file, folder or glob.
        image_list: Text file of their names without suffix, if only some are wanted.

    Raises:
        UserError: if there is none, one of the list is missing or not a file, two
            would be written to one name, or that name would be too long.
    """
    paths = [p for p in _candidates(pattern) if p.lower().endswith(_SUFFIXES)]
    if image_list and paths:
        file_kinds.require_file(image_list)
        paths = _listed(paths, image_list)
        for path in file_kinds.find_non_files(paths):
            file_kinds.require_file(path)
    else:
        paths = file_kinds.keep_files(paths, pattern)
    if not paths:
        raise UserError(f"{escape(pattern)} matches no JPEG or PNG file")
    _check_output_names(paths)
    return paths


def _candidates(pattern: str) -> list[str]:
    """Returns the paths that a file, a folder or a glob stands for, sorted."""
    kind = file_kinds.kind_of(pattern)
    if kind is file_kinds.Kind.DIRECTORY:
        names = file_kinds.list_names(pattern)
        return [os.path.join(pattern, name) for name in names]
    if kind is file_kinds.Kind.MISSING:
        return file_kinds.expand_glob(pattern)
    file_kinds.require_file(pattern)  # its name may hold brackets
    return [pattern]


def _check_output_names(paths: list[str]) -> None:
    stems: dict[str, str] = {}
    for path in paths:
        other = stems.setdefault(image_name(path), path)
        if other != path:
            raise UserError(f"{other} and {path} would be written to the same name")
        file_kinds.require_room_in_name(path, _OUTPUT_ENDING)


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
    """Refuses a file that is not an image, or too large, by its header.

    Raises:
        UserError: naming the file.
    """
    with file_kinds.open_file(path) as file:
        header = image_files.open_image(path, file)
        image_files.require_image_format(path, header)
        file.seek(0)
        is_deep = png_format(file.read(32))[0] == 16
    if is_deep:  # its values decide
        image_files.encode(path, file_kinds.read_bytes(path))


def read_image(path: str) -> np.ndarray:
    """Returns an image file upright, uint8 RGB `[height, width, 3]`.

    Its pixels are those of the record that the converters make of the file; what
    these refuse is refused.

    Raises:
        UserError: if the file is no JPEG or PNG, broken, too large, or has more than
            8 bits.
    """
    content = file_kinds.read_bytes(path)
    encoded = image_files.encode(path, content).content
    try:
        image = decode_image(tf.constant(encoded)).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"{path} is broken: {error.message}") from error
    turn_upright = _UPRIGHT.get(exif_orientation(content), np.asarray)
    return np.ascontiguousarray(turn_upright(image))
