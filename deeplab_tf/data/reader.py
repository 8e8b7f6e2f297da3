"""One record at a time, in a graph; what is wrong is told by file and record."""

import re
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

from deeplab_tf.data import augment, pictures, records
from deeplab_tf.data.sources import Source
from deeplab_tf.errors import UserError

_UNREADABLE = (
    "is broken: a checksum does not match, or its image is no JPEG or PNG, or its "
    "label no grey PNG; python -m deeplab_tf.data.doctor tells more"
)


class Decoded(NamedTuple):
    """What is made of a record.

    Attributes:
        image: Pixels of the image, or of those rows that the window shows.
        label: uint8 `[height, width, 1]`.
        window: The window, or ().
    """

    image: tf.Tensor
    label: tf.Tensor
    window: augment.Window | tuple[()]


class Reader:
    """Reads the records of a source by their positions in its index."""

    def __init__(self, source: Source):
        self.info = source.info
        self._keys = source.keys
        self._paths = tf.constant(source.index.paths)
        self._file = tf.constant(source.index.file)
        self._number = tf.constant(source.index.number)
        self._offset = tf.constant(source.index.offset)

    def sample(self, position, window_of=None) -> Decoded:
        """Returns the image and label of a record.

        Args:
            position: Of the record in the index.
            window_of: Returns the window of an image of a size, int32 `[2]`; only
                the rows that it shows are decoded. None decodes all of them.
        """
        info = self.info

        def decode(record):
            image, label, name = records.parse(record, self._keys)
            size = pictures.picture_size(image, info.channels)
            window, rows = (), None
            if window_of is not None:
                window = window_of(size)
                rows = tf.stack([window.first_row, window.row_count(size[0])])
            image = pictures.decode_image(image, info.channels, info.max_value, rows)
            return Decoded(image, pictures.decode_label(label), window), size, name

        decoded, size, name = self._read(position, decode)
        return self._checked(position, decoded, size, name)

    def raw(self, position):
        """Returns whether the checksums of a record match, and its bytes if so."""
        path = self._paths[self._file[position]]
        record = records.one_record(path, self._offset[position])
        record = record.map(lambda record: (True, record)).ignore_errors()
        nothing = tf.data.Dataset.from_tensors((False, ""))
        return record.concatenate(nothing).take(1).get_single_element()

    def label(self, position):
        """Returns the label of a record alone, uint8 `[height, width, 1]`."""

        def decode(record):
            _, label, name = records.parse(record, self._keys)
            label = pictures.decode_label(label)
            return Decoded((), label, ()), tf.shape(label)[:2], name

        decoded, size, name = self._read(position, decode)
        return self._checked(position, decoded, size, name).label

    def _which(self, position) -> list:
        """Returns the words that name a record."""
        path = self._paths[self._file[position]]
        return ["record", self._number[position], "of", path]

    def _read(self, position, decode):
        """Returns what `decode` makes of a record."""
        path = self._paths[self._file[position]]
        sample = records.one_record(path, self._offset[position])
        sample = sample.map(lambda record: (True, decode(record)))
        # TensorFlow's own errors do not say where they happened. So what raises one
        # leaves the dataset empty, and what follows is found instead.
        nothing = tf.nest.map_structure(_zeros, sample.element_spec[1])
        nothing = tf.data.Dataset.from_tensors((False, nothing))
        sample = sample.ignore_errors().concatenate(nothing).take(1)
        is_whole, sample = sample.get_single_element()
        whole = tf.debugging.Assert(is_whole, [*self._which(position), _UNREADABLE])
        with _after(whole):
            return tf.nest.map_structure(tf.identity, sample)

    def _checked(self, position, sample: Decoded, size, name) -> Decoded:
        """Returns a sample after refusing sizes and labels that cannot be right."""
        which = [*self._which(position), "image", name]
        label, info = sample.label, self.info
        label_size = tf.shape(label)[:2]
        same_size = tf.debugging.Assert(
            tf.reduce_all(label_size == size),
            [*which, "is", size, "but its label", label_size],
        )
        last = min(info.num_classes - 1, 255)
        unknown = (label > last) & (label != info.ignore_label)
        any_unknown = tf.reduce_any(unknown)
        value = tf.cond(
            any_unknown, lambda: tf.reduce_max(tf.boolean_mask(label, unknown)), _zero
        )
        known = tf.debugging.Assert(
            ~any_unknown,
            [*which, "has a label of value", value, "outside", info.known_labels],
        )
        with _after(same_size, known):
            return sample._replace(label=tf.identity(label))


def _zero():
    return tf.constant(0, tf.uint8)


def _after(*operations):
    # Outside of graphs an assertion has run already, and there is no operation.
    return tf.control_dependencies([op for op in operations if op is not None])


def _zeros(spec: tf.TensorSpec):
    """Returns a tensor of a spec, empty where a side is unknown."""
    return tf.zeros([side or 0 for side in spec.shape], spec.dtype)


def batches(dataset: tf.data.Dataset) -> Iterator:
    """Yields what a dataset holds, telling broken samples in one line.

    Raises:
        UserError: for a record that is cut short, a sample that cannot be decoded
            or has impossible labels; names file and record.
    """
    try:
        yield from dataset
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        raise UserError(_first_fact(error.message)) from error


def _first_fact(message: str) -> str:
    """Returns the sentence of a tf.data error that speaks of the data."""
    # "{{node ...}} what happened\n\t [[{{node ...}}]] [Op:...]"
    sentence = re.sub(r"^\{\{.*?\}\}\s*", "", message.split("\n\t [[")[0])
    failed = re.search(r"assertion failed: \[(.*)\]", sentence, re.S)
    if failed:
        sentence = failed.group(1).replace("] [", " ")
    return " ".join(sentence.split())
