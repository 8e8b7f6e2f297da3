"""One record at a time, in a graph; what is wrong is told by file and record."""

import contextlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.data import augment, records
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding

_UNREADABLE = (
    "is broken: it is gone, a checksum does not match, its image is no JPEG or PNG, or "
    "its label no grey PNG; python -m deeplab_tf.data.doctor tells more"
)


class SampleChecks(NamedTuple):
    """What decides whether a sample can be used.

    Attributes:
        name: Name of the image.
        size: Height and width of the image, int32 `[2]`.
        label_size: Height and width of the label, int32 `[2]`.
        value: Largest label value that is no class; 0 is none.
    """

    name: tf.Tensor
    size: tf.Tensor
    label_size: tf.Tensor
    value: tf.Tensor


class DecodedSample(NamedTuple):
    """What is made of a record.

    Attributes:
        image: Pixels of the image, or of those rows that the window shows.
        label: uint8 `[height, width, 1]`.
        window: The window, or ().
        checks: To be checked before the rest is used.
    """

    image: tf.Tensor
    label: tf.Tensor
    window: augment.Window | tuple[()]
    checks: SampleChecks


class Reader:
    """Reads the records of a source by their positions in its index."""

    def __init__(self, source: Source):
        self.info = source.info
        self._keys = source.keys
        self._paths = tf.constant(source.index.paths)
        index = (source.index.file, source.index.number, source.index.offset)
        self._index = tf.constant(np.stack(index, 1), tf.int64)

    def record_dataset(self, position) -> tf.data.Dataset:
        """Returns a dataset of the bytes of a record alone."""
        # Gathered, for a subscript is a dozen operations.
        file, _, offset = tf.unstack(tf.gather(self._index, position))
        return records.read_record(tf.gather(self._paths, file), offset)

    def name_record(self, position) -> list:
        """Returns the words that name a record, for `require`."""
        file, number, _ = tf.unstack(tf.gather(self._index, position))
        return ["record", number, "of", tf.gather(self._paths, file)]

    def describe(self, position) -> str:
        """Returns file, number and name of a record, outside of graphs."""
        is_whole, record = self.read_raw(position)
        name = records.parse(record, self._keys)[2].numpy() if is_whole else b"broken"
        file, number, _ = (int(x) for x in tf.gather(self._index, position))
        path = self._paths[file].numpy().decode()
        return f"record {number} of {path} ({name.decode(errors='replace')})"

    def decode(self, position, window_fn=None) -> DecodedSample:
        """Returns the image and label of a record.

        A broken one raises whatever TensorFlow says of it: see `require_valid` and
        `require_readable`.

        Args:
            position: Of the record in the index.
            window_fn: Returns the window of an image of a size, int32 `[2]`; only
                the rows that it shows are decoded. None decodes all of them.
        """
        info = self.info
        record = self.record_dataset(position).get_single_element()
        image, label, name = records.parse(record, self._keys)
        label = decoding.decode_label(label)
        # Of the label, for it should be that of the image.
        label_size = tf.shape(label)[:2]
        window, first, count = (), 0, label_size[0]
        if window_fn is not None:
            window = window_fn(label_size)
            first, count = window.first_row, window.row_count
        image, size = decoding.decode_rows(
            image, first, count, info.channels, info.max_value
        )
        checks = SampleChecks(name, size, label_size, self._unknown(label))
        return DecodedSample(image, label, window, checks)

    def _unknown(self, label):
        last = min(self.info.num_classes - 1, 255)
        is_unknown = (label > last) & (label != self.info.ignore_label)
        return tf.cond(
            tf.reduce_any(is_unknown),
            lambda: tf.reduce_max(tf.boolean_mask(label, is_unknown)),
            lambda: tf.constant(0, tf.uint8),
        )

    def read_sample(self, position) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns image, label and name of a record; whatever is wrong is told."""
        found = self._decode_or_refuse(position, self.decode)
        with self.require_valid(position, found.checks):
            parts = found.image, found.label, found.checks.name
            return tuple(map(tf.identity, parts))

    def read_label(self, position):
        """Returns the label of a record alone, uint8 `[height, width, 1]`."""

        def decode(position):
            record = self.record_dataset(position).get_single_element()
            _, label, name = records.parse(record, self._keys)
            label = decoding.decode_label(label)
            size = tf.shape(label)[:2]
            return DecodedSample(
                (), label, (), SampleChecks(name, size, size, self._unknown(label))
            )

        found = self._decode_or_refuse(position, decode)
        with self.require_valid(position, found.checks):
            return tf.identity(found.label)

    def read_size(self, position):
        """Returns height and width of the image of a record, from its header."""

        def decode(position):
            record = self.record_dataset(position).get_single_element()
            image, _, _ = records.parse(record, self._keys)
            return decoding.read_image_size(image, self.info.channels)

        return self._decode_or_refuse(position, decode)

    def read_raw(self, position):
        """Returns whether the checksums of a record match, and its bytes if so."""
        record = self.record_dataset(position).map(lambda record: (True, record))
        nothing = tf.data.Dataset.from_tensors((False, ""))
        record = record.ignore_errors().concatenate(nothing).take(1)
        return record.get_single_element()

    def _decode_or_refuse(self, position, decode):
        """Returns what `decode` makes of a record; refuses a broken one."""
        position = tf.cast(position, tf.int64)
        samples = tf.data.Dataset.from_tensors(position)
        samples = samples.map(lambda position: (position, decode(position)))
        found, sample = skip_errors(samples, 1).get_single_element()
        with self.require_readable(position, found == position):
            return tf.nest.map_structure(tf.identity, sample)

    def require_readable(self, position, is_whole):
        """Returns a context whose operations run only if a record was decoded."""
        return require(is_whole, [*self.name_record(position), _UNREADABLE])

    def require_valid(self, position, checks: SampleChecks):
        """Returns a context whose operations run only if a sample can be used."""
        which = [*self.name_record(position), "image", checks.name]
        same_size = tf.reduce_all(checks.size == checks.label_size)
        message = ["is", checks.size, "but its label", checks.label_size]
        with require(same_size, which + message):
            value = tf.identity(checks.value)
        message = ["has a label of value", value, "outside", self.info.known_labels]
        return require(value == 0, which + message)


def skip_errors(samples: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """Returns the samples that raise no error, and a stand-in behind them.

    TensorFlow's own errors do not say where they happened. So what raises one is left
    out, and who misses it knows where it should have been.

    Args:
        samples: Pairs of a number, int64, and a sample.
        count: Number of samples; no more are returned, stand-in included.

    Returns:
        The pairs; the number of the stand-in is -1.
    """
    _, spec = samples.element_spec

    def nothing(number):
        return number, tf.nest.map_structure(
            lambda part: tf.zeros([side or 0 for side in part.shape], part.dtype), spec
        )

    stand_in = tf.data.Dataset.from_tensors(tf.constant(-1, tf.int64)).map(nothing)
    return samples.ignore_errors().concatenate(stand_in).take(count)


def require(condition, message: list):
    """Returns a context whose operations run only where a condition holds.

    Args:
        condition: A bool scalar.
        message: Words and scalars of the sentence that is told where it does not; see
            `translate_errors`.
    """
    # The bare operation: this runs for every sample.
    refused = tf.raw_ops.Assert(condition=condition, data=message, summarize=3)
    # Outside of graphs it has run already, and there is no operation.
    return tf.control_dependencies([] if refused is None else [refused])


@contextlib.contextmanager
def translate_errors() -> Iterator[None]:
    """Tells what a dataset says of broken samples in one line.

    Raises:
        UserError: for a record that is cut short, a sample that cannot be decoded
            or has impossible labels; names file and record.
    """
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        if _is_of_data(error):
            raise UserError(_first_fact(error.message)) from error
        raise
    except UnicodeDecodeError as error:
        # Of a name that is no UTF-8: TensorFlow's error does not reach Python.
        message = bytes(error.object).decode(errors="replace")
        raise UserError(_first_fact(message)) from error


def iterate_batches(dataset: tf.data.Dataset) -> Iterator:
    """Yields what a dataset holds, telling broken samples in one line.

    Raises:
        UserError: as `translate_errors` does.
    """
    with translate_errors():
        yield from dataset


def _is_of_data(error: tf.errors.OpError) -> bool:
    """Whether an error comes from a dataset, not from what works on its batches."""
    return "GetNext" in error.message or "assertion failed" in error.message


def _first_fact(message: str) -> str:
    """Returns the sentence of a tf.data error that speaks of the data."""
    # "{{node ...}} what happened\n\t [[{{node ...}}]] [Op:...]"
    sentence = re.sub(r"^\{\{.*?\}\}\s*", "", message.split("\n\t [[")[0])
    failed = re.search(r"assertion failed: \[(.*)\]", sentence, re.S)
    if failed:
        sentence = failed.group(1).replace("] [", " ")
    # What Python raises within a dataset comes with its type and its traceback.
    sentence = sentence.partition("\nTraceback")[0].removeprefix("UserError: ")
    return " ".join(sentence.split())
