"""TFRecord shards to batches; every sample a function of (seed, epoch, index).

Any record can be read by itself, so that an epoch is a permutation of all of them,
a worker reads its own records alone, and a restart reads nothing twice.
"""

import tensorflow as tf

from deeplab_tf.config import DataConfig
from deeplab_tf.data import augment
from deeplab_tf.data.reader import Reader
from deeplab_tf.data.sources import Source, open_split
from deeplab_tf.data.statistics import epoch_positions
from deeplab_tf.errors import UserError


class _Samples:
    """What training and evaluation make of the records of a source."""

    def __init__(self, source: Source, config: DataConfig):
        self.info = source.info
        self.config = config
        self._reader = Reader(source)

    def whole(self, position):
        """Returns float32 image and uint8 label, resized where that is asked for."""
        sample = self._reader.sample(position)
        image, config = self._in_range(sample.image), self.config
        if config.min_resize_value is None:
            return image, sample.label
        return augment.resize_to_range(
            image,
            sample.label,
            config.min_resize_value,
            config.max_resize_value,
            config.resize_factor,
        )

    def crop(self, position, index):
        """Returns a random crop, float32 `[*crop_size, channels]`, and its label.

        Args:
            position: Of the record in the index.
            index: Of the sample among all that a training sees.
        """
        config = self.config
        seeds = tf.random.split([config.seed, tf.cast(index, tf.int32)], 2)
        draw = augment.random_draw(
            seeds[0],
            config.min_scale_factor,
            config.max_scale_factor,
            config.scale_factor_step_size,
        )
        image, label, window = self._cropped_rows(position, draw)
        if config.photometric_jitter:
            image = augment.jittered(image, seeds[1], config.photometric_jitter)
        size = config.crop_size
        return (
            augment.crop_image(image, window, size, config.mean_pixel),
            augment.crop_label(label, window, size, self.info.ignore_label),
        )

    def _cropped_rows(self, position, draw: augment.Draw):
        """Returns the rows of an image that a crop shows, its label, the window."""

        def window_of(size):
            return augment.window_of(draw, size, self.config.crop_size)

        if self.config.min_resize_value is None:
            image, label, window = self._reader.sample(position, window_of)
            return self._in_range(image), label, window
        image, label = self.whole(position)
        height = tf.shape(image)[0]
        window = window_of(tf.shape(image)[:2])
        end = window.first_row + window.row_count(height)
        return image[window.first_row : end], label, window

    def _in_range(self, image):
        """Returns float32 pixels in 0..255."""
        image = tf.cast(image, tf.float32)
        if self.info.max_value == 255:
            return image
        return image * (255.0 / self.info.max_value)


def _training(source: Source, config: DataConfig, start: int, worker: int, of: int):
    samples = _Samples(source, config)
    positions = tf.constant(epoch_positions(source, config.bootstrap_classes))
    count = tf.size(positions, tf.int64)
    rows = config.batch_size // of

    def sample(k):
        # The k-th sample of this worker, which has some rows of every batch.
        index = start + k // rows * config.batch_size + worker * rows + k % rows
        place = tf.random.experimental.index_shuffle(
            index % count, [config.seed, index // count], count - 1
        )
        return samples.crop(positions[place], index)

    dataset = tf.data.Dataset.range(tf.int64.max)
    dataset = dataset.map(sample, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(rows, drop_remainder=True)


def _evaluation(source: Source, config: DataConfig, worker: int, of: int):
    samples = _Samples(source, config)
    dataset = tf.data.Dataset.range(worker, len(source.index), of)
    dataset = dataset.map(samples.whole, num_parallel_calls=tf.data.AUTOTUNE)
    rows = config.batch_size // of
    if rows == 1:
        return dataset.batch(1)
    # Images of one size form a batch, so that nothing is resized or padded.
    return dataset.group_by_window(
        lambda image, _: tf.reduce_sum(tf.shape(image, tf.int64)[:2] * [1 << 20, 1]),
        lambda _, same_size: same_size.batch(rows),
        window_size=rows,
    )


def load_dataset(
    config: DataConfig,
    split: str,
    training: bool,
    start: int = 0,
    worker: int = 0,
    num_workers: int = 1,
) -> tf.data.Dataset:
    """Returns batches of images and labels.

    Args:
        config: Where the records are and how a sample is made.
        split: Official name of the split; `trainaug` is `train_aug`.
        training: Whether samples are shuffled, augmented to the crop size and
            repeated for ever. Otherwise every image comes once, at its own size.
        start: Number of training samples to pass over; those that follow are
            the same as in a run that was never interrupted.
        worker: Number of this worker, from 0.
        num_workers: Workers that share the batches: each gets its rows of every
            one in training, its own images otherwise.

    Returns:
        Pairs of float32 images 0..255 `[batch, height, width, channels]` and uint8
        labels `[batch, height, width, 1]`, a batch being `batch_size / num_workers`.

    Raises:
        UserError: if the split has no records, or the batch cannot be shared.
    """
    if config.batch_size % num_workers:
        raise UserError(
            f"a batch of {config.batch_size} cannot be shared by {num_workers} workers"
        )
    source = open_split(config.dataset, config.dataset_dir, split)
    if training:
        dataset = _training(source, config, start, worker, num_workers)
    else:
        dataset = _evaluation(source, config, worker, num_workers)
    options = tf.data.Options()
    # Samples are made in parallel; threads within an operation would be too many.
    options.threading.max_intra_op_parallelism = 1
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
