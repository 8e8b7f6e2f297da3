"""Candidate ways of sampling crops."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from record_files import make_record, write_shards

from deeplab_tf.config import DataConfig
from deeplab_tf.data.augment import RandomCrop, crop_label, crop_window
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.tricks import Target, aim_crop

RARE, COMMON = 6, 4  # a CamVid sign among trees


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Ten green images; one has a red corner of 4x4 pixels, of a rare class."""
    folder = tmp_path_factory.mktemp("rare")
    contents = []
    for i in range(10):
        image = np.zeros((40, 50, 3), np.uint8)
        image[..., 1] = 200
        label = np.full((40, 50), COMMON, np.uint8)
        if i == 7:
            image[2:6, 40:44], label[2:6, 40:44] = (200, 0, 0), RARE
        contents.append(make_record(image, label, f"image_{i}"))
    write_shards(folder, *contents)
    return DataConfig(str(folder), crop_size=(11, 13), batch_size=4)


def read_batches(config, count=12, **options):
    config = dataclasses.replace(config, **options)
    batches = load_dataset(config, "train", training=True).take(count)
    images, labels = zip(*batches.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)[..., 0]


def has_rare(labels):
    return (labels == RARE).any((1, 2))


def test_half_of_the_uniform_crops_contain_a_rare_class(config):
    _, labels = read_batches(config)
    assert has_rare(labels).mean() < 0.1
    images, labels = read_batches(config, uniform_class_crops=1.0)
    assert 0.3 < has_rare(labels).mean() < 0.7
    again, _ = read_batches(config, 2, uniform_class_crops=1.0)
    np.testing.assert_array_equal(images[: len(again)], again)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.75])
@pytest.mark.parametrize("flipped", [False, True])
def test_crops_are_centred_on_the_target_where_the_image_allows(scale, flipped):
    label = np.zeros((60, 80, 1), np.uint8)
    label[30, 50] = 1
    crop = RandomCrop(tf.constant(scale), tf.constant([0.3, 0.9]), tf.constant(flipped))
    target = Target(tf.constant(True), tf.constant(1), tf.constant(0, tf.int64))
    aimed = aim_crop(target, tf.constant(label), crop, (21, 21))
    # A block around the target survives every scale.
    label[28:33, 48:53] = 1
    window = crop_window(aimed, tf.constant([60, 80]), (21, 21))
    rows, columns = np.nonzero(crop_label(label, window, (21, 21), 255).numpy()[..., 0])
    np.testing.assert_allclose([rows.mean(), columns.mean()], 10, atol=1.5)


def test_target_without_pixels_leaves_the_crop_alone():
    crop = RandomCrop(tf.constant(1.0), tf.constant([0.3, 0.9]), tf.constant(False))
    target = Target(tf.constant(True), tf.constant(1), tf.constant(0, tf.int64))
    aimed = aim_crop(target, tf.zeros((60, 80, 1), tf.uint8), crop, (21, 21))
    np.testing.assert_array_equal(aimed.position, crop.position)


@pytest.mark.parametrize("option", ["copy_paste", "cutmix"])
def test_pasted_pixels_keep_their_labels(config, option):
    sources, before = read_batches(config, uniform_class_crops=1.0)
    images, labels = read_batches(config, uniform_class_crops=1.0, **{option: 1.0})
    is_changed = (before != labels).any((1, 2)) | (sources != images).any((1, 2, 3))
    assert is_changed.sum() > 10
    # Red is rare and green is common, up to interpolated pixels.
    assert (labels[images[..., 0] > 150] == RARE).all()
    assert (labels[images[..., 1] > 150] != RARE).all()
    if option == "copy_paste":
        assert has_rare(labels).sum() > has_rare(before).sum()
