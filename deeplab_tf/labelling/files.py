"""Reads the image files to label, one at a time, optionally skipping broken ones."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

import numpy as np
import tensorflow as tf

from deeplab_tf.errors import UserError, one_line, pluralize
from deeplab_tf.files import outputs
from deeplab_tf.images import strips
from deeplab_tf.images.inputs import check_header, check_image, read_image

# File in the output folder that lists each skipped file with the reason.
SKIPPED = "skipped.txt"


class ImageReader:
    """Iterates over image files, yielding names and pixels.

    Args:
        paths: Maps the name of each output to its image file.
        skip_broken: Whether to skip files that cannot be read, instead of raising an
            error for the first one.
        may_skip_all: Whether to skip even the last one.

    Attributes:
        errors: One line about each skipped file.
    """

    def __init__(
        self,
        paths: Mapping[str, str],
        skip_broken: bool = False,
        may_skip_all: bool = False,
    ):
        self._paths = dict(paths)
        self._skip_broken = skip_broken
        self._may_skip_all = may_skip_all
        self._format = (3, 255)
        self.errors: list[str] = []
        # Images that are too large to be decoded at once.
        self._large: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def __iter__(self) -> Iterator[tuple[str, np.ndarray]]:
        for name, path in list(self._paths.items()):
            try:
                image = read_image(path, *self._format)
            except UserError as error:
                self._skip(name, error)
            else:
                yield name, image

    def check_headers(self) -> None:
        """Checks the headers of all files.

        Raises:
            UserError: if a file is broken and not skipped, or if all are broken.
        """
        self._check(self._check_header)

    def _check_header(self, path: str) -> None:
        header = strips.RowReader(path).header
        if not header.is_large:
            check_header(path)
        elif header.orientation != 1:
            raise UserError(
                f"{path} has EXIF orientation {header.orientation} and is too large to "
                "be rotated here; save it with the rotation applied"
            )

    def check(self, channels: int, max_value: int) -> None:
        """Checks all files, decoding only those whose header is not sufficient.

        Args:
            channels: Number of channels that images must have.
            max_value: Largest value that images may have.

        Raises:
            UserError: if a file is broken and not skipped, or if all are broken.
        """
        self._format = (channels, max_value)
        self._large = {
            name: path
            for name, path in self._paths.items()
            if strips.read_header(path).is_large
        }
        for name in self._large:
            del self._paths[name]
        if self._paths:
            self._check(lambda path: check_image(path, *self._format))

    def open_large(self) -> Iterator[tuple[str, strips.RowReader]]:
        """Yields name and reader of each image that is too large for iteration."""
        for name, path in self._large.items():
            yield name, strips.RowReader(path, *self._format)

    def _check(self, check: Callable[[str], object]) -> None:
        for name, path in list(self._paths.items()):
            try:
                check(path)
            except UserError as error:
                self._skip(name, error)
        if not self._paths and not self._may_skip_all:
            raise_all_broken(self.errors)

    def _skip(self, name: str, error: UserError) -> None:
        if not self._skip_broken:
            raise error
        del self._paths[name]
        self.errors.append(one_line(error))

    def report(self, folder: str | None) -> None:
        """Reports skipped files on stderr and, if given, in a file in `folder`."""
        report_skipped(self.errors, folder)


def raise_all_broken(errors: Sequence[str]) -> NoReturn:
    """Raises the UserError for images that are all broken."""
    raise UserError(f"all images are broken; first error: {errors[0]}")


def report_skipped(errors: Sequence[str], folder: str | None) -> None:
    """Reports skipped files on stderr and, if given, in a file in `folder`."""
    if not errors:
        return
    where = ""
    if folder:
        tf.io.gfile.makedirs(folder)
        where = f", see {os.path.join(folder, SKIPPED)}"
        lines = "".join(f"{error}\n" for error in errors)
        outputs.write_text(lines, os.path.join(folder, SKIPPED))
    skipped = pluralize(len(errors), "broken image(s)")
    print(f"skipped {skipped}{where}", file=sys.stderr)
