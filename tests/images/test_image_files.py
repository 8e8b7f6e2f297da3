"""Images are read alike for records and for prediction, whatever they are."""

import numpy as np
import pytest
import tensorflow as tf
from hostile_pictures import promising_jpeg, promising_png
from odd_entries import assert_skipped
from PIL import Image
from small_sources import save_image, save_label

from deeplab_tf.convert import folder
from deeplab_tf.convert.class_list import ClassList
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding, image_files
from deeplab_tf.images.inputs import check_image, find_images, read_image
from deeplab_tf.images.videos import read_video

INFO = DatasetInfo("toys", ("floor", "ball"))
NOT_UTF8 = "caf\udce9.png"


@pytest.fixture
def gallery(tmp_path):
    for name in ("a", "b"):
        save_image(tmp_path / f"photos/{name}.png")
    return tmp_path / "photos"


@pytest.mark.parametrize("pattern", ["", "/*", "/*.png"])
def test_predict_skips_what_it_lists(gallery, capfd, odd, pattern):
    kind, make = odd
    make(gallery / "x.png")
    where = f"{gallery}{pattern}"
    assert find_images(where) == [f"{gallery}/a.png", f"{gallery}/b.png"]
    assert_skipped(capfd, f"skipped 1 of 3 entries of {where}: x.png ({kind})")


@pytest.mark.parametrize("pattern", ["", "/*.png"])
def test_predict_skips_names_that_tensorflow_cannot_open(gallery, capfd, pattern):
    Image.new("RGB", (3, 3)).save(gallery / NOT_UTF8)
    assert len(find_images(f"{gallery}{pattern}")) == 2
    assert_skipped(capfd, r"caf\udce9.png (name not UTF-8)")


def test_predict_refuses_what_is_named(gallery, odd):
    kind, make = odd
    if kind == "directory":
        pytest.skip("its images are listed")
    path = gallery / "x.png"
    make(path)
    (gallery / "list.txt").write_text("a x")
    message = f"^{path} is a {kind}; a file is needed$"
    with pytest.raises(UserError, match=message):
        find_images(str(path))
    with pytest.raises(UserError, match=message):
        find_images(str(gallery), str(gallery / "list.txt"))
    for read in (check_image, read_image):
        with pytest.raises(UserError, match=message):
            read(str(path))


def test_a_list_that_is_not_a_file_is_refused(gallery, odd):
    kind, make = odd
    make(gallery / "list.txt")
    with pytest.raises(UserError, match=rf"list.txt is a {kind}; a file is needed$"):
        find_images(str(gallery), str(gallery / "list.txt"))


def test_a_name_without_room_for_the_outputs_is_refused(gallery):
    # "_overlay.png" has 12 bytes, so that 243 are left.
    (gallery / ("x" * 243 + ".png")).touch()
    assert len(find_images(str(gallery))) == 3
    (gallery / ("x" * 244 + ".png")).touch()
    with pytest.raises(UserError, match=r"\*_overlay.png, has 256 bytes; at most 255"):
        find_images(str(gallery))


def test_videos_that_are_not_files_are_refused(tmp_path, odd):
    kind, make = odd
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
def test_predict_reads_the_pixels_of_the_record(tmp_path, mode):
    path = tmp_path / "photos/a.png"
    path.parent.mkdir()
    save_mode(path, mode)
    save_label(tmp_path / "masks/a.png", np.ones((20, 31)))
    places = (str(tmp_path / name) for name in ("photos", "masks"))
    folder.convert(*places, ClassList(INFO), str(tmp_path / "out"))
    (shard,) = records.shard_paths(str(tmp_path / "out"), "train")
    (record,) = tf.data.TFRecordDataset(shard)
    trained = decoding.decode_image(records.parse(record)[0])
    np.testing.assert_array_equal(read_image(str(path)), trained)


def save_deep(path, high):
    deep = noise(20, 31, 3, dtype=np.uint16, high=high)
    path.write_bytes(tf.io.encode_png(deep).numpy())
    return deep


@pytest.mark.parametrize("suffix", [".png", ".PNG", ".jpg"])
def test_deep_images_are_refused_as_by_the_converters(tmp_path, suffix):
    path = tmp_path / f"deep{suffix}"
    deep = save_deep(path, 1 << 16)
    for read in (
        lambda path: image_files.read_encoded(path, INFO),
        *(check_image, read_image),
    ):
        with pytest.raises(
            UserError, match=rf"value {deep.max()}, but max_value is 25"
        ):
            read(str(path))


def test_deep_images_of_small_values_are_read_as_by_the_converters(tmp_path):
    path = tmp_path / "a.png"
    deep = save_deep(path, 256)
    check_image(str(path))
    # Not the upper bytes, which are 0.
    np.testing.assert_array_equal(read_image(str(path)), deep)
    encoded_ = image_files.read_encoded(path, INFO).content
    np.testing.assert_array_equal(decoding.decode_image(encoded_), deep)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # Pillow itself refuses the first two, and would read the others.
        (promising_png(30_000, 30_000), "has too many pixels; at most 134,217,728 are"),
        (promising_jpeg(30_000, 30_000), "has too many pixels; at most 134,217,728 a"),
        (promising_png(12_000, 12_000), "has 12000x12000 pixels; at most 134,217,728"),
        (promising_jpeg(12_000, 12_000), "has 12000x12000 pixels; at most 134,217,72"),
    ],
)
@pytest.mark.parametrize(
    "read",
    [
        check_image,
        read_image,
        lambda path: image_files.read_encoded(path, INFO),
        lambda path: image_files.read_encoded(
            path, DatasetInfo("toys", ("a",), channels=4)
        ),
    ],
)
def test_headers_that_promise_too_much_are_refused(tmp_path, content, message, read):
    path = tmp_path / "bomb.png"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path} {message}"):
        read(str(path))


@pytest.mark.parametrize("read", [image_files.read_index_label])
def test_labels_that_promise_too_much_are_refused(tmp_path, read):
    path = tmp_path / "bomb.png"
    path.write_bytes(promising_png(12_000, 12_000))
    with pytest.raises(UserError, match=r"has 12000x12000 pixels; at most 134,217,728"):
        read(path)


def test_a_tiff_that_promises_too_much_is_refused(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "bomb.tif"
    tifffile.imwrite(path, noise(4, 5, 3), photometric="rgb")
    with tifffile.TiffFile(path, mode="r+b") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(40_000)
    with pytest.raises(UserError, match=r"has the shape \(40000, 40000, 3\); at most "):
        image_files.read_encoded(path, INFO)


@pytest.mark.parametrize("header", ["{'descr': '|u1', " + "(" * 5000, "x" * 100, "{("])
def test_a_broken_array_header_is_told(tmp_path, header):
    path = tmp_path / "a.npy"
    head = header.encode()
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with pytest.raises(UserError, match=r"a.npy is broken: "):
        image_files.read_encoded(path, INFO)
