"""Checks records for everything that would make training fail."""

import collections
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from concurrent import futures
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.mask_fit import GRID, Edges, find_edges
from deeplab_tf.data.near_duplicates import make_thumbnail
from deeplab_tf.data.objects import measure_objects
from deeplab_tf.data.reader import Reader
from deeplab_tf.data.records import Keys, parse
from deeplab_tf.data.source import Source
from deeplab_tf.errors import UserError, one_line
from deeplab_tf.images import decoding
from deeplab_tf.progress import ProgressBar

# The second is raised if TensorFlow's message quotes bytes that are not UTF-8.
DECODING_ERRORS = (tf.errors.InvalidArgumentError, UnicodeDecodeError)
_PIXELS_AT_ONCE = 1 << 20
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "a palette", 4: "grey and alpha", 6: "RGBA"}


class RecordReport(NamedTuple):
    """Problems and statistics of a record; values that cannot be computed are None.

    Attributes:
        problems: Pairs of a kind (in `validation.ERRORS` or `WARNINGS`) and a message.
        where: Describes the record in messages.
        size: Height and width of the image.
        values: Number of pixels of each label value, `[256]`.
        moments: Sum and sum of squares of each channel, `[2, channels]`.
        digest: Hash of the pixels.
        name: Name of the image.
        thumbnail: See `make_thumbnail`.
        edges: See `find_edges`.
        objects: See `measure_objects`.
    """

    problems: list[tuple[str, str]]
    where: str = ""
    size: tuple[int, int] | None = None
    values: np.ndarray | None = None
    moments: np.ndarray | None = None
    digest: bytes = b""
    name: str = ""
    thumbnail: np.ndarray | None = None
    edges: Edges | None = None
    objects: np.ndarray | None = None


class RecordChecker:
    """Checks the records of a source in parallel."""

    def __init__(self, source: Source):
        self._source = source
        self._info = source.info
        self._reader = Reader(source)

    def _name_record(self, position: int) -> str:
        index = self._source.index
        path = index.paths[index.file[position]]
        return f"record {index.number[position]} of {path}"

    def check(self, positions: Sequence[int], label: str) -> Iterator[RecordReport]:
        """Yields a report on each record, in order; `label` names the progress bar."""
        raw = tf.data.Dataset.from_tensor_slices(np.asarray(positions, np.int64))
        raw = raw.map(self._reader.read_if_intact, num_parallel_calls=tf.data.AUTOTUNE)
        raw = raw.prefetch(tf.data.AUTOTUNE)
        # Encoded records need little memory, so a few per thread may wait.
        waiting: collections.deque = collections.deque()
        workers = os.cpu_count() or 1
        with (
            futures.ThreadPoolExecutor(workers) as pool,
            ProgressBar(total=len(positions), desc=label, unit="img") as progress,
        ):
            for position, (is_intact, record) in zip(
                positions, raw.as_numpy_iterator(), strict=True
            ):
                waiting.append(pool.submit(self._check, position, is_intact, record))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
                progress.update()
            for work in waiting:
                yield work.result()

    def _check(self, position: int, is_intact: bool, record: bytes) -> RecordReport:
        """Returns the report on a record; `is_intact`: its checksums match."""
        where = self._name_record(position)
        if not is_intact:
            return RecordReport([("broken", f"{where}: a checksum does not match")])
        try:
            image, label, name = _parse(record, self._source.keys)
            where = f"{where} ({name or 'no name'})"
            return self._check_sample(where, image, label)._replace(name=name)
        except UserError as error:
            return RecordReport([("broken", f"{where}: {one_line(error)}")])

    def _check_sample(self, where, image: bytes, label: bytes) -> RecordReport:
        """Returns problems and statistics of an encoded image and label."""
        pixels = _decode_image(image, self._info)
        small = _shrink_image(pixels, self._info.max_value)
        problems = []
        orientation = _read_orientation(image)
        if orientation != 1:
            text = f"EXIF orientation {orientation}; rotate the pixels instead"
            problems.append(("rotated", f"{where}: {text}"))
        kind = _label_kind(label)
        if kind != "grey 8-bit PNG":
            text = f"{where}: the label is {kind}; its brightness is not a class id"
            problems.append(("format", text))
            report = RecordReport(problems)
        else:
            report = self._check_label(where, pixels.shape[:2], label, small)
            report = report._replace(problems=problems + report.problems)
        return report._replace(
            where=where,
            size=pixels.shape[:2],
            moments=_compute_moments(pixels),
            digest=_hash_pixels(pixels),
            thumbnail=make_thumbnail(small),
        )

    def _check_label(self, where, size, label: bytes, small) -> RecordReport:
        """Returns problems and statistics of a label; `small` is the shrunk image."""
        try:
            label = decoding.decode_label(label).numpy()[..., 0]
        except DECODING_ERRORS as error:
            raise UserError(
                f"the label cannot be decoded: {_shorten(error)}"
            ) from error
        problems, info, edges = [], self._info, None
        if label.shape == size:
            edges = find_edges(small, label)
        else:
            label_size, image_size = map(_format_size, (label.shape, size))
            text = f"the label is {label_size}, but the image is {image_size}"
            problems.append(("size", f"{where}: {text}"))
        values = np.bincount(label.ravel(), minlength=256)
        known = np.arange(256) < info.num_classes
        known[info.ignore_label] = True
        wrong = np.flatnonzero((values > 0) & ~known)
        if wrong.size:
            y, x = np.argwhere(label == wrong[0])[0]
            text = (
                f"value {', '.join(map(str, wrong[:8]))} (first at x {x}, y {y}); "
                f"valid labels are {info.known_labels}"
            )
            problems.append(("value", f"{where}: {text}"))
        classes = np.where(known, values, 0)
        classes[info.ignore_label] = 0
        if not classes.any() and not wrong.size:
            problems.append(("void", where))
        elif classes[0] == values.sum() and info.num_classes > 1:
            problems.append(("background", where))
        objects = measure_objects(label, info.num_classes, info.ignore_label)
        return RecordReport(problems, values=values, edges=edges, objects=objects)


def _parse(record: bytes, keys: Keys) -> tuple[bytes, bytes, str]:
    """Returns the encoded image, encoded label and name of a record."""
    try:
        # Training uses this parser; others accept different records.
        image, label, name = map(tf.convert_to_tensor, parse(record, keys))
    except DECODING_ERRORS as error:
        raise UserError(_explain_parse_error(record, keys)) from error
    return image.numpy(), label.numpy(), one_line(name.numpy().decode(errors="replace"))


def _explain_parse_error(record: bytes, keys: Keys) -> str:
    """Returns why a record cannot be parsed, naming missing keys."""
    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        return f"it is not a tf.train.Example ({error})"
    for key in (keys.image, keys.label):
        if key not in features:
            there = ", ".join(sorted(features)) or "nothing"
            return f"it has no {key}; it has {there}"
    for key in set(filter(None, keys)) & set(features):
        count = len(features[key].bytes_list.value)
        if count != 1:
            return f"its {key} has {count} byte strings; it must have one"
    return "TensorFlow cannot parse it"


def _shorten(error: tf.errors.OpError) -> str:
    """Returns the message of a TensorFlow error without node names."""
    return " ".join(error.message.split("}}")[-1].split())[:200]


def _decode_image(image: bytes, info: DatasetInfo) -> np.ndarray:
    try:
        pixels = decoding.decode_image(image, info.channels, info.max_value)
    except DECODING_ERRORS as error:
        try:
            Image.open(io.BytesIO(image)).load()
            reason = _shorten(error)
        except Exception as pillow:  # its decoders raise anything
            reason = str(pillow)
        raise UserError(f"the image cannot be decoded: {reason}") from error
    return pixels.numpy()


def _shrink_image(pixels: np.ndarray, max_value: int) -> np.ndarray:
    """Shrinks up to three channels of an image to float32 0..255 `[64, 64, 1..3]`."""
    shown = np.ascontiguousarray(pixels[..., :3])
    small = cv2.resize(shown, (GRID, GRID), interpolation=cv2.INTER_AREA)
    return small.reshape(GRID, GRID, -1).astype(np.float32) * (255 / max_value)


def _hash_pixels(pixels: np.ndarray) -> bytes:
    content = hashlib.sha256(repr(pixels.shape).encode())
    content.update(np.ascontiguousarray(pixels))
    return content.digest()[:16]


def _compute_moments(pixels: np.ndarray) -> np.ndarray:
    """Returns the sum and sum of squares of each channel, float64 `[2, channels]`."""
    # A few rows at a time, because `bincount` converts its input to int64.
    rows = max(1, _PIXELS_AT_ONCE // pixels.shape[1])
    parts = (pixels[i : i + rows] for i in range(0, len(pixels), rows))
    return sum(_compute_row_moments(part) for part in parts)


def _compute_row_moments(pixels: np.ndarray) -> np.ndarray:
    """Returns the sum and sum of squares of each channel of some rows."""
    # Computed from histograms, which are much smaller than the pixels.
    channels = np.moveaxis(pixels, -1, 0).reshape(pixels.shape[-1], -1)
    counts = [np.bincount(channel) for channel in channels]
    values = [np.arange(len(c), dtype=np.float64) for c in counts]
    powers = [[v**k @ c for v, c in zip(values, counts, strict=True)] for k in (1, 2)]
    return np.array(powers)


def _read_orientation(image: bytes) -> int:
    """Returns the EXIF orientation of a JPEG; 1, upright, for other images."""
    is_jpeg = image.startswith(b"\xff\xd8")
    return decoding.read_exif_orientation(image) if is_jpeg else 1


def _label_kind(label: bytes) -> str:
    """Describes the format of a label, judging by its header."""
    depth, color_type = decoding.read_png_format(label)
    if not depth:
        return "a JPEG" if label[:2] == b"\xff\xd8" else "not a PNG"
    kind = _PNG_KINDS.get(color_type, "of an unknown kind")
    if (depth, kind) == (8, "grey"):
        return "grey 8-bit PNG"
    return f"a PNG with {depth} bits and {kind}"


def _format_size(size) -> str:
    return f"{size[1]}x{size[0]}"
