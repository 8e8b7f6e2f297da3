"""The records of a split together with the description of their dataset."""

import dataclasses

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo

TFDS_PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class Source:
    """The records of a split: what they mean, their keys and their positions."""

    info: DatasetInfo
    keys: records.Keys
    index: records.RecordIndex
