"""Reads masks that are too large to be decoded at once, in two passes over strips."""

import os
from collections import Counter
from collections.abc import Iterator

import numpy as np

from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import image_files, lookup, mask_files, strips
from deeplab_tf.images.mask_files import Mask

_CLEAR = lookup.COLORS


class LargeMask:
    """A mask of any size.

    Args:
        path: The mask, a PNG, TIFF or .npy file.

    Attributes:
        values: A small mask with each value or colour of this mask once, and its pixel
            count; conversion interprets this instead of the large mask.

    Raises:
        UserError: if the file is broken or in an unsupported format; see `read_mask`.
    """

    def __init__(self, path: os.PathLike[str]):
        self._path = path
        header = strips.read_header(path)
        if header.format not in strips.STRIP_FORMATS:
            raise UserError(
                f"{path} is {header.format} with {header.width}x{header.height} "
                f"pixels; masks this large must be {', '.join(strips.STRIP_FORMATS)}"
            )
        lossy = self._find_lossy_format(header)
        self._shape = header.height, header.width
        found: Counter[int] = Counter()
        first = None
        for _, mask in self._read_strips():
            found.update(_count_keys(mask))
            first = first or mask
            first = first._replace(white=max(first.white, mask.white))
        assert first is not None
        self._keys = np.array(sorted(found))
        counts = np.array([[found[key] for key in self._keys.tolist()]])
        values = _unpack(self._keys, first)
        self.values = values._replace(lossy=lossy, counts=counts)

    def _find_lossy_format(self, header: strips.Header) -> str:
        """Returns the name of the format if it is lossy, otherwise "".

        Raises UserError for an EXIF rotation or several pages.
        """
        if header.orientation != 1:
            raise UserError(
                f"{self._path} has an EXIF rotation, which viewers may ignore; rotate "
                "the pixels and remove it"
            )
        if header.format != "TIFF":
            return ""
        with file_kinds.open_file(self._path) as file:
            image = image_files.open_image(self._path, file, max_pixels=None)
            mask_files.check_frames(self._path, image)
            return mask_files.find_lossy_format(image, b"")

    def _read_strips(self) -> Iterator[tuple[int, Mask]]:
        for top, strip in strips.read_strips(self._path):
            is_png = isinstance(strip, bytes)
            read = mask_files.decode_mask if is_png else mask_files.from_array
            yield top, read(self._path, strip)

    def label(self, ids: np.ndarray) -> np.ndarray:
        """Returns the label map, uint8 `[height, width]`.

        `ids` gives the class id of each entry of `values`.
        """
        label = np.empty(self._shape, np.uint8)
        table = np.zeros(mask_files.MAX_VALUE + 1, np.uint8)
        if self._keys[-1] < len(table):
            table[self._keys] = ids.ravel()
        for top, mask in self._read_strips():
            packed = _pack(mask)
            if self._keys[-1] < len(table):
                label[top : top + len(packed)] = lookup.look_up(table, packed)
            else:
                index = np.searchsorted(self._keys, packed)
                label[top : top + len(packed)] = ids.ravel()[index]
        return label


def _count_keys(mask: Mask) -> dict[int, int]:
    """Returns the pixel count of each packed value or colour."""
    packed = _pack(mask)
    if packed.max(initial=0) <= mask_files.MAX_VALUE:
        counts = lookup.count_values(packed)
        keys = np.flatnonzero(counts)
        counts = counts[keys]
    else:
        keys, counts = np.unique(packed, return_counts=True)
    return dict(zip(keys.tolist(), counts.tolist(), strict=True))


def _pack(mask: Mask) -> np.ndarray:
    """Packs value or colour, and transparency, of each pixel into one number."""
    packed = mask.pixels
    if packed.ndim == 2 and mask.is_clear is None:
        return packed
    packed = lookup.pack_colors(packed) if packed.ndim == 3 else packed
    return packed if mask.is_clear is None else packed + _CLEAR * mask.is_clear


def _unpack(keys: np.ndarray, mask: Mask) -> Mask:
    """Returns a mask of one row with the value or colour of each number."""
    is_clear = keys >= _CLEAR
    values = keys % _CLEAR
    pixels = values.astype(np.uint8 if mask.white < 256 else np.uint16)
    if mask.pixels.ndim == 3:
        pixels = lookup.unpack_colors(values)
    return mask._replace(
        pixels=pixels[None],
        is_clear=mask_files.keep_partial(is_clear[None]) if is_clear.any() else None,
    )
