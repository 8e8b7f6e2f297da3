"""Images and labels to TFRecord shards: in parallel, resumable, all or nothing.

A converter says which samples a split has; everything else is here. Shards get their
names when those of all splits are complete, so that no reader meets half a data set.
Those that were finished before an interruption, or by an earlier run from the same
files, are not made again.
"""

import dataclasses
import hashlib
import io
import math
import os
import threading
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
from deeplab_tf.images import decoding, image_files

_OWN_FILES = (MANIFEST, records.INFO_FILE)
# To be raised when converters make other records of the same files: then all shards are
# made again.
_FORMAT = 1


class Sample(NamedTuple):
    """An image and its label, before they are a record.

    Attributes:
        name: Name in the record; for VOC the file name without its extension.
        image: JPEG or PNG, or what `read_array` reads.
        label: File that the label is made of, to name it in errors and to notice
            that it changed.
        read_label: Returns the class ids, uint8 `[height, width]`.
    """

    name: str
    image: epath.Path
    label: epath.Path
    read_label: Callable[[], np.ndarray]


def class_pixels(label: np.ndarray, info: DatasetInfo) -> np.ndarray:
    """Returns the labelled pixels of each class, int64 `[num_classes]`."""
    counts = np.bincount(label.ravel(), minlength=256)
    counts[info.ignore_label] = 0
    return counts[: info.num_classes]


def _content_of(name: str, pixels, label: np.ndarray, info: DatasetInfo) -> Content:
    counts = class_pixels(label, info)
    content = hashlib.sha256(f"{name}\0{pixels.shape}\0{label.shape}\0".encode())
    content.update(np.ascontiguousarray(pixels))
    content.update(np.ascontiguousarray(label))
    # A sum, so that neither order nor sharding counts.
    hash_sum = int.from_bytes(content.digest(), "big")
    return Content(1, counts, np.where(counts > 0, counts.sum(), 0), hash_sum)


def _record(sample: Sample, info: DatasetInfo) -> tuple[bytes, Content]:
    """Returns the record of a sample, after checking both of its files."""
    picture = image_files.read_encoded(sample.image, info)
    label = sample.read_label()
    wrong = np.unique(label[(label >= info.num_classes) & (label != info.ignore_label)])
    if wrong.size:
        raise UserError(
            f"{sample.label} has the value {wrong[0]}; labels are {info.known_labels}"
        )
    if label.shape != (picture.height, picture.width):
        raise UserError(
            f"{sample.label} is {label.shape[1]}x{label.shape[0]} but its image "
            f"{sample.image} is {picture.width}x{picture.height}"
            f"{image_files.orientation_hint(sample.image)}"
        )
    try:
        # What training will see; Pillow reads files that TensorFlow does not.
        pixels = decoding.decode_image(picture.content, info.channels, info.max_value)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"TensorFlow cannot decode {sample.image}: {error}") from error
    brightest = pixels.numpy().max()
    if brightest > info.max_value:
        raise UserError(
            f"{sample.image} has the value {brightest}, but max_value is "
            f"{info.max_value}"
        )
    png = io.BytesIO()
    Image.fromarray(label).save(png, "PNG")
    record = records.serialize(picture, png.getvalue(), sample.name)
    return record, _content_of(sample.name, pixels.numpy(), label, info)


class _Shard(NamedTuple):
    split: str
    name: str
    samples: Sequence[Sample]


def _shards(split: str, samples: Sequence[Sample], num_shards: int) -> list[_Shard]:
    """Returns shards of `ceil(n / num_shards)` consecutive samples, as officially.

    There are fewer than `num_shards` where some would be empty.
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


def _fingerprint(shard: _Shard, info: DatasetInfo, recipe: str) -> str:
    """Returns a hash of the files that a shard is made of, and of how."""
    what = (info.class_names, info.ignore_label, info.channels, info.max_value)
    text = [repr((_FORMAT, recipe, what))]
    for sample in shard.samples:
        for path in (sample.image, sample.label):
            stat = tf.io.gfile.stat(os.fspath(path))
            text.append(f"{sample.name} {path} {stat.length} {stat.mtime_nsec}")
    return hashlib.sha256("\n".join(text).encode()).hexdigest()


class _Conversion:
    """One run of a converter in a folder."""

    def __init__(self, info: DatasetInfo, output_dir: str, recipe: str):
        self.info = info
        self.recipe = recipe
        self.folder = output_dir
        made = not exists(output_dir)
        outputs.claim(output_dir, _OWN_FILES)
        tf.io.gfile.makedirs(output_dir)
        records.finish_publishing(output_dir)
        self.manifest = Manifest(output_dir, info.num_classes)
        # Whether the folder is of this run, or of one that was interrupted.
        self.is_ours = made or self.manifest.found
        self.stopped = threading.Event()

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name)

    def finish(self, shard: _Shard, progress: tqdm) -> Content:
        """Returns what a shard holds, after writing it unless that was done."""
        fingerprint = _fingerprint(shard, self.info, self.recipe)
        content = self.manifest.content(shard.name, fingerprint)
        path = self.path(shard.name)
        if content is not None and exists(path, path + records.FINISHED):
            progress.update(len(shard.samples))
            return content
        # Before anything is written: what is there may be of other files.
        self.manifest.keep(lambda name: name != shard.name)
        content = self._write(shard, path + records.UNFINISHED, progress)
        tf.io.gfile.rename(
            path + records.UNFINISHED, path + records.FINISHED, overwrite=True
        )
        self.manifest.add(shard.name, fingerprint, content)
        return content

    def _write(self, shard: _Shard, path: str, progress: tqdm) -> Content:
        content = Content.empty(self.info.num_classes)
        try:
            with tf.io.TFRecordWriter(path) as writer:
                for sample in shard.samples:
                    if self.stopped.is_set():
                        raise futures.CancelledError
                    record, of_sample = _record(sample, self.info)
                    writer.write(record)
                    content += of_sample
                    progress.update()
        except BaseException:
            remove([path])
            raise
        return content

    def undo(self, shards: Sequence[_Shard]) -> None:
        """Removes what has no name yet, of this run and of interrupted ones."""
        paths = self._files(shards)
        waiting = [p for p in paths if p.endswith(records.FINISHED)]
        endings = (records.FINISHED, records.UNFINISHED)
        remove(p for p in paths if records.is_shard(p) and p.endswith(endings))
        # A shard of that name may be there, but of other files.
        gone = {os.path.basename(p).removesuffix(records.FINISHED) for p in waiting}
        self.manifest.keep(lambda name: exists(self.path(name)) and name not in gone)
        outputs.remove_if_empty(self.folder, keep=not self.is_ours)

    def _files(self, shards: Sequence[_Shard]) -> list[str]:
        """Returns the files of the splits of some shards, finished or not."""
        splits = {shard.split for shard in shards}
        return [p for split in splits for p in records.split_files(self.folder, split)]

    def publish(self, shards: Sequence[_Shard], info: DatasetInfo) -> None:
        """Gives all shards their names, in place of what their splits had."""
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
) -> DatasetInfo:
    """Writes `<split>-00000-of-0000N.tfrecord` for every split, and the info.

    An error leaves nothing behind. After an interruption the finished shards stay,
    without a name that a reader would take, for the next run.

    Args:
        splits: Official name of a split to its samples, in order.
        info: The classes; counts and hashes are filled in.
        output_dir: Folder of the shards; made if need be. Other splits that are
            there stay, also in the info.
        num_shards: Files per split, or fewer so that none is empty; the official 4
            for VOC, 10 for Cityscapes.
        recipe: What the label depends on besides its file. Shards of another
            recipe are made again.

    Returns:
        The info that was written: with sizes, class pixels and content hashes.

    Raises:
        UserError: if a split is empty, the folder is of another data set, of the
            images or of files that we did not write, or a sample is broken, of two
            sizes or has a label value that is no class; names the file.
    """
    for split, samples in splits.items():
        if not samples:
            raise UserError(f"split {split} is empty")
    _refuse_another(info, splits, output_dir)
    _refuse_sources(splits, output_dir)
    conversion = _Conversion(info, output_dir, recipe)
    shards = [s for split in splits for s in _shards(split, splits[split], num_shards)]
    try:
        contents = _finish_all(conversion, shards)
    except Exception:  # not an interruption, which leaves what is finished
        conversion.undo(shards)
        raise
    info = _described(info, output_dir, shards, contents)
    conversion.publish(shards, info)
    return info


def _refuse_sources(splits: Mapping[str, Sequence[Sample]], output_dir: str) -> None:
    """Refuses to write among the images and labels: names might collide."""
    folders = {
        os.path.realpath(folder): folder
        for samples in splits.values()
        for sample in samples
        for folder in {os.fspath(sample.image.parent), os.fspath(sample.label.parent)}
    }
    source = folders.get(os.path.realpath(output_dir))
    if source is not None:
        raise UserError(
            f"output_dir={output_dir} is the folder of the images or labels, {source}; "
            "give the records a folder of their own"
        )


def claim_folder(output_dir: str) -> None:
    """Lets `convert` replace the info and the manifest of somebody else in a folder."""
    outputs.claim(output_dir, _OWN_FILES, overwrite=True)


_SAME = ("name", "class_names", "colors", "ignore_label", "channels", "max_value")


def _refuse_another(info: DatasetInfo, splits: Iterable[str], output_dir: str) -> None:
    """Refuses a folder in which splits of other classes would stay beside these."""
    old = records.read_info(output_dir)
    stay = sorted(set(records.split_names(output_dir)) - set(splits))
    if old is None or not stay:
        return
    for field in _SAME:
        there, new = getattr(old, field), getattr(info, field)
        if there != new:
            raise UserError(
                f"{output_dir} has the split {stay[0]} with the {field} {there}, not "
                f"{new}; use another output_dir, or remove that split"
            )


def _finish_all(conversion: _Conversion, shards: Sequence[_Shard]) -> list[Content]:
    """Returns what every shard holds, once all of them are finished."""
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


def _described(info, output_dir, shards, contents) -> DatasetInfo:
    """Returns the info with what was counted, beside the splits that were there."""
    splits: dict[str, Content] = {}
    for shard, content in zip(shards, contents, strict=True):
        before = splits.get(shard.split, Content.empty(info.num_classes))
        splits[shard.split] = before + content
    found = {split: content.to_json() for split, content in splits.items()}
    old = records.read_info(output_dir)
    of_field = {
        "split_sizes": "images",
        "class_pixels": "class_pixels",
        "class_image_pixels": "class_image_pixels",
        "content_hashes": "content_hash",
    }
    there = set(records.split_names(output_dir))
    fields = {}
    for field, key in of_field.items():
        kept = getattr(old, field) if old and old.name == info.name else {}
        fields[field] = {s: v for s, v in kept.items() if s in there}
        fields[field] |= {split: content[key] for split, content in found.items()}
    return dataclasses.replace(info, **fields)
