"""Pictures for servers: good ones, and bytes that are none or promise too much."""

import io
import struct
import zlib

import numpy as np
from PIL import Image


def noise(*shape):
    return np.random.RandomState(sum(shape)).randint(0, 256, shape).astype(np.uint8)


def picture(pixels, kind="PNG", **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def chunk(name, content):
    checked = name + content
    return (
        struct.pack(">I", len(content))
        + checked
        + struct.pack(">I", zlib.crc32(checked))
    )


def promising_png(width, height):
    """Returns a PNG whose header promises more pixels than there are."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(3 * width + 1))
    parts = (b"IHDR", head), (b"IDAT", pixels), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def promising_jpeg(width, height):
    """Returns a JPEG whose header promises more pixels than there are."""
    jpeg = picture(noise(16, 16, 3), "JPEG")
    start = jpeg.index(b"\xff\xc0") + 5
    return jpeg[:start] + struct.pack(">HH", height, width) + jpeg[start + 4 :]


def inflated_png(width, height, length):
    """Returns a small PNG with a long text."""
    png = picture(noise(height, width, 3))
    text = chunk(b"tEXt", b"Comment\0" + bytes(length).replace(b"\0", b"x"))
    return png[:33] + text + png[33:]  # behind the header


JPEG, PNG = picture(noise(20, 30, 3), "JPEG"), picture(noise(11, 7, 3))
HOSTILE = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"GET / HTTP/1.1\r\n\r\n",
    "zeros": bytes(1000),
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "truncated PNG": PNG[: len(PNG) // 2],
    "JPEG of 30,000x30,000": promising_jpeg(30000, 30000),
    "PNG of 30,000x30,000": promising_png(30000, 30000),
    "PNG of 200,000x2": promising_png(200000, 2),
    "PNG of 2x4,000,000,000": promising_png(2, 4_000_000_000),
    "JPEG of 2x60,000": promising_jpeg(2, 60000),
    "small PNG of two megabytes": inflated_png(4, 4, 1 << 21),
    "PNG of no pixels": promising_png(0, 5),
    "PNG of two channels": picture(noise(5, 6, 2)),
    "GIF": picture(noise(5, 6), "GIF"),
    "BMP": picture(noise(5, 6, 3), "BMP"),
}
