"""Builds records from arrays and shards from records, and reads them back."""

import io
import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf.data import records
from deeplab_tf.images import decoding
from deeplab_tf.images.decoding import EncodedImage

# EXIF data in which the orientation is the text "abc".
INVALID_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"


def encode_image(array, file_format="PNG", **options):
    """Encodes an array as an image file; returns its bytes."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, file_format, **options)
    return file.getvalue()


def make_record(image, label, name="a", file_format="PNG"):
    """Returns the record of an image and a label, which are arrays or encoded bytes."""
    height, width = label.shape if isinstance(label, np.ndarray) else (1, 1)
    image = image if isinstance(image, bytes) else encode_image(image, file_format)
    label = label if isinstance(label, bytes) else encode_image(label)
    encoded = EncodedImage(image, file_format.lower(), height, width)
    return records.serialize(encoded, label, name)


def write_shards(folder, *contents, split="train", shards=1):
    """Writes shards of consecutive records and returns the folder."""
    tf.io.gfile.makedirs(str(folder))
    size = math.ceil(len(contents) / shards)
    for i in range(shards):
        path = f"{folder}/{split}-{i:05d}-of-{shards:05d}.tfrecord"
        with tf.io.TFRecordWriter(path) as writer:
            for content in contents[i * size : (i + 1) * size]:
                writer.write(content)
    return str(folder)


class Stored(NamedTuple):
    """A record: its name, encoded image and label map."""

    name: str
    image: bytes
    label: np.ndarray

    def decode(self, channels=3, max_value=255):
        """Returns the pixels of the image."""
        return decoding.decode_image(self.image, channels, max_value).numpy()


def read_samples(folder, split="train"):
    """Returns the records of a split, in order."""
    dataset = tf.data.TFRecordDataset(records.find_shards(str(folder), split))
    return [
        Stored(name.decode(), image, decoding.decode_label(label).numpy()[..., 0])
        for image, label, name in dataset.map(records.parse).as_numpy_iterator()
    ]


def read_labels(folder, split="train"):
    """Returns the label map of each record by name, which must be unique."""
    samples = read_samples(folder, split)
    labels = {sample.name: sample.label for sample in samples}
    assert len(labels) == len(samples)
    return labels


def read_records(folder, split="train"):
    """Returns the class names of a split, and the label map of each record by name."""
    return records.read_info(str(folder)).class_names, read_labels(folder, split)
