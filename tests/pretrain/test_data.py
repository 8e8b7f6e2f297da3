"""Classified images: crops, order and errors."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from small_tfds import (
    grey,
    make_class_examples,
    make_examples,
    noise_samples,
    prepare,
    prepare_color_classes,
    rgb,
)
from tensorflow_datasets import features

from deeplab_tf.config import DataConfig
from deeplab_tf.data import augment
from deeplab_tf.data.reader import iterate_batches
from deeplab_tf.errors import UserError
from deeplab_tf.pretrain.data import (
    central_window,
    describe_samples,
    load_classified_images,
    open_classified_images,
    random_window,
)

TRAIN, TEST = 9, 5


@pytest.fixture(scope="module")
def splits():
    """The examples of the colors dataset by split."""
    return {
        "train": make_class_examples(TRAIN, 0),
        "test": make_class_examples(TEST, 1),
    }


@pytest.fixture(scope="module")
def folder(splits, tmp_path_factory):
    """A data_dir with the colors dataset."""
    folder = str(tmp_path_factory.mktemp("classes"))
    prepare_color_classes(folder, splits)
    return folder


def config_of(folder, **options):
    options = {
        "dataset": "tfds:colors",
        "crop_size": (16, 20),
        "batch_size": 3,
    } | options
    return DataConfig(folder, **options)


def take_batches(dataset, count):
    return list(itertools.islice(dataset.as_numpy_iterator(), count))


# ---- Windows


def sample_windows(size, count=400):
    """Returns random windows of an image, `[count, 4]`."""
    seeds = tf.stack([tf.zeros(count, tf.int64), tf.range(count, dtype=tf.int64)], 1)
    found = tf.map_fn(
        lambda seed: random_window(tf.constant(size), seed),
        seeds,
        fn_output_signature=tf.int32,
    )
    return found.numpy()


def test_random_windows_span_allowed_range():
    height, width = 300, 400
    top, left, rows, columns = sample_windows((height, width)).T
    assert (top >= 0).all() and (top + rows <= height).all()
    assert (left >= 0).all() and (left + columns <= width).all()
    areas, aspects = rows * columns / (height * width), columns / rows
    # Sides are rounded to pixels; they have at least about eighty.
    assert areas.min() > 0.08 * 0.97 and areas.max() <= 1
    assert aspects.min() > 0.75 * 0.97 and aspects.max() < 4 / 3 * 1.03
    assert areas.min() < 0.12 and areas.max() > 0.9
    assert aspects.min() < 0.78 and aspects.max() > 1.3
    # Their positions vary.
    assert np.unique(top).size > 100 and np.unique(left).size > 100


def test_random_window_is_deterministic():
    found = sample_windows((60, 80), 20)
    np.testing.assert_array_equal(found, sample_windows((60, 80), 20))
    assert len(np.unique(found, axis=0)) > 15


def test_full_image_is_used_if_no_window_fits():
    # 8% of 4 x 900 pixels are 288; four rows of at most 16/3 columns are 21.
    np.testing.assert_array_equal(sample_windows((4, 900), 3), [[0, 0, 4, 900]] * 3)


@pytest.mark.parametrize(
    ("size", "window"),
    # 0.875 * 40 = 35 leaves 5, of which 2 are at the top; 0.875 * 64 = 56.
    [((40, 64), (2, 4, 35, 56)), ((1, 8), (0, 0, 1, 7)), ((299, 8), (18, 0, 262, 7))],
)
def test_central_window_has_the_expected_size(size, window):
    assert tuple(central_window(tf.constant(size)).numpy()) == window


# ---- Batches


def test_evaluation_crops_each_image_centrally_once(splits, folder):
    found = take_batches(
        load_classified_images(config_of(folder), "test", training=False), 9
    )
    assert [len(images) for images, _ in found] == [3, 2]
    images = np.concatenate([images for images, _ in found])
    labels = np.concatenate([labels for _, labels in found])
    assert images.dtype == np.float32 and labels.dtype == np.int32
    assert labels.shape == (TEST, 1, 1)
    assert labels.ravel().tolist() == [x["label"] for x in splits["test"]]
    for image, example in zip(images, splits["test"], strict=True):
        top, left, rows, columns = central_window(
            tf.shape(example["image"])[:2]
        ).numpy()
        middle = example["image"][top : top + rows, left : left + columns]
        expected = augment.resize_image(tf.cast(middle, tf.float32), (16, 20))
        np.testing.assert_allclose(image, expected, rtol=1e-6)


def test_evaluation_is_split_over_workers(folder):
    config = config_of(folder, batch_size=2)
    counts = [
        sum(
            len(images)
            for images, _ in load_classified_images(config, "test", False, 0, w, 2)
        )
        for w in range(2)
    ]
    assert counts == [3, 2]


def test_training_epoch_has_each_image_once(folder, tmp_path):
    # Every image is constant, so cropping does not change its value.
    values = range(20, 20 + 10 * TRAIN, 10)
    constant = [
        {"image": np.full((12, 14, 3), v, np.uint8), "label": i % 3}
        for i, v in enumerate(values)
    ]
    prepare_color_classes(str(tmp_path), {"train": constant})
    found = take_batches(
        load_classified_images(config_of(str(tmp_path)), "train", training=True), 6
    )
    epochs = np.concatenate([images[:, 0, 0, 0] for images, _ in found])
    labels = np.concatenate([labels.ravel() for _, labels in found])
    for epoch in (epochs[:TRAIN], epochs[TRAIN:]):
        assert sorted(epoch) == list(values)
    assert not np.array_equal(epochs[:TRAIN], epochs[TRAIN:])
    np.testing.assert_array_equal(labels, (epochs - 20) / 10 % 3)


def test_half_of_crops_are_mirrored(tmp_path):
    ramp = np.tile(np.arange(80, dtype=np.uint8)[None, :, None], (60, 1, 3))
    prepare_color_classes(str(tmp_path), {"train": [{"image": ramp, "label": 0}]})
    config = config_of(str(tmp_path), batch_size=100)
    ((images, _),) = take_batches(
        load_classified_images(config, "train", training=True), 1
    )
    rising = images[:, 0, -1, 0] > images[:, 0, 0, 0]
    # Ten standard deviations of a fair coin are 50.
    assert 30 < rising.sum() < 70
    assert all(np.all(np.diff(x[0, :, 0]) > 0) for x in images[rising])
    # Crops do not depend on mirroring.
    spread = np.abs(images[:, 0, -1, 0] - images[:, 0, 0, 0])
    assert abs(spread[rising].mean() - spread[~rising].mean()) < 10


def test_restart_and_workers_read_same_samples(folder):
    config = config_of(folder, batch_size=2)
    uninterrupted = take_batches(
        load_classified_images(config, "train", training=True), 6
    )
    restarted = take_batches(
        load_classified_images(config, "train", training=True, start=4), 4
    )
    for batch, expected in zip(restarted, uninterrupted[2:], strict=True):
        np.testing.assert_array_equal(batch[0], expected[0])
        np.testing.assert_array_equal(batch[1], expected[1])
    second = take_batches(
        load_classified_images(config, "train", True, worker=1, num_workers=2), 6
    )
    for batch, expected in zip(second, uninterrupted, strict=True):
        np.testing.assert_array_equal(batch[0], expected[0][1:])
    other = take_batches(
        load_classified_images(config_of(folder, seed=1), "train", training=True), 1
    )
    assert not np.array_equal(other[0][0][:2], uninterrupted[0][0])


@pytest.mark.parametrize(
    ("channels", "dtype", "full"), [(1, np.uint8, 255), (3, np.uint16, 65535)]
)
def test_grey_and_16_bit_image_features_are_read(tmp_path, channels, dtype, full):
    schema = {
        "photo": features.Image(shape=(None, None, channels), dtype=dtype),
        "kind": features.ClassLabel(num_classes=4),
    }
    example = {"photo": np.full((9, 9, channels), full // 5, dtype), "kind": 3}
    prepare(str(tmp_path), "other", schema, {"train": [example]})
    config = config_of(str(tmp_path), dataset="tfds:other:photo:kind", batch_size=1)
    ((images, labels),) = take_batches(
        load_classified_images(config, "train", training=False), 9
    )
    np.testing.assert_allclose(images, np.full((1, 16, 20, channels), 51), rtol=1e-4)
    assert labels.tolist() == [[[3]]]
    info = open_classified_images(config.dataset, str(tmp_path), "train").info
    assert (info.num_classes, info.channels) == (4, channels)


# ---- Errors


def assert_refused(message, function, *arguments):
    """Asserts that an error is one line that matches a message."""
    with pytest.raises(UserError, match=message) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "split", "message"),
    [
        (
            "imagenet",
            "train",
            "--dataset=imagenet must be .* such as tfds:imagenet2012",
        ),
        ("tfds:nosuch", "train", "is not in tensorflow-datasets"),
        ("tfds:colors", "val", "has no split 'val': .*; it has train, test"),
        (
            "tfds:colors:image:color",
            "train",
            r"has no ClassLabel feature 'color'; its .*label \(ClassLabel\)",
        ),
        ("tfds:colors:label:label", "train", "has no Image feature 'label'"),
    ],
)
def test_unknown_dataset_is_refused(folder, name, split, message):
    assert_refused(message, open_classified_images, name, folder, split)


def test_segmentation_dataset_is_refused(tmp_path):
    schema = {"image": rgb(), "mask": grey()}
    prepare(
        str(tmp_path), "toy", schema, {"train": make_examples(*noise_samples(1, 0))}
    )
    message = r"tfds:toy has no ClassLabel feature 'label'; its .*mask \(Image\)"
    assert_refused(message, open_classified_images, "tfds:toy", str(tmp_path), "train")


@pytest.mark.parametrize("training", [True, False])
def test_broken_record_error_names_file_and_number(splits, tmp_path, training):
    prepare_color_classes(str(tmp_path), splits)
    source = open_classified_images("tfds:colors", str(tmp_path), "train")
    (path,) = source.index.paths
    with open(path, "r+b") as file:
        file.seek(int(source.index.offset[4]) + 40)
        file.write(b"odd")
    dataset = load_classified_images(config_of(str(tmp_path)), "train", training)
    message = "record 4 of .*colors-train.tfrecord-00000-of-00001 is broken: "
    assert_refused(message, lambda: read_batches(dataset, 6))


def read_batches(dataset, count):
    return list(itertools.islice(iterate_batches(dataset), count))


@pytest.mark.parametrize("training", [True, False])
def test_unlabelled_image_is_refused(tmp_path, training):
    # As in the test split of ImageNet.
    unlabelled = [
        *make_class_examples(2, 0),
        {**make_class_examples(1, 1)[0], "label": -1},
    ]
    prepare_color_classes(str(tmp_path), {"test": unlabelled})
    dataset = load_classified_images(config_of(str(tmp_path)), "test", training)
    message = r"record 2 of .*colors-test.tfrecord.* has a class outside 0\.\.2"
    assert_refused(message, lambda: read_batches(dataset, 2))


def test_indivisible_batch_is_refused(folder):
    message = "a batch of 3 cannot be divided evenly among 2 workers"
    arguments = (config_of(folder), "train", False, 0, 0, 2)
    assert_refused(message, load_classified_images, *arguments)


def test_describe_samples(folder):
    config = config_of(folder)
    words = describe_samples(config, "train", 4, 2).split("; ")
    assert len(words) == 2
    numbers = [int(word.split()[1]) for word in words]
    assert all("colors-train.tfrecord" in word for word in words)
    # The labels of those samples are the classes of these records.
    ((_, labels),) = take_batches(
        load_classified_images(config, "train", training=True, start=4), 1
    )
    assert [n % 3 for n in numbers] == labels.ravel()[:2].tolist()
