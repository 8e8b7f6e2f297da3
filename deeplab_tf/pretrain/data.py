"""Reads classified images from tensorflow-datasets, for pre-training.

In training, a window of random area and aspect ratio is resized to the crop size, and
half of the crops are mirrored (GoogLeNet, 1409.4842, Sec. 6). In evaluation, the centre
is cropped.
As in segmentation, each sample is a function of (seed, epoch, index).
"""

import functools
from collections.abc import Callable

import tensorflow as tf

from deeplab_tf.config import DataConfig
from deeplab_tf.data import augment, records
from deeplab_tf.data.pipeline import (
    EVAL_PARALLEL_CALLS,
    check_batch_size,
    make_training_batches,
    prefetch,
    scale_to_255,
    shuffle_index,
)
from deeplab_tf.data.reader import Reader, require, skip_errors
from deeplab_tf.data.source import TFDS_PREFIX, Source
from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding

# Ranges of the window's area, relative to the image, and of width / height.
AREAS, ASPECTS = (0.08, 1.0), (3 / 4, 4 / 3)
# Fraction of each side that evaluation crops, as in the official classifiers.
CENTRAL_SHARE = 0.875
_ATTEMPTS = 100
_UNREADABLE = (
    "is broken: the file is missing, a checksum does not match, it lacks an image or a "
    "class, or its image is not a JPEG or PNG"
)


def open_classified_images(name: str, data_dir: str, split: str) -> Source:
    """Returns the records of a split of classified images.

    Args:
        name: `tfds:NAME[:image_key:label_key]`.
        data_dir: Folder of tensorflow-datasets; "" is its default.
        split: In tensorflow-datasets syntax, such as `train[:90%]`.

    Raises:
        UserError: if the dataset or split does not exist, or its features are not those
            of classified images.
    """
    if not name.startswith(TFDS_PREFIX):
        raise UserError(
            f"--dataset={name} must be a classification dataset in "
            f"tensorflow-datasets, such as {TFDS_PREFIX}imagenet2012"
        )
    from deeplab_tf.data import tfds_source  # slow to import

    info = tfds_source.load_class_info(name, data_dir)
    return Source(info, *tfds_source.open_classes(name, data_dir, split))


def random_window(size, seed):
    """Returns a random window of an image: top, left, height and width, int32 `[4]`.

    Area and aspect ratio are uniform in `AREAS` and `ASPECTS`. An image too narrow for
    any such window is used entirely.
    """
    begin, extent, _ = tf.image.stateless_sample_distorted_bounding_box(
        tf.concat([size, [3]], 0),
        tf.zeros([1, 0, 4]),
        seed,
        min_object_covered=0.0,
        aspect_ratio_range=ASPECTS,
        area_range=AREAS,
        max_attempts=_ATTEMPTS,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], extent[:2]], 0)


def central_window(size):
    """Returns a central window, `CENTRAL_SHARE` of each side; see `random_window`."""
    extent = tf.cast(tf.round(tf.cast(size, tf.float32) * CENTRAL_SHARE), tf.int32)
    extent = tf.maximum(extent, 1)
    return tf.concat([(size - extent) // 2, extent], 0)


class _Cropper:
    """Reads, crops and batches classified images."""

    def __init__(self, source: Source, config: DataConfig):
        self._info, self._keys, self._config = source.info, source.keys, config
        self._reader = Reader(source)
        self._count = len(source.index)

    def find_position(self, index):
        """Returns the record position of a training sample."""
        count = tf.constant(self._count, tf.int64)
        return shuffle_index(index, count, self._config.seed)

    def describe(self, index: int) -> str:
        """Returns the file and record number of a training sample."""
        words = self._reader.name_record(
            self.find_position(tf.constant(index, tf.int64))
        )
        return b" ".join(tf.strings.as_string(w).numpy() for w in words).decode()

    def read_training_batch(self, indices):
        """Returns random crops of training samples, and their classes."""
        return self._read_batch(indices, self._crop_randomly, self.find_position)

    @tf.autograph.experimental.do_not_convert
    def read_central_batch(self, positions):
        """Returns central crops of the images at these positions, and their classes."""
        return self._read_batch(positions, self._crop_center, lambda position: position)

    def _read_batch(self, numbers, crop: Callable, position: Callable):
        """Returns crops and classes of samples; an error names a broken record."""
        count = tf.size(numbers, tf.int64)
        samples = tf.data.Dataset.from_tensor_slices(numbers)
        samples = skip_errors(samples.map(lambda n: (n, crop(n))), count)
        found, (images, classes) = samples.batch(count).get_single_element()

        def name_first(is_bad):
            index = tf.argmax(tf.cast(is_bad, tf.int32))
            return self._reader.name_record(position(tf.gather(numbers, index)))

        is_lost = found != numbers[: tf.size(found)]
        message = [*name_first(is_lost), _UNREADABLE]
        with require(~tf.reduce_any(is_lost), message):
            classes = tf.identity(classes)
        is_invalid = (classes < 0) | (classes >= self._info.num_classes)
        message = [*name_first(is_invalid), "has a class outside"]
        message.append(f"0..{self._info.num_classes - 1}")
        with require(~tf.reduce_any(is_invalid), message):
            size = [numbers.shape[0], *images.shape[1:]]
            classes = tf.cast(classes, tf.int32)[:, None, None]
            return tf.ensure_shape(images, size), classes

    def _crop_randomly(self, index):
        """Returns a random, perhaps mirrored window of a sample, and its class."""
        seed = tf.stack([tf.constant(self._config.seed, tf.int64), index])
        window = functools.partial(random_window, seed=seed)
        image, label = self._read_crop(self.find_position(index), window)
        # A new seed, because the window has used the first one.
        seed = tf.random.experimental.stateless_fold_in(seed, 1)
        is_mirrored = tf.random.stateless_uniform([], seed) < 0.5
        return tf.raw_ops.Reverse(tensor=image, dims=[False, is_mirrored, False]), label

    def _crop_center(self, position):
        return self._read_crop(position, central_window)

    def _read_crop(self, position, window_fn: Callable):
        """Returns a window of an image, float32 of the crop size, and its class."""
        info = self._info
        record = self._reader.read_bytes(position)
        encoded, label = records.parse_class(record, self._keys)
        size = decoding.read_image_size(encoded, info.channels)
        top, left, height, width = tf.unstack(window_fn(size))
        # Only the rows of the window are decoded.
        rows, _ = decoding.decode_rows(
            encoded, top, height, info.channels, info.max_value
        )
        image = scale_to_255(rows[:, left : left + width], info)
        image = augment.resize_image(image, self._config.crop_size)
        return tf.ensure_shape(image, [*self._config.crop_size, info.channels]), label


def load_classified_images(
    config: DataConfig,
    split: str,
    training: bool,
    start: int = 0,
    worker: int = 0,
    num_workers: int = 1,
) -> tf.data.Dataset:
    """Returns batches of classified images, all of the crop size.

    Args:
        config: Records, crop size, batch size and seed.
        split: In tensorflow-datasets syntax.
        training: Whether to shuffle, crop randomly and repeat forever. Otherwise, each
            image is returned once, cropped at the centre; the last batch may be
            smaller.
        start: Number of training samples to skip.
        worker: Index of this worker.
        num_workers: Number of workers; see `pipeline.load_dataset`.

    Returns:
        Float32 images 0..255 `[batch, *crop_size, channels]` and int32 classes `[batch,
        1, 1]`.

    Raises:
        UserError: if the split contains no records, or a batch cannot be divided evenly
            among the workers.
    """
    if not training:
        check_batch_size(config.batch_size, num_workers)
    source = open_classified_images(config.dataset, config.dataset_dir, split)
    cropper = _Cropper(source, config)
    if training:
        size = config.batch_size
        dataset = make_training_batches(
            cropper.read_training_batch, size, start, worker, num_workers
        )
    else:
        dataset = tf.data.Dataset.range(worker, len(source.index), num_workers)
        dataset = dataset.batch(config.batch_size // num_workers)
        dataset = dataset.map(
            cropper.read_central_batch, num_parallel_calls=EVAL_PARALLEL_CALLS
        )
    return prefetch(dataset)


def describe_samples(config: DataConfig, split: str, start: int, count: int) -> str:
    """Returns the files and record numbers of `count` training samples."""
    source = open_classified_images(config.dataset, config.dataset_dir, split)
    cropper = _Cropper(source, config)
    return "; ".join(cropper.describe(start + i) for i in range(count))
