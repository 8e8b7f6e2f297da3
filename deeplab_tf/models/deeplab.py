"""DeepLabv3 and DeepLabv3+ (1706.05587; 1802.02611, Fig. 2) as a Keras model."""

import keras
from keras import layers

from deeplab_tf.config import ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models import layers as deeplab_layers
from deeplab_tf.models.aspp import aspp
from deeplab_tf.models.backbones import BACKBONES
from deeplab_tf.models.decoder import decoder


def _nested(name, build, *inputs):
    """Returns `build(*inputs)` as one nested model, a line of `summary()`."""
    heads = [keras.Input(batch_shape=x.shape, dtype=x.dtype) for x in inputs]
    if len(heads) == 1:
        return keras.Model(heads[0], build(*heads), name=name)(inputs[0])
    return keras.Model(heads, build(*heads), name=name)(list(inputs))


def _backbone(image, config: ModelConfig):
    row = BACKBONES[config.backbone]
    options = {name: getattr(config, name) for name in row.options}
    momentum = config.batch_norm_momentum
    features = row.build(
        image, config.output_stride, batch_norm_momentum=momentum, **options
    )
    return [features[key] for key in ("high_level", *config.decoder.output_strides)]


def _image_pooling(config: ModelConfig):
    """Returns window (None: everything) and strides, in cells, or None for none."""
    context = config.context
    if not context.image_level:
        return None
    window = context.image_pooling_crop_size and tuple(
        deeplab_layers.scale_dimension(side, 1.0 / config.output_stride)
        for side in context.image_pooling_crop_size
    )
    return window, context.image_pooling_stride


def _context(x, config: ModelConfig):
    context = config.context
    return aspp(
        x,
        context.rates,
        filters=context.filters,
        separable=context.separable,
        image_pooling=_image_pooling(config),
        dropout=context.dropout,
        batch_norm_momentum=config.batch_norm_momentum,
    )


def _decoder(x, low_level, config: ModelConfig):
    return decoder(
        x,
        low_level,
        filters=config.decoder.filters,
        projection_filters=config.decoder.projection_filters,
        separable=config.decoder.separable,
        batch_norm_momentum=config.batch_norm_momentum,
    )


def _logits_at_one_scale(image, config: ModelConfig):
    """Returns the logits of raw images, before any resize: Fig. 2."""
    x = layers.Rescaling(2.0 / 255.0, -1.0, dtype="float32", name="normalize")(image)
    x, *low_level = _nested("backbone", lambda x: _backbone(x, config), x)
    x = _nested("context", lambda x: _context(x, config), x)
    if low_level:
        x = _nested("decoder", lambda x, *low: _decoder(x, low, config), x, *low_level)
    return layers.Conv2D(
        config.num_classes,
        1,
        kernel_initializer=deeplab_layers.truncated_normal(0.01),
        data_format="channels_last",
        dtype="float32",
        name="logits.semantic",
    )(x)


def _logits_of_pyramid(image, config: ModelConfig):
    """Returns logits merged over `image_pyramid`, on the largest scale's grid."""
    scales = config.image_pyramid
    shape = (image.shape[0], None, None, 3)
    head = keras.Input(batch_shape=shape, dtype="float32")
    network = keras.Model(head, _logits_at_one_scale(head, config), name="network")
    stride = min((config.output_stride, *config.decoder.output_strides))
    grid = max(1.0, *scales) / stride
    merged = []
    for i, scale in enumerate(scales):
        resize = deeplab_layers.ResizeLike(scale, dtype="float32", name=f"scale_{i}")
        logits = network(resize(image, image))
        to_grid = deeplab_layers.ResizeLike(grid, dtype="float32", name=f"grid_{i}")
        merged.append(to_grid(logits, image))
    merge = layers.Maximum if config.merge_method == "max" else layers.Average
    return merge(dtype="float32", name="logits")(merged)


def build_model(
    config: ModelConfig,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> keras.Model:
    """Returns a DeepLab network as a functional Keras model.

    It takes raw RGB images, float32 0..255 `[batch, height, width, 3]`, and
    gives float32 logits `[batch, height, width, num_classes]`. The layer named
    "logits" gives them before the last resize. Sizes of
    `k * output_stride + 1` keep features and pixels aligned; others work.

    Args:
        config: What to build; kept as `model.model_config`.
        image_size: Fixed height and width; None leaves them open.
        batch_size: Fixed batch size; None leaves it open.

    Raises:
        UserError: for a backbone that does not exist.
    """
    if config.backbone not in BACKBONES:
        raise UserError(
            f"model_variant must be one of {', '.join(BACKBONES)}; "
            f"received {config.backbone!r}"
        )
    shape = (batch_size, *(image_size or (None, None)), 3)
    image = keras.Input(batch_shape=shape, dtype="float32", name="image")
    if config.image_pyramid == (1.0,):
        logits = _logits_at_one_scale(image, config)
        logits = layers.Identity(dtype="float32", name="logits")(logits)
    else:
        logits = _logits_of_pyramid(image, config)
    resize = deeplab_layers.ResizeLike(dtype="float32", name="resize")
    model = keras.Model(image, resize(logits, image), name="deeplab")
    model.model_config = config
    return model
