"""Makes the signatures of a SavedModel, and the outputs of a frozen graph."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import tensorflow as tf

from deeplab_tf.data.augment import resize_image, size_in_range
from deeplab_tf.images.resizing import resize_nearest
from deeplab_tf.inference import Predictor, resize_to
from deeplab_tf.models.network import feature_tensors
from deeplab_tf.serving.encoded import Bounds, label_encoded

# Names in the official frozen graphs.
INPUT = "ImageTensor"
OUTPUT = "SemanticPredictions"
PROBABILITIES = "SemanticProbabilities"
RAW_OUTPUT = "RawSemanticPredictions"
RAW_PROBABILITIES = "RawSemanticProbabilities"
# TensorFlow Serving's REST API sends strings as base64 if their names end in `_bytes`.
ENCODED_INPUT, ENCODED_OUTPUT = "image_bytes", "label_map_bytes"
ERROR = "error"
ENCODED = "encoded"
SERVING = "serving_default"


class Signature(NamedTuple):
    """A function from a tensor, described by `spec`, to named outputs."""

    function: Callable
    spec: tf.TensorSpec


class Resizing(NamedTuple):
    """Resizing of images before inference, as in `resize_to_range`.

    Attributes:
        min_size: Length of the shorter side, in pixels.
        max_size: Maximum length of the longer side.
        factor: Sides are rounded up to a multiple of this, plus 1.
    """

    min_size: int
    max_size: int | None = None
    factor: int | None = None


class ResizingPredictor:
    """A predictor that resizes images, and resizes the results to their original size.

    Labels are resized by nearest neighbour, as in the official export.
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
        """Inference settings that affect results."""
        return self._predictor.protocol | {"resizing": list(self._resizing)}

    def _resize(self, images):
        def resize(image):
            return resize_image(image, self.resized_size(tf.shape(image)[:2]))

        spec = tf.TensorSpec([None, None, images.shape[-1]], tf.float32)
        return tf.map_fn(resize, images, fn_output_signature=spec)

    def resized_size(self, size):
        """Returns the size after resizing; both are int32 `[2]`."""
        return size_in_range(size, *self._resizing)

    def labels(self, images):
        """Returns the most probable classes; see `Predictor`."""
        labels = self._predictor.labels(self._resize(images))
        return self._restore_size(labels, images)

    def probabilities(self, images):
        """Returns the probabilities, resized bilinearly; see `Predictor`."""
        return self.labels_and_probabilities(images)[1]

    def labels_and_probabilities(self, images):
        """Returns the results of `labels` and `probabilities`, computed together."""
        resized = self._resize(images)
        both = self._predictor.labels_and_probabilities(resized)
        return tuple(self._restore_size(x, images) for x in both)

    def raw_labels_and_probabilities(self, images):
        """Returns the results for the resized and padded images; see `Predictor`."""
        return self._predictor.raw_labels_and_probabilities(self._resize(images))

    def crop(self, results, images):
        """Returns raw results without padding, at the original size of the images."""
        height, width = tf.unstack(self.resized_size(tf.shape(images)[1:3]))
        return self._restore_size(results[:, :height, :width], images)

    def _restore_size(self, results, images):
        """Resizes results to the images' size: labels by nearest neighbour."""
        size = tf.shape(images)[1:3]
        if results.dtype.is_integer:
            return resize_nearest(results[..., None], size)[..., 0]
        return resize_to(results, tf.unstack(size))


def make_features_model(model: keras.Model) -> keras.Model | None:
    """Makes a model of the encoder's features; None if there is an image pyramid.

    It shares the layers of `model`. Its outputs are `high_level`, from the context
    module or, without one, from the backbone; `low_level_<stride>` from the backbone
    for each stride of the decoder; and `logits`.
    """
    features = feature_tensors(model)
    if "backbone" not in features:
        return None
    backbone = features.pop("backbone")
    outputs = {"high_level": features.pop("aspp", backbone)}
    outputs |= {n: x for n, x in features.items() if n.startswith("low_level")}
    outputs["logits"] = features["logits"]
    return keras.Model(model.input, outputs, name="features")


def _compile_network(network: keras.Model) -> Callable:
    """Compiles a network for inference; graphs call it instead of copying its nodes.

    Vectors are packed into one variable: each variable is an argument of every function
    around the network, which takes much of the time for loading an export.
    """
    spec = tf.TensorSpec(network.input.shape, network.input.dtype)
    vectors = [v for v in network.weights if len(v.shape) == 1]
    # The empty last part is for networks without vectors.
    packed = tf.Variable(tf.concat([*(v.value for v in vectors), []], 0))
    indices = {id(v): i for i, v in enumerate(vectors)}

    @tf.function(input_signature=[spec], autograph=False)
    def run(images):
        parts = tf.split(packed, [*(v.shape[0] for v in vectors), 0])

        def read(variables):
            indexed = ((indices.get(id(v)), v) for v in variables)
            return [v.value if i is None else parts[i] for i, v in indexed]

        state = read(network.trainable_variables), read(network.non_trainable_variables)
        return network.stateless_call(*state, images, training=False)[0]

    return lambda images, training=False: run(images)


def share_network(predictor: Predictor, model: keras.Model) -> Callable | None:
    """Makes the networks of a predictor functions that all signatures share.

    TensorFlow then stores and loads each network once. Changes the predictor.

    Returns:
        A function from images to the outputs of `make_features_model`; None if the
        model has no features.
    """
    joint = make_features_model(model)
    run = _compile_network(predictor.network if joint is None else joint)

    def logits(images: tf.Tensor, training: bool = False) -> tf.Tensor:
        return run(images) if joint is None else run(images)["logits"]

    for scale, network in predictor.networks.items():
        is_shared = network is predictor.network
        predictor.networks[scale] = logits if is_shared else _compile_network(network)
    return run if joint is not None else None


def _make_label_output(predict: Callable, images) -> dict:
    return {OUTPUT: predict(images)}


def _make_probability_output(predict: Callable, images) -> dict:
    return {PROBABILITIES: predict(images)[1]}


def _make_label_and_probability_outputs(predict: Callable, images) -> dict:
    return dict(zip((OUTPUT, PROBABILITIES), predict(images), strict=True))


def _make_raw_outputs(predict: Callable, images) -> dict:
    labels, probabilities = predict(images)
    return {RAW_OUTPUT: tf.cast(labels, tf.float32), RAW_PROBABILITIES: probabilities}


def make_official_outputs(predictor, images) -> dict:
    """Returns all outputs of the official frozen graph by name; see `make_signatures`.

    The network runs once, unless there are windows.
    """
    labels, probabilities = predictor.raw_labels_and_probabilities(images)
    return {
        OUTPUT: predictor.crop(labels, images),
        PROBABILITIES: predictor.crop(probabilities, images),
        **_make_raw_outputs(lambda _: (labels, probabilities), images),
    }


def _make_encoded_outputs(
    predict: Callable, num_classes: int, bounds: Bounds, encoded
) -> dict:
    maps, errors = label_encoded(encoded, predict, num_classes, bounds)
    return {ENCODED_OUTPUT: maps, ERROR: errors}


def _make_feature_outputs(features: Callable, images) -> dict:
    """Returns the features by name as float32, without the logits."""
    outputs = dict(features(tf.cast(images, tf.float32), training=False))
    del outputs["logits"]
    return {name: tf.cast(x, tf.float32) for name, x in outputs.items()}


def image_spec(channels: int) -> tf.TensorSpec:
    """Returns the input of all signatures that take pixels."""
    return tf.TensorSpec([None, None, None, channels], tf.uint8, name=INPUT)


def make_signatures(
    features: Callable | None,
    predictor,
    gives_probabilities: bool = False,
    max_pixels: int | None = Bounds().pixels,
) -> dict[str, Signature]:
    """Returns the signatures of an export, by name.

    Args:
        features: Function with the outputs of `make_features_model`; None omits the
            signature `features`.
        predictor: A `Predictor` or a `ResizingPredictor`.
        gives_probabilities: Whether `serving_default` also returns probabilities.
        max_pixels: Largest encoded image, in pixels; None omits the signature
            `encoded`.
    """
    config = predictor.config
    image = image_spec(config.channels)
    encoded = tf.TensorSpec([None], tf.string, name=ENCODED_INPUT)
    # A tf.function is stored once, however many signatures call it.
    compiled = functools.partial(tf.function, input_signature=[image], autograph=False)
    labels = compiled(predictor.labels)
    both = compiled(predictor.labels_and_probabilities)
    functions = {
        SERVING: (_make_label_and_probability_outputs, both)
        if gives_probabilities
        else (_make_label_output, labels),
        "probabilities": (_make_probability_output, both),
        "raw": (_make_raw_outputs, predictor.raw_labels_and_probabilities),
    }
    if features is not None:
        functions["features"] = (_make_feature_outputs, features)
    found = {
        name: Signature(functools.partial(*parts), image)
        for name, parts in functions.items()
    }
    if config.channels == 3 and max_pixels is not None:
        bounds = Bounds(max_pixels, getattr(predictor, "resized_size", None))
        function = functools.partial(
            _make_encoded_outputs, labels, config.num_classes, bounds
        )
        found[ENCODED] = Signature(function, encoded)
    return found
