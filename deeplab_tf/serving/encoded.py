"""Labels encoded images inside a graph, for the signature `encoded`."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from deeplab_tf.images.decoding import (
    PNG_HEADER_LENGTH,
    PNG_SIGNATURE,
    decode_image,
    parse_png_size,
)
from deeplab_tf.serving.choices import MAX_PIXELS

# Memory for resizing by matrix products grows with the square of a side.
MAX_SIDE = 1 << 14
# Limits on encoded bytes: per pixel, and for metadata such as colour profiles. Text in
# PNGs is decompressed no matter how long it is.
_BYTES_PER_PIXEL, _OTHER_BYTES = 8, 1 << 20
_JPEG_SIGNATURE = (*b"\xff\xd8\xff",)
# Position of the colour type in a PNG, and the type whose alpha would be lost.
_COLOR_TYPE, _GREY_WITH_ALPHA = 25, 4


class Bounds(NamedTuple):
    """Limits on the size of images, so that a few bytes cannot overload a server.

    Attributes:
        pixels: Maximum pixels of an image, before and after resizing.
        resized_size: Maps the height and width of an image, int32 `[2]`, to those after
            resizing; None if images are not resized.
    """

    pixels: int = MAX_PIXELS
    resized_size: Callable | None = None

    @property
    def message(self) -> str:
        """The error message for an image that cannot be labelled."""
        return (
            "the image is not a greyscale, RGB or RGBA JPEG or PNG that can be decoded "
            f"and has at most {self.pixels} pixels and {MAX_SIDE} per side"
        )

    def is_allowed(self, size):
        """Returns whether an image of height and width `size` is within the limits."""
        is_allowed = self._is_size_allowed(size)
        if self.resized_size is None:
            return is_allowed
        return is_allowed & self._is_size_allowed(self.resized_size(size))

    def _is_size_allowed(self, size):
        pixels = tf.reduce_prod(tf.cast(size, tf.float32))
        return (pixels <= self.pixels) & (tf.reduce_max(size) <= MAX_SIDE)


def _read_headers(encoded):
    """Returns masks of the JPEGs and of the supported PNGs, and the sizes of the PNGs.

    No operation here fails, whatever the bytes are.
    """
    head = tf.io.decode_raw(encoded, tf.uint8, fixed_length=PNG_HEADER_LENGTH)
    head = tf.cast(head, tf.int32)
    is_jpeg = tf.reduce_all(head[:, : len(_JPEG_SIGNATURE)] == _JPEG_SIGNATURE, 1)
    is_png = tf.reduce_all(head[:, : len(PNG_SIGNATURE)] == PNG_SIGNATURE, 1)
    sides = parse_png_size(head)
    has_alpha = head[:, _COLOR_TYPE] == _GREY_WITH_ALPHA
    is_supported = is_png & ~has_alpha & (tf.reduce_min(sides, 1) > 0)
    return is_jpeg, is_supported, sides


def decode_checked(encoded, bounds: Bounds):
    """Decodes one JPEG or PNG, after checking its header; uint8 `[height, width, 3]`.

    Raises:
        tf.errors.InvalidArgumentError: if the image cannot be decoded or is not within
            `bounds`.
    """
    is_jpeg, is_png, sides = _read_headers(encoded[None])
    jpeg, image = _mask_others(encoded[None], is_jpeg, is_png)
    return _decode_checked(jpeg[0], image[0], is_jpeg[0], sides[0], bounds)


def _mask_others(encoded, is_jpeg, is_png):
    """Returns the JPEGs, others replaced by a valid one, and the supported images."""
    any_jpeg = tf.io.encode_jpeg(tf.zeros([1, 1, 3], tf.uint8))
    jpegs = tf.where(is_jpeg, encoded, any_jpeg)
    return jpegs, tf.where(is_jpeg | is_png, encoded, "")


def _decode_checked(jpeg, image, is_jpeg, sides, bounds: Bounds):
    """Decodes an image; fails if its size is not within the bounds.

    It has no branches because datasets instantiate it at every call, which is slow with
    branches.
    """
    size = tf.where(is_jpeg, tf.image.extract_jpeg_shape(jpeg)[:2], sides)
    pixels = tf.reduce_prod(tf.cast(size, tf.float32))
    length = tf.cast(tf.strings.length(image), tf.float32)
    is_dense = length <= _BYTES_PER_PIXEL * pixels + _OTHER_BYTES
    is_allowed = tf.debugging.Assert(bounds.is_allowed(size) & is_dense, ["refused"])
    with tf.control_dependencies([is_allowed]):
        return tf.raw_ops.DecodeImage(
            contents=image, channels=3, expand_animations=False
        )


def find_decodable(encoded, bounds: Bounds):
    """Returns a mask of the encoded images that can be decoded, bool `[batch]`.

    `encoded` are strings `[batch]`; `bounds` limit their size before they are decoded.
    """
    is_jpeg, is_png, sides = _read_headers(encoded)
    jpegs, images = _mask_others(encoded, is_jpeg, is_png)

    def check(index, parts):
        """Returns the index of an image if it can be decoded; fails otherwise."""
        # The result must depend on the decoded image, or it is never decoded.
        return tf.where(tf.size(_decode_checked(*parts, bounds)) > 0, index, 0)

    # Only a dataset can ignore an operation that fails in a graph.
    dataset = tf.data.Dataset.from_tensor_slices((jpegs, images, is_jpeg, sides))
    indices = dataset.enumerate().map(check)
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return (
        indices.ignore_errors()
        .with_options(options)
        .reduce(
            tf.zeros(tf.shape(encoded), tf.bool),
            lambda found, index: tf.tensor_scatter_nd_update(found, [[index]], [True]),
        )
    )


def label_encoded(encoded, labels: Callable, num_classes: int, bounds: Bounds):
    """Returns label maps as PNGs, and an error message for each image.

    An image that cannot be labelled gets an empty label map and does not affect the
    rest of the batch.

    Args:
        encoded: JPEGs or PNGs of any size, strings `[batch]`.
        labels: Maps uint8 `[1, height, width, 3]` to int32 `[1, height, width]`.
        num_classes: Number of classes; above 256, label maps have 16 bits.
        bounds: Limits on the size of the images.

    Returns:
        Greyscale PNGs and error messages ("" without an error), both strings `[batch]`.
    """
    dtype = tf.uint8 if num_classes <= 256 else tf.uint16

    def label_image(image):
        label = tf.cast(labels(decode_image(image)[None])[0], dtype)
        return tf.io.encode_png(label[..., None])

    def label_if_decodable(arguments):
        image, can_decode = arguments
        return tf.cond(can_decode, lambda: label_image(image), lambda: tf.constant(b""))

    is_decodable = find_decodable(encoded, bounds)
    maps = tf.map_fn(
        label_if_decodable,
        (encoded, is_decodable),
        fn_output_signature=tf.TensorSpec([], tf.string),
        parallel_iterations=1,  # saves memory
    )
    return maps, tf.where(is_decodable, "", bounds.message)
