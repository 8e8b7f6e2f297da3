"""The builders of the backbones; their rows are in `deeplab_tf.config.backbones`.

A builder takes `(image, output_stride, network, batch_norm_momentum, **options)`, the
options being those of the row, and returns features by name: "high_level" and, by
stride, the low-level ones.
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
