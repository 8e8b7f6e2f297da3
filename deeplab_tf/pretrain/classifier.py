"""Image classifiers for pre-training backbones (DeepLabv3+, 1802.02611)."""

from typing import NamedTuple

import keras
from keras import layers

from deeplab_tf.config import BACKBONES, ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.models import layers as deeplab_layers
from deeplab_tf.models.network import image_features


class _Head(NamedTuple):
    """Options of the official classifier head: logits initialiser and dropout rate."""

    initializer: keras.initializers.Initializer
    dropout: float = 0.0


_HEADS = {
    "xception": _Head(deeplab_layers.truncated_normal(0.09), dropout=0.5),
    "resnet": _Head(keras.initializers.HeNormal()),
}


def _find_family(backbone: str) -> str:
    """Returns the name of a backbone's family, such as "xception"."""
    return backbone.partition("_")[0]


def require_classifier(config: ModelConfig) -> None:
    """Raises UserError for a backbone without a classifier."""
    if _find_family(config.backbone) not in _HEADS:
        choices = [name for name in BACKBONES if _find_family(name) in _HEADS]
        raise UserError(
            f"model_variant must be one of {', '.join(choices)} to be pre-trained; "
            f"received {config.backbone!r}"
        )


def build_classifier(
    config: ModelConfig,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> keras.Model:
    """Returns an image classifier as a functional model.

    The input is raw RGB, float32 0..255 `[batch, height, width, channels]`; the output
    is float32 logits `[batch, num_classes]`. The layer named "logits" has them as
    `[batch, 1, 1, num_classes]`, a label map of one pixel, so the model trains like a
    segmentation model. Head variables are named as in the official ImageNet
    checkpoints, those of the backbone as in a DeepLab model.

    Args:
        config: Backbone, number of classes and output stride (32 in the papers), kept
            as `model.model_config`. Context and decoder are ignored.
        image_size: Fixed height and width; None leaves them open.
        batch_size: Fixed batch size; None leaves it open.

    Raises:
        UserError: if the backbone has no classifier.
    """
    require_classifier(config)
    head = _HEADS[_find_family(config.backbone)]
    shape = (batch_size, *(image_size or (None, None)), config.channels)
    image = keras.Input(batch_shape=shape, dtype="float32", name="image")
    x, *_ = image_features(image, config)
    # The official scope of a "beta" network has no suffix.
    scope = config.backbone.removesuffix("_beta")
    x = layers.GlobalAveragePooling2D(
        keepdims=True,
        data_format="channels_last",
        dtype="float32",
        name=f"{scope}.global_pool",
    )(x)
    if head.dropout:
        dropout = layers.Dropout(
            head.dropout, dtype="float32", name=f"{scope}.prelogits_dropout"
        )
        x = dropout(x)
    x = deeplab_layers.conv(
        x,
        config.num_classes,
        1,
        f"{scope}.logits",
        initializer=head.initializer,
        use_bias=True,
        dtype="float32",
    )
    x = layers.Identity(dtype="float32", name="logits")(x)
    x = layers.Reshape((config.num_classes,), dtype="float32", name="classes")(x)
    model = keras.Model(image, x, name="classifier")
    model.model_config = config
    return model
