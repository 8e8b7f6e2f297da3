"""Encoded pictures in, encoded label maps out, in a graph, one by one."""

from collections.abc import Callable

import tensorflow as tf

from deeplab_tf.data.pictures import decode_image

# What a server may be made to label at once by a few bytes: the scores of 21 classes
# are then 2.8 GB.
MOST_PIXELS = 1 << 25
REFUSAL = (
    "the image is no JPEG or PNG of grey, RGB or RGBA that can be decoded, of at most "
    f"{MOST_PIXELS} pixels"
)
_JPEG_SIGNATURE, _PNG_SIGNATURE = (*b"\xff\xd8\xff",), (*b"\x89PNG",)
# Of a PNG's first bytes: its sides, and its kind of colour, one of which would lose its
# second channel.
_HEAD, _SIDES, _KIND, _GREY_WITH_ALPHA = 26, slice(16, 24), 25, 4


def _known(encoded):
    """Returns which strings are JPEGs, and which PNGs of a size and kind to decode.

    No operation here fails, whatever the bytes.
    """
    head = tf.io.decode_raw(encoded, tf.uint8, fixed_length=_HEAD)  # zeros behind it
    head = tf.cast(head, tf.int32)
    is_jpeg = tf.reduce_all(head[:, : len(_JPEG_SIGNATURE)] == _JPEG_SIGNATURE, 1)
    is_png = tf.reduce_all(head[:, : len(_PNG_SIGNATURE)] == _PNG_SIGNATURE, 1)
    bytes_of_sides = tf.cast(tf.reshape(head[:, _SIDES], [-1, 2, 4]), tf.float32)
    sides = tf.reduce_sum(bytes_of_sides * [1 << 24, 1 << 16, 1 << 8, 1], 2)
    pixels = tf.reduce_prod(sides, 1)
    is_kind = head[:, _KIND] != _GREY_WITH_ALPHA
    return is_jpeg, is_png & is_kind & (pixels <= MOST_PIXELS)


def _number_of_decoded(number, jpeg, picture):
    """Returns a number if a picture can be decoded; fails if not."""
    pixels = tf.reduce_prod(tf.cast(tf.image.extract_jpeg_shape(jpeg)[:2], tf.float32))
    refused = tf.debugging.Assert(pixels <= MOST_PIXELS, [REFUSAL])
    with tf.control_dependencies([refused]):
        decoded = tf.raw_ops.DecodeImage(
            contents=picture, channels=3, expand_animations=False
        )
    # Of what nothing depends on, nothing is computed.
    return tf.where(tf.size(decoded) > 0, number, 0)


def readable(encoded):
    """Returns which pictures can be decoded, bool `[batch]`.

    Args:
        encoded: Bytes, strings `[batch]`.
    """
    is_jpeg, is_png = _known(encoded)
    any_jpeg = tf.io.encode_jpeg(tf.zeros([1, 1, 3], tf.uint8))
    jpegs = tf.where(is_jpeg, encoded, any_jpeg)
    pictures = tf.where(is_jpeg | is_png, encoded, "")
    # Nothing else in a graph goes on behind an operation that fails. The function has
    # no branches: it is prepared anew in every call, which takes long if it has.
    dataset = tf.data.Dataset.from_tensor_slices((jpegs, pictures)).enumerate()
    numbers = dataset.map(lambda number, pair: _number_of_decoded(number, *pair))
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


def label_maps(encoded, labels: Callable, num_classes: int):
    """Returns label maps as PNGs, and what is wrong with each picture.

    A picture that cannot be labelled has an empty label map; the others of the batch
    are labelled all the same.

    Args:
        encoded: Bytes of JPEGs or PNGs, each of its own size, strings `[batch]`.
        labels: From uint8 `[1, height, width, 3]` to int32 `[1, height, width]`.
        num_classes: Number of classes; label maps of more than 256 have 16 bits.

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

    are_readable = readable(encoded)
    maps = tf.map_fn(
        one,
        (encoded, are_readable),
        fn_output_signature=tf.TensorSpec([], tf.string),
        parallel_iterations=1,  # more would be in memory at once
    )
    return maps, tf.where(are_readable, "", REFUSAL)
