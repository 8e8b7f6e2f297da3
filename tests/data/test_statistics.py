"""Label counts, class weights and bootstrapping, against values worked by hand."""

import dataclasses

import numpy as np
import pytest
from record_files import make_record, write_shards

from deeplab_tf.config import DataConfig
from deeplab_tf.data import records, statistics
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.sources import open_split
from deeplab_tf.errors import UserError

INFO = DatasetInfo("toys", ("floor", "ball", "potted plant", "cat"), ignore_label=255)
# Pixels of each class in four 4x5 images; the other pixels are ignored.
PIXELS = [(10, 5, 0, 0), (20, 0, 0, 0), (8, 2, 4, 0), (0, 0, 1, 0)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    contents = []
    for i, counts in enumerate(PIXELS):
        label = np.full(20, 255, np.uint8)
        label[: sum(counts)] = np.repeat(np.arange(4), counts)
        image = np.full((4, 5, 3), i)
        contents.append(make_record(image, label.reshape(4, 5), f"image_{i}"))
    folder = write_shards(tmp_path_factory.mktemp("toys"), *contents, shards=2)
    records.write_info(INFO, folder)
    return folder


@pytest.fixture(scope="module")
def source(folder):
    return open_split(None, folder, "train")


def test_labels_are_counted(source):
    pixels, image_pixels, contains = statistics.count_labels(source)
    assert pixels.tolist() == [38, 7, 5, 0]
    # The images have 15, 20, 14 and 1 labelled pixels. Floor is in the first three,
    # ball in the first and the third, the plant in the last two.
    assert image_pixels.tolist() == [49, 29, 15, 0]
    assert contains.tolist() == [[n > 0 for n in counts] for counts in PIXELS]


def test_ignore_label_that_is_a_class_id_is_not_counted(source):
    # As in ADE20K, where 0 is one of 151 classes and ignored.
    info = DatasetInfo("a", tuple(map(str, range(256))), ignore_label=0)
    counts = statistics.count_labels(dataclasses.replace(source, info=info))
    assert counts.class_pixels[[0, 1, 2]].tolist() == [0, 7, 5]


def test_weights_are_median_frequency_over_frequency(source):
    # Frequencies 38/49, 7/29, 5/15: the median is 1/3. There is no cat.
    expected = [49 / 38 / 3, 29 / 7 / 3, 1, 1]
    np.testing.assert_allclose(
        statistics.compute_class_weights(source, "train"), expected
    )


def test_weights_use_counts_of_the_dataset_info(source):
    # Frequencies 1/2, 1/4, 1/8 and 1: the median is 3/8.
    counted = dataclasses.replace(
        INFO,
        class_pixels={"train_aug": [50, 5, 1, 1]},
        class_image_pixels={"train_aug": [100, 20, 8, 1]},
    )
    weights = statistics.compute_class_weights(
        dataclasses.replace(source, info=counted), "trainaug"
    )
    np.testing.assert_allclose(weights, [3 / 4, 3 / 2, 3, 3 / 8])


def test_images_with_bootstrap_classes_are_repeated(folder, source):
    positions = statistics.list_epoch_positions(source, ("pottedplant", "Cat"))
    assert positions.tolist() == [0, 1, 2, 3, 2, 3]
    assert statistics.list_epoch_positions(source, ()).tolist() == [0, 1, 2, 3]
    config = DataConfig(
        folder,
        crop_size=(4, 5),
        batch_size=6,
        min_scale_factor=1.0,
        max_scale_factor=1.0,
        bootstrap_classes=("potted plant",),
    )
    for images, _ in load_dataset(config, "train", training=True).take(3):
        assert sorted(images[:, 0, 0, 0].numpy()) == [0, 1, 2, 2, 3, 3]


def test_unknown_class_is_refused_with_known_classes(source):
    with pytest.raises(UserError, match=r"toys has no class 'dog'; .* floor, ball, po"):
        statistics.list_epoch_positions(source, ("ball", "dog"))
