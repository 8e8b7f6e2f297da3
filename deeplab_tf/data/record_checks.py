"""One record in every detail: what training would fail on, and its statistics."""

import collections
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image
from tqdm import tqdm

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.reader import Reader
from deeplab_tf.data.records import Keys, parse
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError, one_line
from deeplab_tf.images import decoding

# The latter where its message quotes bytes that are no UTF-8.
DECODING_ERRORS = (tf.errors.InvalidArgumentError, UnicodeDecodeError)
_PIXELS_AT_ONCE = 1 << 20
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "a palette", 4: "grey and alpha", 6: "RGBA"}


class RecordReport(NamedTuple):
    """Problems and statistics of a record.

    Attributes:
        problems: Kind (of `validation.ERRORS` or `WARNINGS`) and text of each.
        where: Names the record.
        size: Height and width of the image; None where it could not be read.
        values: Pixels of each label value, `[256]`, likewise.
        moments: Sum and sum of squares of each channel, `[2, channels]`, likewise.
        digest: Hash of the pixels.
    """

    problems: list[tuple[str, str]]
    where: str = ""
    size: tuple[int, int] | None = None
    values: np.ndarray | None = None
    moments: np.ndarray | None = None
    digest: bytes = b""


class RecordChecker:
    """Checks records of a source, several at a time."""

    def __init__(self, source: Source):
        self._source = source
        self._info = source.info
        self._reader = Reader(source)

    def _where(self, position: int) -> str:
        index = self._source.index
        path = index.paths[index.file[position]]
        return f"record {index.number[position]} of {path}"

    def check(self, positions: Sequence[int], label: str) -> Iterator[RecordReport]:
        """Yields the reports of some records, in their order.

        Args:
            positions: Of the records in the index of the source.
            label: Text of the progress bar.
        """
        raw = tf.data.Dataset.from_tensor_slices(np.asarray(positions, np.int64))
        raw = raw.map(self._reader.read_intact, num_parallel_calls=tf.data.AUTOTUNE)
        raw = raw.prefetch(tf.data.AUTOTUNE)
        # As many at a time as there are threads: encoded, they need little memory.
        waiting: collections.deque = collections.deque()
        workers = os.cpu_count() or 1
        with (
            futures.ThreadPoolExecutor(workers) as pool,
            tqdm(total=len(positions), desc=label, unit="img") as progress,
        ):
            for position, (whole, record) in zip(
                positions, raw.as_numpy_iterator(), strict=True
            ):
                waiting.append(pool.submit(self._record, position, whole, record))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
                progress.update()
            for work in waiting:
                yield work.result()

    def _record(self, position: int, whole: bool, record: bytes) -> RecordReport:
        where = self._where(position)
        if not whole:
            return RecordReport([("broken", f"{where}: a checksum does not match")])
        try:
            image, label, name = _features(record, self._source.keys)
            return self._sample(f"{where} ({name or 'no name'})", image, label)
        except UserError as error:
            return RecordReport([("broken", f"{where}: {one_line(error)}")])

    def _sample(self, where, image: bytes, label: bytes) -> RecordReport:
        pixels = _decoded(image, self._info)
        problems = [("rotated", f"{where}: {text}") for text in _rotation(image)]
        kind = _label_kind(label)
        if kind != "grey 8-bit PNG":
            text = f"{where}: the label is {kind}; its brightness is no class id"
            problems.append(("picture", text))
            values = None
        else:
            values, found = self._label(where, pixels.shape[:2], label)
            problems += found
        size, digest = pixels.shape[:2], _digest(pixels)
        return RecordReport(problems, where, size, values, _moments(pixels), digest)

    def _label(self, where, size, label: bytes):
        """Returns the pixels of each value, and the problems of a label."""
        try:
            label = decoding.decode_label(label).numpy()[..., 0]
        except DECODING_ERRORS as error:
            raise UserError(f"the label cannot be decoded: {_brief(error)}") from error
        problems, info = [], self._info
        if label.shape != size:
            text = f"the label is {_by(label.shape)} but its image {_by(size)}"
            problems.append(("size", f"{where}: {text}"))
        values = np.bincount(label.ravel(), minlength=256)
        known = np.arange(256) < info.num_classes
        known[info.ignore_label] = True
        wrong = np.flatnonzero((values > 0) & ~known)
        if wrong.size:
            y, x = np.argwhere(label == wrong[0])[0]
            text = (
                f"value {', '.join(map(str, wrong[:8]))} (first at x {x}, y {y}); "
                f"labels are {info.known_labels}"
            )
            problems.append(("value", f"{where}: {text}"))
        classes = np.where(known, values, 0)
        classes[info.ignore_label] = 0
        if not classes.any() and not wrong.size:
            problems.append(("void", where))
        elif classes[0] == values.sum() and info.num_classes > 1:
            problems.append(("background", where))
        return values, problems


def _features(record: bytes, keys: Keys) -> tuple[bytes, bytes, str]:
    """Returns encoded image, encoded label and name of a record."""
    try:
        # As training does, for other parsers take more or less for an example.
        image, label, name = map(tf.convert_to_tensor, parse(record, keys))
    except DECODING_ERRORS as error:
        raise UserError(_why_no_sample(record, keys)) from error
    return image.numpy(), label.numpy(), one_line(name.numpy().decode(errors="replace"))


def _why_no_sample(record: bytes, keys: Keys) -> str:
    """Returns why a record cannot be parsed."""
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        return f"it is no tf.train.Example ({error})"
    for key in (keys.image, keys.label):
        if key not in features:
            there = ", ".join(sorted(features)) or "nothing"
            return f"it has no {key}; it has {there}"
    for key in set(filter(None, keys)) & set(features):
        count = len(features[key].bytes_list.value)
        if count != 1:
            return f"its {key} is {count} byte strings; it must be one"
    return "TensorFlow cannot parse it"


def _brief(error: tf.errors.OpError) -> str:
    """Returns the part of an error of TensorFlow that speaks of the data."""
    return " ".join(error.message.split("}}")[-1].split())[:200]


def _decoded(image: bytes, info: DatasetInfo) -> np.ndarray:
    try:
        pixels = decoding.decode_image(image, info.channels, info.max_value)
    except DECODING_ERRORS as error:
        try:
            Image.open(io.BytesIO(image)).load()
            reason = _brief(error)
        except Exception as pillow:  # its decoders raise whatever they stumble over
            reason = str(pillow)
        raise UserError(f"the image cannot be decoded: {reason}") from error
    return pixels.numpy()


def _digest(pixels: np.ndarray) -> bytes:
    content = hashlib.sha256(repr(pixels.shape).encode())
    content.update(np.ascontiguousarray(pixels))
    return content.digest()[:16]


def _moments(pixels: np.ndarray) -> np.ndarray:
    """Returns sum and sum of squares of each channel, float64 `[2, channels]`."""
    # Some rows at a time, for NumPy makes 64-bit integers of what it counts.
    rows = max(1, _PIXELS_AT_ONCE // pixels.shape[1])
    parts = (pixels[i : i + rows] for i in range(0, len(pixels), rows))
    return sum(_moments_of_rows(part) for part in parts)


def _moments_of_rows(pixels: np.ndarray) -> np.ndarray:
    # By way of the histograms, which are much smaller than the pixels.
    channels = np.moveaxis(pixels, -1, 0).reshape(pixels.shape[-1], -1)
    counts = [np.bincount(channel) for channel in channels]
    values = [np.arange(len(c), dtype=np.float64) for c in counts]
    powers = [[v**k @ c for v, c in zip(values, counts, strict=True)] for k in (1, 2)]
    return np.array(powers)


def _rotation(image: bytes) -> Iterator[str]:
    """Yields what EXIF says of an image that is not upright as it is."""
    if not image.startswith(b"\xff\xd8"):
        return
    orientation = decoding.exif_orientation(image)
    if orientation != 1:
        yield f"EXIF orientation {orientation}; rotate the pixels themselves"


def _label_kind(label: bytes) -> str:
    """Returns what a label is, from its header."""
    depth, color_type = decoding.png_format(label)
    if not depth:
        return "a JPEG" if label[:2] == b"\xff\xd8" else "no PNG"
    kind = _PNG_KINDS.get(color_type, "of an unknown kind")
    if (depth, kind) == (8, "grey"):
        return "grey 8-bit PNG"
    return f"a PNG with {depth} bits and {kind}"


def _by(size) -> str:
    return f"{size[1]}x{size[0]}"
