"""A source of records: a split and the description of its dataset."""

import dataclasses
import os
import zlib

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo

TFDS_PREFIX = "tfds:"


@dataclasses.dataclass(frozen=True)
class Source:
    """The records of a split: description of the dataset, keys and positions."""

    info: DatasetInfo
    keys: records.Keys
    index: records.RecordIndex

    @property
    def fingerprint(self) -> str:
        """The number of records and a checksum of classes, file names and offsets."""
        index = self.index
        crc = zlib.crc32(repr(self.info).encode())
        for path in index.paths:
            crc = zlib.crc32(os.path.basename(path).encode(), crc)
        for positions in (index.file, index.offset):
            crc = zlib.crc32(positions.tobytes(), crc)
        return f"{len(index)} of {self.info.name} ({crc:08x})"
