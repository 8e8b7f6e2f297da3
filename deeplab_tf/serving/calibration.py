"""Prepares the images from which quantisation measures the range of activations."""

import itertools
from collections.abc import Iterable, Iterator

import keras
import numpy as np
from numpy.typing import ArrayLike

from deeplab_tf.arguments import Elements
from deeplab_tf.errors import UserError
from deeplab_tf.models.quantization import is_quantized
from deeplab_tf.serving.artefact import pad_to_size, round_to_uint8

IMAGES = Elements("images, or batches of load_dataset", arrays=True)


def check_calibration(
    model: keras.Model, precision: str, calibration: Iterable | None
) -> None:
    """Raises UserError unless there are images exactly if the precision is int8.

    A quantised model has its ranges already: it is always int8 and takes no images.
    """
    if is_quantized(model):
        if precision != "int8" or calibration is not None:
            raise UserError(
                "a model of quantisation-aware training can only be exported as int8, "
                f"without calibration images; received {precision} "
                f"{'without' if calibration is None else 'with'} images"
            )
    elif (calibration is not None) != (precision == "int8"):
        raise UserError(
            "only the precision int8 takes calibration images, and it needs them; "
            f"received {precision} {'without' if calibration is None else 'with'} "
            "images"
        )


def read_images(elements: Iterable) -> Iterator[np.ndarray]:
    """Yields images `[height, width, channels]`.

    The elements are such images, batches of them, or batches of `load_dataset`.
    """
    for element in elements:
        images: ArrayLike = element[0] if isinstance(element, tuple) else element
        array = np.asarray(images)
        yield from array[None] if array.ndim == 3 else array


def require_images(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Returns the images; raises UserError if there are none."""
    first = next(images, None)
    if first is None:
        raise UserError("calibration needs at least one image; received none")
    return itertools.chain([first], images)


def read_samples(elements: Iterable) -> Iterator[np.ndarray]:
    """Returns images for calibration, uint8 `[1, height, width, channels]`.

    The elements are like those of `read_images`. Raises UserError if there are none.
    """
    images = require_images(read_images(elements))
    return (round_to_uint8(image[None]) for image in images)


def pad_images(
    elements: Iterable, mean_pixel: tuple[float, ...], size: tuple[int, int]
) -> Iterator[np.ndarray]:
    """Yields images padded to a size, float32 `[1, height, width, channels]`.

    Larger images are cropped. The elements are like those of `read_images`;
    `mean_pixel` is the value of the padding.
    """
    for image in read_images(elements):
        yield pad_to_size(image, size, mean_pixel)
