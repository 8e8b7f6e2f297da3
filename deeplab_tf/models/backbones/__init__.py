"""The backbones: one row each.

A new one is a file here, a row in `BACKBONES` and a row in
`deeplab_tf.config.BACKBONES`, which tells what can be asked of it. A builder takes
`(image, output_stride, batch_norm_momentum, **options)`, the options being those of
its row in the config, and returns its features by name: "high_level" and, by
stride, the low-level ones.
"""

from deeplab_tf.models.backbones.mobilenet_v2 import mobilenet_v2
from deeplab_tf.models.backbones.mobilenet_v3 import (
    mobilenet_edgetpu,
    mobilenet_v3_large_seg,
    mobilenet_v3_small_seg,
)
from deeplab_tf.models.backbones.resnet import (
    resnet_v1_18,
    resnet_v1_18_beta,
    resnet_v1_50,
    resnet_v1_50_beta,
    resnet_v1_101,
    resnet_v1_101_beta,
)
from deeplab_tf.models.backbones.xception import (
    xception_41,
    xception_65,
    xception_71,
)

BACKBONES = {
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large_seg": mobilenet_v3_large_seg,
    "mobilenet_v3_small_seg": mobilenet_v3_small_seg,
    "mobilenet_edgetpu": mobilenet_edgetpu,
    "resnet_v1_18": resnet_v1_18,
    "resnet_v1_18_beta": resnet_v1_18_beta,
    "resnet_v1_50": resnet_v1_50,
    "resnet_v1_50_beta": resnet_v1_50_beta,
    "resnet_v1_101": resnet_v1_101,
    "resnet_v1_101_beta": resnet_v1_101_beta,
    "xception_41": xception_41,
    "xception_65": xception_65,
    "xception_71": xception_71,
}
