"""Images are found, checked, decoded and rotated upright."""

import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from deeplab_tf.errors import UserError
from deeplab_tf.images import decoding
from deeplab_tf.images.inputs import find_images, read_image

ORIENTATION = 0x0112


def noise(height, width):
    random = np.random.RandomState(8)
    return Image.fromarray(random.randint(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_rotated_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    noise(20, 31).save(path, exif=exif)
    stored = Image.fromarray(tf.io.decode_image(path.read_bytes()).numpy())
    stored.getexif().update(exif)
    upright = np.array(ImageOps.exif_transpose(stored))
    assert upright.shape == ((31, 20, 3) if (orientation or 1) > 4 else (20, 31, 3))
    image = read_image(str(path))
    np.testing.assert_array_equal(image, upright)
    assert image.flags.c_contiguous and image.dtype == np.uint8


def test_first_image_of_a_multi_image_jpeg_is_read(tmp_path):
    path = tmp_path / "phone.jpg"
    noise(20, 31).save(path, "MPO", save_all=True, append_images=[noise(5, 8)])
    with Image.open(path) as image:
        assert image.format == "MPO"
    expected = tf.io.decode_jpeg(path.read_bytes())
    np.testing.assert_array_equal(read_image(str(path)), expected)


def write_text(path):
    path.write_text("not an image file")


def save_truncated_jpeg(path):
    noise(40, 40).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-300])


def save_truncated_png(path):
    noise(40, 40).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:-300])


def save_pcx(path):
    noise(40, 40).save(path, "PCX")


def make_empty(path):
    path.touch()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (write_text, "is broken: its 17 bytes are not an image"),
        (make_empty, "is broken: it is empty"),
        (save_truncated_jpeg, "is broken: .*truncated"),
        (save_truncated_png, "is broken: .*truncated"),
        (save_pcx, "is PCX; images must be JPEG, PNG, WEBP, "),
    ],
)
def test_invalid_file_gives_one_line_error(tmp_path, capfd, make, message):
    path = tmp_path / "photo.jpg"
    make(path)
    with pytest.raises(UserError, match=f"^{path} {message}") as error:
        read_image(str(path))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_image_size_is_checked_before_decoding(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"photo.{suffix}"
    noise(40, 50).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    monkeypatch.setattr(decoding, "MAX_PIXELS", 1999)
    with pytest.raises(UserError, match=r"has 50x40 pixels; at most 1,999 are allowed"):
        read_image(str(path))


@pytest.fixture
def folder(tmp_path):
    for name in ("b.JPG", "a.png", "c[1].jpeg", "notes.txt"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.png", "b.JPG", "c[1].jpeg"]),
        ("/b*", ["b.JPG"]),
        ("/*", ["a.png", "b.JPG", "c[1].jpeg"]),
        ("/c[1].jpeg", ["c[1].jpeg"]),
    ],
)
def test_images_are_found_by_folder_glob_and_name(folder, pattern, names):
    paths = find_images(f"{folder}{pattern}")
    assert list(paths.values()) == [f"{folder}/{name}" for name in names]


@pytest.mark.parametrize("pattern", ["/*.gif", "/notes.txt", "/nowhere/x.jpg"])
def test_pattern_without_images_is_refused(folder, pattern):
    with pytest.raises(UserError, match=r"^.* matches no image"):
        find_images(f"{folder}{pattern}")


@pytest.fixture
def nested(tmp_path):
    for name in (
        "a.jpg",
        "b/a.webp",
        "b/c/d.TIF",
        "b/._a.jpg",
        "b/Thumbs.db",
        "b/x.cr2",
    ):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a", "b/a", "b/c/d"]),
        ("/**", ["a", "b/a", "b/c/d"]),
        ("/**/*.webp", ["b/a"]),
        ("/b/*", ["a"]),
        ("/b*/a.*", ["b/a"]),
    ],
)
def test_images_in_subfolders_are_named_by_their_path(nested, capsys, pattern, names):
    found = find_images(f"{nested}{pattern}")
    assert list(found) == names
    assert all(path.startswith(f"{nested}/") for path in found.values())
    others = "ignored 1 non-image file in .*: 1 .cr2\n"
    listed = pattern in ("", "/**", "/b/*")
    assert bool(re.search(others, capsys.readouterr().err)) == listed


def test_outputs_in_the_folder_of_the_images_are_left_out(nested):
    assert list(find_images(str(nested), output_dir=f"{nested}/b")) == ["a"]
    assert list(find_images(f"{nested}/**", output_dir=f"{nested}/b/c")) == ["a", "b/a"]
    assert len(find_images(str(nested), output_dir=str(nested))) == 3


def test_listed_images_may_be_named_with_or_without_folder(nested, tmp_path):
    (tmp_path / "list.txt").write_text("d b/a")
    found = find_images(str(nested), str(tmp_path / "list.txt"))
    assert list(found) == ["b/a", "b/c/d"]


def test_two_images_with_the_same_name_are_refused(folder):
    (folder / "a.jpg").touch()
    with pytest.raises(
        UserError, match=r"a\.jpg and .*a\.png would have outputs with "
    ):
        find_images(str(folder))


@pytest.fixture
def image_list(folder):
    """A function that writes a list of names and returns its path."""

    def write(content):
        path = folder / "list.txt"
        path.write_bytes(content)
        return str(path)

    return write


def test_only_listed_images_are_used(folder, image_list):
    # Two images with the same name are allowed if it is not listed.
    (folder / "b.png").touch()
    path = image_list(b"\xef\xbb\xbfc[1]\r\na\n")
    paths = find_images(str(folder), path)
    assert list(paths.values()) == [f"{folder}/a.png", f"{folder}/c[1].jpeg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"a y x",
            "^.*list.txt lists y, which matches no image; 2 of its 3 names",
        ),
        (b"\n", "list.txt lists no images; give one name"),
        (b"\xff\xfe", "list.txt: line 1 is not UTF-8"),
    ],
)
def test_invalid_image_list_is_refused(folder, image_list, content, message):
    with pytest.raises(UserError, match=message):
        find_images(str(folder), image_list(content))
