"""Candidate ways of sampling crops, which `benchmarks.tricks` measures."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.config import DataConfig
from deeplab_tf.data.augment import RandomCrop
from deeplab_tf.data.source import Source
from deeplab_tf.data.statistics import count_labels

# CamVid's pole, sign, fence, pedestrian and bicyclist.
_RARE = (2, 6, 7, 9, 10)


class Target(NamedTuple):
    """What a crop is centred on, if `is_used`: a class in the record at a position."""

    is_used: tf.Tensor
    class_id: tf.Tensor
    position: tf.Tensor


class UniformClasses:
    """Draws classes uniformly, and images that contain them (1812.01593, Sec. 3.4)."""

    def __init__(self, source: Source):
        rows = [np.flatnonzero(x) for x in count_labels(source).contains.T]
        rows = {i: row for i, row in enumerate(rows) if len(row)}
        self._classes = tf.constant(list(rows))
        self._counts = tf.constant([len(row) for row in rows.values()], tf.int64)
        table = np.zeros((len(rows), max(map(len, rows.values()))), np.int64)
        for own, row in zip(table, rows.values(), strict=True):
            own[: len(row)] = row
        self._positions = tf.constant(table)

    def draw(self, config: DataConfig, index: tf.Tensor) -> Target:
        """Draws the target of the crop with this index."""
        uniform = tf.random.stateless_uniform([3], [config.seed + 1, index])
        count = tf.size(self._classes, tf.int64)
        row = tf.minimum(_multiply(uniform[1], count), count - 1)
        count = tf.gather(self._counts, row)
        column = tf.minimum(_multiply(uniform[2], count), count - 1)
        return Target(
            uniform[0] < config.uniform_class_crops,
            tf.gather(self._classes, row),
            tf.gather_nd(self._positions, tf.stack([row, column])),
        )


def _multiply(uniform: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
    return tf.cast(uniform * tf.cast(count, tf.float32), tf.int64)


def aim_crop(
    target: Target, label: tf.Tensor, crop: RandomCrop, size: tuple[int, int]
) -> RandomCrop:
    """Returns a crop of `size` around a random pixel of the target's class."""
    pixels = tf.where(label[..., 0] == tf.cast(target.class_id, label.dtype))
    count = tf.size(pixels, tf.int64) // 2
    # The position of the crop is free, so it chooses the pixel.
    index = tf.minimum(_multiply(crop.position[0], count), count - 1)
    pixel = tf.gather(tf.concat([pixels, [[0, 0]]], 0), tf.maximum(index, 0))
    scaled = tf.floor(tf.cast(tf.shape(label)[:2], tf.float32) * crop.scale)
    room = tf.maximum(scaled - tf.cast(size, tf.float32), 0.0)
    offset = tf.cast(pixel, tf.float32) * crop.scale - tf.cast(size, tf.float32) / 2
    position = tf.clip_by_value((offset + 0.5) / (room + 1.0), 0.0, 0.9999)
    is_used = target.is_used & (count > 0)
    return crop._replace(position=tf.where(is_used, position, crop.position))


def mix_samples(
    images: tf.Tensor, labels: tf.Tensor, indices: tf.Tensor, config: DataConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pastes rare classes or a rectangle of the crop before into each crop of a batch.

    The first crop gets those of the last one.
    """
    others = tf.roll(images, 1, 0), tf.roll(labels, 1, 0)
    count = indices.shape[0]
    uniform = tf.random.stateless_uniform([count, 5], [config.seed + 2, indices[0]])
    masks = []
    if config.copy_paste:
        is_rare = tf.reduce_any([others[1] == value for value in _RARE], 0)
        masks.append(is_rare & _select(uniform[:, 0], config.copy_paste))
    if config.cutmix:
        mask = _draw_rectangles(uniform[:, 1:4], config.crop_size)
        masks.append(mask & _select(uniform[:, 4], config.cutmix))
    for mask in masks:
        images, labels = (
            tf.where(mask, other, own)
            for own, other in zip((images, labels), others, strict=True)
        )
    return images, labels


def _select(uniform: tf.Tensor, fraction: float) -> tf.Tensor:
    return (uniform < fraction)[:, None, None, None]


def _draw_rectangles(uniform: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Returns masks `[batch, *size, 1]` of rectangles of 0.1 to 0.5 of the area."""
    ratio = tf.sqrt(0.1 + 0.4 * uniform[:, :1])
    row, column = (
        (place >= start) & (place < start + ratio)
        for place, start in (
            (tf.range(side, dtype=tf.float32)[None] / side, corner * (1 - ratio))
            for side, corner in zip(
                size, (uniform[:, 1:2], uniform[:, 2:3]), strict=True
            )
        )
    )
    return (row[:, :, None] & column[:, None])[..., None]
