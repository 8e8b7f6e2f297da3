"""The DeepLabv3 and DeepLabv3+ networks (1706.05587; 1802.02611, Fig. 2)."""

import functools
from collections.abc import Sequence

import keras
from keras import layers, tree

from deeplab_tf import strict_json
from deeplab_tf.config import ModelConfig
from deeplab_tf.models import layers as deeplab_layers
from deeplab_tf.models.aspp import aspp, refine_context
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.decoder import decoder, sum_decoder
from deeplab_tf.models.dense_prediction_cell import dense_prediction_cell
from deeplab_tf.models.layers import head_style, separable_conv
from deeplab_tf.models.lr_aspp import lr_aspp
from deeplab_tf.models.normalization import PixelScaling
from deeplab_tf.models.parts import Part, call_part
from deeplab_tf.models.resampling import ResizeLike, WindowMean
from deeplab_tf.models.variables import leaf_layers


@keras.saving.register_keras_serializable("deeplab_tf")
class NormalizeImage(PixelScaling):
    """Scales pixels for the backbone: to [-1, 1], or by the mean (and deviation).

    Stores the configuration of the network, because `clone_model` copies only layers to
    the new model.
    """

    def __init__(self, model_config: dict, **kwargs):
        self.model_config = strict_json.build_dataclass(
            ModelConfig, model_config, "model_config"
        )
        super().__init__(*_pixel_scaling(self.model_config), **kwargs)

    def get_config(self):
        """Returns the constructor arguments."""
        config = layers.Layer.get_config(self)
        return {**config, "model_config": strict_json.to_values(self.model_config)}


def _pixel_scaling(config: ModelConfig) -> tuple:
    """Returns the factor on pixels and the offset after it, numbers or per channel."""
    conventions = config.conventions
    if conventions.pixel_mean is None and not config.traits.subtracts_mean:
        return 2.0 / 255.0, -1.0
    if conventions.pixel_deviation is None:
        return 1.0, tuple(-mean for mean in config.mean_pixel)
    pairs = zip(config.mean_pixel, conventions.pixel_deviation, strict=True)
    factors = tuple(1.0 / deviation for deviation in conventions.pixel_deviation)
    return factors, tuple(-mean / deviation for mean, deviation in pairs)


def find_model_config(model: keras.Model) -> ModelConfig:
    """Returns the configuration stored in the layers of a network."""
    found = (x for x in leaf_layers(model) if isinstance(x, NormalizeImage))
    return next(found).model_config


def _backbone(image: keras.KerasTensor, config: ModelConfig) -> list[keras.KerasTensor]:
    """Returns high-level features of scaled images, then those for the decoder."""
    traits, conventions = config.traits, config.conventions
    options = {name: getattr(config, name) for name in traits.options}
    features = BACKBONES[config.backbone](
        image,
        config.output_stride,
        conventions={name: getattr(conventions, name) for name in traits.conventions},
        batch_norm_momentum=config.batch_norm_momentum,
        batch_norm_epsilon=conventions.batch_norm_epsilon,
        **options,
    )
    return [features[key] for key in ("high_level", *config.decoder_output_strides)]


def _head_options(config: ModelConfig, separable: bool) -> dict:
    """Returns the options of an ASPP or a decoder that depend on the conventions."""
    conventions = config.conventions
    convolution = functools.partial(
        separable_conv, depthwise_normalization=conventions.depthwise_normalization
    )
    return {
        "separable": convolution if separable else None,
        "resizing": conventions.resizing,
        **head_style(
            config.batch_norm_momentum,
            conventions.batch_norm_epsilon,
            config.bounded_activation,
        ),
    }


def _context(x: keras.KerasTensor, config: ModelConfig) -> keras.KerasTensor:
    """Applies the ASPP, or the module that replaces it."""
    context = config.context
    window: dict = {
        "crop_size": context.image_pooling_crop_size,
        "output_stride": config.output_stride,
    }
    if context.dense_prediction_cell:
        # The official cell never has ReLU6.
        return dense_prediction_cell(
            x,
            context.dense_prediction_cell,
            config.output_stride,
            window,
            context.dropout,
            config.conventions.resizing,
            **head_style(
                config.batch_norm_momentum, config.conventions.batch_norm_epsilon
            ),
        )
    rates = config.atrous_rates
    window["strides"] = context.image_pooling_stride
    options: dict = {
        "dropout": context.dropout,
        "projection_kernel_size": (
            context.projection_kernel_size if context.projection else None
        ),
        **_head_options(config, context.separable),
    }
    if context.has_gate:
        gate = "q_sigmoid" if context.hard_sigmoid else "sigmoid"
        options |= {"gate": gate, "gate_bias": context.gate_bias}
        return lr_aspp(x, rates, context.filters, window, **options)
    options["window"] = window if context.image_level else None
    x = aspp(x, rates, context.filters, **options)
    style = {name: options[name] for name in ("separable", "normalize", "activation")}
    return refine_context(x, context.filters, context.convolutions, **style)


def _decoder(
    x: keras.KerasTensor, low_level: Sequence[keras.KerasTensor], config: ModelConfig
) -> keras.KerasTensor:
    """Refines context features with the low-level ones, as the config says."""
    options = config.decoder
    style = _head_options(config, options.separable and not options.outputs_logits)
    kernel_size = options.kernel_size
    strides = config.decoder_output_strides
    scales = [min(1.0, config.output_stride / stride) for stride in strides]
    levels = list(zip(low_level, scales, strict=True))
    if options.outputs_logits:
        style |= {"normalize": None, "activation": None}
    if options.sum_merge:
        kernel_size = 1 if options.outputs_logits else kernel_size
        return sum_decoder(x, levels, options.filters, kernel_size, **style)
    return decoder(
        x,
        levels,
        options.filters,
        options.projection_filters,
        options.convolutions,
        kernel_size,
        **style,
    )


def _logits(x: keras.KerasTensor, config: ModelConfig) -> keras.KerasTensor:
    """Returns the class scores, float32; with several rates, their sum (DeepLabv2)."""
    rates = () if config.context.aspp else config.atrous_rates
    branches = [
        deeplab_layers.conv(
            x,
            config.num_classes,
            config.logits_kernel_size,
            "logits.semantic" + (f"_{i}" if i else ""),
            rate=rate,
            initializer=deeplab_layers.truncated_normal(0.01),
            use_bias=True,
            dtype="float32",
        )
        for i, rate in enumerate(rates or (1,))
    ]
    if len(branches) == 1:
        return branches[0]
    return layers.Add(dtype="float32", name="logits.sum")(branches)


def image_features(
    image: keras.KerasTensor, config: ModelConfig
) -> list[keras.KerasTensor]:
    """Returns the high-level features of the backbone, then those for the decoder.

    `image` is raw RGB 0..255, `[batch, height, width, channels]`.
    """
    normalize = NormalizeImage(
        strict_json.to_values(config), dtype="float32", name="normalize"
    )
    return call_part("backbone", lambda x: _backbone(x, config), normalize(image))


def _single_scale_logits(
    image: keras.KerasTensor, config: ModelConfig
) -> keras.KerasTensor:
    """Returns the logits of raw images, before any resize (Fig. 2)."""
    x, *low_level = image_features(image, config)
    if config.context.aspp:
        x = call_part("context", lambda x: _context(x, config), x)
    if low_level:
        x = call_part(
            "decoder", lambda x, *low: _decoder(x, low, config), x, *low_level
        )
    return x if config.decoder.outputs_logits else _logits(x, config)


def scale_pooling_windows(network: keras.Model, scale: float) -> keras.Model:
    """Returns a network for images resized by `scale`, sharing every variable.

    Pooling windows given in pixels are scaled with the image, as in the official
    multi-scale evaluation. Without such windows, returns the network itself.
    """
    windows = [x for x in leaf_layers(network) if isinstance(x, WindowMean)]
    if scale == 1.0 or not any(layer.crop_size for layer in windows):
        return network

    def scale_window(layer: layers.Layer) -> layers.Layer:
        if not isinstance(layer, WindowMean):
            return layer
        image_scale = scale * layer.image_scale
        return WindowMean.from_config(
            {**layer.get_config(), "image_scale": image_scale}
        )

    clone = keras.models.clone_model(
        network, clone_function=scale_window, recursive=True
    )
    return keras.Model(clone.input, clone.output, name=f"{network.name}_at_{scale}")


def find_single_scale_network(model: keras.Model) -> keras.Model | None:
    """Returns the network that an image pyramid runs at each scale; else None.

    It is the network for scale 1, shares every variable, and maps raw images to logits.
    """
    found = [x for x in model.layers if x.name.startswith(_PYRAMID_NETWORK)]
    if not found:
        return None
    network = keras.Model(found[0].inputs[0], found[0].outputs[0], name="single_scale")
    windows = [x for x in leaf_layers(network) if isinstance(x, WindowMean)]
    scales = [layer.image_scale for layer in windows if layer.crop_size]
    return scale_pooling_windows(network, 1.0 / scales[0]) if scales else network


_PYRAMID_NETWORK = "network"


def _pyramid_logits(image: keras.KerasTensor, config: ModelConfig) -> keras.KerasTensor:
    """Returns logits merged over `image_pyramid`, at the size of the largest scale."""
    scales, resizing = config.image_pyramid, config.conventions.resizing
    shape = (image.shape[0], None, None, config.channels)
    head = keras.Input(batch_shape=shape, dtype="float32")
    network = Part(head, _single_scale_logits(head, config), name=_PYRAMID_NETWORK)
    grid = max(1.0, *scales) / config.logits_stride
    merged = []
    for i, scale in enumerate(scales):
        resize = ResizeLike(scale, dtype="float32", name=f"scale_{i}")
        logits = scale_pooling_windows(network, scale)(resize(image, image))
        to_grid = ResizeLike(grid, resizing, dtype="float32", name=f"grid_{i}")
        merged.append(to_grid(logits, image))
    merge = layers.Maximum if config.merge_method == "max" else layers.Average
    return merge(dtype="float32", name="logits")(merged)


def full_size_logits(
    image: keras.KerasTensor, config: ModelConfig
) -> keras.KerasTensor:
    """Returns the logits of raw images at the image size; see `DeepLab`."""
    if config.image_pyramid == (1.0,):
        logits = _single_scale_logits(image, config)
        logits = layers.Identity(dtype="float32", name="logits")(logits)
    else:
        logits = _pyramid_logits(image, config)
    resizing = config.conventions.resizing
    resize = ResizeLike(resizing=resizing, dtype="float32", name="resize")
    return resize(logits, image)


# Names of features for parts that are named otherwise.
PART_NAMES = {"aspp": "context"}


def feature_tensors(model: keras.Model) -> dict[str, keras.KerasTensor]:
    """Returns the intermediate features of a model by name, in order.

    See `DeepLab.features`. With an image pyramid, "logits" is the only one, because
    each scale has its own features.
    """
    outputs = {layer.name: layer.output for layer in model.layers}
    features = {}
    if "backbone" in outputs:
        features["backbone"], *low_level = tree.flatten(outputs["backbone"])
        strides = find_model_config(model).decoder_output_strides
        names = [f"low_level_{stride}" for stride in strides]
        features |= zip(names, low_level, strict=True)
    for name in ("aspp", "decoder", "logits"):
        part = PART_NAMES.get(name, name)
        if part in outputs:
            features[name] = outputs[part]
    return features
