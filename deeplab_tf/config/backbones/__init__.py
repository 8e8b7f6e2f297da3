"""The backbones: one row each, in the file of its family.

A network of a known family is one row there. A new family is a file here with its
tables, and a builder in `deeplab_tf.models.backbones`.
"""

from deeplab_tf.config.backbones.backbone import Backbone
from deeplab_tf.config.backbones.mobilenet import MOBILENETS
from deeplab_tf.config.backbones.resnet import RESNETS
from deeplab_tf.config.backbones.xception import XCEPTIONS

BACKBONES: dict[str, Backbone] = MOBILENETS | RESNETS | XCEPTIONS

# Fields of `ModelConfig` that are refused where the backbone does not take them.
# bounded_activation is none: it is the heads' as well.
BACKBONE_OPTIONS = sorted(
    {option for row in BACKBONES.values() for option in row.options}
    - {"bounded_activation"}
)
