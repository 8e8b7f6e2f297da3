"""Reads datasets that tensorflow-datasets prepared from their files."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from small_tfds import (
    HEIGHT,
    DeeplabToy,
    grey,
    labeled_image,
    make_examples,
    noise_samples,
    prepare,
    rgb,
)
from tensorflow_datasets import features

from deeplab_tf.config import DataConfig
from deeplab_tf.data import sources, statistics, tfds_source
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.reader import Reader, iterate_batches
from deeplab_tf.data.validation import examine_split
from deeplab_tf.errors import UserError

TRAIN, TEST = 7, 3


@pytest.fixture(scope="module")
def toy():
    """Images and labels of each split of the dataset toy."""
    return {"train": noise_samples(TRAIN, 0), "test": noise_samples(TEST, 1)}


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    """A data_dir with toy, whose classes have no names, in two shards."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    splits = {split: make_examples(*pair) for split, pair in toy.items()}
    for number, example in enumerate(splits["train"] + splits["test"]):
        example["file_name"] = f"{number}.jpg"
    feature_types = {"image": rgb(), "mask": grey(), "file_name": features.Text()}
    prepare(folder, "toy", feature_types, splits, shards=2)
    return folder


def prepare_example(folder, feature_types, example, name="small"):
    """Prepares a dataset of one training example; returns its `--dataset`."""
    prepare(str(folder), name, feature_types, {"train": [example]})
    return f"tfds:{name}"


def read_samples(name, folder, split):
    """Returns the images and labels of a split, read for evaluation."""
    config = DataConfig(str(folder), dataset=name, batch_size=1)
    pairs = list(load_dataset(config, split, training=False).as_numpy_iterator())
    return [image[0] for image, _ in pairs], [label[0] for _, label in pairs]


def assert_equal(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def resolve_info(name, folder):
    return sources.resolve_info(name, str(folder))


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluation_reads_the_prepared_examples(toy, folder, split):
    images, labels = read_samples("tfds:toy", folder, split)
    assert_equal(images, toy[split][0])
    assert_equal(labels, toy[split][1])


SLICES = {
    "train[2:5]": [2, 3, 4],
    "train[:50%]": [0, 1, 2, 3],
    "train[-2:]": [5, 6],
    "train[:1]+train[6:]": [0, 6],
    # Images of test follow those of train.
    "train+test": range(TRAIN + TEST),
    "test[1:]+train[3:4]": [8, 9, 3],
}


@pytest.mark.parametrize("split", SLICES)
def test_slice_reads_exactly_its_records(toy, folder, split):
    images = toy["train"][0] + toy["test"][0]
    labels = toy["train"][1] + toy["test"][1]
    source = sources.open_split("tfds:toy", folder, split)
    found = [Reader(source).decode(i) for i in range(len(source.index))]
    assert_equal([sample.image for sample in found], [images[i] for i in SLICES[split]])
    assert_equal([sample.label for sample in found], [labels[i] for i in SLICES[split]])
    # Compare with tensorflow-datasets.
    expected = tfds.load("toy", data_dir=folder, split=split).as_numpy_iterator()
    assert_equal(
        [sample.image for sample in found], [example["image"] for example in expected]
    )


def test_training_uses_only_the_slice(toy, folder):
    config = DataConfig(
        folder,
        dataset="tfds:toy",
        crop_size=(HEIGHT, 7),
        batch_size=3,
        min_scale_factor=1.0,
        max_scale_factor=1.0,
    )
    dataset = load_dataset(config, "train[2:5]", training=True)
    seen = set()
    for images, _ in dataset.take(4).as_numpy_iterator():
        for image in images:
            seen |= {i for i in range(TRAIN) if is_crop_of(image, toy["train"][0][i])}
    assert seen == {2, 3, 4}


def is_crop_of(crop, image):
    """Checks for a crop of full height of an image, mirrored or not."""
    width = crop.shape[1]
    windows = [image[:, x : x + width] for x in range(image.shape[1] - width + 1)]
    return any(
        np.array_equal(crop, window[:, ::step])
        for window in windows
        for step in (1, -1)
    )


@pytest.mark.parametrize(
    "name",
    ["toy", "toy:1.0.0", "toy:1.*.*", "toy:image:mask", "toy:1.0.0:image:mask"],
)
def test_name_may_have_version_and_keys(folder, name):
    info = resolve_info(f"tfds:{name}", folder)
    # Values are 0, 2 and 255, which is ignored.
    assert info.class_names == ("class_0", "class_1", "class_2")
    assert (info.channels, info.max_value, info.ignore_label) == (3, 255, 255)
    assert info.split_sizes == {"train": TRAIN, "test": TEST}
    # experiment.json stores this name to find the data again.
    assert info.name == f"tfds:{name}"
    source = sources.open_split(info.name, folder, "train")
    assert source.keys == ("image", "mask", "")


def test_records_are_found_in_several_shards(folder):
    index = sources.open_split("tfds:toy", folder, "train[2:5]").index
    assert len(index.paths) == 2
    # The first shard has 4 of the 7 records.
    assert index.file.tolist() == [0, 0, 1]
    assert index.number.tolist() == [2, 3, 0]


def test_classes_come_from_the_label_feature(tmp_path):
    (image,), (label,) = noise_samples(1, 2, values=(0, 1))
    example = {"image": image, "mask": label}
    named_labels = labeled_image(["floor", "cat", "dog"])
    name = prepare_example(
        tmp_path, {"image": rgb(), "mask": named_labels}, example, "named"
    )
    assert resolve_info(name, tmp_path).class_names == ("floor", "cat", "dog")
    name = prepare_example(
        tmp_path, {"image": rgb(), "mask": labeled_image(4)}, example, "counted"
    )
    # Names from tensorflow-datasets.
    assert resolve_info(name, tmp_path).class_names == ("0", "1", "2", "3")
    unknown = {"image": rgb(), "mask": labeled_image(None)}
    name = prepare_example(tmp_path, unknown, example, "unknown")
    assert resolve_info(name, tmp_path).class_names == ("class_0", "class_1")


def test_unnamed_classes_are_counted_in_train(tmp_path):
    # The alphabetical order of splits does not matter.
    splits = {
        "extra": make_examples(*noise_samples(1, 3, values=(9,))),
        "train": make_examples(*noise_samples(2, 4, values=(1, 4, 255))),
    }
    prepare(str(tmp_path), "toy", {"image": rgb(), "mask": grey()}, splits)
    assert resolve_info("tfds:toy", tmp_path).num_classes == 5
    # Values that occur only in other splits are refused when read.
    source = sources.open_split("tfds:toy", str(tmp_path), "extra")
    with pytest.raises(UserError, match=r"label of value 9 outside 0\.\.4 and 255"):
        statistics.count_labels(source)


def test_labels_are_decoded_only_once_to_count_classes(tmp_path, monkeypatch):
    splits = {"train": make_examples(*noise_samples(2, 5))}
    prepare(str(tmp_path), "toy", {"image": rgb(), "mask": grey()}, splits)
    counted = []

    def count(reader, labels):
        counted.append(labels)
        return statistics.count_label_values(reader, labels)

    monkeypatch.setattr(tfds_source, "count_label_values", count)
    for _ in range(2):
        assert resolve_info("tfds:toy", tmp_path).num_classes == 3
        sources.open_split("tfds:toy", str(tmp_path), "train[1:]")
    assert counted == [2]
    # Named classes need no reading.
    named_labels = labeled_image(3)
    prepare(str(tmp_path), "named", {"image": rgb(), "mask": named_labels}, splits)
    assert resolve_info("tfds:named", tmp_path).num_classes == 3
    sources.open_split("tfds:named", str(tmp_path), "train")
    assert counted == [2]


def test_nested_features_have_paths(tmp_path):
    (image,), (label,) = noise_samples(1, 6)
    (other,), _ = noise_samples(1, 7)
    nested_types = {
        "inputs": {"left": rgb(), "right": rgb()},
        "truth": {"mask": grey(), "depth": grey()},
    }
    example = {
        "inputs": {"left": other, "right": image},
        "truth": {"mask": label, "depth": label // 2},
    }
    name = prepare_example(tmp_path, nested_types, example)
    images, labels = read_samples(f"{name}:inputs/right:truth/mask", tmp_path, "train")
    assert_equal(images, [image])
    assert_equal(labels, [label])
    message = "which feature is the label.*truth/mask .*truth/depth|truth/depth.*/mask"
    with pytest.raises(UserError, match=message):
        resolve_info(name, tmp_path)
    one = {"inputs": {"photo": rgb()}, "truth": {"mask": grey()}}
    example = {"inputs": {"photo": image}, "truth": {"mask": label}}
    name = prepare_example(tmp_path, one, example, "one")
    keys = sources.open_split(name, str(tmp_path), "train").keys
    assert keys[:2] == ("inputs/photo", "truth/mask")


def test_16_bit_images_have_max_value_65535(tmp_path):
    (image,), (label,) = noise_samples(1, 8, image=(3, np.uint16))
    image[0, 0] = 0, 32768, 65535
    feature_types = {"image": rgb(dtype=np.uint16), "mask": grey()}
    name = prepare_example(tmp_path, feature_types, {"image": image, "mask": label})
    assert resolve_info(name, tmp_path).max_value == 65535
    (found,), _ = read_samples(name, tmp_path, "train")
    np.testing.assert_allclose(found, image * (255 / 65535), rtol=1e-6)
    np.testing.assert_allclose(found[0, 0], [0, 32768 / 257, 255], rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_with_1_or_4_channels_are_read(tmp_path, channels):
    (image,), (label,) = noise_samples(1, 9, image=(channels, np.uint8))
    named_labels = labeled_image(3)
    image_feature = features.Image(shape=(None, None, channels))
    name = prepare_example(
        tmp_path,
        {"image": image_feature, "mask": named_labels},
        {"image": image, "mask": label},
    )
    # The label is the LabeledImage, not the grey image.
    assert resolve_info(name, tmp_path).channels == channels
    images, labels = read_samples(name, tmp_path, "train")
    assert_equal(images, [image])
    assert_equal(labels, [label])


def test_jpeg_decoding_matches_tensorflow(tmp_path):
    (image,), (label,) = noise_samples(1, 10)
    jpeg = {"image": rgb(encoding_format="jpeg"), "mask": grey()}
    name = prepare_example(tmp_path, jpeg, {"image": image, "mask": label})
    (found,), _ = read_samples(name, tmp_path, "train")
    encoded = tf.io.encode_jpeg(image, quality=95)
    np.testing.assert_array_equal(found, tf.io.decode_jpeg(encoded))


def test_labeled_image_is_preferred_over_grey_image(tmp_path):
    (image,), (label,) = noise_samples(1, 11)
    named_labels = labeled_image(3)
    feature_types = {"image": rgb(), "instances": grey(), "mask": named_labels}
    example = {"image": image, "instances": label * 0 + 9, "mask": label}
    name = prepare_example(tmp_path, feature_types, example)
    assert sources.open_split(name, str(tmp_path), "train").keys[:2] == (
        "image",
        "mask",
    )


AMBIGUOUS = {
    "two images": (
        {"left": rgb(), "right": rgb(), "mask": grey()},
        r"which feature is the image; the image features are .*left \(None, None, 3\)"
        r".*; give the keys of image and label as tfds:NAME:image_key:label_key",
    ),
    "two labels": (
        {"image": rgb(), "mask": grey(), "depth": grey()},
        r"which feature is the label; .* features are .*depth \(None, None, 1\)",
    ),
    "grey image": ({"image": grey(), "mask": grey()}, "which feature is the label"),
    "no label": (
        {"image": rgb(), "number": features.Scalar(np.int64)},
        r"which feature is the label; .* features are image \(None, None, 3\); ",
    ),
    "no image": (
        {"mask": grey()},
        r"cannot tell which feature is the image; .* are mask \(None, N",
    ),
    "no images at all": (
        {"number": features.Scalar(np.int64)},
        "which feature is the label.* image features are none; ",
    ),
}


def make_example(feature_types):
    """Returns an example for the given features."""
    (image,), (label,) = noise_samples(1, 12)
    return {
        key: 5
        if not isinstance(feature, features.Image)
        else {3: image, 1: label}[feature.shape[-1]].astype(feature.np_dtype)
        for key, feature in feature_types.items()
    }


def assert_one_line_error(message, function, *arguments):
    """Checks that a call raises a UserError of one line that matches."""
    with pytest.raises(UserError, match=message) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_ambiguous_features_are_refused(tmp_path, kind):
    feature_types, message = AMBIGUOUS[kind]
    name = prepare_example(tmp_path, feature_types, make_example(feature_types))
    assert_one_line_error(message, resolve_info, name, tmp_path)


WRONG_TYPES = {
    "16-bit label": (
        {"image": rgb(), "mask": grey(dtype=np.uint16)},
        r"image is uint8 \(None, None, 3\) and mask uint16 \(None, None, 1\); images "
        "must be uint8 or uint16 and labels uint8 with one channel",
    ),
    "label in colour": ({"image": rgb(), "mask": rgb()}, r"mask uint8 \(None, None, 3"),
    "float image": (
        {"image": grey(dtype=np.float32), "mask": grey()},
        r"image is float32 \(None, None, 1\) and mask uint8",
    ),
}


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_features_of_wrong_types_are_refused(tmp_path, kind):
    feature_types, message = WRONG_TYPES[kind]
    name = prepare_example(tmp_path, feature_types, make_example(feature_types))
    assert_one_line_error(message, resolve_info, f"{name}:image:mask", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "is not in tensorflow-datasets: Dataset nosuch not found"),
        ("toy:2.0.0", "=tfds:toy:2.0.0 is not in tensorflow-datasets: Dataset toy no"),
        ("toy:image", "not in tensorflow-datasets: Namespace toy not found"),
        ("a:b:c:d", "not in tensorflow-datasets: Namespace a not found"),
        ("", "not in tensorflow-datasets: Parsing builder name string  failed"),
        (
            "toy:image:masks",
            "tfds:toy:image:masks has no image feature 'masks'; .*mask",
        ),
        ("toy:file_name:mask", "has no image feature 'file_name'; its "),
        ("toy::mask", "has no image feature ''; its "),
        ("toy:mask:image", r"mask is uint8 .* and image uint8 \(None, None, 3\); imag"),
    ],
)
def test_invalid_dataset_name_is_refused(folder, name, message):
    assert_one_line_error(message, resolve_info, f"tfds:{name}", folder)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", "has no split 'val': Unknown split 'val'; it has train, test$"),
        (
            "train+val",
            "has no split 'train.val': Unknown split 'val'; it has train, t",
        ),
        ("train[2:100]", r"\[2:100\] incompatible with 7 examples; it has train, test"),
        ("train[", r"has no split 'train\[': Unrecognized split format"),
        ("train[3:3]", r"--dataset=tfds:toy contains no records in 'train\[3:3\]'"),
        ("", "has no split '': "),
    ],
)
def test_invalid_split_is_refused(folder, split, message):
    assert_one_line_error(message, sources.open_split, "tfds:toy", folder, split)


def test_non_tfrecord_formats_are_refused(tmp_path):
    splits = {"train": make_examples(*noise_samples(1, 13))}
    arguments = (str(tmp_path), "toy", {"image": rgb(), "mask": grey()}, splits)
    prepare(*arguments, file_format="array_record")
    message = (
        f"--dataset=tfds:toy is prepared as array_record in {tmp_path}/toy/1.0.0; "
        "prepare it with file_format='tfrecord'"
    )
    assert_one_line_error(message, resolve_info, "tfds:toy", tmp_path)


def test_split_with_only_ignored_labels_is_refused(tmp_path):
    (image,), (label,) = noise_samples(1, 14, values=(255,))
    feature_types = {"image": rgb(), "mask": grey()}
    name = prepare_example(tmp_path, feature_types, {"image": image, "mask": label})
    assert_one_line_error(
        "all labels of train are 255, the", resolve_info, name, tmp_path
    )


def test_lossy_label_is_refused(tmp_path):
    (image,), (label,) = noise_samples(1, 15)
    lossy = {"image": rgb(), "mask": grey(encoding_format="jpeg")}
    name = prepare_example(tmp_path, lossy, {"image": image, "mask": label})
    message = "record 0 of .*small-train.tfrecord-00000-of-00001 is broken: "
    assert_one_line_error(message, resolve_info, name, tmp_path)


def test_broken_record_is_reported_with_file_and_number(tmp_path):
    splits = {"train": make_examples(*noise_samples(3, 16))}
    prepare(str(tmp_path), "toy", {"image": rgb(), "mask": grey()}, splits)
    source = sources.open_split("tfds:toy", str(tmp_path), "train[1:]")
    (path,) = source.index.paths
    with open(path, "r+b") as file:
        file.seek(int(source.index.offset[1]) + 40)
        file.write(b"odd")
    config = DataConfig(str(tmp_path), dataset="tfds:toy", batch_size=1)
    dataset = load_dataset(config, "train[1:]", training=False)
    message = "record 2 of .*toy-train.tfrecord-00000-of-00001 is broken"
    assert_one_line_error(message, lambda: list(iterate_batches(dataset)))
    (problem, *_) = examine_split(source, "train[1:]").problems
    assert problem.kind == "broken" and "record 2 of" in problem.text


def test_registered_dataset_is_prepared_on_first_use(tmp_path):
    images, labels = read_samples("tfds:deeplab_toy", tmp_path, "train")
    assert_equal(images, [example["image"] for example in DeeplabToy.splits["train"]])
    assert_equal(labels, [example["mask"] for example in DeeplabToy.splits["train"]])
    assert (tmp_path / "deeplab_toy/1.0.0/dataset_info.json").exists()


def test_error_says_why_dataset_cannot_be_prepared(tmp_path):
    # A registered dataset that needs no network: users download its files.
    message = (
        "--dataset=tfds:cityscapes cannot be prepared: Manual directory .* does not "
        "exist or is empty.* download files from https://www.cityscapes-dataset.com"
    )
    assert_one_line_error(message, resolve_info, "tfds:cityscapes", tmp_path)
