"""Reads individual records in a graph; errors name the file and the record."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sized
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from deeplab_tf.data import augment, records
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding

_UNREADABLE = (
    "is broken: the file is missing, a checksum does not match, its image is not a "
    "JPEG or PNG, or its label is not a grey PNG; run python -m deeplab_tf.data.doctor "
    "for details"
)


class SampleChecks(NamedTuple):
    """Values to check before a sample is used.

    Sizes are height and width, int32 `[2]`; `value` is the largest invalid label value,
    or 0 if all are valid.
    """

    name: tf.Tensor
    size: tf.Tensor
    label_size: tf.Tensor
    value: tf.Tensor


class DecodedSample(NamedTuple):
    """The image rows in the window, the complete label, and values to check."""

    image: tf.Tensor
    label: tf.Tensor
    window: augment.Window | tuple[()]
    checks: SampleChecks


class Reader:
    """Reads the records of a source by position in its index."""

    def __init__(self, source: Source):
        self.info = source.info
        self._keys = source.keys
        self._paths = tf.constant(source.index.paths)
        index = (source.index.file, source.index.number, source.index.offset)
        self._index = tf.constant(np.stack(index, 1), tf.int64)

    def _read(self, position) -> tf.data.Dataset:
        """Returns a dataset that holds the bytes of one record."""
        # A gather is one operation; a subscript is about a dozen.
        file, _, offset = tf.unstack(tf.gather(self._index, position))
        return records.read_record(tf.gather(self._paths, file), offset)

    def read_bytes(self, position):
        """Returns the bytes of a record, a string scalar."""
        return self._read(position).get_single_element()

    @tf.autograph.experimental.do_not_convert
    def read_if_intact(self, position):
        """Returns `(True, record)`, or `(False, "")` if a checksum differs."""
        record = self._read(position).map(lambda record: (True, record))
        nothing = tf.data.Dataset.from_tensors((False, ""))
        record = record.ignore_errors().concatenate(nothing).take(1)
        return record.get_single_element()

    def name_record(self, position) -> list:
        """Returns "record <number> of <path>" as parts of a message for `require`."""
        file, number, _ = tf.unstack(tf.gather(self._index, position))
        return ["record", number, "of", tf.gather(self._paths, file)]

    def describe(self, position) -> str:
        """Returns the file, number and name of a record; not for use in graphs."""
        is_intact, record = self.read_if_intact(position)
        name = records.parse(record, self._keys)[2].numpy() if is_intact else b"broken"
        file, number, _ = (int(x) for x in tf.gather(self._index, position))
        path = self._paths[file].numpy().decode()
        return f"record {number} of {path} ({name.decode(errors='replace')})"

    def decode(self, position, window_fn=None) -> DecodedSample:
        """Decodes the image and label of a record, without checking them.

        A broken record raises one of TensorFlow's errors; see `require_readable` and
        `require_valid`. `window_fn` maps the label to a window; only
        the image rows in that window are decoded.
        """
        info = self.info
        image, label, name = records.parse(self.read_bytes(position), self._keys)
        label = decoding.decode_label(label)
        # The image has not been decoded yet but should have the same size.
        label_size = tf.shape(label)[:2]
        window, first, count = (), 0, label_size[0]
        if window_fn is not None:
            window = window_fn(label)
            first, count = window.first_row, window.row_count
        image, size = decoding.decode_rows(
            image, first, count, info.channels, info.max_value
        )
        checks = SampleChecks(name, size, label_size, self._find_invalid_value(label))
        return DecodedSample(image, label, window, checks)

    def _find_invalid_value(self, label):
        """Returns the largest invalid label value, 0 if all are valid."""
        last = min(self.info.num_classes - 1, 255)
        is_invalid = (label > last) & (label != self.info.ignore_label)
        return tf.cond(
            tf.reduce_any(is_invalid),
            lambda: tf.reduce_max(tf.boolean_mask(label, is_invalid)),
            lambda: tf.constant(0, tf.uint8),
        )

    @tf.autograph.experimental.do_not_convert
    def read_sample(self, position) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Returns the image, label and name of a record after validating them."""
        sample = self._decode_or_refuse(position, self.decode)
        with self.require_valid(position, sample.checks):
            parts = sample.image, sample.label, sample.checks.name
            return tuple(map(tf.identity, parts))

    @tf.autograph.experimental.do_not_convert
    def read_label(self, position):
        """Returns the label of a record without decoding its image."""

        def decode(position):
            _, label, name = records.parse(self.read_bytes(position), self._keys)
            label = decoding.decode_label(label)
            size = tf.shape(label)[:2]
            return label, SampleChecks(
                name, size, size, self._find_invalid_value(label)
            )

        label, checks = self._decode_or_refuse(position, decode)
        with self.require_valid(position, checks):
            return tf.identity(label)

    @tf.autograph.experimental.do_not_convert
    def read_size(self, position):
        """Returns the height and width of a record's image, from its header."""

        def decode(position):
            image, _, _ = records.parse(self.read_bytes(position), self._keys)
            return decoding.read_image_size(image, self.info.channels)

        return self._decode_or_refuse(position, decode)

    def _decode_or_refuse(self, position, decode):
        """Returns `decode(position)`; if that fails, the error names the record."""
        position = tf.cast(position, tf.int64)
        samples = tf.data.Dataset.from_tensors(position)
        samples = samples.map(lambda position: (position, decode(position)))
        found, sample = skip_errors(samples, 1).get_single_element()
        with self.require_readable(position, found == position):
            return tf.nest.map_structure(tf.identity, sample)

    def require_readable(self, position, is_readable):
        """Returns a context whose operations run only if a record was decoded."""
        return require(is_readable, [*self.name_record(position), _UNREADABLE])

    def require_valid(self, position, checks: SampleChecks):
        """Returns a context whose operations run only if a sample passes its checks."""
        record = [*self.name_record(position), "image", checks.name]
        same_size = tf.reduce_all(checks.size == checks.label_size)
        message = ["is", checks.size, "but its label", checks.label_size]
        with require(same_size, record + message):
            value = tf.identity(checks.value)
        message = ["has a label of value", value, "outside", self.info.known_labels]
        return require(value == 0, record + message)


def skip_errors(samples: tf.data.Dataset, count: int) -> tf.data.Dataset:
    """Drops the samples that raise an error and appends a placeholder.

    TensorFlow's errors do not say which sample failed. `samples` are pairs of an int64
    number and a sample, so a caller can compare the numbers returned with those it
    requested. The placeholder has number -1. At most `count` pairs are returned.
    """
    _, spec = samples.element_spec

    def placeholder(number):
        return number, tf.nest.map_structure(
            lambda part: tf.zeros([side or 0 for side in part.shape], part.dtype), spec
        )

    missing = tf.data.Dataset.from_tensors(tf.constant(-1, tf.int64)).map(placeholder)
    return samples.ignore_errors().concatenate(missing).take(count)


def require(condition, message: list):
    """Returns a context whose operations run only if a bool scalar is true.

    `message` lists the words and scalars of the error message, which
    `translate_data_errors` joins.
    """
    # tf.debugging.assert costs several operations, and this runs for every sample.
    assertion = tf.raw_ops.Assert(condition=condition, data=message, summarize=3)
    # In eager mode, the check has already run and returns no operation.
    return tf.control_dependencies([] if assertion is None else [assertion])


@contextlib.contextmanager
def translate_data_errors() -> Iterator[None]:
    """Turns dataset errors into a `UserError` that names the file and record."""
    try:
        yield
    except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
        if _is_data_error(error):
            raise UserError(_extract_message(error.message)) from error
        raise
    except UnicodeDecodeError as error:
        # TensorFlow's message quotes a name that is not UTF-8.
        message = bytes(error.object).decode(errors="replace")
        raise UserError(_extract_message(message)) from error


def iterate_batches(dataset: tf.data.Dataset) -> Iterator:
    """Yields the batches of a dataset; a broken sample raises a `UserError`."""
    with translate_data_errors():
        yield from dataset


def count_batches(dataset: Iterable) -> int | None:
    """Returns the number of batches of a dataset, or None if it is unknown."""
    if isinstance(dataset, tf.data.Dataset):
        count = int(dataset.cardinality())
        return count if count >= 0 else None
    return len(dataset) if isinstance(dataset, Sized) else None


def _is_data_error(error: tf.errors.OpError) -> bool:
    """Returns whether an error comes from a dataset rather than from the model."""
    return "GetNext" in error.message or "assertion failed" in error.message


def _extract_message(message: str) -> str:
    """Strips TensorFlow's node names and tracebacks from an error message."""
    # "{{node ...}} what happened\n\t [[{{node ...}}]] [Op:...]"
    sentence = re.sub(r"^\{\{.*?\}\}\s*", "", message.split("\n\t [[")[0])
    failed = re.search(r"assertion failed: \[(.*)\]", sentence, re.S)
    if failed:
        sentence = failed.group(1).replace("] [", " ")
    # A Python error inside a dataset comes with its type and traceback.
    sentence = sentence.partition("\nTraceback")[0].removeprefix("UserError: ")
    return " ".join(sentence.split())
