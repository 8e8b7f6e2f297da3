"""Data sets that tensorflow-datasets prepared, read as they are on disk."""

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from small_tfds import (
    HEIGHT,
    DeeplabToy,
    examples,
    grey,
    labelled,
    pictures,
    prepare,
    rgb,
)
from tensorflow_datasets import features

from deeplab_tf.config import DataConfig
from deeplab_tf.data import sources, statistics, tfds_source
from deeplab_tf.data.pipeline import load_dataset
from deeplab_tf.data.reader import iterate_batches
from deeplab_tf.data.validation import examine_split
from deeplab_tf.errors import UserError

TRAIN, TEST = 7, 3


@pytest.fixture(scope="module")
def toy():
    """Images and labels of the splits of the data set toy."""
    return {"train": pictures(TRAIN, 0), "test": pictures(TEST, 1)}


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    """A data_dir of toy, whose mask names no class, in two shards."""
    folder = str(tmp_path_factory.mktemp("tfds"))
    splits = {split: examples(*pair) for split, pair in toy.items()}
    for number, example in enumerate(splits["train"] + splits["test"]):
        example["file_name"] = f"{number}.jpg"
    described = {"image": rgb(), "mask": grey(), "file_name": features.Text()}
    prepare(folder, "toy", described, splits, shards=2)
    return folder


def small(folder, described, example, name="small"):
    """Prepares a data set with one example in train; returns its `--dataset`."""
    prepare(str(folder), name, described, {"train": [example]})
    return f"tfds:{name}"


def samples(name, folder, split):
    """Returns the images and the labels of a split, in evaluation."""
    config = DataConfig(str(folder), dataset=name, batch_size=1)
    pairs = list(load_dataset(config, split, training=False).as_numpy_iterator())
    return [image[0] for image, _ in pairs], [label[0] for _, label in pairs]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def described(name, folder):
    return sources.resolve_info(name, str(folder))


@pytest.mark.parametrize("split", ["train", "test"])
def test_what_was_prepared_is_what_is_evaluated(toy, folder, split):
    images, labels = samples("tfds:toy", folder, split)
    assert_same(images, toy[split][0])
    assert_same(labels, toy[split][1])


SLICES = {
    "train[2:5]": [2, 3, 4],
    "train[:50%]": [0, 1, 2, 3],
    "train[-2:]": [5, 6],
    "train[:1]+train[6:]": [0, 6],
    # Images of test are counted on.
    "train+test": range(TRAIN + TEST),
    "test[1:]+train[3:4]": [8, 9, 3],
}


@pytest.mark.parametrize("split", SLICES)
def test_a_slice_reads_exactly_its_records(toy, folder, split):
    images = toy["train"][0] + toy["test"][0]
    labels = toy["train"][1] + toy["test"][1]
    found = samples("tfds:toy", folder, split)
    assert_same(found[0], [images[i] for i in SLICES[split]])
    assert_same(found[1], [labels[i] for i in SLICES[split]])
    # And what tensorflow-datasets itself makes of it.
    theirs = tfds.load("toy", data_dir=folder, split=split).as_numpy_iterator()
    assert_same(found[0], [example["image"] for example in theirs])


def test_training_crops_come_from_the_slice_alone(toy, folder):
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
            seen |= {i for i in range(TRAIN) if is_part(image, toy["train"][0][i])}
    assert seen == {2, 3, 4}


def is_part(crop, image):
    """Whether a crop of the same height was cut out of an image, mirrored or not."""
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
def test_a_name_may_have_a_version_and_keys(folder, name):
    info = described(f"tfds:{name}", folder)
    # Values are 0, 2 and 255, the last of which is ignored.
    assert info.class_names == ("class_0", "class_1", "class_2")
    assert (info.channels, info.max_value, info.ignore_label) == (3, 255, 255)
    assert info.split_sizes == {"train": TRAIN, "test": TEST}
    # What an experiment.json has to say to find the data again.
    assert info.name == f"tfds:{name}"
    source = sources.open_split(info.name, folder, "train")
    assert source.keys == ("image", "mask", "")


def test_records_are_found_in_several_shards(folder):
    index = sources.open_split("tfds:toy", folder, "train[2:5]").index
    assert len(index.paths) == 2
    # Of 7 the first shard has 4.
    assert index.file.tolist() == [0, 0, 1]
    assert index.number.tolist() == [2, 3, 0]


def test_what_the_data_set_says_of_its_classes_counts(tmp_path):
    (image,), (label,) = pictures(1, 2, values=(0, 1))
    example = {"image": image, "mask": label}
    named = labelled(["floor", "cat", "dog"])
    name = small(tmp_path, {"image": rgb(), "mask": named}, example, "named")
    assert described(name, tmp_path).class_names == ("floor", "cat", "dog")
    name = small(tmp_path, {"image": rgb(), "mask": labelled(4)}, example, "counted")
    # As tensorflow-datasets calls them.
    assert described(name, tmp_path).class_names == ("0", "1", "2", "3")
    unknown = {"image": rgb(), "mask": labelled(None)}
    name = small(tmp_path, unknown, example, "unknown")
    assert described(name, tmp_path).class_names == ("class_0", "class_1")


def test_classes_that_nobody_names_are_counted_in_train(tmp_path):
    # Whichever comes first in the alphabet.
    splits = {
        "extra": examples(*pictures(1, 3, values=(9,))),
        "train": examples(*pictures(2, 4, values=(1, 4, 255))),
    }
    prepare(str(tmp_path), "toy", {"image": rgb(), "mask": grey()}, splits)
    assert described("tfds:toy", tmp_path).num_classes == 5
    # So the others are refused in one line when they are read.
    source = sources.open_split("tfds:toy", str(tmp_path), "extra")
    with pytest.raises(UserError, match=r"label of value 9 outside 0\.\.4 and 255"):
        statistics.count_labels(source)


def test_labels_are_decoded_once_for_their_classes(tmp_path, monkeypatch):
    splits = {"train": examples(*pictures(2, 5))}
    prepare(str(tmp_path), "toy", {"image": rgb(), "mask": grey()}, splits)
    counted = []

    def count(reader, of):
        counted.append(of)
        return statistics.label_values(reader, of)

    monkeypatch.setattr(tfds_source, "label_values", count)
    for _ in range(2):
        assert described("tfds:toy", tmp_path).num_classes == 3
        sources.open_split("tfds:toy", str(tmp_path), "train[1:]")
    assert counted == [2]
    # A data set that says them is not read at all.
    named = labelled(3)
    prepare(str(tmp_path), "named", {"image": rgb(), "mask": named}, splits)
    assert described("tfds:named", tmp_path).num_classes == 3
    sources.open_split("tfds:named", str(tmp_path), "train")
    assert counted == [2]


def test_nested_features_have_paths(tmp_path):
    (image,), (label,) = pictures(1, 6)
    (other,), _ = pictures(1, 7)
    nested = {
        "inputs": {"left": rgb(), "right": rgb()},
        "truth": {"mask": grey(), "depth": grey()},
    }
    example = {
        "inputs": {"left": other, "right": image},
        "truth": {"mask": label, "depth": label // 2},
    }
    name = small(tmp_path, nested, example)
    images, labels = samples(f"{name}:inputs/right:truth/mask", tmp_path, "train")
    assert_same(images, [image])
    assert_same(labels, [label])
    message = "which feature is the label.*truth/mask .*truth/depth|truth/depth.*/mask"
    with pytest.raises(UserError, match=message):
        described(name, tmp_path)
    one = {"inputs": {"photo": rgb()}, "truth": {"mask": grey()}}
    example = {"inputs": {"photo": image}, "truth": {"mask": label}}
    name = small(tmp_path, one, example, "one")
    assert_same(samples(name, tmp_path, "train")[0], [image])


def test_16_bits_are_0_to_65535(tmp_path):
    (image,), (label,) = pictures(1, 8, image=(3, np.uint16))
    image[0, 0] = 0, 32768, 65535
    described_as = {"image": rgb(dtype=np.uint16), "mask": grey()}
    name = small(tmp_path, described_as, {"image": image, "mask": label})
    assert described(name, tmp_path).max_value == 65535
    (found,), _ = samples(name, tmp_path, "train")
    np.testing.assert_allclose(found, image * (255 / 65535), rtol=1e-6)
    np.testing.assert_allclose(found[0, 0], [0, 32768 / 257, 255], rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_of_other_channels(tmp_path, channels):
    (image,), (label,) = pictures(1, 9, image=(channels, np.uint8))
    named = labelled(3)
    shaped = features.Image(shape=(None, None, channels))
    name = small(
        tmp_path, {"image": shaped, "mask": named}, {"image": image, "mask": label}
    )
    # The label is a LabeledImage, so the grey one is no label.
    assert described(name, tmp_path).channels == channels
    images, labels = samples(name, tmp_path, "train")
    assert_same(images, [image])
    assert_same(labels, [label])


def test_a_jpeg_is_decoded_as_everywhere(tmp_path):
    (image,), (label,) = pictures(1, 10)
    jpeg = {"image": rgb(encoding_format="jpeg"), "mask": grey()}
    name = small(tmp_path, jpeg, {"image": image, "mask": label})
    (found,), _ = samples(name, tmp_path, "train")
    encoded = tf.io.encode_jpeg(image, quality=95)
    np.testing.assert_array_equal(found, tf.io.decode_jpeg(encoded))


def test_an_unlabelled_grey_image_beside_a_named_label_is_no_choice(tmp_path):
    (image,), (label,) = pictures(1, 11)
    named = labelled(3)
    described_as = {"image": rgb(), "instances": grey(), "mask": named}
    example = {"image": image, "instances": label * 0 + 9, "mask": label}
    name = small(tmp_path, described_as, example)
    assert sources.open_split(name, str(tmp_path), "train").keys[:2] == (
        "image",
        "mask",
    )


AMBIGUOUS = {
    "two images": (
        {"left": rgb(), "right": rgb(), "mask": grey()},
        r"which feature is the image\? Name both as tfds:NAME:image_key:label_key; "
        r"images there: .*left \(None, None, 3\)",
    ),
    "two labels": (
        {"image": rgb(), "mask": grey(), "depth": grey()},
        r"which feature is the label\? .* there: .*depth \(None, None, 1\)",
    ),
    "grey image": ({"image": grey(), "mask": grey()}, "which feature is the label"),
    "no label": (
        {"image": rgb(), "number": features.Scalar(np.int64)},
        r"which feature is the label\? .* there: image \(None, None, 3\)$",
    ),
    "no image": ({"mask": grey()}, r"which feature is the image\? .*: mask \(None, N"),
    "no picture": (
        {"number": features.Scalar(np.int64)},
        "which feature is the label.* there: none$",
    ),
}


def any_example(described_as):
    """Returns an example of some features."""
    (image,), (label,) = pictures(1, 12)
    return {
        key: 5
        if not isinstance(feature, features.Image)
        else {3: image, 1: label}[feature.shape[-1]].astype(feature.np_dtype)
        for key, feature in described_as.items()
    }


def assert_refused(message, function, *arguments):
    """Checks that an error is one line and says something."""
    with pytest.raises(UserError, match=message) as raised:
        function(*arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", AMBIGUOUS)
def test_a_choice_is_left_to_the_user(tmp_path, kind):
    described_as, message = AMBIGUOUS[kind]
    name = small(tmp_path, described_as, any_example(described_as))
    assert_refused(message, described, name, tmp_path)


WRONG_KINDS = {
    "16-bit label": (
        {"image": rgb(), "mask": grey(dtype=np.uint16)},
        r"image is uint8 \(None, None, 3\) and mask uint16 \(None, None, 1\); images "
        "must be uint8 or uint16 and labels uint8 with one channel",
    ),
    "label in colour": ({"image": rgb(), "mask": rgb()}, r"mask uint8 \(None, None, 3"),
    "image of floats": (
        {"image": grey(dtype=np.float32), "mask": grey()},
        r"image is float32 \(None, None, 1\) and mask uint8",
    ),
}


@pytest.mark.parametrize("kind", WRONG_KINDS)
def test_images_and_labels_of_other_kinds_are_refused(tmp_path, kind):
    described_as, message = WRONG_KINDS[kind]
    name = small(tmp_path, described_as, any_example(described_as))
    assert_refused(message, described, f"{name}:image:mask", tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nosuch", "is not in tensorflow-datasets: Dataset nosuch not found"),
        ("toy:2.0.0", "=tfds:toy:2.0.0 is not in tensorflow-datasets: Dataset toy no"),
        ("toy:image", "not in tensorflow-datasets: Namespace toy not found"),
        ("a:b:c:d", "not in tensorflow-datasets: Namespace a not found"),
        ("", "not in tensorflow-datasets: Parsing builder name string  failed"),
        ("toy:image:masks", "tfds:toy:image:masks has no image 'masks'; it has .*mask"),
        ("toy:file_name:mask", "has no image 'file_name'; it has "),
        ("toy::mask", "has no image ''; it has "),
        ("toy:mask:image", r"mask is uint8 .* and image uint8 \(None, None, 3\); imag"),
    ],
)
def test_a_name_that_is_nothing_is_told_in_one_line(folder, name, message):
    assert_refused(message, described, f"tfds:{name}", folder)


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
        ("train[3:3]", r"--dataset=tfds:toy has no record in 'train\[3:3\]'"),
        ("", "has no split '': "),
    ],
)
def test_a_split_that_is_nothing_is_told_in_one_line(folder, split, message):
    assert_refused(message, sources.open_split, "tfds:toy", folder, split)


def test_files_of_another_format_are_refused(tmp_path):
    splits = {"train": examples(*pictures(1, 13))}
    arguments = (str(tmp_path), "toy", {"image": rgb(), "mask": grey()}, splits)
    prepare(*arguments, file_format="array_record")
    message = (
        f"--dataset=tfds:toy is prepared as array_record in {tmp_path}/toy/1.0.0; "
        "prepare it with file_format='tfrecord'"
    )
    assert_refused(message, described, "tfds:toy", tmp_path)


def test_labels_without_a_class_have_no_number_of_classes(tmp_path):
    (image,), (label,) = pictures(1, 14, values=(255,))
    described_as = {"image": rgb(), "mask": grey()}
    name = small(tmp_path, described_as, {"image": image, "mask": label})
    assert_refused("labels of train have no class", described, name, tmp_path)


def test_a_label_that_was_saved_with_losses_is_refused(tmp_path):
    (image,), (label,) = pictures(1, 15)
    lossy = {"image": rgb(), "mask": grey(encoding_format="jpeg")}
    name = small(tmp_path, lossy, {"image": image, "mask": label})
    message = "record 0 of .*small-train.tfrecord-00000-of-00001 is broken: "
    assert_refused(message, described, name, tmp_path)


def test_a_broken_record_is_told_by_file_and_number(tmp_path):
    splits = {"train": examples(*pictures(3, 16))}
    prepare(str(tmp_path), "toy", {"image": rgb(), "mask": grey()}, splits)
    source = sources.open_split("tfds:toy", str(tmp_path), "train[1:]")
    (path,) = source.index.paths
    with open(path, "r+b") as file:
        file.seek(int(source.index.offset[1]) + 40)
        file.write(b"odd")
    config = DataConfig(str(tmp_path), dataset="tfds:toy", batch_size=1)
    dataset = load_dataset(config, "train[1:]", training=False)
    message = "record 2 of .*toy-train.tfrecord-00000-of-00001 is broken"
    assert_refused(message, lambda: list(iterate_batches(dataset)))
    (problem, *_) = examine_split(source, "train[1:]").problems
    assert problem.kind == "broken" and "record 2 of" in problem.text


def test_what_is_not_prepared_is_prepared_on_the_way(tmp_path):
    images, labels = samples("tfds:deeplab_toy", tmp_path, "train")
    assert_same(images, [example["image"] for example in DeeplabToy.splits["train"]])
    assert_same(labels, [example["mask"] for example in DeeplabToy.splits["train"]])
    assert (tmp_path / "deeplab_toy/1.0.0/dataset_info.json").exists()


def test_what_cannot_be_prepared_says_why(tmp_path):
    # Of the real ones, and needs no network: its files are to be fetched by hand.
    message = (
        "--dataset=tfds:cityscapes cannot be prepared: Manual directory .* does not "
        "exist or is empty.* download files from https://www.cityscapes-dataset.com"
    )
    assert_refused(message, described, "tfds:cityscapes", tmp_path)
