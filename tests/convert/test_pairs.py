"""Special files in dataset folders: skipped, or refused if a pair needs them."""

import pathlib

import numpy as np
import pytest
from PIL import Image
from small_datasets import (
    CocoBuilder,
    save_image,
    save_label,
    write_ade20k,
    write_cityscapes,
)
from special_files import assert_skipped

from deeplab_tf.convert import (
    ade20k as ade20k_program,
    cityscapes as cityscapes_program,
    coco_voc,
    folder,
    layout,
    pairs,
    voc2012,
)
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError

CLASSES = ClassList(DatasetInfo("toys", ("floor", "ball")))
NOT_UTF8 = "caf\udce9.png"


@pytest.fixture
def image_folders(tmp_path):
    """Images a and b with their masks."""
    for name in ("a", "b"):
        save_image(tmp_path / f"photos/{name}.jpg")
        save_label(tmp_path / f"masks/{name}.png", np.ones((20, 30)))
    return tmp_path


def convert_folder(root, **settings):
    files = layout.Layout(str(root / "photos"), str(root / "masks"))
    return folder.convert(files, CLASSES, str(root / "out"), **settings)


def test_folder_converter_skips_special_files(image_folders, capfd, special_file):
    kind, make = special_file
    make(image_folders / "photos/x.png")
    assert convert_folder(image_folders).split_sizes == {"train": 2}
    assert_skipped(
        capfd, f"skipped 1 of 3 entries of {image_folders}/photos: x.png ({kind})"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("masks/c.png", "photos/c.jpg has no label: {}/masks/c.png is a {}$"),
        ("photos/c.jpg", "masks/c.png has no image: {}/photos/c.jpg is a {}$"),
    ],
)
def test_folder_converter_refuses_special_files_in_pairs(
    image_folders, capfd, special_file, name, message
):
    kind, make = special_file
    save_image(image_folders / "photos/c.jpg")
    save_label(image_folders / "masks/c.png", np.ones((20, 30)))
    (image_folders / name).unlink()
    make(image_folders / name)
    with pytest.raises(UserError, match=message.format(image_folders, kind)):
        convert_folder(image_folders)
    assert capfd.readouterr().err == ""
    assert not (image_folders / "out").exists()


def test_unusual_names_are_converted_or_skipped(image_folders, capfd):
    for name in ("-rf", "a\nb\x1b[31m", "é" * 120):
        save_image(image_folders / f"photos/{name}.png")
        save_label(image_folders / f"masks/{name}.png", np.ones((20, 30)))
    Image.new("RGB", (3, 3)).save(image_folders / "photos" / NOT_UTF8)
    (image_folders / "photos/.hidden.png").mkdir()
    assert convert_folder(image_folders).split_sizes == {"train": 5}
    assert_skipped(capfd, r"photos: caf\udce9.png (name not UTF-8)")


def test_many_skipped_entries_are_counted(image_folders, capfd):
    for i in range(9):
        (image_folders / f"photos/{i}.png").mkdir()
    convert_folder(image_folders)
    listing = ", ".join(f"{i}.png (directory)" for i in range(3))
    assert_skipped(
        capfd, f"skipped 9 of 11 entries of {image_folders}/photos: {listing}, and 6"
    )


def test_empty_mask_is_refused(image_folders):
    (image_folders / "masks/a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"masks/a.png is broken: it is empty$"):
        convert_folder(image_folders)


@pytest.fixture
def voc(image_folders):
    root = image_folders / "voc"
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (image_folders / "photos").rename(root / "JPEGImages")
    (image_folders / "masks").rename(root / "SegmentationClass")
    (lists / "train.txt").write_text("a\nb\n")
    return root


def convert_voc(root):
    return voc2012.convert(str(root), str(root.parent / "out"))


def test_voc_converter_skips_unlisted_special_files(voc, capfd, special_file):
    kind, make = special_file
    make(voc / "JPEGImages/x.jpg")
    assert convert_voc(voc) == {"train": 2}
    assert_skipped(capfd, f"skipped 1 of 3 entries of {voc}/JPEGImages: x.jpg ({kind})")


@pytest.mark.parametrize(
    "name",
    ["JPEGImages/a.jpg", "SegmentationClass/a.png", "ImageSets/Segmentation/train.txt"],
)
def test_voc_converter_refuses_listed_special_files(voc, special_file, name):
    kind, make = special_file
    (voc / name).unlink()
    make(voc / name)
    with pytest.raises(UserError, match=f"^{voc}/{name} is a {kind}; a file is needed"):
        convert_voc(voc)


def test_cityscapes_converter_skips_or_refuses_special_files(
    tmp_path, capfd, special_file
):
    kind, make = special_file
    root = write_cityscapes(tmp_path / "cityscapes", coarse=False)
    city = root / "leftImg8bit/train/ulm"
    make(city / "x_leftImg8bit.png")
    make(city.parent / "not_a_city" if kind != "directory" else city / "empty")
    out = str(tmp_path / "out")
    cityscapes_program.convert(str(root), out, splits=["train_fine"])
    assert_skipped(capfd, f"leftImg8bit/train: x_leftImg8bit.png ({kind})")
    (label,) = (root / "gtFine/train/ulm").glob("*labelIds.png")
    label.unlink()
    make(label)
    with pytest.raises(UserError, match=f"has no label: {label} is a {kind}$"):
        cityscapes_program.convert(str(root), out, splits=["train_fine"])


def test_ade20k_converter_skips_or_refuses_special_files(tmp_path, capfd, special_file):
    kind, make = special_file
    root = write_ade20k(tmp_path / "ade")
    make(root / "images/training/x.jpg")
    ade20k_program.convert(str(root), str(tmp_path / "out"))
    assert_skipped(capfd, f"images/training: x.jpg ({kind})")
    label = root / "annotations/training/ADE_train_00000001.png"
    label.unlink()
    make(label)
    with pytest.raises(UserError, match=f"has no label: {label} is a {kind}$"):
        ade20k_program.convert(str(root), str(tmp_path / "out"))


@pytest.mark.parametrize("is_image", [True, False])
def test_coco_converter_refuses_listed_special_files(tmp_path, special_file, is_image):
    pytest.importorskip("pycocotools")
    kind, make = special_file
    files = CocoBuilder(tmp_path)
    files.add_image("a.jpg")
    files.save()
    path = files.image_dir / "a.jpg" if is_image else files.path
    path.unlink()
    make(path)
    with pytest.raises(UserError, match=f"^{path} is a {kind}; a file is needed$"):
        coco_voc.convert(
            str(files.path), str(files.image_dir), str(tmp_path / "out"), "train"
        )


def test_directory_does_not_count_as_duplicate(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "a.png").mkdir()
    paths = pairs.list_folder(pathlib.Path(tmp_path))
    entries = pairs.find_entries(paths, lambda path: path.stem)
    assert list(entries.files) == list(entries.others) == ["a"]
    assert not entries.duplicates
