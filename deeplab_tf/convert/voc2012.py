"""Converts PASCAL VOC 2012, or any folder in its layout, optionally with SBD's labels.

The splits are those of `ImageSets/Segmentation`. The split train_aug is VOC's train
followed by the other images of the Semantic Boundaries Dataset (SBD), sorted and
without those of VOC's val.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from deeplab_tf.checkpoints import download
from deeplab_tf.convert import conversion, pairs, sbd
from deeplab_tf.convert.options import RunOptions
from deeplab_tf.convert.shards import REPLACE
from deeplab_tf.convert.voc_sources import Source
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo, dataset_info, normalize_split
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds, text_files
from deeplab_tf.files.archives import extract
from deeplab_tf.files.ledger import digest_file
from deeplab_tf.images import mask_files

_SPLITS = ("train", "val", "trainval", "trainaug", "train_aug")
_SUFFIXES = (".jpg", ".jpeg", ".png")
_DEVKIT = "VOCdevkit/VOC2012"
_MEMBERS = tuple(
    f"{_DEVKIT}/{name}"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation")
)


class _Root:
    """The images, labels and lists of a folder in VOC layout."""

    def __init__(self, folder: epath.Path):
        self.image_dir = folder / "JPEGImages"
        self.lists = folder / "ImageSets" / "Segmentation"
        for path in (self.image_dir, folder / "SegmentationClass", self.lists):
            if not path.is_dir():
                raise UserError(
                    f"--voc_root={folder} has no folder {path}; it must be the "
                    "folder that contains JPEGImages, such as VOCdevkit/VOC2012"
                )
        self.images = _find_by_stem(self.image_dir, _SUFFIXES)

    def names(self, list_path: epath.Path) -> list[str]:
        """Returns the names in a list."""
        file_kinds.require_file(list_path)
        names = text_files.read_words(os.fspath(list_path))
        if not names:
            raise UserError(f"{list_path} lists no images: the split is empty")
        return names

    def samples(
        self,
        names: Sequence[str],
        source: str,
        labels: pairs.Entries,
        label_path: Callable[[str], epath.Path],
    ) -> list[conversion.Sample]:
        """Returns the samples of some names, in order.

        `source`, the list of the names, and `label_path`, the expected path of a label,
        are for errors.
        """
        samples = []
        for name in names:
            image = self.images.find(
                name, f"{source} lists {name}, but {self.image_dir} has no such image"
            )
            label = labels.find(name, f"{image} has no label {label_path(name)}")
            samples.append(_make_sample(name, image, label))
        for name in sorted(set(labels.files) - set(self.images.files)):
            raise UserError(
                f"{labels.files[name]} has no image of the same name in "
                f"{self.image_dir}"
            )
        return samples


def _find_by_stem(folder: epath.Path, suffixes: Sequence[str]) -> pairs.Entries:
    paths = pairs.list_folder(folder)
    return pairs.find_entries(
        paths, lambda p: p.stem if p.suffix.lower() in suffixes else None
    )


def _make_sample(name: str, image: epath.Path, label: epath.Path) -> conversion.Sample:
    read = sbd.read_label if label.suffix == ".mat" else mask_files.read_index_label
    return conversion.Sample(name, image, (label,), functools.partial(read, label))


def _find_splits(voc_root: epath.Path) -> dict[str, list[conversion.Sample]]:
    """Returns the samples of every split of a folder in VOC layout."""
    root, labels = _Root(voc_root), {}
    splits = {}
    for list_name in _SPLITS:
        split = normalize_split(list_name)
        augmented = "Aug" if split == "train_aug" else ""
        label_dir = voc_root / f"SegmentationClass{augmented}"
        path = root.lists / f"{list_name}.txt"
        exists = file_kinds.find_kind(path) is not file_kinds.Kind.MISSING
        if exists and label_dir.is_dir():
            if label_dir not in labels:
                labels[label_dir] = _find_by_stem(label_dir, (".png",))
            splits[split] = root.samples(
                root.names(path),
                os.fspath(path),
                labels[label_dir],
                lambda name, folder=label_dir: folder / f"{name}.png",
            )
    if not splits:
        raise UserError(f"{root.lists} has none of train.txt, val.txt, trainval.txt")
    for folder, entries in {root.image_dir: root.images, **labels}.items():
        entries.report_skipped(folder)
    return splits


def _find_archive_splits(
    voc_root: epath.Path, sbd_dir: epath.Path
) -> dict[str, list[conversion.Sample]]:
    """Returns the samples of every split of the two extracted archives."""
    splits = _find_splits(voc_root)
    for split in ("train", "val"):
        if split not in splits:
            raise UserError(f"the VOC archive has no list of the split {split}")
    root = _Root(voc_root)
    listed = {sample.name for split in ("train", "val") for sample in splits[split]}
    added = sorted(sbd.list_names(sbd_dir) - listed)
    # VOC's own labels take precedence, because they have a void border.
    labels = _find_by_stem(sbd_dir / "cls", (".mat",))
    voc_labels = _find_by_stem(voc_root / "SegmentationClass", (".png",))
    files = labels.files | voc_labels.files
    splits["train_aug"] = splits["train"] + root.samples(
        added,
        f"{sbd_dir}/train.txt or val.txt",
        labels._replace(files={name: files[name] for name in added if name in files}),
        lambda name: sbd_dir / "cls" / f"{name}.mat",
    )
    return splits


def convert(
    voc_root: str,
    output_dir: str,
    num_shards: int = 4,
    info: DatasetInfo | None = None,
    run: RunOptions = REPLACE,
) -> dict[str, int]:
    """Converts every split of a folder in VOC layout.

    Args:
        voc_root: Folder that contains `JPEGImages`.
        output_dir: Folder of the TFRecords; an error leaves nothing in it.
        num_shards: Files per split; the official converter writes 4.
        info: The classes; default: those of `dataset_info.json` in `voc_root`, else
            VOC's.
        run: How to treat earlier records; which processes write shards.

    Returns:
        Number of images by split.

    Raises:
        UserError: if a file is missing, unpaired or broken.
    """
    info = info or records.read_info(voc_root) or dataset_info("pascal_voc_seg")
    splits = _find_splits(epath.Path(voc_root))
    written = conversion.convert(splits, info, output_dir, num_shards, run=run)
    return {split: written.split_sizes[split] for split in splits}


def convert_archives(
    voc: str | Source,
    sbd_archive: str | Source,
    output_dir: str,
    work_dir: str | None = None,
    num_shards: int = 4,
    official_sizes: bool = True,
    run: RunOptions = REPLACE,
) -> dict[str, int]:
    """Converts the four splits of the official archives.

    Args:
        voc: `VOCtrainval_11-May-2012.tar`, or its source.
        sbd_archive: SBD's `benchmark.tgz`, or its source.
        output_dir: Folder of the TFRecords; an error leaves nothing in it.
        work_dir: Local folder of the downloads and the extracted archives; default:
            `<output_dir>_sources`.
        num_shards: Files per split.
        official_sizes: Whether the splits must be 1464, 1449, 2913 and 10582.
        run: How to treat earlier records; which processes write shards.

    Returns:
        Number of images by split.

    Raises:
        UserError: if an archive cannot be fetched, is broken or unsafe, or differs
            from the official one.
    """
    work = epath.Path(work_dir or f"{output_dir.rstrip('/')}_sources")
    if "://" in os.fspath(work):
        raise UserError(f"--work_dir must be a local folder; received {work}")
    archives = [_fetch(source, work) for source in (voc, sbd_archive)]
    voc_root = extract(archives[0], work / "voc2012", _MEMBERS) / _DEVKIT
    sbd_dir = extract(archives[1], work / "sbd", sbd.MEMBERS) / sbd.FOLDER
    splits = _find_archive_splits(voc_root, sbd_dir)
    info = dataset_info("pascal_voc_seg")
    if official_sizes:
        _check_sizes(splits, info.split_sizes)
    written = conversion.convert(splits, info, output_dir, num_shards, run=run)
    return {split: written.split_sizes[split] for split in splits}


def _fetch(source: str | Source, work: epath.Path) -> epath.Path:
    """Returns the path of an archive, after downloading and verifying a `Source`."""
    if isinstance(source, str):
        file_kinds.require_file(source)
        return epath.Path(source)
    md5 = source.md5

    def find_damage(path: str) -> str | None:
        digest = digest_file(path, hashlib.md5(usedforsecurity=False))
        return f"its MD5 is {digest}, not {md5}" if md5 and digest != md5 else None

    folder = os.fspath(work / "downloads")
    return epath.Path(download.fetch(source.url, folder, source.sha256, find_damage))


def _check_sizes(splits: Mapping[str, Sequence], expected: Mapping[str, int]) -> None:
    for split, size in expected.items():
        received = len(splits.get(split, ()))
        if received != size:
            raise UserError(
                f"the split {split} has {received} images, not the official {size}; "
                "add --official_sizes=false to accept this"
            )
