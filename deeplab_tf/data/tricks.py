"""Experimental augmentation."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.data import augment
from deeplab_tf.data.statistics import count_labels

RARE = (2, 6, 7, 9, 10)


class Drawn(NamedTuple):
    used: tf.Tensor
    class_id: tf.Tensor
    position: tf.Tensor


class UniformClasses:
    def __init__(self, source):
        contains = count_labels(source).contains
        self.counts = tf.constant(contains.sum(0), tf.int64)
        rows = [np.flatnonzero(c) for c in contains.T]
        table = np.zeros((len(rows), max(map(len, rows))), np.int64)
        for i, r in enumerate(rows):
            table[i, : len(r)] = r
        self.table = tf.constant(table)

    def draw(self, config, index):
        u = tf.random.stateless_uniform([3], [config.seed + 1, index])
        classes = self.table.shape[0]
        c = tf.minimum(tf.cast(u[1] * classes, tf.int32), classes - 1)
        n = tf.gather(self.counts, c)
        k = tf.minimum(tf.cast(u[2] * tf.cast(n, tf.float32), tf.int64), n - 1)
        return Drawn(u[0] < config.uniform_classes, c, tf.gather_nd(self.table, tf.stack([tf.cast(c, tf.int64), k])))

    def aim(self, own, label, crop, size, config):
        """A crop whose centre is a random pixel of the class."""
        hit = tf.where(label[..., 0] == tf.cast(own.class_id, label.dtype))
        n = tf.shape(hit)[0]
        k = tf.minimum(tf.cast(crop.position[0] * tf.cast(n, tf.float32), tf.int32),
                       tf.maximum(n - 1, 0))
        pixel = tf.cast(tf.cond(n > 0, lambda: hit[k], lambda: tf.zeros([2], tf.int64)), tf.float32)
        scaled = tf.cast(size, tf.float32) * crop.scale
        room = tf.maximum(tf.floor(scaled) - tf.constant(config.crop_size, tf.float32), 0.0)
        offset = pixel * crop.scale - tf.constant(config.crop_size, tf.float32) / 2
        position = tf.clip_by_value((offset + 0.5) / (room + 1.0), 0.0, 0.9999)
        use = own.used & (n > 0)
        return crop._replace(position=tf.where(use, position, crop.position))


def mix_samples(images, labels, indices, config):
    if not (config.copy_paste or config.cutmix):
        return images, labels
    n = indices.shape[0]
    other_i, other_l = tf.roll(images, 1, 0), tf.roll(labels, 1, 0)
    u = tf.random.stateless_uniform([n, 8], [config.seed + 2, indices[0]])
    shape = [n, 1, 1, 1]
    if config.copy_paste:
        mask = tf.zeros_like(labels, tf.bool)
        for c in RARE:
            mask |= other_l == c
        mask &= tf.reshape(u[:, 0] < config.copy_paste, shape)
        images = tf.where(mask, other_i, images)
        labels = tf.where(mask, other_l, labels)
    if config.cutmix:
        h, w = config.crop_size
        area = 0.1 + 0.4 * u[:, 1]
        ratio = tf.sqrt(area)
        y0 = (u[:, 2] * (1 - ratio))[:, None]
        x0 = (u[:, 3] * (1 - ratio))[:, None]
        r = ratio[:, None]
        ys = (tf.range(h, dtype=tf.float32) / h)[None]
        xs = (tf.range(w, dtype=tf.float32) / w)[None]
        rows = (ys >= y0) & (ys < y0 + r)
        cols = (xs >= x0) & (xs < x0 + r)
        mask = rows[:, :, None, None] & cols[:, None, :, None]
        mask &= tf.reshape(u[:, 4] < config.cutmix, shape)
        images = tf.where(mask, other_i, images)
        labels = tf.where(mask, other_l, labels)
    return images, labels


def jitter_more(image, u, strength):
    """Gamma, channel gains and a brightness gradient."""
    image = tf.cast(image, tf.float32)
    gains = 1.0 + strength * 0.3 * (2 * u[:3] - 1)
    gamma = tf.exp(strength * 0.7 * (2 * u[3] - 1))
    return 255.0 * tf.pow(tf.clip_by_value(image * gains / 255.0, 0.0, 1.0), gamma)
