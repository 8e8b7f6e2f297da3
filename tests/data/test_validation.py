"""The doctor finds every problem of a dataset."""

import dataclasses
import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from listing import list_outputs
from PIL import Image
from record_files import INVALID_EXIF, encode_image, make_record, write_shards

from deeplab_tf.data import record_checks, records, split_checks, validation
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
    """Returns a label with one row of pixels for each value."""
    return np.resize(np.repeat(values, WIDTH), (HEIGHT, WIDTH)).astype(np.uint8)


VALID = make_record(image(0), label(0, 1, 2, 255), "valid")


def encode_png(array, mode):
    file = io.BytesIO()
    Image.fromarray(array).convert(mode).save(file, "PNG")
    return file.getvalue()


def rotated_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(image(1)).save(file, "JPEG", exif=exif)
    return file.getvalue()


def record_without_label():
    example = tf.train.Example()
    example.features.feature["image/encoded"].bytes_list.value.append(b"")
    return example.SerializeToString()


def record_with_values(key, *values):
    """Returns a valid record with other values in one field."""
    example = tf.train.Example.FromString(make_record(image(), label(1)))
    feature = example.features.feature[key]
    feature.Clear()
    for value in values:
        if isinstance(value, bytes):
            feature.bytes_list.value.append(value)
        else:
            feature.int64_list.value.append(value)
    return example.SerializeToString()


def oversized_png(side):
    """Returns a grey PNG whose header claims `side` x `side` pixels."""
    header = b"IHDR" + struct.pack(">II", side, side) + b"\x08\0\0\0\0"
    png = encode_image(label(1))
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


# Content of a record that follows a valid one, its problem and the message.
_PROBLEMS = {
    "no example": (b"hello", "broken", "record 1 of .*: it is not a tf.train.Example"),
    "no label": (
        record_without_label(),
        "broken",
        "has no image/segmentation.*it has image/",
    ),
    "no image": (
        make_record(b"hello", label(1)),
        "broken",
        "the image cannot be decoded: ",
    ),
    "cut image": (
        make_record(encode_image(image(), "JPEG")[:-30], label(1)),
        "broken",
        "the image cannot be decoded: .*",
    ),
    "cut label": (
        make_record(image(), encode_image(label(0, 1))[:-20]),
        "broken",
        "the label cannot be decoded: ",
    ),
    "two images": (
        record_with_values("image/encoded", encode_image(image()), b""),
        "broken",
        "its image/encoded has 2 byte strings; it must have one",
    ),
    "name that is a number": (
        record_with_values("image/filename", 7),
        "broken",
        "its image/filename has 0 byte strings; it must have one",
    ),
    "name of two lines": (
        make_record(image(), label(3), "a\n b\0c"),
        "value",
        r"record 1 of \S+ \(a b\\x00c\): value 3 ",
    ),
    "huge label": (
        make_record(image(), oversized_png(20_000)),
        "broken",
        "the label cannot be decoded: .*not an image, or its size is invalid",
    ),
    "odd EXIF": (
        make_record(encode_image(image(1), "JPEG", exif=INVALID_EXIF), label(1)),
        "rotated",
        None,
    ),
    "palette": (
        make_record(image(), encode_png(label(0, 1), "P")),
        "format",
        r"\(a\): the label is a PNG with 8 bits and a palette; its brightness is not ",
    ),
    "colour label": (
        make_record(image(), encode_png(label(1), "RGB")),
        "format",
        "and RGB;",
    ),
    "bit label": (
        make_record(image(), encode_png(label(1), "1")),
        "format",
        "with 1 bits",
    ),
    "JPEG label": (
        make_record(image(), encode_image(label(1), "JPEG")),
        "format",
        "the label is a JPEG; ",
    ),
    "other size": (
        make_record(image(), np.ones((WIDTH, HEIGHT), np.uint8)),
        "size",
        "the label is 6x9, but the image is 9x6",
    ),
    "other value": (
        make_record(image(), label(0, 3, 200)),
        "value",
        r"value 3, 200 \(first at x 0, y 1\); valid labels are 0..2 and 255",
    ),
    "rotated": (
        make_record(rotated_jpeg(), label(1)),
        "rotated",
        "EXIF orientation 6; rotate",
    ),
    "void": (
        make_record(image(), label(255), "empty"),
        "void",
        r"record 1 of .* \(empty\)",
    ),
    "background": (make_record(image(), label(0, 255)), "void", None),
    "background alone": (make_record(image(), label(0), "bg"), "background", r"\(bg\)"),
    "repeated": (
        make_record(image(0), label(1), "copy"),
        "repeated",
        r"\(copy\) and record 0 of .* \(valid\) have",
    ),
}


def examine(folder, split="train", max_records=None):
    return validation.examine_split(
        open_split(None, str(folder), split), split, max_records
    )


@pytest.fixture
def folder(tmp_path):
    records.write_info(INFO, str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", _PROBLEMS)
def test_every_problem_is_found(folder, name):
    content, kind, message = _PROBLEMS[name]
    write_shards(folder, VALID, content)
    report = examine(folder)
    found = [problem for problem in report.problems if problem.kind == kind]
    if message is None:
        assert found == []
        return
    assert len(found) == 1 and found[0].split == "train"
    with pytest.raises(UserError, match=message):
        raise UserError(found[0].text)
    assert validation.is_safe(report.problems) == (kind in validation.WARNINGS)


def test_flipped_bit_is_found_and_other_records_are_read(folder):
    write_shards(
        folder,
        VALID,
        make_record(image(2), label(1), "b"),
        make_record(image(3), label(2)),
    )
    path = folder / "train-00000-of-00001.tfrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)
    report = examine(folder)
    (problem,) = report.problems
    assert problem.kind == "broken"
    assert problem.text == f"record 1 of {path}: a checksum does not match"
    assert report.sizes == {(HEIGHT, WIDTH): 2} and report.examined == 3


def test_trailing_zeros_after_a_record_are_accepted(folder):
    # Zeros after an example, which TensorFlow skips and protobuf refuses.
    write_shards(folder, VALID, make_record(image(2), label(1), "b") + b"\0\0")
    report = examine(folder)
    assert report.problems == [] and report.images_with[1] == 2


def test_mean_does_not_depend_on_the_chunk_size(folder, monkeypatch):
    write_shards(folder, VALID)
    expected = examine(folder)
    monkeypatch.setattr(record_checks, "_PIXELS_AT_ONCE", 4 * WIDTH)  # of six rows
    chunked = examine(folder)
    np.testing.assert_allclose(chunked.mean, image(0).mean((0, 1)))
    np.testing.assert_allclose(chunked.deviation, expected.deviation)


def test_statistics_of_a_valid_dataset_match_its_pixels(folder):
    write_shards(
        folder, VALID, make_record(image(1, 4, 5), np.full((4, 5), 2, np.uint8), "b")
    )
    report = examine(folder)
    assert report.problems == [] and validation.is_safe(report.problems)
    # Rows of 9 pixels: 0, 1, 2, 255, 0, 1.
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
        ([label(0, 255)] * 2, "white", r"is a class painted as 255 \(white\)"),
        ([label(255)] * 2, "one-sided", "the only label is the ignored value"),
        ([label(0)] * 2, "one-sided", r"the only label is class 0 \(floor\)"),
        ([label(0), label(0, 2)], "absent", "^ball$"),
    ],
)
def test_label_problems_of_a_split_are_reported(folder, labels, kind, message):
    write_shards(
        folder, *(make_record(image(i), x, str(i)) for i, x in enumerate(labels))
    )
    report = examine(folder)
    (problem,) = [p for p in report.problems if p.kind not in ("void", "background")]
    assert problem.kind == kind
    with pytest.raises(UserError, match=message):
        raise UserError(problem.text)


@pytest.mark.parametrize("split", ["val", "test_fine"])
@pytest.mark.parametrize("content", [label(255), label(0, 255), label(0)])
def test_evaluation_split_may_have_no_labels(folder, split, content):
    write_shards(folder, make_record(image(), content), split=split)
    report = examine(folder, split)
    assert validation.is_safe(report.problems)
    assert "unlikely" in {problem.kind for problem in report.problems}


def test_quick_check_does_not_report_missing_classes(folder, capsys):
    contents = [make_record(image(i), label(0, 255), str(i)) for i in range(12)]
    contents[7] = make_record(image(7), label(1, 2), "7")
    write_shards(folder, *contents)
    assert validation.is_safe(examine(folder, max_records=3).problems)
    assert validation.is_safe(examine(folder).problems)
    kinds = {problem.kind for problem in examine(folder, max_records=3).problems}
    assert "unlikely" in kinds and "white" not in kinds


def test_black_images_of_different_sizes_are_not_a_leak(folder):
    for split, shape in (("train", (6, 9)), ("val", (9, 6))):
        black = np.zeros((*shape, 3))
        write_shards(
            folder, make_record(black, np.ones(shape, np.uint8), split), split=split
        )
    assert (
        split_checks.find_leaked_images([examine(folder, s) for s in ("train", "val")])
        == []
    )


def test_ignore_label_may_be_a_class_id(tmp_path):
    info = DatasetInfo("a", ("other", "wall", "sky"), ignore_label=0)
    records.write_info(info, str(tmp_path))
    write_shards(tmp_path, make_record(image(), label(0, 1, 2)))
    assert examine(tmp_path).problems == []


def make_records(*numbers):
    return [make_record(image(i), label(0, 1, 2), f"image_{i}") for i in numbers]


def test_images_in_two_splits_are_a_leak_except_in_trainval(folder):
    for split, numbers in {
        "train": (0, 1, 2),
        "train_all": (0, 1, 2, 3, 4),
        "trainval": (0, 1, 2, 3, 4),
        "val": (3, 4),
        "train_more": (0, 1, 4),
        "test": (9,),
    }.items():
        write_shards(folder, *make_records(*numbers), split=split)
    splits = ("train", "train_all", "trainval", "val", "train_more", "test")
    reports = [examine(folder, split) for split in splits]
    path = folder / "val-00000-of-00001.tfrecord"
    assert split_checks.find_leaked_images(reports) == [
        (
            "leak",
            "train_all",
            f"contains 2 images of val, such as record 0 of {path} (image_3)",
        ),
        (
            "leak",
            "train_more",
            f"contains 1 image of val, such as record 1 of {path} (image_4)",
        ),
    ]


def test_quick_check_examines_a_sample(folder):
    contents = make_records(*range(21))
    contents[1] = make_record(image(), label(9), "odd")
    write_shards(folder, *contents, shards=3)
    # Records 0, 5, 10, 15 and 20.
    report = examine(folder, max_records=5)
    assert (report.images, report.examined) == (21, 5)
    assert report.problems == []
    assert "value" in {problem.kind for problem in examine(folder).problems}


def test_quick_check_raises_one_line_error(folder):
    write_shards(folder, VALID, *[make_record(image(), label(9), "odd")] * 2)
    with pytest.raises(UserError) as error:
        validation.check_quickly(open_split(None, str(folder), "train"), "train")
    path = folder / "train-00000-of-00001.tfrecord"
    assert str(error.value) == (
        "train is not safe to train on: it has label values that are not classes: "
        f"record 1 of {path} (odd): value 9 (first at x 0, y 0); valid labels are 0..2 "
        "and 255 (ignored) (2 in 3 checked records; to check all, run python -m "
        "deeplab_tf.data.doctor)"
    )


def run_doctor(*arguments):
    """Runs the doctor; returns its exit status or error message."""
    try:
        run_program("deeplab_tf.programs.doctor", ["doctor", *arguments])
    except SystemExit as error:
        return error.code
    return 0


def test_program_prints_report_and_draws_samples(folder, capsys):
    write_shards(folder, VALID, *make_records(1, 2))
    write_shards(folder, *make_records(3), split="val")
    assert run_doctor(f"--dataset_dir={folder}", "--samples=2") == 0
    out = capsys.readouterr().out
    assert out.startswith("toys: 3 classes, labels 0..2 and 255 (ignored), 3 channels")
    assert "train: 3 images" in out and "val: 1 image" in out
    # Train has three images of 54 pixels; class 0 covers 18 of each.
    assert f"  0 floor         33.333%{3:>9}    33.333%{1:>9}" in out
    assert out.endswith("safe to train\n") and "not safe" not in out
    with Image.open(folder / "doctor.png") as sheet:
        assert sheet.width > 3 * 2 * WIDTH and sheet.height >= HEIGHT


def test_exit_status_of_an_unsafe_dataset_is_1(folder, tmp_path, capsys):
    write_shards(
        folder, VALID, *[make_record(image(7), label(5), f"odd_{i}") for i in range(7)]
    )
    sheets = tmp_path / "sheets"
    arguments = f"--dataset_dir={folder}", f"--output_dir={sheets}"
    assert run_doctor(*arguments) == 1
    out = capsys.readouterr().out
    assert "ERROR: label values that are not classes (7)" in out and "and 2 more" in out
    assert "warning: images that occur more than once in a split (6)" in out
    assert "  5 (no class)" in out
    assert out.endswith("not safe to train: see the errors above\n")
    assert list_outputs(sheets) == ["doctor.html", "doctor.png"]


def test_program_examines_five_channel_images(tmp_path, capsys):
    info = dataclasses.replace(INFO, channels=5, max_value=4095)
    records.write_info(info, str(tmp_path))
    from deeplab_tf.images import decoding

    pixels = np.random.RandomState(0).randint(0, 4096, (HEIGHT, WIDTH, 5))
    png = decoding.encode_image(pixels.astype(np.uint16))
    encoded_image = EncodedImage(png, "png", HEIGHT, WIDTH, 5)
    write_shards(
        tmp_path, records.serialize(encoded_image, encode_image(label(0, 1, 2)), "a")
    )
    assert run_doctor(f"--dataset_dir={tmp_path}") == 0
    means = ", ".join(f"{mean:.2f}" for mean in pixels.mean((0, 1)))
    assert f"channel means {means};" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--dataset_dir is required"),
        (["--dataset_dir={folder}/nowhere"], "/nowhere has no records"),
        (["--dataset_dir={folder}", "--splits=val"], "has no records named val-"),
        (
            ["--dataset_dir={folder}", "--dataset=camvid"],
            "contradicts .*, which names toys",
        ),
    ],
)
def test_invalid_flags_give_one_line_error(folder, arguments, message):
    write_shards(folder, VALID)
    error = run_doctor(*(argument.format(folder=folder) for argument in arguments))
    with pytest.raises(UserError, match=f"^doctor: .*{message}"):
        raise UserError(error)


def test_real_sample_has_no_problems(voc_records, tmp_path, capsys):
    arguments = f"--dataset_dir={voc_records}", f"--output_dir={tmp_path}"
    assert run_doctor(*arguments, "--splits=val", "--samples=3") == 0
    out = capsys.readouterr().out
    assert "val: 60 images" in out and "ERROR" not in out and "warning" not in out
