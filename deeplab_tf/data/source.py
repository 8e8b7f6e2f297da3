"""What a reader reads from: the records of a split and what they mean."""

import dataclasses

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo

TFDS_PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class Source:
    """The records of a split.

    Attributes:
        info: What its images and labels mean.
        keys: Where the records have them.
        index: Where the records are.
    """

    info: DatasetInfo
    keys: records.Keys
    index: records.RecordIndex
