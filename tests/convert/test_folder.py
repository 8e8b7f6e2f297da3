"""Converts folders of images and labels, and reports broken ones."""

import os
import re

import numpy as np
import pytest
from PIL import Image
from record_files import read_labels, read_samples

from deeplab_tf.convert import folder
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.convert.options import Layout, RunOptions, Splitting
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo, dataset_info
from deeplab_tf.programs import run_program

NAMES = ("road", "walk", "tree")
WITHOUT_COLORS = ClassList(DatasetInfo("mine", NAMES))
HEIGHT, WIDTH = 5, 7


def save_image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def save_label(path, value):
    """Writes a label of one class with one ignored pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    label = np.full((HEIGHT, WIDTH), value, np.uint8)
    label[0, 0] = 255
    Image.fromarray(label).save(path)


@pytest.fixture
def source(tmp_path):
    """A folder with JPEG and PNG images a, b, c, d and their labels."""
    names = ("b.jpg", "a.png", "d.JPEG", "c.PNG")
    for i, name in enumerate(names):
        save_image(tmp_path / "source/photos" / name, i)
        save_label(tmp_path / f"source/masks/{name[0]}.png", i % 3)
    (tmp_path / "source/photos/notes.txt").write_text("no image")
    (tmp_path / "source/photos/.hidden.png").write_text("no image")
    (tmp_path / "source/classes.txt").write_text("\n".join(NAMES))
    return tmp_path / "source"


def convert_folders(
    images,
    labels,
    out,
    classes=WITHOUT_COLORS,
    num_shards=4,
    adds=True,
    skip_broken=False,
    **settings,
):
    """Calls `folder.convert`; the settings are those of `Layout` and `Splitting`."""
    division = {k: settings.pop(k) for k in ("split", "val_share") if k in settings}
    return folder.convert(
        Layout(str(images), str(labels), **settings),
        classes,
        str(out),
        Splitting(**division),
        num_shards,
        run=RunOptions(adds, skip_broken),
    )


@pytest.fixture
def convert(source, tmp_path):
    def run(**settings):
        return convert_folders(
            source / "photos", source / "masks", tmp_path / "out", **settings
        )

    return run


def test_images_and_labels_are_paired_by_name(convert, source, tmp_path):
    info = convert(num_shards=2)
    files = {path.stem: path for path in (source / "photos").iterdir()}
    found = read_samples(tmp_path / "out")
    assert [sample.name for sample in found] == ["a", "b", "c", "d"]
    for (name, image, label), value in zip(found, (1, 0, 0, 2), strict=True):
        assert image == files[name].read_bytes()
        assert label[0, 0] == 255 and (label.ravel()[1:] == value).all()
    # 35 pixels each, one of them ignored.
    assert info.class_pixels == {"train": [68, 34, 34]}
    assert info.split_sizes == {"train": 4}
    assert len(info.content_hashes["train"]) == 64
    assert records.read_info(str(tmp_path / "out")) == info


def test_labels_are_reconverted_after_colors_change(convert, source, tmp_path):
    for path in (source / "masks").iterdir():
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[0] = 0, 0, 9
        Image.fromarray(pixels).save(path)
    colors = ((0, 0, 0), (0, 0, 9), (0, 9, 0))
    info = convert(classes=ClassList(DatasetInfo("m", NAMES, colors=colors), True))
    assert info.class_pixels["train"] == [4 * 28, 4 * 7, 0]
    swapped = DatasetInfo("m", NAMES, colors=(colors[1], colors[0], colors[2]))
    assert convert(classes=ClassList(swapped, True)).class_pixels["train"] == [
        28,
        112,
        0,
    ]


def test_val_share_splits_off_validation_images(convert, tmp_path):
    info = convert(val_share=0.5)
    train, val = (
        set(read_labels(tmp_path / "out", split)) for split in ("train", "val")
    )
    # b and c have the same class, and the SHA-256 of c is smaller; one of a and d
    # makes it half.
    assert val in ({"a", "c"}, {"c", "d"})
    assert train == {*"abcd"} - val
    assert info.split_sizes == {"train": 2, "val": 2}


def remove_file(name):
    return lambda source: (source / name).unlink()


def remove_files(name):
    def change(source):
        for path in (source / name).iterdir():
            path.unlink()

    return change


def add_labels(source):
    for i in range(5):
        save_label(source / f"masks/x{i}.png", 0)


def set_large_value(source):
    save_label(source / "masks/c.png", 3)


BROKEN = {
    "missing image": (
        remove_file("photos/a.png"),
        "/photos has no image for .*/masks/a.png$",
    ),
    "many missing images": (
        add_labels,
        "/photos has no image for .*x0.png, .*x1.png, .*x2.png and 2 more$",
    ),
    "no images": (
        remove_files("photos"),
        "--image_dir=.*/photos contains no images .*.jpg, .jpeg",
    ),
    "no labels": (
        remove_files("masks"),
        r"--label_dir=.*/masks has no label files named \* \(.png",
    ),
    "missing folder": (
        lambda source: (source / "masks").rename(source / "labels"),
        "--label_dir=.*/masks is not a folder",
    ),
    "value": (
        set_large_value,
        "masks/c.png contains the value 3 in 34 of 35 pixels; valid labels are 0..2 "
        "and 255 .ign",
    ),
}


def run(source, tmp_path, *more):
    """Runs the program, which raises SystemExit with its error message."""
    arguments = {
        "image_dir": source / "photos",
        "label_dir": source / "masks",
        "classes": source / "classes.txt",
        "output_dir": tmp_path / "out",
    }
    flags = [f"--{flag}={value}" for flag, value in arguments.items()]
    run_program("deeplab_tf.programs.convert.folder", ["folder.py", *flags, *more])


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_dataset_is_refused_before_writing(source, tmp_path, kind):
    change, message = BROKEN[kind]
    change(source)
    with pytest.raises(SystemExit, match=f"^folder.py: .*{message}"):
        run(source, tmp_path)
    assert os.listdir(tmp_path) == ["source"]


INVALID_FLAGS = {
    "share": (
        ["--val_share=1"],
        "val_share must be at least 0 and below 1; received 1",
    ),
    "share of val": (
        ["--val_share=.5", "--split=val"],
        "--split must be a different one",
    ),
    "colour": (["--ignore_color=1,2"], "--ignore_color must be r,g,b .* received 1,2$"),
    "colour word": (
        ["--ignore_color=r,2,3"],
        "--ignore_color must be r,g,b .* received r,2,3$",
    ),
    "ignore label": (
        ["--ignore_label=256"],
        "ignore_label must be an integer in 0..255; rec",
    ),
    "max value": (
        ["--max_value=65536"],
        "max_value must be an integer in 1..65535; recei",
    ),
    "channels": (["--channels=0"], "channels must be at least 1; received 0"),
    "classes": (["--classes=/none"], "--classes=/none is not a file"),
}


@pytest.mark.parametrize("kind", INVALID_FLAGS)
def test_invalid_flags_are_refused(source, tmp_path, kind):
    arguments, message = INVALID_FLAGS[kind]
    with pytest.raises(SystemExit, match=f"^folder.py: .*{message}"):
        run(source, tmp_path, *arguments)
    assert os.listdir(tmp_path) == ["source"]


def test_program_prints_split_sizes(source, tmp_path, capsys):
    run(source, tmp_path)
    out, err = capsys.readouterr()
    assert re.search(f"next:\n  .* doctor --dataset_dir={tmp_path}/out\n$", err)
    assert out == (
        "id   class      colour  mask values\n"
        "0    road               0\n"
        "1    walk               1\n"
        "2    tree               2\n"
        "255  (ignored)          255\n"
        f"{tmp_path}/out: train 4 images\n"
    )
    assert records.read_info(str(tmp_path / "out")).name == "out"
    (source / "classes.txt").write_text("".join(f"{n}\n" for n in (*NAMES, "a b")))
    run(source, tmp_path, "--name=street", "--ignore_label=255")
    info = records.read_info(str(tmp_path / "out"))
    assert (info.name, info.class_names) == ("street", (*NAMES, "a b"))
    *_, first, last = capsys.readouterr().out.splitlines()
    assert first == "train has no pixels of a b"
    assert last == f"{tmp_path}/out: train 4 images"


def test_every_flag_affects_the_records(source, tmp_path):
    """Uses colour masks, 16-bit images of one channel, a suffix and a split."""
    for path in list((source / "masks").iterdir()):
        path.unlink()
        pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        pixels[0], pixels[1] = (9, 9, 0), (255, 0, 255)
        Image.fromarray(pixels).save(path.with_name(f"{path.stem}.gt.png"))
    for i, path in enumerate(list((source / "photos").glob("[abcd].*"))):
        path.unlink()
        image = np.full((HEIGHT, WIDTH), 4000 + i, np.uint16)
        Image.fromarray(image).save(path.with_suffix(".png"))
    (source / "classes.txt").write_text("9 9 0\troad\n0 0 0\twild land\n")
    run(
        source,
        tmp_path,
        *("--label_suffix=.gt", "--ignore_label=9", "--ignore_color=255,0,255"),
        *("--channels=1", "--max_value=4095", "--split=trainaug", "--num_shards=1"),
    )
    info = records.read_info(str(tmp_path / "out"))
    assert (info.channels, info.max_value, info.ignore_label) == (1, 4095, 9)
    assert info.class_names == ("road", "wild land")
    # 4 images of 5 rows of 7: one row is road, one is ignored.
    assert info.class_pixels == {"train_aug": [28, 84]}
    found = read_samples(tmp_path / "out", "train_aug")
    values = sorted(int(sample.decode(1, 4095)[0, 0, 0]) for sample in found)
    assert values == [4000, 4001, 4002, 4003]
    for sample in found:
        np.testing.assert_array_equal(sample.label[:, 0], [0, 9, 1, 1, 1])


@pytest.mark.slow
def test_camvid(camvid, tmp_path):
    info = dataset_info("camvid")
    (tmp_path / "classes.txt").write_text("\n".join(info.class_names))
    for split in info.split_sizes:
        arguments = [
            f"--image_dir={camvid / split}",
            f"--label_dir={camvid / split}annot",
            f"--classes={tmp_path}/classes.txt",
            f"--output_dir={tmp_path}/camvid",
            f"--split={split}",
            "--ignore_label=11",
        ]
        run_program("deeplab_tf.programs.convert.folder", ["folder.py", *arguments])
    written = records.read_info(str(tmp_path / "camvid"))
    assert written.split_sizes == {"train": 367, "val": 101, "test": 233}
    assert written.split_sizes == info.split_sizes
    assert (written.name, written.ignore_label) == ("camvid", 11)
    # All pixels of 367 images of 480x360 that are not ignored, counted in the PNGs.
    labels = [
        np.array(Image.open(p)) for p in sorted((camvid / "trainannot").iterdir())
    ]
    counts = sum(np.bincount(label.ravel(), minlength=12) for label in labels)
    assert written.class_pixels["train"] == counts[:11].tolist()
    sample = read_samples(tmp_path / "camvid", "test")[0]
    assert sample.decode().shape == (360, 480, 3)
    mask = Image.open(camvid / f"testannot/{sample.name}.png")
    np.testing.assert_array_equal(sample.label, mask)
