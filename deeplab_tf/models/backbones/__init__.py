"""Builders of the backbones in `deeplab_tf.config.backbones`.

A builder takes `(image, output_stride, network, batch_norm_momentum, **options)` with
the options of its row. It returns features by name: "high_level", and the low-level
ones by stride.
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

BACKBONES = {
    name: functools.partial(_BUILDERS[type(row.network)], network=row.network)
    for name, row in config.BACKBONES.items()
}
