"""Image file formats that all programs read, and their suffixes."""

import os
import sys
from collections import Counter
from collections.abc import Iterable

from deeplab_tf.errors import escape, pluralize

_Path = str | os.PathLike[str]

# Format -> file suffixes in lower case. The names are Pillow's, except for "NPY".
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c", ".jpf"),
    "HEIF": (".heic", ".heif"),
    "AVIF": (".avif",),
    "NPY": (".npy",),
}
IMAGE_SUFFIXES = tuple(suffix for row in FORMATS.values() for suffix in row)
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def get_suffix(path: _Path) -> str:
    """Returns the suffix of a file name in lower case, such as ".png"."""
    return os.path.splitext(os.fspath(path))[1].lower()


def is_image_name(path: _Path) -> bool:
    """Returns whether a file name has the suffix of an image format."""
    return get_suffix(path) in IMAGE_SUFFIXES


def is_npy(path: _Path) -> bool:
    """Returns whether a file name has the suffix of a NumPy array, `.npy`."""
    return get_suffix(path) in FORMATS["NPY"]


def is_tiff(content: bytes) -> bool:
    """Returns whether a file is a TIFF, judging by its first bytes."""
    return content[:4] in _TIFF_SIGNATURES


def report_other_formats(paths: Iterable[_Path], where: _Path) -> None:
    """Reports ignored files by suffix, in one line on stderr, if there are any.

    Args:
        paths: Files that are ignored because they are not images.
        where: The folder or pattern that matched them.
    """
    counts = Counter(get_suffix(path) or "without suffix" for path in paths)
    if counts:
        listed = ", ".join(
            f"{count} {suffix}" for suffix, count in counts.most_common()
        )
        print(
            f"ignored {pluralize(counts.total(), 'non-image file(s)')} in "
            f"{escape(where)}: {escape(listed)}",
            file=sys.stderr,
        )
