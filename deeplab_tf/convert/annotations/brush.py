"""The run lengths of Label Studio's brush: thi.ng's `rle-pack`, a bit stream.

The header contains the number of values (32 bits), the bits per value minus one (5),
and four sizes of run lengths minus one (4 each). Each block then has one bit that says
whether its values are equal, two bits that select a size, its length minus one in that
many bits, and one value or all of them. The values are RGBA, row by row.
"""

from typing import Any

import numpy as np

from deeplab_tf.convert.annotations import drawing
from deeplab_tf.errors import UserError

_CHANNELS = 4


class _Bits:
    """Reads unsigned numbers from bytes, most significant bit first."""

    def __init__(self, content: bytes):
        self.content = content
        self.position = 0

    def read(self, size: int) -> int:
        """Returns the next `size` bits, at most 32."""
        first, shift = divmod(self.position, 8)
        self.position += size
        if self.position > 8 * len(self.content):
            raise ValueError("its runs end early")
        word = int.from_bytes(self.content[first : first + 5].ljust(5, b"\0"), "big")
        return word >> (40 - shift - size) & ((1 << size) - 1)

    def read_bytes(self, count: int) -> np.ndarray:
        """Returns the next `count` bytes."""
        first, shift = divmod(self.position, 8)
        self.position += 8 * count
        if self.position > 8 * len(self.content):
            raise ValueError("its runs end early")
        part = np.frombuffer(self.content, np.uint8)[first : first + count + 1]
        return np.packbits(np.unpackbits(part)[shift : shift + 8 * count])


def read(runs: Any, where: str) -> bytes:
    """Returns the bytes of a list of numbers; raises UserError for other values."""
    try:
        return bytes(list(runs))
    except (TypeError, ValueError) as error:
        raise UserError(f"{where}: rle must be a list of bytes: {error}") from error


def draw(content: bytes, size: tuple[int, int], height: int, width: int):
    """Draws the pixels of a brush that are not transparent.

    Raises:
        ValueError: if the runs are broken or their image has another `size`.
    """
    if size != (height, width):
        raise ValueError(f"its runs are for a {size[1]}x{size[0]} image")
    values = decode(content, height * width * _CHANNELS)
    opacity = values[_CHANNELS - 1 :: _CHANNELS].reshape(height, width)
    return drawing.Patch(0, 0, opacity > 0)


def decode(content: bytes, count: int) -> np.ndarray:
    """Decodes a stream of run lengths to its `count` values, uint8.

    Raises:
        ValueError: if it is broken or contains another number of values.
    """
    bits = _Bits(content)
    found, value_bits = bits.read(32), bits.read(5) + 1
    if found != count or value_bits != 8:
        raise ValueError(
            f"its runs have {found} values of {value_bits} bits instead of {count} of "
            "8 bits"
        )
    sizes = [bits.read(4) + 1 for _ in range(4)]
    values = np.empty(count, np.uint8)
    start = 0
    while start < count:
        is_run = bits.read(1)
        end = start + 1 + bits.read(sizes[bits.read(2)])
        if end > count:
            raise ValueError("its runs are longer than the image")
        values[start:end] = bits.read(8) if is_run else bits.read_bytes(end - start)
        start = end
    return values
