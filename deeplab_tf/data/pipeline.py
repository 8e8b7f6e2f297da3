"""TFRecord shards to batches; every sample a function of (seed, epoch, index).

Any record can be read by itself, so that an epoch is a permutation of all of them,
a worker reads its own records alone, and a restart reads nothing twice.
"""

import os
from collections.abc import Callable

import tensorflow as tf

from deeplab_tf.config import DataConfig
from deeplab_tf.data import augment
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.reader import Reader, SampleChecks, skip_errors
from deeplab_tf.data.source import Source
from deeplab_tf.data.sources import open_split
from deeplab_tf.data.statistics import epoch_positions
from deeplab_tf.errors import UserError

# Batches that are made at once. Twice the cores, for their threads often wait for each
# other; some memory is the limit.
_PARALLEL_CALLS = min(2 * (os.cpu_count() or 1), 32)
# In an evaluation, whose images are not augmented, the model takes nearly all the time;
# each batch at once costs 0.13 s at the start.
EVAL_PARALLEL_CALLS = max(2, _PARALLEL_CALLS // 4)
_PREFETCHED_BATCHES = 2  # batches that wait for the training


def shuffle_index(index: tf.Tensor, count: tf.Tensor, seed: int) -> tf.Tensor:
    """Returns which of the records of its epoch a training sample is made of, int64.

    Every epoch is a permutation of its own, of which nobody has to know more than a
    few places.

    Args:
        index: Number of the sample among all that a training sees, an int64 scalar.
        count: Number of records in an epoch, an int64 scalar.
        seed: Seed of the order.
    """
    # The key is mixed first: few bits of it count where there are few records.
    key = tf.random.stateless_uniform([3], [seed, index // count], None, None, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(
        index=index % count, seed=key, max_index=count - 1, rounds=8
    )


class _Cropper:
    """Makes random crops of the records of a source, for training."""

    def __init__(self, source: Source, config: DataConfig):
        self.info = source.info
        self.config = config
        self._reader = Reader(source)
        self._mean_pixel = _mean_pixel(config, source.info)
        self._epoch = tf.constant(epoch_positions(source, config.bootstrap_classes))

    def _position(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the position of the record that a sample is made of."""
        count = tf.size(self._epoch, tf.int64)
        place = shuffle_index(index, count, self.config.seed)
        return tf.gather(self._epoch, place)

    def describe(self, index: int) -> str:
        """Returns which record a sample is made of."""
        return self._reader.describe(self._position(tf.constant(index, tf.int64)))

    def batch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns crops float32 `[batch, *crop_size, channels]`, and their labels.

        Args:
            indices: Of the samples among all that a training sees, int64 `[batch]`.
        """
        count = indices.shape[0]
        samples = tf.data.Dataset.from_tensor_slices(indices)
        samples = skip_errors(samples.map(lambda i: (i, self._crop(i))), count)
        found, (images, labels, checks) = samples.batch(count).get_single_element()
        is_found = found == indices[: tf.size(found)]
        missing = self._position(tf.gather(indices, _first(~is_found)))
        with self._reader.require_readable(missing, tf.reduce_all(is_found)):
            checks = tf.nest.map_structure(tf.identity, checks)
        is_bad = tf.reduce_any(checks.size != checks.label_size, 1) | (checks.value > 0)
        bad = _first(is_bad)
        of_bad = tf.nest.map_structure(lambda x: tf.gather(x, bad), checks)
        with self._reader.require_valid(
            self._position(tf.gather(indices, bad)), of_bad
        ):
            return (
                tf.ensure_shape(images, [count, *images.shape[1:]]),
                tf.ensure_shape(labels, [count, *labels.shape[1:]]),
            )

    def _crop(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, SampleChecks]:
        """Returns crop and label of one sample, and the checks to check."""
        config, position = self.config, self._position(index)
        chance = tf.random.stateless_uniform([7], [config.seed, index])
        draw = augment.draw_crop(
            chance[:4],
            config.min_scale_factor,
            config.max_scale_factor,
            config.scale_factor_step_size,
        )
        image, label, window, checks = self._rows(position, draw)
        if config.photometric_jitter:
            image = augment.jitter_colors(image, chance[4:], config.photometric_jitter)
        size = config.crop_size
        image = augment.crop_image(image, window, size, self._mean_pixel)
        label = augment.crop_label(label, window, size, self.info.ignore_label)
        return image, label, checks

    def _rows(
        self, position: tf.Tensor, draw: augment.RandomCrop
    ) -> tuple[tf.Tensor, tf.Tensor, augment.Window, SampleChecks]:
        """Returns those rows of an image that a crop shows, its label and the crop."""

        def window_fn(size: tf.Tensor) -> augment.Window:
            return augment.crop_window(draw, size, self.config.crop_size)

        is_resized = self.config.min_resize_value is not None
        sample = self._reader.decode(position, None if is_resized else window_fn)
        image, label = _resized(sample.image, sample.label, self.info, self.config)
        window = sample.window or window_fn(tf.shape(label)[:2])
        if is_resized:
            first, count = window.first_row, window.row_count
            image = image[first : first + count]
        return image, label, window, sample.checks


def _mean_pixel(config: DataConfig, info: DatasetInfo) -> tuple[float, ...]:
    """Returns one value for each channel of the images."""
    values = config.mean_pixel
    if len(values) == info.channels:
        return values
    if len(set(values)) == 1:
        return values[:1] * info.channels
    raise UserError(
        f"mean_pixel needs one value for each of {info.channels} channels of "
        f"{info.name}; received {values}"
    )


def scale_to_255(image: tf.Tensor, info: DatasetInfo) -> tf.Tensor:
    """Returns float32 pixels in 0..255."""
    image = tf.cast(image, tf.float32)
    return image if info.max_value == 255 else image * (255.0 / info.max_value)


def _resized(
    image: tf.Tensor, label: tf.Tensor, info: DatasetInfo, config: DataConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns float32 image and uint8 label, resized where that is asked for."""
    image = scale_to_255(image, info)
    if config.min_resize_value is None:
        return image, label
    return augment.resize_to_range(
        image,
        label,
        config.min_resize_value,
        config.max_resize_value,
        config.resize_factor,
    )


def _first(conditions: tf.Tensor) -> tf.Tensor:
    """Returns the place of the first that holds; 0 where none does."""
    return tf.argmax(tf.cast(conditions, tf.int32))


def training_batches(
    batch_of: Callable, batch_size: int, start: int, worker: int, num_workers: int
) -> tf.data.Dataset:
    """Returns a worker's rows of the batches of a training, without end.

    Args:
        batch_of: Makes a batch of the samples of some indices, int64 `[rows]`.
        batch_size: Samples of all workers.
        start: Index of the first sample.
        worker: Number of this worker, from 0.
        num_workers: Workers that share the batches.
    """
    rows = batch_size // num_workers

    def batch(number: tf.Tensor) -> tuple:
        # This worker has some rows of every batch.
        begin = start + number * batch_size + worker * rows
        return batch_of(begin + tf.range(rows, dtype=tf.int64))

    # Whole batches in parallel: what a batch costs besides its samples is paid once.
    dataset = tf.data.Dataset.range(tf.int64.max)
    return dataset.map(batch, num_parallel_calls=_PARALLEL_CALLS)


def check_batch_size(batch_size: int, num_workers: int) -> None:
    """Refuses a batch that the workers cannot share.

    Raises:
        UserError: naming both numbers.
    """
    if batch_size % num_workers:
        raise UserError(
            f"a batch of {batch_size} cannot be shared by {num_workers} workers"
        )


def _evaluation(
    source: Source, config: DataConfig, worker: int, of: int, named: bool
) -> tf.data.Dataset:
    reader = Reader(source)

    def whole(position: tf.Tensor) -> tuple:
        image, label, name = reader.read_sample(position)
        pair = _resized(image, label, source.info, config)
        return (*pair, name) if named else pair

    dataset = tf.data.Dataset.range(worker, len(source.index), of)
    rows = config.batch_size // of
    if rows > 1:
        # Images of one size form a batch, so that nothing is resized or padded. They
        # are decoded when it is full, for all that wait would need much memory.
        dataset = dataset.map(lambda p: (p, reader.read_size(p))).group_by_window(
            lambda _, size: tf.reduce_sum(tf.cast(size, tf.int64) * [1 << 32, 1]),
            lambda _, same_size: same_size.map(lambda p, _: p).batch(rows),
            window_size=rows,
        )
    else:
        dataset = dataset.batch(1)

    def batch(positions: tf.Tensor) -> tuple:
        samples = tf.data.Dataset.from_tensor_slices(positions).map(whole)
        return samples.batch(rows).get_single_element()

    return dataset.map(batch, num_parallel_calls=EVAL_PARALLEL_CALLS)


def load_dataset(
    config: DataConfig,
    split: str,
    training: bool,
    start: int = 0,
    worker: int = 0,
    num_workers: int = 1,
    named: bool = False,
) -> tf.data.Dataset:
    """Returns batches of images and labels.

    Args:
        config: Where the records are and how a sample is made; training crops, scales
            and mirrors as DeepLabv3 (1706.05587, Sec. 4.1) does.
        split: Official name of the split; `trainaug` is `train_aug`.
        training: Whether samples are shuffled, augmented to the crop size and
            repeated for ever. Otherwise every image comes once, at its own size.
        start: Number of training samples to pass over; those that follow are
            the same as in a run that was never interrupted.
        worker: Number of this worker, from 0.
        num_workers: Workers that share the batches: each gets its rows of every
            one in training, its own images otherwise.
        named: Whether the names of the images come along; not in training.

    Returns:
        Pairs of float32 images 0..255 `[batch, height, width, channels]` and uint8
        labels `[batch, height, width, 1]`, a batch being `batch_size / num_workers`;
        behind them the names, strings `[batch]`, where they are asked for.

    Raises:
        UserError: if the split has no records, or the batch cannot be shared.
    """
    check_batch_size(config.batch_size, num_workers)
    source = open_split(config.dataset, config.dataset_dir, split)
    if training:
        cropper = _Cropper(source, config)
        dataset = training_batches(
            cropper.batch, config.batch_size, start, worker, num_workers
        )
    else:
        dataset = _evaluation(source, config, worker, num_workers, named)
    return prefetch(dataset)


def prefetch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns batches that are made while those before them are used."""
    options = tf.data.Options()
    # Batches are made in parallel; threads within an operation would be too many, and
    # watching what might be tuned costs one image in twenty.
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    return dataset.prefetch(_PREFETCHED_BATCHES).with_options(options)


def describe_samples(config: DataConfig, split: str, start: int, count: int) -> str:
    """Returns the records that training samples are made of, in words.

    Args:
        config: Where the records are and how a sample is made.
        split: Official name of the split.
        start: Number of the first sample among all that a training sees.
        count: Number of samples.
    """
    source = open_split(config.dataset, config.dataset_dir, split)
    cropper = _Cropper(source, config)
    return "; ".join(cropper.describe(start + i) for i in range(count))
