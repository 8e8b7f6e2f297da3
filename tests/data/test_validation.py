"""What the doctor finds in a data set, one ailment at a time."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from listing import listed
from PIL import Image
from plain_records import ODD_EXIF, encoded, record, write

from deeplab_tf.data import record_checks, records, validation
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.data.sources import open_split
from deeplab_tf.errors import UserError
from deeplab_tf.images.decoding import EncodedImage
from deeplab_tf.programs import run_program

INFO = DatasetInfo("toys", ("floor", "ball", "cat"))
HEIGHT, WIDTH = 6, 9


def image(seed=0, height=HEIGHT, width=WIDTH):
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (height, width, 3)).astype(np.uint8)


def label(*values):
    """Returns a label of which a line of pixels has each value."""
    return np.resize(np.repeat(values, WIDTH), (HEIGHT, WIDTH)).astype(np.uint8)


SOUND = record(image(0), label(0, 1, 2, 255), "sound")


def picture(array, mode):
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, "PNG")
    return file.getvalue()


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(image(1)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def without_label():
    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(b"")
    return example.SerializeToString()


def with_values(key, *values):
    """Returns a sound record with other values of a field."""
    example = tf.train.Example.FromString(record(image(), label(1)))
    feature = example.features.feature[key]
    feature.Clear()
    for value in values:
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    return example.SerializeToString()


def promising(side):
    """Returns a grey PNG whose header promises a square of some side."""
    header = b"IHDR" + struct.pack(">II", side, side) + b"\x08\0\0\0\0"
    png = encoded(label(1))
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


# A second record, beside a sound one: its problem, and what is said of it.
_AILMENTS = {
    "no example": (b"hello", "broken", "record 1 of .*: it is not a tf.train.Example"),
    "no label": (without_label(), "broken", "has no image/segmentation.*it has image/"),
    "no image": (record(b"hello", label(1)), "broken", "the image cannot be decoded: "),
    "cut image": (
        record(encoded(image(), "JPEG")[:-30], label(1)),
        "broken",
        "the image cannot be decoded: .*",
    ),
    "cut label": (
        record(image(), encoded(label(0, 1))[:-20]),
        "broken",
        "the label cannot be decoded: ",
    ),
    "two images": (
        with_values("image/encoded", encoded(image()), b""),
        "broken",
        "its image/encoded is 2 byte strings; it must be one",
    ),
    "name that is a number": (
        with_values("image/filename", 7),
        "broken",
        "its image/filename is 0 byte strings; it must be one",
    ),
    "name of two lines": (
        record(image(), label(3), "a\n b\0c"),
        "value",
        r"record 1 of \S+ \(a b\\x00c\): value 3 ",
    ),
    "huge label": (
        record(image(), promising(20_000)),
        "broken",
        "the label cannot be decoded: .*not an image of a possible size",
    ),
    "odd EXIF": (
        record(encoded(image(1), "JPEG", exif=ODD_EXIF), label(1)),
        "rotated",
        None,
    ),
    "palette": (
        record(image(), picture(label(0, 1), "P")),
        "format",
        r"\(a\): the label is a PNG with 8 bits and a palette; its brightness is not ",
    ),
    "colour label": (record(image(), picture(label(1), "RGB")), "format", "and RGB;"),
    "bit label": (record(image(), picture(label(1), "1")), "format", "with 1 bits"),
    "JPEG label": (
        record(image(), encoded(label(1), "JPEG")),
        "format",
        "the label is a JPEG; ",
    ),
    "other size": (
        record(image(), np.ones((WIDTH, HEIGHT), np.uint8)),
        "size",
        "the label is 6x9 but its image 9x6",
    ),
    "other value": (
        record(image(), label(0, 3, 200)),
        "value",
        r"value 3, 200 \(first at x 0, y 1\); labels are 0..2 and 255",
    ),
    "rotated": (record(rotated(), label(1)), "rotated", "EXIF orientation 6; rotate"),
    "void": (record(image(), label(255), "empty"), "void", r"record 1 of .* \(empty\)"),
    "background": (record(image(), label(0, 255)), "void", None),
    "background alone": (record(image(), label(0), "bg"), "background", r"\(bg\)"),
    "repeated": (
        record(image(0), label(1), "twin"),
        "repeated",
        r"\(twin\) and record 0 of .* \(sound\) have",
    ),
}


def examined(folder, split="train", at_most=None):
    return validation.examine_split(
        open_split(None, str(folder), split), split, at_most
    )


@pytest.fixture
def folder(tmp_path):
    records.write_info(INFO, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("ailment", _AILMENTS)
def test_each_ailment_is_found_where_it_is(folder, ailment):
    content, kind, message = _AILMENTS[ailment]
    write(folder, SOUND, content)
    report = examined(folder)
    found = [problem for problem in report.problems if problem.kind == kind]
    if message is None:
        assert found == []
        return
    assert len(found) == 1 and found[0].split == "train"
    with pytest.raises(UserError, match=message):
        raise UserError(found[0].text)
    assert validation.is_safe(report.problems) == (kind in validation.WARNINGS)


def test_a_flipped_bit_is_found_and_the_others_are_read(folder):
    write(folder, SOUND, record(image(2), label(1), "b"), record(image(3), label(2)))
    path = folder / "train-00000-of-00001.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    report = examined(folder)
    (problem,) = report.problems
    assert problem.kind == "broken"
    assert problem.text == f"record 1 of {path}: a checksum does not match"
    assert report.sizes == {(HEIGHT, WIDTH): 2} and report.examined == 3


def test_what_training_reads_is_not_broken(folder):
    # Zeros behind an example, which TensorFlow passes over and protobuf refuses.
    write(folder, SOUND, record(image(2), label(1), "b") + b"\0\0")
    report = examined(folder)
    assert report.problems == [] and report.images_with[1] == 2


def test_the_mean_of_an_image_does_not_depend_on_how_it_is_cut(folder, monkeypatch):
    write(folder, SOUND)
    whole = examined(folder)
    monkeypatch.setattr(record_checks, "_PIXELS_AT_ONCE", 4 * WIDTH)  # of six lines
    parts = examined(folder)
    np.testing.assert_allclose(parts.mean, image(0).mean((0, 1)))
    np.testing.assert_allclose(parts.deviation, whole.deviation)


def test_a_sound_data_set_is_counted(folder):
    write(folder, SOUND, record(image(1, 4, 5), np.full((4, 5), 2, np.uint8), "b"))
    report = examined(folder)
    assert report.problems == [] and validation.is_safe(report.problems)
    # Lines of 9 pixels: 0, 1, 2, 255, 0, 1.
    counts = np.zeros(256, int)
    counts[[0, 1, 2, 255]] = [18, 18, 9 + 20, 9]
    np.testing.assert_array_equal(report.values, counts)
    assert report.images_with[[0, 1, 2, 255, 3]].tolist() == [1, 1, 2, 1, 0]
    assert report.sizes == {(6, 9): 1, (4, 5): 1}
    pixels = np.concatenate([image(0).reshape(-1, 3), image(1, 4, 5).reshape(-1, 3)])
    np.testing.assert_allclose(report.mean, pixels.mean(0))
    np.testing.assert_allclose(report.deviation, pixels.std(0))


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([label(0, 255)] * 2, "white", "is 255 a class painted white"),
        ([label(255)] * 2, "one-sided", "the only value is the ignored value"),
        ([label(0)] * 2, "one-sided", r"the only value is class 0 \(floor\)"),
        ([label(0), label(0, 2)], "absent", "^ball$"),
    ],
)
def test_what_a_whole_split_says(folder, labels, kind, message):
    write(folder, *(record(image(i), x, str(i)) for i, x in enumerate(labels)))
    report = examined(folder)
    (problem,) = [p for p in report.problems if p.kind not in ("void", "background")]
    assert problem.kind == kind
    with pytest.raises(UserError, match=message):
        raise UserError(problem.text)


@pytest.mark.parametrize("split", ["val", "test_fine"])
@pytest.mark.parametrize("content", [label(255), label(0, 255), label(0)])
def test_an_evaluation_split_may_have_no_labels(folder, split, content):
    write(folder, record(image(), content), split=split)
    report = examined(folder, split)
    assert validation.is_safe(report.problems)
    assert "unlikely" in {problem.kind for problem in report.problems}


def test_rare_classes_may_be_in_what_the_quick_form_leaves_out(folder, capsys):
    contents = [record(image(i), label(0, 255), str(i)) for i in range(12)]
    contents[7] = record(image(7), label(1, 2), "7")
    write(folder, *contents)
    assert validation.is_safe(examined(folder, at_most=3).problems)
    assert validation.is_safe(examined(folder).problems)
    kinds = {problem.kind for problem in examined(folder, at_most=3).problems}
    assert "unlikely" in kinds and "white" not in kinds


def test_images_of_one_colour_and_other_sizes_are_different(folder):
    for split, shape in (("train", (6, 9)), ("val", (9, 6))):
        black = np.zeros((*shape, 3))
        write(folder, record(black, np.ones(shape, np.uint8), split), split=split)
    assert (
        validation.find_leaked_images([examined(folder, s) for s in ("train", "val")])
        == []
    )


def test_ade20k_ignores_a_class_id(tmp_path):
    info = DatasetInfo("a", ("other", "wall", "sky"), ignore_label=0)
    records.write_info(info, str(tmp_path))
    write(tmp_path, record(image(), label(0, 1, 2)))
    assert examined(tmp_path).problems == []


def names(*numbers):
    return [record(image(i), label(0, 1, 2), f"image_{i}") for i in numbers]


def test_images_in_two_splits_are_a_leak_but_in_trainval(folder):
    for split, numbers in {
        "train": (0, 1, 2),
        "train_all": (0, 1, 2, 3, 4),
        "trainval": (0, 1, 2, 3, 4),
        "val": (3, 4),
        "train_more": (0, 1, 4),
        "test": (9,),
    }.items():
        write(folder, *names(*numbers), split=split)
    splits = ("train", "train_all", "trainval", "val", "train_more", "test")
    reports = [examined(folder, split) for split in splits]
    path = folder / "val-00000-of-00001.tfrecord"
    assert validation.find_leaked_images(reports) == [
        (
            "leak",
            "train_all",
            f"has 2 images of val, such as record 0 of {path} (image_3)",
        ),
        (
            "leak",
            "train_more",
            f"has 1 images of val, such as record 1 of {path} (image_4)",
        ),
    ]


def test_the_quick_form_looks_at_a_sample_alone(folder):
    contents = names(*range(21))
    contents[1] = record(image(), label(9), "odd")
    write(folder, *contents, shards=3)
    # Records 0, 5, 10, 15 and 20.
    report = examined(folder, at_most=5)
    assert (report.images, report.examined) == (21, 5)
    assert report.problems == []
    assert "value" in {problem.kind for problem in examined(folder).problems}


def test_the_quick_form_refuses_in_one_line(folder):
    write(folder, SOUND, *[record(image(), label(9), "odd")] * 2)
    with pytest.raises(UserError) as error:
        validation.check_quickly(open_split(None, str(folder), "train"), "train")
    path = folder / "train-00000-of-00001.tfrecord"
    assert str(error.value) == (
        "train is not safe to train on, label values that are not a class: record 1 of "
        f"{path} (odd): value 9 (first at x 0, y 0); labels are 0..2 and 255 "
        "(ignored) (2 in 3 checked records; run python -m deeplab_tf.data.doctor "
        "to check all)"
    )


def run(*arguments):
    """Returns the exit status of the program."""
    try:
        run_program("deeplab_tf.programs.doctor", ["doctor", *arguments])
    except SystemExit as ended:
        return ended.code
    return 0


def test_the_program_reports_and_draws(folder, capsys):
    write(folder, SOUND, *names(1, 2))
    write(folder, *names(3), split="val")
    assert run(f"--dataset_dir={folder}", "--samples=2") == 0
    out = capsys.readouterr().out
    assert out.startswith("toys: 3 classes, labels 0..2 and 255 (ignored), 3 channels")
    assert "train: 3 images" in out and "val: 1 images" in out
    # Train has three images of 54 pixels; 0 covers 18 of each.
    assert f"  0 floor         33.333%{3:>9}    33.333%{1:>9}" in out
    assert out.endswith("safe to train\n") and "not safe" not in out
    with Image.open(folder / "doctor.png") as sheet:
        assert sheet.width > 3 * 2 * WIDTH and sheet.height >= HEIGHT


def test_the_exit_status_says_that_it_is_not_safe(folder, tmp_path, capsys):
    write(folder, SOUND, *[record(image(7), label(5), f"odd_{i}") for i in range(7)])
    pictures = tmp_path / "pictures"
    arguments = f"--dataset_dir={folder}", f"--output_dir={pictures}"
    assert run(*arguments) == 1
    out = capsys.readouterr().out
    assert "ERROR: label values that are not a class (7)" in out and "and 2 more" in out
    assert "warning: images that are twice in a split (6)" in out
    assert "  5 (no class)" in out
    assert out.endswith("not safe to train: see the errors above\n")
    assert listed(pictures) == ["doctor.png"]


def test_the_program_examines_images_of_any_channels(tmp_path, capsys):
    info = dataclasses.replace(INFO, channels=5, max_value=4095)
    records.write_info(info, str(tmp_path))
    from deeplab_tf.images import decoding

    pixels = np.random.RandomState(0).randint(0, 4096, (HEIGHT, WIDTH, 5))
    png = decoding.encode_image(pixels.astype(np.uint16))
    picture = EncodedImage(png, "png", HEIGHT, WIDTH, 5)
    write(tmp_path, records.serialize(picture, encoded(label(0, 1, 2)), "a"))
    assert run(f"--dataset_dir={tmp_path}") == 0
    means = ", ".join(f"{mean:.2f}" for mean in pixels.mean((0, 1)))
    assert f"channel means {means};" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset_dir is required"),
        (["--dataset_dir={folder}/nowhere"], "no records in .*/nowhere"),
        (["--dataset_dir={folder}", "--splits=val"], "no val-. records in"),
        (["--dataset_dir={folder}", "--dataset=camvid"], "but .* says toys"),
    ],
)
def test_a_wrong_command_line_is_one_line(folder, arguments, message):
    write(folder, SOUND)
    ended = run(*(argument.format(folder=folder) for argument in arguments))
    with pytest.raises(UserError, match=f"^doctor: .*{message}"):
        raise UserError(ended)


def test_the_real_sample_is_safe(voc_records, tmp_path, capsys):
    arguments = f"--dataset_dir={voc_records}", f"--output_dir={tmp_path}"
    assert run(*arguments, "--splits=val", "--samples=3") == 0
    out = capsys.readouterr().out
    assert "val: 60 images" in out and "ERROR" not in out and "warning" not in out
