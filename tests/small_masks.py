"""Masks of random rectangles, as files of any coding and format."""

import io

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 48, 64
BLACK, WHITE, RED, GREEN = (0,) * 3, (255,) * 3, (255, 0, 0), (0, 255, 0)


def draw(seed, num_classes):
    """Returns class ids of random rectangles, all classes among them."""
    random = np.random.default_rng(seed)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    for i in range(1, num_classes):
        y, x = random.integers(0, HEIGHT - 20), random.integers(0, WIDTH - 20)
        label[y : y + 12, x : x + 14] = i
        label[-1, i] = i
    return label


def encode(pixels, file_format="PNG", **options):
    """Returns an image file; `pixels` are an array or an image."""
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    file = io.BytesIO()
    image.save(file, file_format, **options)
    return file.getvalue()


def encode_npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def paint(label, colors):
    return np.array(colors, np.uint8)[label]


def palette_image(label, colors):
    image = Image.fromarray(label, "P")
    image.putpalette(np.array(colors, np.uint8).tobytes())
    return image
