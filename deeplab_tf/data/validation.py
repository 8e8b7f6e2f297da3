"""Whether a data set can be trained on: every record read, and what is odd about it.

    python -m deeplab_tf.data.doctor --dataset_dir=tfrecord

The exit status is 0 if it is safe to train. What makes it unsafe is in `ERRORS`;
everything else is worth a look.
"""

import collections
import dataclasses
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Sequence
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

# Kinds of problems with which a training would stop, or learn something wrong.
ERRORS = {
    "broken": "broken records",
    "size": "labels of another size than their images",
    "picture": "labels that are no grey 8-bit PNG",
    "value": "label values that are no class",
    "one-sided": "splits of which every label is empty",
    "white": "labels of 0 and the ignored value alone",
    "leak": "images of an evaluation split in a training split",
}
WARNINGS = {
    "rotated": "images that EXIF turns: viewers show them so, networks do not",
    "unlikely": "samples that hold no class",
    "void": "labels without a labelled pixel",
    "background": "labels of class 0 alone",
    "absent": "classes that no image holds",
    "repeated": "images twice in a split",
}
_QUICK = 200
# The latter where its message quotes bytes that are no UTF-8.
DECODING_ERRORS = (tf.errors.InvalidArgumentError, UnicodeDecodeError)
_PIXELS_AT_ONCE = 1 << 20
_PNG_KINDS = {0: "grey", 2: "RGB", 3: "a palette", 4: "grey and alpha", 6: "RGBA"}


class Problem(NamedTuple):
    """Something that is odd about a data set.

    Attributes:
        kind: Key of `ERRORS` or `WARNINGS`.
        split: Name of the split.
        text: What was found, and where.
    """

    kind: str
    split: str
    text: str


class _Examined(NamedTuple):
    """What was found in a record; statistics are None where it could not be read."""

    problems: list[tuple[str, str]]
    where: str = ""
    size: tuple[int, int] | None = None
    values: np.ndarray | None = None
    moments: np.ndarray | None = None
    digest: bytes = b""


@dataclasses.dataclass
class SplitReport:
    """What a split holds.

    Attributes:
        split: Its name.
        images: Number of its records.
        examined: Number of them that were examined.
        problems: What is odd about them.
        values: Pixels of each label value, `[256]`.
        images_with: Images with each label value, `[256]`.
        sizes: (height, width) to number of images.
        mean: Mean of each channel over all pixels, 0..max_value.
        deviation: Standard deviation of each channel.
        digests: Hash of the pixels of each image to where it is.
    """

    split: str
    images: int
    examined: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)
    values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(256, int))
    images_with: np.ndarray = dataclasses.field(
        default_factory=lambda: np.zeros(256, int)
    )
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    mean: np.ndarray | None = None
    deviation: np.ndarray | None = None
    digests: dict[bytes, str] = dataclasses.field(default_factory=dict)


def is_safe(problems: Iterable[Problem]) -> bool:
    """Whether nothing of what was found speaks against training."""
    return not any(problem.kind in ERRORS for problem in problems)


class _Examiner:
    """Reads records in every detail, several at a time."""

    def __init__(self, source: Source):
        self._source = source
        self._info = source.info
        self._reader = Reader(source)

    def where(self, position: int) -> str:
        index = self._source.index
        path = index.paths[index.file[position]]
        return f"record {index.number[position]} of {path}"

    def examine(self, positions: Sequence[int], label: str) -> Iterator[_Examined]:
        """Yields what was found in records, in their order."""
        raw = tf.data.Dataset.from_tensor_slices(np.asarray(positions, np.int64))
        raw = raw.map(self._reader.raw, num_parallel_calls=tf.data.AUTOTUNE)
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

    def _record(self, position: int, whole: bool, record: bytes) -> _Examined:
        where = self.where(position)
        if not whole:
            return _Examined([("broken", f"{where}: a checksum does not match")])
        try:
            image, label, name = _features(record, self._source.keys)
            return self._sample(f"{where} ({name or 'no name'})", image, label)
        except UserError as error:
            return _Examined([("broken", f"{where}: {one_line(error)}")])

    def _sample(self, where, image: bytes, label: bytes) -> _Examined:
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
        return _Examined(problems, where, size, values, _moments(pixels), digest)

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
    if label[:4] != b"\x89PNG" or len(label) < 26:
        return "a JPEG" if label[:2] == b"\xff\xd8" else "no PNG"
    depth, kind = label[24], _PNG_KINDS.get(label[25], "of an unknown kind")
    if (depth, kind) == (8, "grey"):
        return "grey 8-bit PNG"
    return f"a PNG with {depth} bits and {kind}"


def _by(size) -> str:
    return f"{size[1]}x{size[0]}"


def examine_split(source: Source, split: str, at_most: int | None = None):
    """Returns the report of a split.

    Args:
        source: Its records.
        split: Its name.
        at_most: Number of records to examine, evenly spaced; None is all.

    Returns:
        A `SplitReport`.
    """
    count = len(source.index)
    positions = np.arange(count)
    if at_most is not None and count > at_most:
        positions = np.linspace(0, count - 1, at_most).astype(np.int64)
    report = SplitReport(split, count)
    moments, pixels = 0.0, 0
    for examined in _Examiner(source).examine(positions, f"checking {split}"):
        report.examined += 1
        report.problems += [Problem(k, split, text) for k, text in examined.problems]
        if examined.values is not None:
            report.values += examined.values
            report.images_with += examined.values > 0
        if examined.size is not None:
            _count_image(report, examined)
            moments = moments + examined.moments
            pixels += examined.size[0] * examined.size[1]
    if pixels:
        report.mean = moments[0] / pixels
        variance = moments[1] / pixels - report.mean**2
        report.deviation = np.sqrt(np.maximum(variance, 0))
    report.problems += _label_problems(report, source.info)
    return report


def _count_image(report: SplitReport, examined: _Examined) -> None:
    report.sizes[examined.size] += 1
    twin = report.digests.setdefault(examined.digest, examined.where)
    if twin != examined.where:
        text = f"{examined.where} and {twin} have the same pixels"
        report.problems.append(Problem("repeated", report.split, text))


def _label_problems(report: SplitReport, info: DatasetInfo) -> list[Problem]:
    """Returns what the label values of a whole split say."""
    values, split = report.values, report.split
    classes = [i for i in range(info.num_classes) if i != info.ignore_label]
    there = [i for i in classes if values[i]]
    if not values.sum():
        return []
    if there == [0] and values[info.ignore_label] and len(classes) > 1:
        text = (
            f"0 and {info.ignore_label} are the only values: is {info.ignore_label} a "
            "class painted white? Class ids are 0, 1, 2, ..."
        )
        return [Problem(_if_all(report, "white"), split, text)]
    if not there or (there == [0] and len(classes) > 1):
        what = f"class 0 ({info.class_names[0]})" if there else "the ignored value"
        text = f"{what} is all that there is"
        return [Problem(_if_all(report, "one-sided"), split, text)]
    if report.examined < report.images:
        return []  # rare classes may be in the others
    absent = ", ".join(info.class_names[i] for i in classes if not values[i])
    return [Problem("absent", split, absent)] if absent else []


def _if_all(report: SplitReport, kind: str) -> str:
    """Returns a kind of error, unless it may be none.

    Rare classes may be in what was not examined, and test splits may have no labels.
    """
    is_sure = report.examined == report.images and not _is_evaluation(report.split)
    return kind if is_sure else "unlikely"


def _is_evaluation(split: str) -> bool:
    return split.startswith(("val", "test"))


def shared_images(reports: Sequence[SplitReport]) -> list[Problem]:
    """Returns images of evaluation splits that a training split has too.

    A split named trainval, as VOC's, is meant to hold them.
    """
    problems = []
    for held_out in filter(lambda r: _is_evaluation(r.split), reports):
        for report in reports:
            shared = report.digests.keys() & held_out.digests.keys()
            is_meant = report.split.startswith("trainval")
            if _is_evaluation(report.split) or is_meant or not shared:
                continue
            some = min(held_out.digests[digest] for digest in shared)
            text = f"{len(shared)} images of {held_out.split} are there, such as {some}"
            problems.append(Problem("leak", report.split, text))
    return problems


def check_quickly(source: Source, split: str) -> list[Problem]:
    """Refuses a split of which a sample of records cannot be trained on.

    Returns:
        What is odd about the sample.

    Raises:
        UserError: telling the first error and how many there are of its kind.
    """
    report = examine_split(source, split, _QUICK)
    errors = [problem for problem in report.problems if problem.kind in ERRORS]
    if errors:
        first = errors[0]
        of_kind = sum(problem.kind == first.kind for problem in errors)
        raise UserError(
            f"{split} is not safe to train on, {ERRORS[first.kind]}: {first.text} "
            f"({of_kind} in {report.examined} records that were checked; python -m "
            "deeplab_tf.data.doctor checks all of them)"
        )
    return report.problems
