"""Datasets of a few small images, prepared by tensorflow-datasets."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets import features

HEIGHT = 6


def rgb(**settings):
    """Returns the feature of an image with three channels."""
    return features.Image(**settings)


def grey(**settings):
    """Returns the feature of a label, or of an image with one channel."""
    return features.Image(shape=(None, None, 1), **settings)


def labeled_image(labels):
    """Returns the feature of a label with class names or a number of classes."""
    return features.LabeledImage(labels=labels, shape=(None, None, 1))


def noise_samples(count, seed, image=(3, np.uint8), values=(0, 2, 255)):
    """Returns images of noise with different widths, and labels of the given values."""
    random = np.random.RandomState(seed)
    channels, dtype = image
    limit, sizes = np.iinfo(dtype).max + 1, [(HEIGHT, 8 + i) for i in range(count)]
    images = [random.randint(0, limit, (*size, channels)) for size in sizes]
    labels = [random.choice(values, (*size, 1)) for size in sizes]
    return [x.astype(dtype) for x in images], [x.astype(np.uint8) for x in labels]


def make_examples(images, labels):
    """Returns the examples of a builder, with the keys image and mask."""
    pairs = zip(images, labels, strict=True)
    return [{"image": image, "mask": label} for image, label in pairs]


def make_class_examples(count, seed, classes=3):
    """Returns examples of noise in which the channel of the class is bright."""
    random = np.random.RandomState(seed)
    examples = []
    for i in range(count):
        image = random.randint(0, 60, (40, 48 + i, 3))
        image[..., i % classes] += 150
        examples.append({"image": image.astype(np.uint8), "label": i % classes})
    return examples


def prepare_color_classes(folder, splits, name="colors"):
    """Prepares a classification dataset of red, green and blue images."""
    label = features.ClassLabel(names=["red", "green", "blue"])
    prepare(folder, name, {"image": rgb(), "label": label}, splits)


class InMemoryBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Builds a dataset from examples in memory, in order."""

    VERSION = tfds.core.Version("1.0.0")
    feature_types: ClassVar[dict]
    splits: ClassVar[dict]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(self.feature_types),
            disable_shuffling=True,
        )

    def _split_generators(self, _):
        return {name: self._generate_examples(x) for name, x in self.splits.items()}

    def _generate_examples(self, examples):
        yield from enumerate(examples)


def prepare(folder, name, feature_types, splits, shards=1, file_format="tfrecord"):
    """Prepares a dataset.

    Args:
        folder: The data_dir.
        name: Name of the dataset.
        feature_types: Features of the dataset.
        splits: Name of a split to its examples, in order.
        shards: Number of files of each split.
        file_format: Format of the files.
    """
    fields = {"name": name, "feature_types": feature_types, "splits": splits}
    # Not registered: found by its files, like a user's dataset.
    builder = type(name, (InMemoryBuilder,), fields, skip_registration=True)
    config = tfds.download.DownloadConfig(num_shards=shards)
    builder(data_dir=str(folder), file_format=file_format).download_and_prepare(
        download_config=config
    )


class DeeplabToy(InMemoryBuilder):
    """A registered dataset, which tensorflow-datasets can prepare."""

    feature_types: ClassVar = {"image": rgb(), "mask": grey()}
    splits: ClassVar = {"train": make_examples(*noise_samples(2, 99))}
