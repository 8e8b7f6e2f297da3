"""Cuts large images and their labels into tiles, each of which becomes a record."""

import re
import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from deeplab_tf.convert.options import ImageOptions
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UnclearError, UserError
from deeplab_tf.images import encoding, strips
from deeplab_tf.images.decoding import EncodedImage
from deeplab_tf.images.tiles import place_tiles

# Larger images are converted one at a time, to bound the memory.
_PARALLEL_PIXELS = 1 << 25
# An image is opened once. Not in `TileReader`, which can then be pickled.
_LOCK = threading.Lock()


def cut_samples(samples: Iterable[Any], options: ImageOptions) -> list[Any]:
    """Returns samples with large images replaced by their tiles.

    A tile of the image `x` is named `x@TOP,LEFT`, with as many digits as the longer
    side of the image has.
    """

    def cut(sample: Any) -> list[Any]:
        """Returns the tiles of a sample, or the sample itself if it is small."""
        try:
            height, width = strips.read_size(sample.image, bool(options.apply_exif))
        except UserError:  # the conversion stops at it or skips it
            return [sample]
        if max(height, width) <= options.tile:
            return [sample]
        digits = len(str(max(height, width)))
        tiles = place_tiles(height, width, options.tile, options.tile_overlap)
        return [
            sample._replace(
                name=f"{sample.name}@{tile.top:0{digits}},{tile.left:0{digits}}",
                tile=tile,
                is_large=height * width > _PARALLEL_PIXELS,
            )
            for tile in tiles
        ]

    with futures.ThreadPoolExecutor() as pool:  # for remote files
        return [tile for tiles in pool.map(cut, samples) for tile in tiles]


def strip_tile(name: str) -> str:
    """Returns the image name in the name of a tile, and other names unchanged."""
    return re.sub(r"@\d+,\d+$", "", name)


class _Source(NamedTuple):
    """The image and label that tiles are cut from; the image without its content."""

    image: EncodedImage
    read_rows: Callable[[int, int], np.ndarray]
    label: np.ndarray


class TileReader:
    """Reads tiles; fast for consecutive tiles of an image.

    Args:
        info: The dataset.
        options: How images become records.
        check_sizes: Called with a sample, the image and the label that tiles are cut
            from.
    """

    def __init__(self, info: DatasetInfo, options: ImageOptions, check_sizes: Callable):
        self._info, self._options = info, options
        self._check_sizes = check_sizes
        self._files: tuple[epath.Path, ...] = ()
        self._source: _Source | None = None

    def read(self, sample: Any) -> tuple[EncodedImage, np.ndarray, np.ndarray]:
        """Returns the image of a tile, its pixels and its label."""
        top, left, height, width = sample.tile
        columns = slice(left, left + width)
        with _LOCK:
            if self._source is None or self._files != sample.sources:
                self._source = None  # frees the memory
                self._source = self._open(sample)
                self._files = sample.sources
            source = self._source
            pixels = source.read_rows(top, top + height)[:, columns]
        formats = self._info.channels, self._info.max_value
        image = encoding.encode_array(sample.image, pixels, *formats)
        image = source.image._replace(
            content=image.content, format="png", height=height, width=width
        )
        return image, pixels, source.label[top : top + height, columns]

    def _open(self, sample: Any) -> _Source:
        """Opens image and label of a sample, after checking that they fit."""
        path, info = sample.image, self._info
        header = strips.read_header(path)
        if header.is_large:
            if header.orientation != 1 and self._options.apply_exif is not False:
                raise UnclearError(
                    f"{path} has the EXIF orientation {header.orientation} and too "
                    "many pixels to be turned; rotate the pixels themselves, or add "
                    "--noapply_exif if its label fits the stored pixels"
                )
            read_rows = strips.RowReader(path, info.channels, info.max_value).read
            sizes = (header.height, header.width, info.channels)
            image = EncodedImage(b"", "png", *sizes, *header[::3])
        else:
            complete = encoding.read_encoded(path, info, bool(self._options.apply_exif))
            pixels = encoding.decode(path, complete, info.max_value)
            image = complete._replace(content=b"")

            def read_rows(top: int, bottom: int) -> np.ndarray:
                return pixels[top:bottom]

        label = sample.read_label()
        self._check_sizes(sample, image, label, self._options)
        return _Source(image, read_rows, label)
