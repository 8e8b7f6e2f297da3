"""Encoded pictures in, encoded label maps out, in a graph, one by one."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from deeplab_tf.images.decoding import (
    PNG_HEADER_LENGTH,
    PNG_SIGNATURE,
    decode_image,
    png_size,
)

# What resizing by products with matrices takes grows with the square of a side.
MOST_SIDE = 1 << 14
# A picture may have so many bytes a pixel, and as many besides as descriptions and
# colour profiles take: texts in a PNG are inflated, whatever their length.
_BYTES_PER_PIXEL, _OTHER_BYTES = 8, 1 << 20
_JPEG_SIGNATURE = (*b"\xff\xd8\xff",)
# The byte of a PNG with its kind of colour; this one would lose its second channel.
_KIND, _GREY_WITH_ALPHA = 25, 4


class Bounds(NamedTuple):
    """What a server may be made to label at once by a few bytes.

    Attributes:
        pixels: Of a picture, and of what the model sees of it.
        seen: From height and width of a picture, int32 `[2]`, to those of what the
            model sees; None is the same.
    """

    pixels: int = 1 << 24
    seen: Callable | None = None

    @property
    def refusal(self) -> str:
        """What is said of a picture that is not labelled."""
        return (
            "the image is no JPEG or PNG of grey, RGB or RGBA that can be decoded, of "
            f"at most {self.pixels} pixels and {MOST_SIDE} a side"
        )

    def hold(self, sides):
        """Returns whether sides, int32 `[2]`, and what is seen are within bounds."""
        held = self._are_small(sides)
        return held if self.seen is None else held & self._are_small(self.seen(sides))

    def _are_small(self, sides):
        pixels = tf.reduce_prod(tf.cast(sides, tf.float32))
        return (pixels <= self.pixels) & (tf.reduce_max(sides) <= MOST_SIDE)


def _known(encoded):
    """Returns which strings are JPEGs, which PNGs of a kind to decode, and their sides.

    No operation here fails, whatever the bytes.
    """
    head = tf.io.decode_raw(
        encoded, tf.uint8, fixed_length=PNG_HEADER_LENGTH
    )  # zeros after it
    head = tf.cast(head, tf.int32)
    is_jpeg = tf.reduce_all(head[:, : len(_JPEG_SIGNATURE)] == _JPEG_SIGNATURE, 1)
    is_png = tf.reduce_all(head[:, : len(PNG_SIGNATURE)] == PNG_SIGNATURE, 1)
    sides = png_size(head)
    is_kind = (head[:, _KIND] != _GREY_WITH_ALPHA) & (tf.reduce_min(sides, 1) > 0)
    return is_jpeg, is_png & is_kind, sides


def readable(encoded, bounds: Bounds):
    """Returns which pictures can be decoded, bool `[batch]`.

    Args:
        encoded: Bytes, strings `[batch]`.
        bounds: Of their sizes, which are known before anything is decoded.
    """
    is_jpeg, is_png, sides = _known(encoded)
    any_jpeg = tf.io.encode_jpeg(tf.zeros([1, 1, 3], tf.uint8))
    jpegs = tf.where(is_jpeg, encoded, any_jpeg)
    pictures = tf.where(is_jpeg | is_png, encoded, "")

    def number_of_decoded(number, jpeg, picture, is_jpeg, sides):
        """Returns the number of a picture that can be decoded; fails for others."""
        size = tf.where(is_jpeg, tf.image.extract_jpeg_shape(jpeg)[:2], sides)
        pixels = tf.reduce_prod(tf.cast(size, tf.float32))
        length = tf.cast(tf.strings.length(picture), tf.float32)
        is_dense = length <= _BYTES_PER_PIXEL * pixels + _OTHER_BYTES
        refused = tf.debugging.Assert(bounds.hold(size) & is_dense, ["refused"])
        with tf.control_dependencies([refused]):
            decoded = tf.raw_ops.DecodeImage(
                contents=picture, channels=3, expand_animations=False
            )
        # Of what nothing depends on, nothing is computed.
        return tf.where(tf.size(decoded) > 0, number, 0)

    # Nothing else in a graph goes on behind an operation that fails. The function has
    # no branches: it is prepared anew in every call, which takes long if it has.
    dataset = tf.data.Dataset.from_tensor_slices((jpegs, pictures, is_jpeg, sides))
    numbers = dataset.enumerate().map(
        lambda number, parts: number_of_decoded(number, *parts)
    )
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    options.autotune.enabled = False
    return (
        numbers.ignore_errors()
        .with_options(options)
        .reduce(
            tf.zeros(tf.shape(encoded), tf.bool),
            lambda found, number: tf.tensor_scatter_nd_update(
                found, [[number]], [True]
            ),
        )
    )


def label_maps(encoded, labels: Callable, num_classes: int, bounds: Bounds):
    """Returns label maps as PNGs, and what is wrong with each picture.

    A picture that cannot be labelled has an empty label map; the others of the batch
    are labelled all the same.

    Args:
        encoded: Bytes of JPEGs or PNGs, each of its own size, strings `[batch]`.
        labels: From uint8 `[1, height, width, 3]` to int32 `[1, height, width]`.
        num_classes: Number of classes; label maps of more than 256 have 16 bits.
        bounds: Of the sizes of the pictures.

    Returns:
        Strings `[batch]` of grey PNGs, and strings `[batch]`, empty where all is well.
    """
    dtype = tf.uint8 if num_classes <= 256 else tf.uint16

    def labelled(picture):
        label = tf.cast(labels(decode_image(picture)[None])[0], dtype)
        return tf.io.encode_png(label[..., None])

    def one(arguments):
        picture, is_readable = arguments
        return tf.cond(is_readable, lambda: labelled(picture), lambda: tf.constant(b""))

    are_readable = readable(encoded, bounds)
    maps = tf.map_fn(
        one,
        (encoded, are_readable),
        fn_output_signature=tf.TensorSpec([], tf.string),
        parallel_iterations=1,  # more would be in memory at once
    )
    return maps, tf.where(are_readable, "", bounds.refusal)
