"""Data sets of a few small images that tensorflow-datasets itself prepares."""

from typing import ClassVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets import features

HEIGHT = 6


def rgb(**settings):
    """Returns the feature of an image of three channels."""
    return features.Image(**settings)


def grey(**settings):
    """Returns the feature of a label, or of an image of one channel."""
    return features.Image(shape=(None, None, 1), **settings)


def labelled(labels):
    """Returns the feature of a label with class names, or with a number of them."""
    return features.LabeledImage(labels=labels, shape=(None, None, 1))


def pictures(count, seed, image=(3, np.uint8), values=(0, 2, 255)):
    """Returns images of noise, each of its own width, and labels of some values."""
    random = np.random.RandomState(seed)
    channels, dtype = image
    most, sizes = np.iinfo(dtype).max + 1, [(HEIGHT, 8 + i) for i in range(count)]
    images = [random.randint(0, most, (*size, channels)) for size in sizes]
    labels = [random.choice(values, (*size, 1)) for size in sizes]
    return [x.astype(dtype) for x in images], [x.astype(np.uint8) for x in labels]


def examples(images, labels):
    """Returns what a builder yields, with the keys image and mask."""
    pairs = zip(images, labels, strict=True)
    return [{"image": image, "mask": label} for image, label in pairs]


def classified(count, seed, classes=3):
    """Returns examples of noise in which one channel, that of the class, is bright."""
    random = np.random.RandomState(seed)
    found = []
    for i in range(count):
        image = random.randint(0, 60, (40, 48 + i, 3))
        image[..., i % classes] += 150
        found.append({"image": image.astype(np.uint8), "label": i % classes})
    return found


def prepare_classes(folder, splits, name="colors"):
    """Writes a data set of `classified` images of red, green and blue."""
    label = features.ClassLabel(names=["red", "green", "blue"])
    prepare(folder, name, {"image": rgb(), "label": label}, splits)


class InMemory(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A data set of examples that are there already, in their order."""

    VERSION = tfds.core.Version("1.0.0")
    described: ClassVar[dict]
    splits: ClassVar[dict]

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=features.FeaturesDict(self.described),
            disable_shuffling=True,
        )

    def _split_generators(self, _):
        return {name: self._generate_examples(x) for name, x in self.splits.items()}

    def _generate_examples(self, some):
        yield from enumerate(some)


def prepare(folder, name, described, splits, shards=1, file_format="tfrecord"):
    """Writes a data set.

    Args:
        folder: The data_dir.
        name: Of the data set.
        described: Its features.
        splits: Name of a split to its examples, in order.
        shards: Files of each split.
        file_format: Of these files.
    """
    fields = {"name": name, "described": described, "splits": splits}
    # Not registered: it is found by its files, as the data of other people are.
    builder = type(name, (InMemory,), fields, skip_registration=True)
    config = tfds.download.DownloadConfig(num_shards=shards)
    builder(data_dir=str(folder), file_format=file_format).download_and_prepare(
        download_config=config
    )


class DeeplabToy(InMemory):
    """A registered data set, which tensorflow-datasets knows how to prepare."""

    described: ClassVar = {"image": rgb(), "mask": grey()}
    splits: ClassVar = {"train": examples(*pictures(2, 99))}
