"""Converts images and labels to TFRecord shards, in parallel and atomically.

A converter lists the samples of each split; this module does the rest. Shards are
published when all splits are complete, so that no reader sees half a dataset. A resumed
or repeated run keeps the shards that it finished before from the same files, and copies
the published records whose files did not change.
"""

import dataclasses
import functools
import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from etils import epath

from deeplab_tf.convert import findings
from deeplab_tf.convert.manifest import Member, Shard, summarize
from deeplab_tf.convert.options import ImageOptions, RunOptions
from deeplab_tf.convert.shard_tasks import PlannedShard, Record
from deeplab_tf.convert.shards import (
    OWN_FILES,
    REPLACE,
    SKIPPED_FILE,
    Conversion,
    split_into_shards,
)
from deeplab_tf.convert.tiling import TileReader, cut_samples
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UnclearError, UserError
from deeplab_tf.files import outputs
from deeplab_tf.images import decoding, encoding, lookup
from deeplab_tf.images.decoding import EncodedImage
from deeplab_tf.images.image_files import TooLargeError
from deeplab_tf.images.tiles import Tile

# Increment it when converters make different records from the same files; each shard is
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
        tile: The part of image and label to convert; None for all.
        is_large: Whether to convert one sample at a time, to bound the memory.
    """

    name: str
    image: epath.Path
    labels: tuple[epath.Path, ...]
    read_label: Callable[[], np.ndarray]
    tile: Tile | None = None
    is_large: bool = False

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


def _hash_record(name: str, pixels, label: np.ndarray) -> str:
    """Returns the SHA-256 of a record's name, shapes and pixels, hexadecimal."""
    content = hashlib.sha256(f"{name}\0{pixels.shape}\0{label.shape}\0".encode())
    content.update(np.ascontiguousarray(pixels))
    content.update(np.ascontiguousarray(label))
    return content.hexdigest()


def _count_pixels(label: np.ndarray, info: DatasetInfo) -> dict[int, int]:
    """Returns the number of pixels of each class that occurs."""
    counts = lookup.count_values(label)
    counts[info.ignore_label] = 0
    return {int(i): int(counts[i]) for i in np.flatnonzero(counts)}


# Labels of the benchmarks fit the stored pixels.
AS_STORED = ImageOptions()


def _read_sample(
    sample: Sample, info: DatasetInfo, options: ImageOptions
) -> tuple[EncodedImage, np.ndarray, np.ndarray]:
    """Returns the image of a sample, its pixels and its label."""
    try:
        image = encoding.read_encoded(sample.image, info, bool(options.apply_exif))
    except TooLargeError as error:
        raise UnclearError(
            f"{error}; cut it with --tile=2048 --tile_overlap=128"
        ) from error
    pixels = encoding.decode(sample.image, image, info.max_value)
    label = sample.read_label()
    _check_sizes(sample, image, label, options)
    return image, pixels, label


def _make_record(
    sample: Sample, info: DatasetInfo, options: ImageOptions, tiles: TileReader
) -> Record:
    """Returns the record of a sample, after checking its files."""
    with findings.collect() as found:
        record = _read_record(sample, info, options, tiles)
    return record._replace(findings=found)


def _read_record(
    sample: Sample, info: DatasetInfo, options: ImageOptions, tiles: TileReader
) -> Record:
    """Returns the record of a sample, without findings."""
    if sample.tile is None:
        image, pixels, label = _read_sample(sample, info, options)
    else:
        image, pixels, label = tiles.read(sample)
        findings.add("(is|are) tiles of larger ones")
    wrong = np.unique(label[(label >= info.num_classes) & (label != info.ignore_label)])
    if wrong.size:
        raise UserError(
            f"{sample.label_name} contains the value {wrong[0]}; valid labels are "
            f"{info.known_labels}"
        )
    brightest = pixels.max()
    if brightest > info.max_value:
        raise UserError(
            f"{sample.image} has the value {brightest}, but max_value is "
            f"{info.max_value}"
        )
    if image.source not in decoding.IMAGE_FORMATS:
        findings.add(f"transcoded from {image.source} to PNG")
    if image.turned_from != 1:
        findings.add("turned upright by EXIF")
    if image.orientation != 1:
        findings.add("(has|have) an EXIF rotation that is not applied")
    # OpenCV is ten times faster than Pillow and TensorFlow.
    png = cv2.imencode(".png", label)[1].tobytes()
    return Record(
        records.serialize(image, png, sample.name),
        _count_pixels(label, info),
        _hash_record(sample.name, pixels, label),
    )


def _check_sizes(
    sample: Sample, image: EncodedImage, label: np.ndarray, options: ImageOptions
) -> None:
    """Raises an error unless image and label agree in size and orientation."""
    size, turned = (image.height, image.width), (image.width, image.height)
    if label.shape != size:
        hint = ""
        if label.shape == turned and image.orientation > 4:
            hint = " before its EXIF rotation; rotate the pixels themselves"
            if options.apply_exif is None:
                hint = " before its EXIF rotation; add --apply_exif to turn it upright"
        elif label.shape == turned and image.turned_from > 4:
            hint = " after its EXIF rotation; replace --apply_exif with --noapply_exif"
        error = UnclearError if hint else UserError
        raise error(
            f"{sample.label_name} is {label.shape[1]}x{label.shape[0]}, but its image "
            f"{sample.image} is {image.width}x{image.height}{hint}"
        )
    is_sure = image.orientation == 1 or (image.orientation > 4 and size != turned)
    if options.apply_exif is None and not is_sure:
        raise UnclearError(
            f"{sample.image} has the EXIF orientation {image.orientation}, and its "
            "label would fit either way; add --apply_exif if the labels are upright, "
            "as viewers show the image, or --noapply_exif if they fit the stored pixels"
        )


def convert(
    splits: Mapping[str, Sequence[Sample]],
    info: DatasetInfo,
    output_dir: str,
    num_shards: int = 4,
    recipe: str = "",
    options: ImageOptions = AS_STORED,
    run: RunOptions = REPLACE,
    labels: findings.Labels | None = None,
) -> DatasetInfo:
    """Writes `<split>-00000-of-0000N.tfrecord` for every split, and the info.

    An error leaves nothing in the folder. An interruption leaves the finished shards
    there, invisible to readers, for the next run.

    Args:
        splits: Samples of each split, by its official name.
        info: The classes, without counts and hashes.
        output_dir: Folder of the shards, created if missing. Other splits in it are
            kept, also in the info.
        num_shards: Maximum number of files per split; none is empty. The official code
            has 4 for VOC and 10 for Cityscapes.
        recipe: Everything the labels depend on besides their files; if it changes,
            every shard is written again.
        options: How images become records.
        run: How to treat earlier records and broken images.
        labels: Takes the findings of the labels that are read.

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
    if options.tile:
        splits = {s: cut_samples(samples, options) for s, samples in splits.items()}
    fields = (info.class_names, info.ignore_label, info.channels, info.max_value)
    tally = findings.Tally(labels)
    conversion = Conversion(
        output_dir,
        run,
        repr((_FORMAT, recipe, fields, dataclasses.astuple(options))),
        functools.partial(
            _make_record,
            info=info,
            options=options,
            tiles=TileReader(info, options, _check_sizes),
        ),
        tally.add,
    )
    shards: list[PlannedShard] = []
    try:
        for split, samples in splits.items():
            items = conversion.plan(split, samples)
            if len(items) > len(samples):
                kept = {*splits} - {split}
                _require_same_classes(info, kept, output_dir)
            shards += split_into_shards(split, items, num_shards)
        items = [item for shard in shards for item in shard.items]
        is_large = any(item.sample and item.sample.is_large for item in items)
        done = conversion.write_shards(shards, 1 if is_large else os.cpu_count() or 1)
        done = conversion.renumber_shards(done)
    except Exception:  # not KeyboardInterrupt, which keeps the finished shards
        if not conversion.is_resumable():
            conversion.remove_unpublished(splits)
        raise
    info = _add_contents(info, output_dir, done)
    conversion.publish([shard for shard, _ in done], info)
    tally.report()
    _report_skipped(conversion, splits)
    return info


def _report_skipped(conversion: Conversion, splits: Mapping[str, Sequence]) -> None:
    count = len(conversion.skipped)
    if count:
        total = sum(map(len, splits.values()))
        reason = next(iter(conversion.skipped.values())).reason
        print(
            f"skipped {count} of {total} images, listed in "
            f"{conversion.path(SKIPPED_FILE)}, such as: {reason}"
        )


def _require_separate_folder(
    splits: Mapping[str, Sequence[Sample]], output_dir: str
) -> None:
    """Refuses to write into a folder of images or labels: names might collide."""
    parents = {
        os.fspath(path.parent)
        for samples in splits.values()
        for sample in samples
        for path in sample.sources
    }
    folders = {os.path.realpath(folder): folder for folder in parents}
    source = folders.get(os.path.realpath(output_dir))
    if source is not None:
        raise UserError(
            f"output_dir={output_dir} is the folder of the images or labels, {source}; "
            "use a separate folder for the records"
        )


def claim_folder(output_dir: str) -> None:
    """Allows `convert` to replace a dataset info and a manifest of other origin."""
    outputs.claim(output_dir, OWN_FILES, overwrite=True)


_SHARED_FIELDS = (
    "name",
    "class_names",
    "colors",
    "ignore_label",
    "channels",
    "max_value",
)


def _require_same_classes(
    info: DatasetInfo, replaced: Collection[str], output_dir: str
) -> None:
    """Refuses a folder that keeps other splits with different classes or images."""
    old_info = records.read_info(output_dir)
    kept = sorted(set(records.list_splits(output_dir)) - set(replaced))
    if old_info is None or not kept:
        return
    for field in _SHARED_FIELDS:
        old, new = getattr(old_info, field), getattr(info, field)
        if old != new:
            raise UserError(
                f"{output_dir} has the split {kept[0]} with the {field} {old}, not "
                f"{new}; use another output_dir, or remove that split"
            )


def _add_contents(
    info: DatasetInfo, output_dir: str, done: Sequence[tuple[PlannedShard, Shard]]
) -> DatasetInfo:
    """Adds the contents of the new shards and of the splits that stay to the info."""
    members: dict[str, list[Member]] = defaultdict(list)
    for shard, finished in done:
        members[shard.split] += finished.members
    new = {split: summarize(m, info.num_classes) for split, m in members.items()}
    old_info = records.read_info(output_dir)
    is_same = old_info is not None and old_info.name == info.name
    existing = set(records.list_splits(output_dir))
    fields = {}
    for field in summarize((), 0):
        old = getattr(old_info, field) if is_same else {}
        fields[field] = {s: v for s, v in old.items() if s in existing}
        fields[field] |= {split: content[field] for split, content in new.items()}
    return dataclasses.replace(info, **fields)
