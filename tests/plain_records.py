"""Records made of arrays, and shards made of records, without a converter."""

import io
import math

import numpy as np
import tensorflow as tf
from PIL import Image

from deeplab_tf.data import records
from deeplab_tf.images.decoding import EncodedImage

# EXIF data in which the orientation is the text "abc".
ODD_EXIF = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0abc\0\0\0\0\0"


def encoded(array, file_format="PNG", **options):
    """Returns the bytes of a picture."""
    file = io.BytesIO()
    Image.fromarray(np.asarray(array, np.uint8)).save(file, file_format, **options)
    return file.getvalue()


def record(image, label, name="a", file_format="PNG"):
    """Returns the record of two arrays; bytes stay as they are."""
    height, width = label.shape if isinstance(label, np.ndarray) else (1, 1)
    image = image if isinstance(image, bytes) else encoded(image, file_format)
    label = label if isinstance(label, bytes) else encoded(label)
    picture = EncodedImage(image, file_format.lower(), height, width)
    return records.serialize(picture, label, name)


def write(folder, *contents, split="train", shards=1):
    """Writes shards of consecutive records and returns the folder."""
    tf.io.gfile.makedirs(str(folder))
    size = math.ceil(len(contents) / shards)
    for i in range(shards):
        path = f"{folder}/{split}-{i:05d}-of-{shards:05d}.tfrecord"
        with tf.io.TFRecordWriter(path) as writer:
            for content in contents[i * size : (i + 1) * size]:
                writer.write(content)
    return str(folder)
