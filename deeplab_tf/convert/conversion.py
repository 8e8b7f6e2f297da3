"""Converts images and labels to TFRecord shards, in parallel and atomically.

A converter lists the samples of each split; this module does the rest. Shards are
published when all splits are complete, so that no reader sees half a dataset. A resumed
or repeated run keeps the shards that it finished before from the same files.
"""

import dataclasses
import hashlib
import io
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from etils import epath
from PIL import Image
from tqdm import tqdm

from deeplab_tf.convert.manifest import MANIFEST, Content, Manifest, exists, remove
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.files import outputs
from deeplab_tf.images import decoding, encoding
from deeplab_tf.images.decoding import EncodedImage

_OWN_FILES = (MANIFEST, records.INFO_FILE)
# Increment it when converters make other records from the same files; every shard is
# then written again.
_FORMAT = 1


class Sample(NamedTuple):
    """An image and its label, before conversion.

    Attributes:
        name: Name in the record; for VOC the file name without its extension.
        image: Any image that `encoding.encode` reads.
        labels: The source files of the label, to name in errors and to detect changes:
            usually one; several if each has one class; none if the mask is missing.
        read_label: Returns the class ids, uint8 `[height, width]`.
    """

    name: str
    image: epath.Path
    labels: tuple[epath.Path, ...]
    read_label: Callable[[], np.ndarray]

    @property
    def sources(self) -> tuple[epath.Path, ...]:
        """All files of the sample."""
        return (self.image, *self.labels)

    @property
    def label_name(self) -> str:
        """The source of the label, for errors."""
        if not self.labels:
            return f"the label of {self.image}"
        more = f" and {len(self.labels) - 1} more" if len(self.labels) > 1 else ""
        return f"{self.labels[0]}{more}"


def _summarize(name: str, pixels, label: np.ndarray, info: DatasetInfo) -> Content:
    counts = np.bincount(label.ravel(), minlength=256)
    counts[info.ignore_label] = 0
    counts = counts[: info.num_classes]
    content = hashlib.sha256(f"{name}\0{pixels.shape}\0{label.shape}\0".encode())
    content.update(np.ascontiguousarray(pixels))
    content.update(np.ascontiguousarray(label))
    hash_sum = int.from_bytes(content.digest(), "big")
    return Content(1, counts, np.where(counts > 0, counts.sum(), 0), hash_sum)


class ImageOptions(NamedTuple):
    """How images become records.

    Attributes:
        apply_exif: Whether labels are upright, so that images are turned upright
            according to EXIF; False if labels fit the stored pixels. None refuses
            images for which both are possible.
    """

    apply_exif: bool | None = False


# Labels of the benchmarks fit the stored pixels.
AS_STORED = ImageOptions()


def _make_record(
    sample: Sample, info: DatasetInfo, options: ImageOptions, notes: Counter[str]
) -> tuple[bytes, Content]:
    """Returns the record of a sample, after checking both of its files.

    `notes` counts what is worth a line in the end.
    """
    image = encoding.read_encoded(sample.image, info, bool(options.apply_exif))
    label = sample.read_label()
    wrong = np.unique(label[(label >= info.num_classes) & (label != info.ignore_label)])
    if wrong.size:
        raise UserError(
            f"{sample.label_name} has the value {wrong[0]}; labels are "
            f"{info.known_labels}"
        )
    _check_sizes(sample, image, label, options)
    if image.source not in decoding.IMAGE_FORMATS:
        notes[f"transcoded from {image.source} to PNG"] += 1
    if image.turned_from != 1:
        notes["turned upright by EXIF"] += 1
    if image.orientation != 1:
        notes["have an EXIF rotation that is not applied"] += 1
    pixels = encoding.decode(sample.image, image, info.max_value)
    brightest = pixels.max()
    if brightest > info.max_value:
        raise UserError(
            f"{sample.image} has the value {brightest}, but max_value is "
            f"{info.max_value}"
        )
    png = io.BytesIO()
    Image.fromarray(label).save(png, "PNG")
    record = records.serialize(image, png.getvalue(), sample.name)
    return record, _summarize(sample.name, pixels, label, info)


def _check_sizes(
    sample: Sample, image: EncodedImage, label: np.ndarray, options: ImageOptions
) -> None:
    """Raises `UserError` if image and label differ in size, or may in orientation."""
    size, turned = (image.height, image.width), (image.width, image.height)
    if label.shape != size:
        hint = ""
        if label.shape == turned and image.orientation > 4:
            hint = " before its EXIF rotation; rotate the pixels themselves"
            if options.apply_exif is None:
                hint = " before its EXIF rotation; add --apply_exif to turn it upright"
        elif label.shape == turned and image.turned_from > 4:
            hint = " after its EXIF rotation; replace --apply_exif with --noapply_exif"
        raise UserError(
            f"{sample.label_name} is {label.shape[1]}x{label.shape[0]} but its image "
            f"{sample.image} is {image.width}x{image.height}{hint}"
        )
    is_sure = image.orientation == 1 or (image.orientation > 4 and size != turned)
    if options.apply_exif is None and not is_sure:
        raise UserError(
            f"{sample.image} has the EXIF orientation {image.orientation}, and its "
            "label would fit both ways; add --apply_exif if the labels are upright, "
            "as viewers show the image, or --noapply_exif if they fit the stored pixels"
        )


class _Shard(NamedTuple):
    split: str
    name: str
    samples: Sequence[Sample]


def _split_into_shards(
    split: str, samples: Sequence[Sample], num_shards: int
) -> list[_Shard]:
    """Returns shards of `ceil(n / num_shards)` samples, as in the official code.

    There may be fewer than `num_shards`, because none is empty.
    """
    size = math.ceil(len(samples) / num_shards)
    num_shards = math.ceil(len(samples) / size)
    return [
        _Shard(
            split,
            f"{split}-{i:05d}-of-{num_shards:05d}.tfrecord",
            samples[i * size : (i + 1) * size],
        )
        for i in range(num_shards)
    ]


def _fingerprint(
    shard: _Shard, info: DatasetInfo, recipe: str, options: ImageOptions
) -> str:
    """Returns a hash of the sources of a shard and of the conversion settings."""
    settings: tuple = (info.class_names, info.ignore_label)
    settings += (info.channels, info.max_value, *options)
    text = [repr((_FORMAT, recipe, settings))]
    for sample in shard.samples:
        for path in sample.sources:
            stat = tf.io.gfile.stat(os.fspath(path))
            text.append(f"{sample.name} {path} {stat.length} {stat.mtime_nsec}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


class _Conversion:
    """One run of a converter in its output folder."""

    def __init__(
        self, info: DatasetInfo, output_dir: str, recipe: str, options: ImageOptions
    ):
        self.info = info
        self.recipe = recipe
        self.options = options
        self.notes: Counter[str] = Counter()
        self.folder = output_dir
        is_new = not exists(output_dir)
        outputs.claim(output_dir, _OWN_FILES)
        tf.io.gfile.makedirs(output_dir)
        records.finish_publishing(output_dir)
        self.manifest = Manifest(output_dir, info.num_classes)
        # Whether this run or an interrupted one created the folder.
        self.is_ours = is_new or self.manifest.found
        self.stopped = threading.Event()
        self.lock = threading.Lock()

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def finish(self, shard: _Shard, progress: tqdm) -> Content:
        """Writes a shard, unless an earlier run did, and returns its content."""
        fingerprint = _fingerprint(shard, self.info, self.recipe, self.options)
        content = self.manifest.content(shard.name, fingerprint)
        path = self.path(shard.name)
        if content is not None and exists(path, path + records.FINISHED):
            progress.update(len(shard.samples))
            return content
        # An existing shard of that name was made from other files.
        self.manifest.keep(lambda name: name != shard.name)
        content = self._write(shard, path + records.UNFINISHED, progress)
        tf.io.gfile.rename(
            path + records.UNFINISHED, path + records.FINISHED, overwrite=True
        )
        self.manifest.add(shard.name, fingerprint, content)
        return content

    def _write(self, shard: _Shard, path: str, progress: tqdm) -> Content:
        content = Content.empty(self.info.num_classes)
        notes: Counter[str] = Counter()
        try:
            with tf.io.TFRecordWriter(path) as writer:
                for sample in shard.samples:
                    if self.stopped.is_set():
                        raise futures.CancelledError
                    record, sample_content = _make_record(
                        sample, self.info, self.options, notes
                    )
                    writer.write(record)
                    content += sample_content
                    progress.update()
        except BaseException:
            remove([path])
            raise
        with self.lock:
            self.notes += notes
        return content

    def undo(self, shards: Sequence[_Shard]) -> None:
        """Removes the unpublished files of this run and of interrupted ones."""
        splits = {shard.split for shard in shards}
        paths = [p for split in splits for p in records.split_files(self.folder, split)]
        finished = [p for p in paths if p.endswith(records.FINISHED)]
        suffixes = (records.FINISHED, records.UNFINISHED)
        remove(p for p in paths if records.is_shard(p) and p.endswith(suffixes))
        # A published shard of the same name was made from other files.
        gone = {os.path.basename(p).removesuffix(records.FINISHED) for p in finished}
        self.manifest.keep(lambda name: exists(self.path(name)) and name not in gone)
        outputs.remove_if_empty(self.folder, keep_folder=not self.is_ours)

    def publish(self, shards: Sequence[_Shard], info: DatasetInfo) -> None:
        """Publishes all shards, replacing the earlier ones of their splits."""
        names: dict[str, list[str]] = {}
        for shard in shards:
            names.setdefault(shard.split, []).append(shard.name)
        records.publish(names, info, self.folder)
        self.manifest.keep(lambda name: exists(self.path(name)))


def convert(
    splits: Mapping[str, Sequence[Sample]],
    info: DatasetInfo,
    output_dir: str,
    num_shards: int = 4,
    recipe: str = "",
    options: ImageOptions = AS_STORED,
) -> DatasetInfo:
    """Writes `<split>-00000-of-0000N.tfrecord` for every split, and the info.

    An error leaves nothing in the folder. An interruption leaves the finished shards
    there, invisible to readers, for the next run.

    Args:
        splits: Samples of each split, by its official name.
        info: The classes, without counts and hashes.
        output_dir: Folder of the shards, created if missing. Other splits in it are
            kept, also in the info.
        num_shards: Most files per split; none is empty. The official code has 4 for
            VOC and 10 for Cityscapes.
        recipe: Everything the labels depend on besides their files; if it changes,
            every shard is written again.
        options: How images become records.

    Returns:
        The info as written, with split sizes, class pixels and content hashes.

    Raises:
        UserError: if a split is empty; if the folder has another dataset, the images
            themselves or files that we did not write; or if a sample is broken, has
            two sizes or an invalid label value.
    """
    for split, samples in splits.items():
        if not samples:
            raise UserError(f"the split {split} has no images")
    _require_same_classes(info, splits, output_dir)
    _require_separate_folder(splits, output_dir)
    conversion = _Conversion(info, output_dir, recipe, options)
    shards = [
        shard
        for split, samples in splits.items()
        for shard in _split_into_shards(split, samples, num_shards)
    ]
    try:
        contents = _finish_all(conversion, shards)
    except Exception:  # not KeyboardInterrupt, which keeps the finished shards
        conversion.undo(shards)
        raise
    info = _add_contents(info, output_dir, shards, contents)
    conversion.publish(shards, info)
    for note, count in sorted(conversion.notes.items()):
        print(f"{count} images {note}")
    return info


def _require_separate_folder(
    splits: Mapping[str, Sequence[Sample]], output_dir: str
) -> None:
    """Refuses to write into a folder of images or labels: names might collide."""
    folders = {
        os.path.realpath(folder): folder
        for samples in splits.values()
        for sample in samples
        for folder in {os.fspath(path.parent) for path in sample.sources}
    }
    source = folders.get(os.path.realpath(output_dir))
    if source is not None:
        raise UserError(
            f"output_dir={output_dir} is the folder of the images or labels, {source}; "
            "give the records a folder of their own"
        )


def claim_folder(output_dir: str) -> None:
    """Lets `convert` replace a dataset info and a manifest that we did not write."""
    outputs.claim(output_dir, _OWN_FILES, overwrite=True)


_SHARED_FIELDS = (
    "name",
    "class_names",
    "colors",
    "ignore_label",
    "channels",
    "max_value",
)


def _require_same_classes(
    info: DatasetInfo, splits: Iterable[str], output_dir: str
) -> None:
    """Refuses a folder that keeps other splits with different classes or images."""
    old_info = records.read_info(output_dir)
    kept = sorted(set(records.split_names(output_dir)) - set(splits))
    if old_info is None or not kept:
        return
    for field in _SHARED_FIELDS:
        old, new = getattr(old_info, field), getattr(info, field)
        if old != new:
            raise UserError(
                f"{output_dir} has the split {kept[0]} with the {field} {old}, not "
                f"{new}; use another output_dir, or remove that split"
            )


def _finish_all(conversion: _Conversion, shards: Sequence[_Shard]) -> list[Content]:
    """Writes all shards in parallel and returns their contents."""
    total = sum(len(shard.samples) for shard in shards)
    with (
        tqdm(total=total, desc="records", unit="img") as progress,
        futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        work = [pool.submit(conversion.finish, shard, progress) for shard in shards]
        try:
            for done in futures.as_completed(work):
                done.result()
        except BaseException:
            conversion.stopped.set()
            pool.shutdown(cancel_futures=True)
            raise
    return [done.result() for done in work]


def _add_contents(info, output_dir, shards, contents) -> DatasetInfo:
    """Adds the contents of the new shards and of the splits that stay to the info."""
    splits: dict[str, Content] = {}
    for shard, content in zip(shards, contents, strict=True):
        total = splits.get(shard.split, Content.empty(info.num_classes))
        splits[shard.split] = total + content
    new = {split: content.to_json() for split, content in splits.items()}
    old_info = records.read_info(output_dir)
    json_keys = {
        "split_sizes": "images",
        "class_pixels": "class_pixels",
        "class_image_pixels": "class_image_pixels",
        "content_hashes": "content_hash",
    }
    existing = set(records.split_names(output_dir))
    fields = {}
    for field, key in json_keys.items():
        is_same = old_info and old_info.name == info.name
        old = getattr(old_info, field) if is_same else {}
        fields[field] = {s: v for s, v in old.items() if s in existing}
        fields[field] |= {split: content[key] for split, content in new.items()}
    return dataclasses.replace(info, **fields)
