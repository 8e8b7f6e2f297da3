"""PASCAL VOC 2012, or any folder in its layout, to TFRecords.

    python -m datasets.voc2012 --voc_root=VOCdevkit/VOC2012 --output_dir=tfrecord

The splits are those of `ImageSets/Segmentation`: train, val and trainval with
the labels of `SegmentationClass`, and train_aug (`trainaug.txt`) with those of
`SegmentationClassAug` where both are there. Everything is checked before the
first shard is written. A `dataset_info.json` in the folder names other classes
than VOC's.
"""

import dataclasses
import functools
import io

import numpy as np
from absl import flags
from etils import epath
from PIL import Image

import deeplab_tf.programs
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo, dataset_info, split_name
from deeplab_tf.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "voc_root", None, "Folder that holds JPEGImages.", flag_values=FLAGS, required=True
)
flags.DEFINE_string(
    "output_dir", None, "Folder of the TFRecords.", flag_values=FLAGS, required=True
)
flags.DEFINE_integer(
    "num_shards", 4, "Files per split.", lower_bound=1, flag_values=FLAGS
)

_SPLITS = ("train", "val", "trainval", "trainaug", "train_aug")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def _opened(path: epath.Path, content: bytes) -> Image.Image:
    """Returns the decoded picture; a truncated one is an error with its name."""
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"{path} is broken: {error}") from error
    return image


def read_label(path: epath.Path, info: DatasetInfo) -> np.ndarray:
    """Returns the class ids of a label PNG, uint8 `[height, width]`.

    Args:
        path: PNG with a palette (read as indices) or with one 8-bit channel.
        info: The classes that may occur.

    Raises:
        UserError: if the file is broken, in colour, or holds another value.
    """
    image = _opened(path, path.read_bytes())
    if image.mode not in ("P", "L"):
        raise UserError(
            f"{path} has mode {image.mode}; a label is a PNG with a palette or "
            "one 8-bit channel of class ids"
        )
    label = np.array(image)
    values = np.unique(label)
    wrong = values[(values >= info.num_classes) & (values != info.ignore_label)]
    if wrong.size:
        raise UserError(
            f"{path} has the value {wrong[0]}; labels are 0..{info.num_classes - 1} "
            f"and {info.ignore_label} (ignored)"
        )
    return label


class _Split:
    """The image and label files of one list, and the records made of them."""

    def __init__(self, voc_root: epath.Path, list_path: epath.Path, label_dir: str):
        self.name = split_name(list_path.stem)
        self.stems = list_path.read_text().split()
        if not self.stems:
            raise UserError(f"{list_path} lists no image: the split is empty")
        self.image_dir = voc_root / "JPEGImages"
        self.label_dir = voc_root / label_dir
        self.images = {
            path.stem: path
            for path in sorted(self.image_dir.iterdir(), reverse=True)
            if path.suffix.lower() in _SUFFIXES
        }
        self._check_pairs(list_path)

    def _check_pairs(self, list_path: epath.Path) -> None:
        labels = {p.stem for p in self.label_dir.iterdir() if p.suffix == ".png"}
        for stem in self.stems:
            if stem not in self.images:
                raise UserError(
                    f"{list_path} lists {stem} but {self.image_dir} has no such image"
                )
            if stem not in labels:
                raise UserError(f"{self.images[stem]} has no label {self._label(stem)}")
        for stem in sorted(labels - set(self.images)):
            raise UserError(
                f"{self._label(stem)} has no image of its name in {self.image_dir}"
            )

    def _label(self, stem: str) -> epath.Path:
        return self.label_dir / f"{stem}.png"

    def record(self, stem: str, info: DatasetInfo) -> bytes:
        """Returns the record of an entry, after checking both of its files."""
        image_path, label_path = self.images[stem], self._label(stem)
        content = image_path.read_bytes()
        image = _opened(image_path, content)
        if image.format not in records.PICTURE_FORMATS:
            raise UserError(f"{image_path} is {image.format}; images are JPEG or PNG")
        label = read_label(label_path, info)
        if image.size != label.shape[::-1]:
            raise UserError(
                f"{label_path} is {label.shape[1]}x{label.shape[0]} but its image "
                f"{image_path} is {image.size[0]}x{image.size[1]}"
            )
        png = io.BytesIO()
        Image.fromarray(label).save(png, "PNG")
        image_format = records.PICTURE_FORMATS[image.format]
        return records.serialize(
            content, image_format, png.getvalue(), stem, image.height, image.width
        )


def _find_splits(voc_root: epath.Path) -> list[_Split]:
    lists = voc_root / "ImageSets" / "Segmentation"
    for folder in (voc_root / "JPEGImages", voc_root / "SegmentationClass", lists):
        if not folder.is_dir():
            raise UserError(
                f"--voc_root={voc_root} has no folder {folder}; it is the folder "
                "that holds JPEGImages, such as VOCdevkit/VOC2012"
            )
    splits = {}
    for name in _SPLITS:
        augmented = split_name(name) == "train_aug"
        labels = "SegmentationClassAug" if augmented else "SegmentationClass"
        path = lists / f"{name}.txt"
        if path.exists() and (voc_root / labels).is_dir():
            splits[split_name(name)] = _Split(voc_root, path, labels)
    if not splits:
        raise UserError(f"{lists} has none of train.txt, val.txt, trainval.txt")
    return list(splits.values())


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
    splits = _find_splits(epath.Path(voc_root))
    sizes = {split.name: len(split.stems) for split in splits}
    records.write_shards(
        {
            split.name: [functools.partial(split.record, s, info) for s in split.stems]
            for split in splits
        },
        output_dir,
        num_shards,
    )
    info = dataclasses.replace(info, split_sizes=sizes)
    records.write_info(info, output_dir)
    return sizes


def main(values: flags.FlagValues) -> None:
    """Converts, then says what there is."""
    sizes = convert(values.voc_root, values.output_dir, values.num_shards)
    counts = ", ".join(f"{split} {size}" for split, size in sizes.items())
    print(f"{values.output_dir}: {counts} images")


if __name__ == "__main__":
    deeplab_tf.programs.run_program(main, FLAGS)
