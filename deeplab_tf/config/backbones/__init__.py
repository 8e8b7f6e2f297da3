"""The table of backbones; each has a row in the file of its family.

To add a network of a known family, add a row there. A new family needs a file here and
a builder in `deeplab_tf.models.backbones`.
"""

from deeplab_tf.config.backbones.backbone import Backbone
from deeplab_tf.config.backbones.mobilenet import MOBILENETS
from deeplab_tf.config.backbones.resnet import RESNETS
from deeplab_tf.config.backbones.xception import XCEPTIONS

BACKBONES: dict[str, Backbone] = MOBILENETS | RESNETS | XCEPTIONS

# Fields of `ModelConfig` that only some backbones support. bounded_activation also
# applies to the heads, so every model supports it.
BACKBONE_OPTIONS = sorted(
    {option for row in BACKBONES.values() for option in row.options}
    - {"bounded_activation"}
)
