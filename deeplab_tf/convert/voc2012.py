"""PASCAL VOC 2012, any folder in its layout, or VOC with SBD's labels, to TFRecords.

The splits are those of `ImageSets/Segmentation`. train_aug is VOC's train, followed by
what the Semantic Boundaries Dataset (SBD) labels in addition, in alphabetical order and
without VOC's val.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence

from etils import epath

from deeplab_tf.convert import conversion, pairs, sbd, sources
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo, dataset_info, split_name
from deeplab_tf.errors import UserError
from deeplab_tf.files import file_kinds
from deeplab_tf.images import image_files

# The SHA-256 is that of TensorFlow Datasets (url_checksums/voc.txt).
VOC_SOURCE = sources.Source(
    "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar",
    sha256="e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
)
SBD_SOURCE = sources.Source(
    "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/"
    "semantic_contours/benchmark.tgz",
    md5="82b4d87ceb2ed10f6038a1cba92111cb",
)

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
                    f"--voc_root={folder} has no folder {path}; it is the folder "
                    "that holds JPEGImages, such as VOCdevkit/VOC2012"
                )
        self.images = _by_stem(self.image_dir, _SUFFIXES)

    def names(self, list_path: epath.Path) -> list[str]:
        """Returns the lines of a list."""
        file_kinds.require_file(list_path)
        names = image_files.read_names(list_path)
        if not names:
            raise UserError(f"{list_path} lists no image: the split is empty")
        return names

    def samples(
        self,
        names: Sequence[str],
        source: str,
        labels: pairs.Entries,
        label_path: Callable[[str], epath.Path],
    ) -> list[conversion.Sample]:
        """Returns the samples of some names, in order.

        Args:
            names: Names without extension.
            source: What lists them, to be named in errors.
            labels: Labels by name.
            label_path: Returns where the label of a name should be.
        """
        samples = []
        for name in names:
            image = self.images.find(
                name, f"{source} lists {name} but {self.image_dir} has no such image"
            )
            label = labels.find(name, f"{image} has no label {label_path(name)}")
            samples.append(_sample(name, image, label))
        for name in sorted(set(labels.files) - set(self.images.files)):
            raise UserError(
                f"{labels.files[name]} has no image of its name in {self.image_dir}"
            )
        return samples


def _by_stem(folder: epath.Path, suffixes: Sequence[str]) -> pairs.Entries:
    paths = pairs.list_folder(folder)
    return pairs.find_entries(
        paths, lambda p: p.stem if p.suffix.lower() in suffixes else None
    )


def _labels(folder: epath.Path, suffix: str = ".png") -> pairs.Entries:
    """Returns the labels of a folder by name."""
    return _by_stem(folder, (suffix,))


def _sample(name: str, image: epath.Path, label: epath.Path) -> conversion.Sample:
    read = sbd.read_label if label.suffix == ".mat" else image_files.read_index_label
    return conversion.Sample(name, image, label, functools.partial(read, label))


def _folder_splits(voc_root: epath.Path) -> dict[str, list[conversion.Sample]]:
    """Returns the samples of every split of a folder in VOC layout."""
    root, labels_of = _Root(voc_root), {}
    splits = {}
    for list_name in _SPLITS:
        split = split_name(list_name)
        augmented = "Aug" if split == "train_aug" else ""
        label_dir = voc_root / f"SegmentationClass{augmented}"
        path = root.lists / f"{list_name}.txt"
        is_there = file_kinds.kind_of(path) is not file_kinds.Kind.MISSING
        if is_there and label_dir.is_dir():
            if label_dir not in labels_of:
                labels_of[label_dir] = _labels(label_dir)
            splits[split] = root.samples(
                root.names(path),
                os.fspath(path),
                labels_of[label_dir],
                lambda name, folder=label_dir: folder / f"{name}.png",
            )
    if not splits:
        raise UserError(f"{root.lists} has none of train.txt, val.txt, trainval.txt")
    for folder, entries in {root.image_dir: root.images, **labels_of}.items():
        entries.report_skipped(folder)
    return splits


def _archive_splits(
    voc_root: epath.Path, sbd_dir: epath.Path
) -> dict[str, list[conversion.Sample]]:
    """Returns the samples of every split of the two extracted archives."""
    splits = _folder_splits(voc_root)
    for split in ("train", "val"):
        if split not in splits:
            raise UserError(f"the VOC archive has no list of the split {split}")
    root = _Root(voc_root)
    listed = {sample.name for split in ("train", "val") for sample in splits[split]}
    more = sorted(sbd.names(sbd_dir) - listed)
    # VOC's own labels win; they have a void border.
    labels = _labels(sbd_dir / "cls", ".mat")
    files = labels.files | _labels(voc_root / "SegmentationClass").files
    splits["train_aug"] = splits["train"] + root.samples(
        more,
        f"{sbd_dir}/train.txt or val.txt",
        labels._replace(files={name: files[name] for name in more if name in files}),
        lambda name: sbd_dir / "cls" / f"{name}.mat",
    )
    return splits


def convert(
    voc_root: str, output_dir: str, num_shards: int = 4, info: DatasetInfo | None = None
) -> dict[str, int]:
    """Writes the shards of every split of a folder in VOC layout.

    Args:
        voc_root: Folder that holds `JPEGImages`.
        output_dir: Folder of the TFRecords; nothing is left in it on an error.
        num_shards: Files per split; the official converter writes 4.
        info: The classes; None reads `dataset_info.json` in `voc_root`, else
            they are VOC's.

    Returns:
        Number of images by split.

    Raises:
        UserError: for anything missing, unpaired, broken or out of range.
    """
    info = info or records.read_info(voc_root) or dataset_info("pascal_voc_seg")
    splits = _folder_splits(epath.Path(voc_root))
    written = conversion.convert(splits, info, output_dir, num_shards)
    return {split: written.split_sizes[split] for split in splits}


def convert_archives(
    voc: str | sources.Source,
    sbd_archive: str | sources.Source,
    output_dir: str,
    work_dir: str | None = None,
    num_shards: int = 4,
    official_sizes: bool = True,
) -> dict[str, int]:
    """Writes the shards of the four splits of the official archives.

    Args:
        voc: `VOCtrainval_11-May-2012.tar`, or where to fetch it.
        sbd_archive: SBD's `benchmark.tgz`, or where to fetch it.
        output_dir: Folder of the TFRecords; nothing is left in it on an error.
        work_dir: Folder of downloads and of what is extracted, on a disk of this
            machine; None is `output_dir` with `_sources` behind it.
        num_shards: Files per split.
        official_sizes: Whether the splits must be 1464, 1449, 2913 and 10582.

    Returns:
        Number of images by split.

    Raises:
        UserError: for archives that are not to be had, broken, unsafe or others
            than the official ones.
    """
    work = epath.Path(work_dir or f"{output_dir.rstrip('/')}_sources")
    if "://" in os.fspath(work):
        raise UserError(f"--work_dir must be a folder of this machine; received {work}")
    found = [_archive(source, work) for source in (voc, sbd_archive)]
    voc_root = sources.extract(found[0], work / "voc2012", _MEMBERS) / _DEVKIT
    sbd_dir = sources.extract(found[1], work / "sbd", sbd.MEMBERS) / sbd.FOLDER
    splits = _archive_splits(voc_root, sbd_dir)
    info = dataset_info("pascal_voc_seg")
    if official_sizes:
        _check_sizes(splits, info.split_sizes)
    written = conversion.convert(splits, info, output_dir, num_shards)
    return {split: written.split_sizes[split] for split in splits}


def _archive(source: str | sources.Source, work: epath.Path) -> epath.Path:
    if isinstance(source, sources.Source):
        return sources.fetch(source, work / "downloads")
    file_kinds.require_file(source)
    return epath.Path(source)


def _check_sizes(splits: Mapping[str, Sequence], expected: Mapping[str, int]) -> None:
    for split, size in expected.items():
        received = len(splits.get(split, ()))
        if received != size:
            raise UserError(
                f"split {split} has {received} images, officially {size}; "
                "--official_sizes=false accepts that"
            )
