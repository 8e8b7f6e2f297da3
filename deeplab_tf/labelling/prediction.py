"""Labels images of any size, given as arrays, files or PIL images."""

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf.arguments import check_arguments, format_value
from deeplab_tf.config.options import COUNT
from deeplab_tf.errors import UserError, escape
from deeplab_tf.files import file_kinds
from deeplab_tf.images import inputs
from deeplab_tf.inference import Predictor, compile_graph
from deeplab_tf.labelling.batches import batch_by_size
from deeplab_tf.windows import translate_limit_errors

# Pixels per batch if no batch size is given: eight images of the papers' size.
_BATCH_PIXELS = 8 * 513 * 513
# Compiling takes as long as labelling eight images without it; after that, an image
# takes 0.4 times as long (measured on two cores).
_IMAGES_TO_COMPILE = 16
# Rounding in a resize may exceed 0..255 by this much.
_TOLERANCE = 0.5


class _Image(NamedTuple):
    """Height and width of an image before rotation, and a function that reads it."""

    size: tuple[int, int]
    read: Callable[[], np.ndarray]


@check_arguments(batch_size=COUNT)
def predict_labels(
    model: keras.Model,
    images: Any,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop_size: tuple[int, int] | None = None,
    window: tuple[int, int] | None = None,
    memory_limit: float | None = None,
    batch_size: int | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Returns the most probable class of each pixel, int32.

    All arguments and file headers are checked before the first image is labelled.
    Probabilities are averaged over scales and flips (DeepLabv3, 1706.05587, Sec. 4).

    Args:
        model: A model of `build_model` or `from_pretrained`.
        images: RGB 0..255, uint8 or float, not normalised:

            - an array or tensor `[batch, height, width, 3]`, which gives `[batch,
              height, width]`;
            - a single image, which gives `[height, width]`: an array `[height, width,
              3]`, the path of an image file, or a PIL image. EXIF rotation is applied.
              PIL decodes JPEGs slightly differently from TensorFlow, which reads files;
            - a list or tuple of single images of any size, which gives a list of
              `[height, width]` in the same order.

            If the model does not have 3 channels, arrays and files need its number of
            channels.
        scales: Image scales; the papers use 0.5 to 1.75 in steps of 0.25.
        flip: Whether to also predict horizontally flipped images.
        crop_size: Height and width to which images are padded, such as `(513, 513)` in
            the official protocol; see `Predictor`.
        window: Height and width of the sliding window for larger images.
        memory_limit: Memory for the inference of one image, in bytes, from which the
            window size is computed; cannot be combined with `window`.
        batch_size: Number of images, all of one size, per forward pass; by default, as
            many as fit into 2.1 megapixels.

    Raises:
        UserError: if an argument has an invalid type or value; if images have an
            invalid shape or invalid values, such as 0..1 or normalised ones; if a path
            is not a readable image file.
    """
    predictor = Predictor(model, scales, flip, crop_size, window, memory_limit)
    channels = predictor.config.channels
    if isinstance(images, list | tuple):
        if not images:
            raise UserError("images must contain at least one image; received none")
        opened = [_open(x, f"images[{i}]", channels) for i, x in enumerate(images)]
        return _label(predictor, opened, batch_size)
    if _is_array(images) and np.ndim(images) == 4:
        batch = _check_array(images, "images", channels, is_single=False)
        opened = [_Image(x.shape[:2], functools.partial(np.asarray, x)) for x in batch]
        return np.stack(_label(predictor, opened, batch_size))
    return _label(predictor, [_open(images, "images", channels)], batch_size)[0]


def _label(
    predictor: Predictor, images: list[_Image], batch_size: int | None
) -> list[np.ndarray]:
    """Returns the labels of each image; images of the same size share batches."""
    label = predictor.labels
    if len(images) >= _IMAGES_TO_COMPILE:
        shape = [None, None, None, predictor.config.channels]
        spec = tf.TensorSpec(shape, tf.float32)
        label = compile_graph(label, input_signature=[spec])
    labels: dict[int, np.ndarray] = {}
    order = sorted(range(len(images)), key=lambda i: images[i].size)
    for size, group in itertools.groupby(order, key=lambda i: images[i].size):
        limit = batch_size or max(1, _BATCH_PIXELS // (size[0] * size[1]))
        read = ((i, images[i].read()) for i in group)
        for batch in batch_by_size(read, limit):
            indices, pixels = zip(*batch, strict=True)
            with translate_limit_errors():
                found = label(tf.constant(np.stack(pixels).astype(np.float32))).numpy()
            labels.update(zip(indices, found, strict=True))
    return [labels[i] for i in range(len(images))]


def _open(image: Any, name: str, channels: int) -> _Image:
    """Checks an image as far as possible without decoding it."""
    if _is_array(image):
        array = _check_array(image, name, channels, is_single=True)
        return _Image(array.shape[:2], lambda: array)
    is_path = isinstance(image, str | os.PathLike)
    if not is_path and not isinstance(image, Image.Image):
        raise UserError(
            f"{name} must be an array [height, width, {channels}], the path of an "
            f"image, or a PIL image; received {format_value(image)}; give several "
            "images as a list, or as an array with a batch axis"
        )
    if not is_path:
        if channels != 3:
            raise UserError(
                f"{name} must be an array [height, width, {channels}] or a path "
                f"because the model needs {channels} channels; received "
                f"{format_value(image)}"
            )
        size = inputs.check_pil_image(image, name)
        return _Image(size, lambda: inputs.convert_pil_image(image, name))
    path = os.fspath(image)
    if file_kinds.find_kind(path) is file_kinds.Kind.DIRECTORY:
        raise UserError(
            f"{name} must be an image file; received the folder {escape(path)}; list "
            "its files with glob.glob"
        )
    size = inputs.check_image(path, channels)
    return _Image(size, lambda: inputs.read_image(path, channels))


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "__array__")


def _check_array(value: Any, name: str, channels: int, is_single: bool) -> np.ndarray:
    """Returns images as an array; raises UserError for an invalid shape or values."""
    array = np.asarray(value)
    shape = f"[height, width, {channels}]"
    shape = shape if is_single else f"[batch, height, width, {channels}]"
    if array.dtype.kind not in "iuf":
        raise UserError(
            f"{name} must be an array of uint8 or float32; received "
            f"{array.dtype}{_advise_on_type(array)}"
        )
    if array.ndim != 3 + (not is_single) or array.shape[-1] != channels:
        raise UserError(
            f"{name} must have the shape {shape}; received {list(array.shape)}"
            f"{_advise_on_shape(array.shape, channels)}"
        )
    if not array.size:
        raise UserError(
            f"{name} must not be empty; received the shape {list(array.shape)}"
        )
    if array.dtype != np.uint8:
        _check_values(array, name)
    return array


def _advise_on_type(array: np.ndarray) -> str:
    is_list = array.dtype.kind in "OUS"
    return "; give images of different sizes and paths as a list" if is_list else ""


def _advise_on_shape(shape: tuple[int, ...], channels: int) -> str:
    if len(shape) > 2 and shape[-3] == channels and shape[-1] > 4:
        return "; move the channels to the end with np.moveaxis(images, -3, -1)"
    if channels == 3 and shape[-1] == 4:
        return "; drop the alpha channel with images[..., :3]"
    if channels == 3 and shape[-1] == 1:
        return "; repeat grey images with np.repeat(images, 3, -1)"
    if channels == 3 and len(shape) == 2:
        return "; repeat a grey image with np.stack([image] * 3, -1)"
    return ""


def _check_values(array: np.ndarray, name: str) -> None:
    """Raises UserError unless values are in 0..255; floats must not all be in 0..1."""
    lowest, highest = float(array.min()), float(array.max())
    received = f"{name} must be RGB 0..255; received values from {lowest:g} to "
    received += f"{highest:g}"
    if not (np.isfinite(lowest) and np.isfinite(highest)):
        raise UserError(received)
    if lowest < -_TOLERANCE or highest > 255 + _TOLERANCE:
        is_normalized = -16 < lowest < 0 and highest < 16
        advice = "scale or clip them to 0..255"
        advice = "do not normalise them: the model does" if is_normalized else advice
        raise UserError(f"{received}; {advice}")
    # Images scaled to 0..1 are common, and labels of nearly black images are useless.
    if array.dtype.kind == "f" and 0 < highest <= 1:
        raise UserError(
            f"{received}; multiply them by 255, or pass a nearly black image as uint8"
        )
