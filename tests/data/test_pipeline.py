"""Content and order of batches, which are deterministic."""

import dataclasses
import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from record_files import encode_image, make_record, write_shards

from deeplab_tf.config import DataConfig
from deeplab_tf.data import pipeline, records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.reader import iterate_batches, translate_data_errors
from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding
from deeplab_tf.images.decoding import EncodedImage

# Sizes of the images; image i has the colour (20 i, 7, 100) and the class i.
SIZES = [(9, 12), (20, 15), (9, 12), (9, 20), (16, 20)] * 2
COUNT = len(SIZES)


def single_color_record(i, height, width, label=None, name=None):
    """Returns a record of one colour; `label` is an array or the class `i`."""
    image = np.full((height, width, 3), (20 * i, 7, 100), np.uint8)
    label = np.full((height, width), i, np.uint8) if label is None else label
    return make_record(image, label, name or f"image_{i}")


@pytest.fixture(scope="module")
def single_color(tmp_path_factory):
    """A config of ten single-colour images in three shards."""
    folder = tmp_path_factory.mktemp("plain")
    contents = [single_color_record(i, *size) for i, size in enumerate(SIZES)]
    write_shards(folder, *contents, shards=3)
    return DataConfig(
        str(folder), crop_size=(14, 18), batch_size=3, mean_pixel=(0.5, 0.5, 0.5)
    )


@pytest.fixture(scope="module")
def stream(single_color):
    """The first 142 batches of three, some of which contain the end of an epoch."""
    tf.random.set_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        # The tests compare them with batches that are made one at a time.
        patch.setattr(pipeline, "_PARALLEL_CALLS", 2)
        return take_batches(single_color, 142)


def take_batches(config, count, start=0):
    """Returns the first `count` training batches as arrays."""
    dataset = load_dataset(config, "train", training=True, start=start)
    return list(dataset.take(count).as_numpy_iterator())


def class_of(label):
    """Returns the class of the single-colour image in a training sample."""
    (value,) = set(np.unique(label)) - {255}
    return value


def classes_of(batches):
    return [class_of(label) for _, labels in batches for label in labels]


def assert_same(first, second):
    for (image, label), (other_image, other_label) in zip(first, second, strict=True):
        np.testing.assert_array_equal(image, other_image)
        np.testing.assert_array_equal(label, other_label)


def test_training_batches_have_raw_colors(stream):
    for images, labels in stream[:7]:
        assert images.dtype == np.float32 and labels.dtype == np.uint8
        for image, label in zip(images, labels, strict=True):
            i = class_of(label)
            known = label[..., 0] == i
            color = np.tile((20.0 * i, 7.0, 100.0), (known.sum(), 1))
            np.testing.assert_allclose(image[known], color, atol=1e-4)
            np.testing.assert_array_equal(image[~known], 0.5)


def test_different_seeds_give_different_batches(single_color, stream):
    streams = [stream[:4]]
    for seed in (256, 2**32 - 1):
        config = dataclasses.replace(single_color, seed=seed)
        streams.append(take_batches(config, 4))
    for first, second in itertools.combinations(streams, 2):
        assert classes_of(first) != classes_of(second)
        assert not np.array_equal(first[0][0], second[0][0])


# An epoch has 10/3 batches. In the first epoch, at an epoch end, and in a late epoch.
@pytest.mark.parametrize("skipped", [1, 10, 137])
def test_start_skips_batches_exactly(single_color, stream, skipped):
    tf.random.set_seed(skipped)  # which batches do not depend on
    batches = take_batches(single_color, 5, start=3 * skipped)
    assert_same(batches, stream[skipped : skipped + 5])


def test_epochs_contain_every_image_once_in_new_order(stream):
    order = classes_of(stream[:10])
    epochs = [order[i : i + COUNT] for i in range(0, 3 * COUNT, COUNT)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_augmentation_differs_in_every_epoch(tmp_path):
    image = np.random.RandomState(0).randint(0, 256, (20, 20, 3), np.uint8)
    folder = write_shards(tmp_path, make_record(image, np.zeros((20, 20), np.uint8)))
    config = DataConfig(folder, crop_size=(12, 12), batch_size=1)
    seen = {images.tobytes() for images, _ in take_batches(config, 8)}
    assert len(seen) == 8


@pytest.mark.parametrize("batch_size", [1, 3])
def test_evaluation_yields_every_image_once_in_original_size(single_color, batch_size):
    config = dataclasses.replace(single_color, batch_size=batch_size)
    dataset = load_dataset(config, "train", training=False)
    seen, largest = {}, 0
    batches = list(dataset.as_numpy_iterator())
    assert dataset.cardinality() == len(batches)
    for images, labels in batches:
        assert images.dtype == np.float32 and labels.dtype == np.uint8
        largest = max(largest, len(images))
        for image, label in zip(images, labels, strict=True):
            (i,) = np.unique(label)
            assert i not in seen
            seen[i] = label.shape
            np.testing.assert_array_equal(image, np.full_like(image, (20 * i, 7, 100)))
    assert seen == {i: (*size, 1) for i, size in enumerate(SIZES)}
    assert largest == batch_size
    if batch_size == 1:
        assert list(seen) == list(range(COUNT))


@pytest.fixture(scope="module")
def broken_records(tmp_path_factory):
    """A config of one valid and seven invalid records; the messages of the latter."""
    known, label = np.zeros((9, 9), np.uint8), np.full((9, 9), 20, np.uint8)
    label[4, 5] = 77
    image, narrow = np.zeros((9, 9, 3)), np.zeros((9, 11), np.uint8)
    contents = [
        single_color_record(1, 2, 2, np.array([[20, 255], [0, 255]], np.uint8)),
        single_color_record(1, 9, 9, label, name="2007_000032"),
        single_color_record(1, 9, 9, label, name="ab__\nd").replace(
            b"ab__\nd", b"ab\xff\xed\nd"
        ),
        single_color_record(1, 9, 12, narrow, name="b"),
        make_record(np.zeros((6, 9, 3)), np.zeros((300, 200), np.uint8), "small"),
        make_record(b"hello", known),
        make_record(image, b"hello"),
        make_record(image, known, "flipped bit"),
    ]
    folder = write_shards(tmp_path_factory.mktemp("broken"), *contents, split="val")
    path = pathlib.Path(folder) / "val-00000-of-00001.tfrecord"
    path.write_bytes(path.read_bytes().replace(b"flipped bit", b"flippee bit"))
    out_of_range = "has a label of value 77 outside 0..20 and 255 (ignored)"
    unreadable = (
        "is broken: the file is missing, a checksum does not match, its image is not a "
        "JPEG or PNG, or its label is not a grey PNG; run python -m "
        "deeplab_tf.data.doctor for details"
    )
    messages = [
        f"image 2007_000032 {out_of_range}",
        f"image ab\ufffd\ufffd\\nd {out_of_range}",
        "image b is 9 12 but its label 9 11",
        "image small is 6 9 but its label 300 200",
        *[unreadable] * 3,
    ]
    config = DataConfig(folder, crop_size=(8, 8), batch_size=1)
    return config, [f"record {i} of {path} {x}" for i, x in enumerate(messages, 1)]


@pytest.mark.parametrize("training", [True, False])
def test_invalid_records_are_reported(broken_records, training):
    config, expected = broken_records
    batches = iter(load_dataset(config, "val", training))
    labels, messages = [], []
    for _ in range(1 + len(expected)):
        try:
            with translate_data_errors():
                labels.append(next(batches)[1][0, ..., 0])
        except UserError as error:
            messages.append(str(error))
    assert sorted(messages) == expected
    (label,) = labels
    if not training:
        np.testing.assert_array_equal(label, [[20, 255], [0, 255]])


def test_unreadable_record_is_refused_before_images_are_batched(broken_records):
    config, expected = broken_records
    with pytest.raises(UserError) as error:
        load_dataset(dataclasses.replace(config, batch_size=2), "val", training=False)
    assert str(error.value) in expected


def test_truncated_shard_is_refused_before_the_first_batch(tmp_path):
    folder = write_shards(
        tmp_path, single_color_record(1, 9, 9), single_color_record(2, 9, 9)
    )
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UserError, match=f"^record 1 of {path} is broken or cut off"):
        load_dataset(DataConfig(folder, crop_size=(8, 8)), "train", training=True)


def test_images_are_resized_before_cropping(single_color):
    config = dataclasses.replace(
        single_color,
        batch_size=1,
        min_resize_value=30,
        max_resize_value=40,
        resize_factor=16,
    )
    sizes = [
        (images.shape[1:3], labels.shape[1:3])
        for images, labels in load_dataset(config, "train", False).as_numpy_iterator()
    ]
    # The maximum of 40 becomes 33 = 2 * 16 + 1. 9x12 would become 30x40, which is too
    # large; so it becomes 24.75 x 33, rounded up to 33x33, as does 20x15. 9x20 becomes
    # 14.85 x 33, rounded up to 17x33; 16x20 becomes 26.4 x 33, rounded up to 33x33.
    expected = [(33, 33), (33, 33), (33, 33), (17, 33), (33, 33)] * 2
    assert sizes == [(size, size) for size in expected]
    images, labels = take_batches(dataclasses.replace(config, batch_size=2), 1)[0]
    assert images.shape == (2, 14, 18, 3) and labels.shape == (2, 14, 18, 1)


def test_split_without_records_is_refused(single_color, tmp_path):
    with pytest.raises(UserError, match="its splits are train"):
        load_dataset(single_color, "val", training=False)
    (tmp_path / "train-00000-of-00001.tfrecord").touch()
    with pytest.raises(UserError, match="contain no records"):
        load_dataset(DataConfig(str(tmp_path)), "train", training=True)


@pytest.mark.parametrize("rows", [(2, 2, 2), (1, 1, 1, 1, 2), (6,)])
def test_workers_share_the_rows_of_each_batch(rows, single_color, stream):
    config = dataclasses.replace(single_color, batch_size=6)
    worker_batches = []
    for worker, count in enumerate(rows):
        dataset = load_dataset(
            config, "train", True, start=12, worker=worker, num_workers=len(rows)
        )
        assert dataset.element_spec == (
            tf.TensorSpec((count, 14, 18, 3), tf.float32),
            tf.TensorSpec((count, 14, 18, 1), tf.uint8),
        )
        worker_batches.append(list(dataset.take(3).as_numpy_iterator()))
    parts = [part for parts in zip(*worker_batches, strict=True) for part in parts]
    for ours, all_rows in zip(
        zip(*parts, strict=True), zip(*stream[4:10], strict=True), strict=True
    ):
        np.testing.assert_array_equal(np.concatenate(ours), np.concatenate(all_rows))


def test_workers_share_evaluation_without_duplicates(single_color):
    config, seen = dataclasses.replace(single_color, batch_size=2), []
    for worker in range(2):
        dataset = load_dataset(config, "train", False, worker=worker, num_workers=2)
        seen.append([labels[0, 0, 0, 0] for _, labels in dataset.as_numpy_iterator()])
    assert seen == [[0, 2, 4, 6, 8], [1, 3, 5, 7, 9]]


def test_indivisible_batch_is_refused(single_color):
    with pytest.raises(UserError, match="of 3 cannot be divided evenly among 2"):
        load_dataset(single_color, "train", training=False, num_workers=2)
    with pytest.raises(UserError, match="of 3 has too few images for 4 workers"):
        load_dataset(single_color, "train", training=True, num_workers=4)


def test_large_epochs_are_shuffled_well(tmp_path):
    # 97 records with the classes 0..19 in turn.
    contents = [single_color_record(i % 20, 1, 1, name=str(i)) for i in range(97)]
    config = DataConfig(
        write_shards(tmp_path, *contents), crop_size=(1, 1), batch_size=97
    )
    first, second = (labels.ravel() for _, labels in take_batches(config, 2))
    for order in (first, second):
        assert np.bincount(order, minlength=20).tolist() == 17 * [5] + 3 * [4]
        # A random permutation keeps few records in place and few neighbours
        # together.
        assert (order == np.arange(97) % 20).sum() < 15
        assert (np.diff(order.astype(int)) == 1).sum() < 15
    assert (first == second).sum() < 15


@pytest.mark.parametrize(
    ("channels", "max_value", "training"),
    [(1, 255, True), (5, 4095, True), (5, 4095, False), (2, 65535, True)],
)
def test_any_channel_count_and_depth_is_scaled_to_0_to_255(
    tmp_path, channels, max_value, training
):
    depth = np.uint8 if max_value == 255 else np.uint16
    pixels = np.random.RandomState(0).randint(0, max_value + 1, (6, 7, channels))
    png = decoding.encode_image(pixels.astype(depth))
    encoded_image = EncodedImage(png, "png", 6, 7, channels)
    label = encode_image(np.arange(42).reshape(6, 7) % 3)
    folder = write_shards(tmp_path, records.serialize(encoded_image, label, "a"))
    info = DatasetInfo("a", ("x", "y", "z"), channels=channels, max_value=max_value)
    records.write_info(info, folder)
    config = DataConfig(
        folder,
        crop_size=(6, 7),
        batch_size=1,
        min_scale_factor=1.0,
        max_scale_factor=1.0,
        mean_pixel=(0.0,) * channels,
    )
    dataset = load_dataset(config, "train", training)
    images, labels = next(iter(dataset))
    expected = pixels * (255.0 / max_value)
    mirrored = labels[0, 0, 0, 0] != 0
    if mirrored:
        expected = expected[:, ::-1]
    np.testing.assert_allclose(images[0], expected, rtol=1e-6)
    assert images.shape[-1] == channels


def test_jitter_changes_images_but_not_labels(single_color, stream):
    config = dataclasses.replace(single_color, photometric_jitter=0.5)
    jittered = take_batches(config, 4)
    for (first, labels), (second, same) in zip(stream[:4], jittered, strict=True):
        np.testing.assert_array_equal(labels, same)
        inside = labels[..., 0] != 255
        assert not np.allclose(first[inside], second[inside], atol=1)
        np.testing.assert_array_equal(second[~inside], 0.5)


def test_single_mean_pixel_applies_to_all_channels(tmp_path):
    png = decoding.encode_image(np.full((3, 3, 5), 9, np.uint8))
    encoded_image = EncodedImage(png, "png", 3, 3, 5)
    content = records.serialize(encoded_image, encode_image(np.zeros((3, 3))), "a")
    folder = write_shards(tmp_path, content)
    records.write_info(DatasetInfo("five", ("x",), channels=5), folder)
    config = DataConfig(folder, crop_size=(9, 9), batch_size=1)
    ((images, _),) = take_batches(config, 1)
    assert images.shape == (1, 9, 9, 5) and images[0, -1, -1].tolist() == 5 * [127.5]
    config = dataclasses.replace(config, mean_pixel=(1.0, 2.0, 3.0))
    with pytest.raises(
        UserError, match=r"mean_pixel must have one .* 5 channels of five"
    ):
        load_dataset(config, "train", training=True)


def test_shard_removed_after_start_is_reported(tmp_path):
    folder = write_shards(tmp_path, *(single_color_record(i, 9, 9) for i in range(3)))
    dataset = load_dataset(DataConfig(folder, batch_size=1), "train", training=False)
    (path,) = tmp_path.iterdir()
    path.unlink()
    with pytest.raises(
        UserError, match=f"record 0 of {path} is broken: the file is missing, "
    ):
        list(iterate_batches(dataset))
