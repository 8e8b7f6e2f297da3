"""What a SavedModel can be asked for: labels, probabilities, encoded maps, features."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from deeplab_tf.data.augment import resize_image, size_in_range
from deeplab_tf.images.resizing import resize_nearest
from deeplab_tf.inference import Predictor, resize_to
from deeplab_tf.models.calls import trace_calls
from deeplab_tf.serving.encoded import Bounds, label_maps

# Names that clients of the official frozen graphs know.
INPUT = "ImageTensor"
OUTPUT = "SemanticPredictions"
# Ours.
PROBABILITIES = "SemanticProbabilities"
# TensorFlow Serving sends strings over REST as base64 if they are called so.
ENCODED_INPUT, ENCODED_OUTPUT = "image_bytes", "label_map_bytes"
ERROR = "error"
SERVING = "serving_default"


class Signature(NamedTuple):
    """A function of one input.

    Attributes:
        function: Of a tensor, to outputs by their names.
        spec: Of the input, with its name.
    """

    function: Callable
    spec: tf.TensorSpec


class Resizing(NamedTuple):
    """How images are resized before they are looked at, as in `resize_to_range`.

    Attributes:
        min_size: Shorter side, in pixels.
        max_size: Bound of the longer side.
        factor: Sides are raised to the next multiple of it, plus 1.
    """

    min_size: int
    max_size: int | None = None
    factor: int | None = None


class ResizedView:
    """A predictor that looks at resized images; what it gives has the images' size.

    Labels go back to that size as those of their nearest neighbours, as in the official
    export.

    Args:
        predictor: Looks at the resized images.
        resizing: Their size.
    """

    def __init__(self, predictor: Predictor, resizing: Resizing):
        self.config = predictor.config
        self._predictor = predictor
        self._resizing = resizing

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self._predictor.num_classes

    @property
    def protocol(self) -> dict:
        """What decides about results besides weights."""
        return self._predictor.protocol | {"resizing": list(self._resizing)}

    def _resize(self, images):
        def resize(image):
            return resize_image(image, self.seen(tf.shape(image)[:2]))

        spec = tf.TensorSpec([None, None, images.shape[-1]], tf.float32)
        return tf.map_fn(resize, images, fn_output_signature=spec)

    def seen(self, sides):
        """Returns the size to which an image is resized, both int32 `[2]`."""
        return size_in_range(sides, *self._resizing)

    def labels(self, images):
        """Returns the most probable classes; see `Predictor`."""
        return self._nearest(self._predictor.labels(self._resize(images)), images)

    def probabilities(self, images):
        """Returns the probabilities, interpolated bilinearly; see `Predictor`."""
        return self.labels_and_probabilities(images)[1]

    def labels_and_probabilities(self, images):
        """Returns what `labels` and `probabilities` do."""
        seen = self._resize(images)
        labels, probabilities = self._predictor.labels_and_probabilities(seen)
        size = tf.unstack(tf.shape(images)[1:3])
        return self._nearest(labels, images), resize_to(probabilities, size)

    def _nearest(self, labels, images):
        """Returns labels at the size of images."""
        return resize_nearest(labels[..., None], tf.shape(images)[1:3])[..., 0]


def features_model(model: keras.Model, logits: bool = False) -> keras.Model | None:
    """Returns a model of the encoder's features; None if it sees several scales.

    `high_level` is what the ASPP or its like gives, else the backbone; of each stride
    that the decoder takes, `low_level_<stride>` is what the backbone gives.

    Args:
        model: A model of `build_model`, every layer of which is shared.
        logits: Whether it gives `logits` as well.
    """
    image = keras.Input(batch_shape=model.input.shape, dtype=model.input.dtype)
    given = {call.layer.name: call.outputs for call in trace_calls(model, image)[0]}
    if "backbone" not in given:
        return None
    high_level, *low_level = given["backbone"]
    high_level = given.get("context", [high_level])[0]
    strides = model.model_config.decoder_output_strides
    names = ["high_level", *(f"low_level_{stride}" for stride in strides)]
    outputs = dict(zip(names, [high_level, *low_level], strict=True))
    if logits:
        (outputs["logits"],) = given["logits"]
    return keras.Model(image, outputs, name="features")


def _labels(labels: Callable, images) -> dict:
    return {OUTPUT: labels(images)}


def _probabilities(both: Callable, images) -> dict:
    return {PROBABILITIES: both(images)[1]}


def _both(both: Callable, images) -> dict:
    return dict(zip((OUTPUT, PROBABILITIES), both(images), strict=True))


def _encoded(labels: Callable, num_classes: int, bounds: Bounds, encoded) -> dict:
    maps, errors = label_maps(encoded, labels, num_classes, bounds)
    return {ENCODED_OUTPUT: maps, ERROR: errors}


def _features(features: Callable, images) -> dict:
    given = features(tf.cast(images, tf.float32), training=False)
    return {name: tf.cast(x, tf.float32) for name, x in given.items()}


def signatures(
    features: Callable | None,
    view,
    gives_probabilities: bool = False,
    max_pixels: int | None = Bounds().pixels,
) -> dict[str, Signature]:
    """Returns what an export can be asked for, by name.

    Args:
        features: Gives what `features_model` does; None offers no `features`.
        view: A `Predictor`, or a `ResizedView`.
        gives_probabilities: Whether `serving_default` gives probabilities too.
        max_pixels: Bound of an encoded picture; None offers no `encoded`.
    """
    config = view.config
    image = tf.TensorSpec([None, None, None, config.channels], tf.uint8, name=INPUT)
    picture = tf.TensorSpec([None], tf.string, name=ENCODED_INPUT)
    # A function of its own is traced and stored once, however many signatures call it.
    compiled = functools.partial(tf.function, input_signature=[image], autograph=False)
    labels, both = compiled(view.labels), compiled(view.labels_and_probabilities)
    found = {
        SERVING: (_both, both) if gives_probabilities else (_labels, labels),
        "probabilities": (_probabilities, both),
    }
    if features is not None:
        found["features"] = (_features, features)
    offered = {
        name: Signature(functools.partial(*parts), image)
        for name, parts in found.items()
    }
    if config.channels == 3 and max_pixels is not None:
        bounds = Bounds(max_pixels, getattr(view, "seen", None))
        function = functools.partial(_encoded, labels, config.num_classes, bounds)
        offered["encoded"] = Signature(function, picture)
    return offered
