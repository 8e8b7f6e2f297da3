"""Builders of the backbones in `deeplab_tf.config.backbones`.

A builder takes `(image, output_stride, network, conventions, batch_norm_momentum,
batch_norm_epsilon, **options)` with the options and the conventions of its row. It
returns features by name: "high_level", and the low-level ones by stride.
"""

import functools

from deeplab_tf import config
from deeplab_tf.config.backbones.mobilenet import MobileNet
from deeplab_tf.config.backbones.resnet import ResNet
from deeplab_tf.config.backbones.xception import Xception
from deeplab_tf.models.backbones.mobilenet import mobilenet
from deeplab_tf.models.backbones.resnet import resnet_v1
from deeplab_tf.models.backbones.xception import xception

_BUILDERS = {MobileNet: mobilenet, ResNet: resnet_v1, Xception: xception}


def _build_backbone(image, output_stride: int, network, conventions: dict, **options):
    """Builds a backbone, with some conventions of its `network` replaced."""
    builder = _BUILDERS[type(network)]
    network = network._replace(**conventions)
    return builder(image, output_stride, network, **options)


BACKBONES = {
    name: functools.partial(_build_backbone, network=row.network, conventions={})
    for name, row in config.BACKBONES.items()
}
