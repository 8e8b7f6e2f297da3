"""Valid images, invalid images, and images whose headers claim huge sizes."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(*shape):
    return np.random.RandomState(sum(shape)).randint(0, 256, shape).astype(np.uint8)


def encode_image(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def png_chunk(name, content):
    checked = name + content
    return (
        struct.pack(">I", len(content))
        + checked
        + struct.pack(">I", zlib.crc32(checked))
    )


def oversized_png(width, height):
    """Returns a PNG whose header claims more pixels than there are."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(3 * width + 1))
    parts = (b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*part) for part in parts)


def oversized_jpeg(width, height):
    """Returns a JPEG whose header claims more pixels than there are."""
    jpeg = encode_image(noise(16, 16, 3), "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def png_with_long_text(width, height, length):
    """Returns a small PNG with a text chunk of `length` bytes."""
    png = encode_image(noise(height, width, 3))
    text = png_chunk(b"tEXt", b"Comment\0" + bytes(length).replace(b"\0", b"x"))
    return png[:33] + text + png[33:]  # after the header


JPEG, PNG = encode_image(noise(20, 30, 3), "JPEG"), encode_image(noise(11, 7, 3))
HOSTILE_IMAGES = {
    "empty": b"",
    "one byte": b"\x89",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(1000),
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "truncated PNG": PNG[: len(PNG) // 2],
    "JPEG of 30,000x30,000": oversized_jpeg(30000, 30000),
    "PNG of 30,000x30,000": oversized_png(30000, 30000),
    "PNG of 200,000x2": oversized_png(200000, 2),
    "PNG of 2x4,000,000,000": oversized_png(2, 4_000_000_000),
    "JPEG of 2x60,000": oversized_jpeg(2, 60000),
    "4x4 PNG of two megabytes": png_with_long_text(4, 4, 1 << 21),
    "PNG without pixels": oversized_png(0, 5),
    "PNG with two channels": encode_image(noise(5, 6, 2)),
    "GIF": encode_image(noise(5, 6), "GIF"),
    "BMP": encode_image(noise(5, 6, 3), "BMP"),
}
