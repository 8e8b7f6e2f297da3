"""Images are read in the same way for records and for prediction."""

import numpy as np
import pytest
import tensorflow as tf
from hostile_images import oversized_jpeg, oversized_png
from PIL import Image
from small_datasets import save_image, save_label
from special_files import assert_skipped

from deeplab_tf.convert import folder, layout
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding, encoding, mask_files
from deeplab_tf.images.inputs import check_image, find_images, read_image
from deeplab_tf.images.videos import read_video

INFO = DatasetInfo("toys", ("floor", "ball"))
NOT_UTF8 = "caf\udce9.png"


@pytest.fixture
def image_folder(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / f"photos/{name}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("pattern", ["", "/*", "/*.png"])
def test_special_files_in_a_folder_are_skipped(
    image_folder, capfd, special_file, pattern
):
    kind, make = special_file
    make(image_folder / "x.png")
    where = f"{image_folder}{pattern}"
    assert find_images(where) == {n: f"{image_folder}/{n}.png" for n in ("a", "b")}
    assert_skipped(capfd, f"skipped 1 of 3 entries of {where}: x.png ({kind})")


@pytest.mark.parametrize("pattern", ["", "/*.png"])
def test_names_that_are_not_utf8_are_skipped(image_folder, capfd, pattern):
    Image.new("RGB", (3, 3)).save(image_folder / NOT_UTF8)
    assert len(find_images(f"{image_folder}{pattern}")) == 2
    assert_skipped(capfd, r"caf\udce9.png (name not UTF-8)")


def test_special_files_given_by_name_are_refused(image_folder, special_file):
    kind, make = special_file
    if kind == "directory":
        pytest.skip("its images are listed")
    path = image_folder / "x.png"
    make(path)
    (image_folder / "list.txt").write_text("a x")
    message = f"^{path} is a {kind}; a file is needed$"
    with pytest.raises(UserError, match=message):
        find_images(str(path))
    with pytest.raises(UserError, match=message):
        find_images(str(image_folder), str(image_folder / "list.txt"))
    for read in (check_image, read_image):
        with pytest.raises(UserError, match=message):
            read(str(path))


def test_list_that_is_not_a_file_is_refused(image_folder, special_file):
    kind, make = special_file
    make(image_folder / "list.txt")
    with pytest.raises(UserError, match=rf"list.txt is a {kind}; a file is needed$"):
        find_images(str(image_folder), str(image_folder / "list.txt"))


def test_name_too_long_for_the_outputs_is_refused(image_folder):
    # "_overlay.png" has 12 bytes, which leaves 243.
    (image_folder / ("x" * 243 + ".png")).touch()
    assert len(find_images(str(image_folder))) == 3
    (image_folder / ("x" * 244 + ".png")).touch()
    with pytest.raises(UserError, match=r"_overlay.png\) .* 256 bytes long; at"):
        find_images(str(image_folder))


def test_videos_that_are_not_files_are_refused(tmp_path, special_file):
    kind, make = special_file
    path = tmp_path / "x.mp4"
    make(path)
    with pytest.raises(UserError, match=f"^{path} is a {kind}; a file is needed$"):
        read_video(str(path)).__enter__()


def noise(*shape, dtype=np.uint8, high=256):
    return np.random.RandomState(0).randint(0, high, shape).astype(dtype)


def save_mode(path, mode):
    rgb = Image.fromarray(noise(20, 31, 3))
    if mode == "MPO":
        other = Image.fromarray(noise(5, 8, 3))
        rgb.save(path, "MPO", save_all=True, append_images=[other])
    elif mode == "CMYK":
        rgb.convert("CMYK").save(path, "JPEG")
    elif mode in (1, 2, 4):  # bits of a palette
        rgb.quantize(2**mode).save(path, "PNG", bits=mode)
    else:
        rgb.convert(mode).save(path, "PNG")


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "RGB", "RGBA", "P", "MPO", "CMYK", 1, 2, 4]
)
def test_prediction_and_records_have_the_same_pixels(tmp_path, mode):
    path = tmp_path / "photos/a.png"
    path.parent.mkdir()
    save_mode(path, mode)
    save_label(tmp_path / "masks/a.png", np.ones((20, 31)))
    folders = (str(tmp_path / name) for name in ("photos", "masks"))
    folder.convert(layout.Layout(*folders), ClassList(INFO), str(tmp_path / "out"))
    (shard,) = records.find_shards(str(tmp_path / "out"), "train")
    (record,) = tf.data.TFRecordDataset(shard)
    expected = decoding.decode_image(records.parse(record)[0])
    np.testing.assert_array_equal(read_image(str(path)), expected)


def save_16_bit_png(path, high):
    pixels = noise(20, 31, 3, dtype=np.uint16, high=high)
    path.write_bytes(tf.io.encode_png(pixels).numpy())
    return pixels


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg"])
def test_16_bit_images_are_refused_by_all_readers(tmp_path, suffix):
    path = tmp_path / f"deep{suffix}"
    pixels = save_16_bit_png(path, 1 << 16)
    for read in (
        lambda path: encoding.read_encoded(path, INFO),
        *(check_image, read_image),
    ):
        with pytest.raises(
            UserError, match=rf"value {pixels.max()}, but max_value is 25"
        ):
            read(str(path))


def test_16_bit_images_with_small_values_are_read(tmp_path):
    path = tmp_path / "a.png"
    pixels = save_16_bit_png(path, 256)
    check_image(str(path))
    # Not the upper bytes, which are 0.
    np.testing.assert_array_equal(read_image(str(path)), pixels)
    content = encoding.read_encoded(path, INFO).content
    np.testing.assert_array_equal(decoding.decode_image(content), pixels)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Pillow itself refuses the first two, but not the last two.
        (oversized_png(30_000, 30_000), "has too many pixels; at most 134,217,728 are"),
        (oversized_jpeg(30_000, 30_000), "has too many pixels; at most 134,217,728 a"),
        (oversized_png(12_000, 12_000), "has 12000x12000 pixels; at most 134,217,728"),
        (oversized_jpeg(12_000, 12_000), "has 12000x12000 pixels; at most 134,217,72"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        check_image,
        read_image,
        lambda path: encoding.read_encoded(path, INFO),
        lambda path: encoding.read_encoded(
            path, DatasetInfo("toys", ("a",), channels=4)
        ),
    ],
)
def test_images_with_huge_sizes_in_the_header_are_refused(
    tmp_path, content, message, read
):
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} {message}"):
        read(str(path))


@pytest.mark.parametrize("read", [mask_files.read_index_label])
def test_labels_with_huge_sizes_in_the_header_are_refused(tmp_path, read):
    path = tmp_path / "bomb.png"
    path.write_bytes(oversized_png(12_000, 12_000))
    with pytest.raises(UserError, match=r"has 12000x12000 pixels; at most 134,217,728"):
        read(path)


def test_tiff_with_a_huge_size_in_the_header_is_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, noise(4, 5, 3), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(40_000)
    with pytest.raises(
        UserError, match=r"has too many pixels; at most 134,217,728 are"
    ):
        encoding.read_encoded(path, INFO)


@pytest.mark.parametrize("header", ["{'descr': '|u1', " + "(" * 5000, "x" * 100, "{("])
def test_broken_npy_header_is_refused(tmp_path, header):
    path = tmp_path / "a.npy"
    head = header.encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with pytest.raises(UserError, match=r"a.npy is broken: "):
        encoding.read_encoded(path, INFO)
