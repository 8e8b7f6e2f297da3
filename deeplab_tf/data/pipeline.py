"""Turns TFRecord shards into batches; samples depend only on (seed, epoch, index).

Records are read by random access. Each epoch is a permutation of all records, each
worker reads only its own, and a resumed run continues directly at its position.

Functions of datasets have no Python branches or loops over tensors. AutoGraph would
take two seconds to find none at the start of every program, so it is turned off.
"""

import os
from collections.abc import Callable, Iterator

import tensorflow as tf

from deeplab_tf.arguments import check_arguments
from deeplab_tf.config import DataConfig
from deeplab_tf.config.options import COUNT, NOT_NEGATIVE
from deeplab_tf.data import augment, service
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.reader import (
    Reader,
    SampleChecks,
    iterate_batches,
    skip_errors,
)
from deeplab_tf.data.source import Source
from deeplab_tf.data.sources import open_split
from deeplab_tf.data.statistics import list_epoch_positions
from deeplab_tf.data.tricks import Target, UniformClasses, aim_crop, mix_samples
from deeplab_tf.errors import UserError

# Batches prepared in parallel: twice the number of cores, because threads often wait
# for each other, but limited to save memory.
_PARALLEL_CALLS = min(2 * (os.cpu_count() or 1), 32)
# In evaluation, the model takes nearly all of the time, and each additional parallel
# batch delays the start by 0.13 s.
EVAL_PARALLEL_CALLS = max(2, _PARALLEL_CALLS // 4)
_PREFETCHED_BATCHES = 2


def shuffle_index(index: tf.Tensor, count: tf.Tensor, seed: int) -> tf.Tensor:
    """Maps the index of a training sample to the position of its record.

    The position is an int64 scalar, 0 to `count - 1`. Each epoch has its own random
    permutation of the positions, which is never materialized. `index` counts the
    samples since the start of training.
    """
    # With few records, the shuffle uses few bits of its key, so hash the key first.
    key = tf.random.stateless_uniform([3], [seed, index // count], None, None, tf.int64)
    return tf.raw_ops.RandomIndexShuffle(
        index=index % count, seed=key, max_index=count - 1, rounds=8
    )


class _Cropper:
    """Makes random training crops from the records of a source."""

    def __init__(self, source: Source, config: DataConfig):
        self.info = source.info
        self.config = config
        self._reader = Reader(source)
        self._mean_pixel = _expand_mean_pixel(config, source.info)
        self._epoch = tf.constant(
            list_epoch_positions(source, config.bootstrap_classes)
        )
        is_uniform = config.uniform_class_crops > 0
        self._uniform = UniformClasses(source) if is_uniform else None

    def _draw_target(self, index: tf.Tensor) -> Target | None:
        """Returns the target of a crop; None unless classes are sampled uniformly."""
        return self._uniform.draw(self.config, index) if self._uniform else None

    def _find_position(self, index: tf.Tensor) -> tf.Tensor:
        """Returns the position of a training sample's record in the source."""
        count = tf.size(self._epoch, tf.int64)
        shuffled = shuffle_index(index, count, self.config.seed)
        position = tf.gather(self._epoch, shuffled)
        target = self._draw_target(index)
        if target is None:
            return position
        return tf.where(target.is_used, target.position, position)

    def describe(self, index: int) -> str:
        """Returns the file, number and name of a training sample's record."""
        return self._reader.describe(self._find_position(tf.constant(index, tf.int64)))

    def batch(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns crops, float32 `[batch, *crop_size, channels]`, and their labels."""
        count = indices.shape[0]
        samples = tf.data.Dataset.from_tensor_slices(indices)
        samples = skip_errors(samples.map(lambda i: (i, self._crop(i))), count)
        found, (images, labels, checks) = samples.batch(count).get_single_element()
        is_found = found == indices[: tf.size(found)]
        missing = self._find_position(tf.gather(indices, _find_first(~is_found)))
        with self._reader.require_readable(missing, tf.reduce_all(is_found)):
            checks = tf.nest.map_structure(tf.identity, checks)
        if self.config.copy_paste or self.config.cutmix:
            images, labels = mix_samples(images, labels, indices, self.config)
        is_bad = tf.reduce_any(checks.size != checks.label_size, 1) | (checks.value > 0)
        bad = _find_first(is_bad)
        position = self._find_position(tf.gather(indices, bad))
        checks = tf.nest.map_structure(lambda x: tf.gather(x, bad), checks)
        with self._reader.require_valid(position, checks):
            return (
                tf.ensure_shape(images, [count, *images.shape[1:]]),
                tf.ensure_shape(labels, [count, *labels.shape[1:]]),
            )

    def _crop(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, SampleChecks]:
        """Returns a random crop of a training sample, its label and the checks."""
        config, position = self.config, self._find_position(index)
        uniform = tf.random.stateless_uniform([7], [config.seed, index])
        random_crop = augment.draw_crop(
            uniform[:4],
            config.min_scale_factor,
            config.max_scale_factor,
            config.scale_factor_step_size,
        )
        image, label, window, checks = self._decode(
            position, random_crop, self._draw_target(index)
        )
        if config.photometric_jitter:
            image = augment.jitter_colors(image, uniform[4:], config.photometric_jitter)
        size = config.crop_size
        image = augment.crop_image(image, window, size, self._mean_pixel)
        label = augment.crop_label(label, window, size, self.info.ignore_label)
        return image, label, checks

    def _decode(
        self,
        position: tf.Tensor,
        random_crop: augment.RandomCrop,
        target: Target | None,
    ) -> tuple[tf.Tensor, tf.Tensor, augment.Window, SampleChecks]:
        """Decodes a label, and the image rows that a crop needs."""

        def window_fn(label: tf.Tensor) -> augment.Window:
            crop, size = random_crop, self.config.crop_size
            if target is not None:
                crop = aim_crop(target, label, crop, size)
            return augment.crop_window(crop, tf.shape(label)[:2], size)

        is_resized = self.config.min_resize_value is not None
        sample = self._reader.decode(position, None if is_resized else window_fn)
        image, label = _resize(sample.image, sample.label, self.info, self.config)
        window = sample.window or window_fn(label)
        if is_resized:
            first, count = window.first_row, window.row_count
            image = image[first : first + count]
        return image, label, window, sample.checks


def _expand_mean_pixel(config: DataConfig, info: DatasetInfo) -> tuple[float, ...]:
    """Returns the mean pixel with one value per channel of the dataset."""
    values = config.mean_pixel
    if len(values) == info.channels:
        return values
    if len(set(values)) == 1:
        return values[:1] * info.channels
    raise UserError(
        f"mean_pixel must have one value for each of the {info.channels} channels of "
        f"{info.name}, or a single one; received {values}"
    )


def scale_to_255(image: tf.Tensor, info: DatasetInfo) -> tf.Tensor:
    """Returns float32 pixels in 0..255."""
    image = tf.cast(image, tf.float32)
    return image if info.max_value == 255 else image * (255.0 / info.max_value)


def _resize(
    image: tf.Tensor, label: tf.Tensor, info: DatasetInfo, config: DataConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns a float32 image 0..255 and its label, resized if so configured."""
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


def _find_first(conditions: tf.Tensor) -> tf.Tensor:
    """Returns the index of the first true condition; 0 if there is none."""
    return tf.argmax(tf.cast(conditions, tf.int32))


def make_training_batches(
    batch_fn: Callable,
    batch_size: int,
    start: int,
    worker: int,
    num_workers: int,
    data_service: str | None = None,
) -> tf.data.Dataset:
    """Returns an endless dataset of one worker's share of the training batches.

    `batch_fn` makes a batch from sample indices, int64 `[rows]`; `batch_size` is the
    global batch size, and `start` the index of the first sample. With `data_service`,
    the workers of that tf.data service make the batches.
    """
    rows = find_rows(batch_size, worker, num_workers)

    @tf.autograph.experimental.do_not_convert
    def batch(number: tf.Tensor) -> tuple:
        begin = start + number * batch_size + rows.start
        return batch_fn(begin + tf.range(len(rows), dtype=tf.int64))

    if data_service:
        return service.make_batches(batch, data_service)
    # Batches rather than samples run in parallel, so that a batch is only one call.
    dataset = tf.data.Dataset.range(tf.int64.max)
    return dataset.map(batch, num_parallel_calls=_PARALLEL_CALLS)


def find_rows(batch_size: int, worker: int, num_workers: int) -> range:
    """Returns a worker's rows of a batch; their numbers differ by at most one.

    Raises:
        UserError: if there are more workers than rows.
    """
    if batch_size < num_workers:
        raise UserError(
            f"a batch of {batch_size} has too few images for {num_workers} workers; "
            f"use at least {num_workers}"
        )
    ends = [batch_size * (worker + i) // num_workers for i in (0, 1)]
    return range(*ends)


def check_batch_size(batch_size: int, num_workers: int) -> None:
    """Raises `UserError` unless a batch can be divided evenly among the workers."""
    if batch_size % num_workers:
        raise UserError(
            f"a batch of {batch_size} cannot be divided evenly among {num_workers} "
            f"workers; use a multiple of {num_workers}"
        )


def _make_evaluation_batches(
    source: Source, config: DataConfig, worker: int, num_workers: int, named: bool
) -> tf.data.Dataset:
    """Returns batches of one worker's images at their original or resized sizes.

    Elements are images, labels and, if `named`, names.
    """
    reader = Reader(source)

    def read(position: tf.Tensor) -> tuple:
        image, label, name = reader.read_sample(position)
        pair = _resize(image, label, source.info, config)
        return (*pair, name) if named else pair

    rows = config.batch_size // num_workers
    dataset = tf.data.Dataset.range(worker, len(source.index), num_workers)
    dataset = _group_by_size(dataset, reader, rows) if rows > 1 else dataset.batch(1)

    @tf.autograph.experimental.do_not_convert
    def batch(positions: tf.Tensor) -> tuple:
        samples = tf.data.Dataset.from_tensor_slices(positions).map(read)
        return samples.batch(rows).get_single_element()

    return dataset.map(batch, num_parallel_calls=EVAL_PARALLEL_CALLS)


def _group_by_size(
    positions: tf.data.Dataset, reader: Reader, rows: int
) -> tf.data.Dataset:
    """Returns batches of up to `rows` positions of images of the same size.

    Images in a batch have the same size, so none is resized or padded. All sizes are
    read in advance, because `fit` and progress bars need the number of batches, which
    `group_by_window` does not know.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for position, size in _read_sizes(positions, reader):
        groups.setdefault(size, []).append(position)
    batches = sorted(
        group[first : first + rows]
        for group in groups.values()
        for first in range(0, len(group), rows)
    )
    batches = tf.ragged.constant(batches, tf.int64, ragged_rank=1)
    return tf.data.Dataset.from_tensor_slices(batches)


def _read_sizes(
    positions: tf.data.Dataset, reader: Reader
) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yields each position with the height and width of its image."""
    sizes = positions.map(
        lambda position: (position, reader.read_size(position)),
        num_parallel_calls=_PARALLEL_CALLS,
    )
    for position, (height, width) in iterate_batches(sizes):
        yield int(position), (int(height), int(width))


def find_largest_size(config: DataConfig, split: str) -> tuple[int, int]:
    """Returns the largest height and the largest width of the images of a split."""
    source = open_split(config.dataset, config.dataset_dir, split)
    positions = tf.data.Dataset.range(len(source.index))
    sizes = [size for _, size in _read_sizes(positions, Reader(source))]
    heights, widths = zip(*sizes, strict=True)
    return max(heights), max(widths)


@check_arguments(start=NOT_NEGATIVE, worker=NOT_NEGATIVE, num_workers=COUNT)
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
        config: Location of the records, and the augmentation, which follows DeepLabv3
            (1706.05587, Sec. 4.1).
        split: Official name of the split; `trainaug` is `train_aug`.
        training: Whether to shuffle, augment to the crop size and repeat forever.
            Otherwise, every image is returned once, at its original size.
        start: Number of training samples to skip; the following samples are the same
            as in an uninterrupted run.
        worker: Index of this worker, from 0.
        num_workers: Number of workers. In training, each gets some rows of every
            batch; in evaluation, each gets some of the images.
        named: Whether to also return image names; evaluation only.

    Returns:
        Float32 images 0..255 `[batch, height, width, channels]` and uint8 labels
        `[batch, height, width, 1]`, where batch is `batch_size / num_workers`, in
        training rounded up or down; if `named`, also the names, strings `[batch]`.

    Raises:
        UserError: if the split has no records, a batch cannot be divided among the
            workers, evaluation batches several images and a record is broken, or the
            data service cannot be reached or does not deliver.
    """
    if not training:
        check_batch_size(config.batch_size, num_workers)
    folder = config.dataset_dir
    if training and config.data_service:
        # The workers of the service may run in other folders.
        folder = service.make_absolute(folder)
    source = open_split(config.dataset, folder, split)
    if training:
        cropper = _Cropper(source, config)
        dataset = make_training_batches(
            *(cropper.batch, config.batch_size, start, worker, num_workers),
            config.data_service,
        )
    else:
        dataset = _make_evaluation_batches(source, config, worker, num_workers, named)
    return prefetch(dataset)


def prefetch(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Prepares the next batches while the current one is in use."""
    options = tf.data.Options()
    # Batches are already prepared in parallel, so operations need no threads of their
    # own. Autotuning costs 5% of the throughput.
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    return dataset.prefetch(_PREFETCHED_BATCHES).with_options(options)


def describe_samples(config: DataConfig, split: str, start: int, count: int) -> str:
    """Returns the file, number and name of the records of `count` training samples.

    `start` is the index of the first sample, counted from the start of training.
    """
    source = open_split(config.dataset, config.dataset_dir, split)
    cropper = _Cropper(source, config)
    return "; ".join(cropper.describe(start + i) for i in range(count))
