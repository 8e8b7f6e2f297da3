"""A source of records: a split and the description of its dataset."""

import dataclasses

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo

TFDS_PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class Source:
    """The records of a split: description of the dataset, keys and positions."""

    info: DatasetInfo
    keys: records.Keys
    index: records.RecordIndex
