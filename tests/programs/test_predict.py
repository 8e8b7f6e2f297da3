"""Photographs from files to pictures of labels."""

import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.config import Experiment
from deeplab_tf.data.info import generic_info
from deeplab_tf.errors import UserError
from deeplab_tf.inference import predict_labels
from deeplab_tf.programs import predict, run_program
from deeplab_tf.serving.saved_model import export_info, export_saved_model
from deeplab_tf.training.resume import write_experiment

ORIENTATION = 0x0112


def noise(height, width):
    random = np.random.RandomState(8)
    return Image.fromarray(random.randint(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_photographs_are_turned_upright(tmp_path, orientation, suffix):
    path = tmp_path / f"photo.{suffix}"
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    noise(20, 31).save(path, exif=exif)
    stored = Image.fromarray(tf.io.decode_image(path.read_bytes()).numpy())
    stored.getexif().update(exif)
    upright = np.array(ImageOps.exif_transpose(stored))
    assert upright.shape == ((31, 20, 3) if (orientation or 1) > 4 else (20, 31, 3))
    image = predict.read_image(str(path))
    np.testing.assert_array_equal(image, upright)
    assert image.flags.c_contiguous and image.dtype == np.uint8


def test_two_pictures_in_one_jpeg_are_read_as_the_first(tmp_path):
    path = tmp_path / "phone.jpg"
    noise(20, 31).save(path, "MPO", save_all=True, append_images=[noise(5, 8)])
    with Image.open(path) as picture:
        assert picture.format == "MPO"
    expected = tf.io.decode_jpeg(path.read_bytes())
    np.testing.assert_array_equal(predict.read_image(str(path)), expected)


def write_text(path):
    path.write_text("no picture at all")


def cut_jpeg(path):
    noise(40, 40).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:-300])


def cut_png(path):
    noise(40, 40).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:-300])


def save_gif(path):
    noise(40, 40).save(path, "GIF")


def empty(path):
    path.touch()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (write_text, "is no picture"),
        (empty, "is no picture"),
        (cut_jpeg, "is broken: .*truncated"),
        (cut_png, "is broken: .*truncated"),
        (save_gif, "is GIF; JPEG and PNG are read"),
    ],
)
def test_a_bad_file_is_named_in_one_line(tmp_path, capfd, make, message):
    path = tmp_path / "photo.jpg"
    make(path)
    with pytest.raises(UserError, match=f"^{path} {message}") as error:
        predict.read_image(str(path))
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_the_size_is_bounded_before_decoding(tmp_path, monkeypatch, suffix):
    path = tmp_path / f"photo.{suffix}"
    noise(40, 50).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    monkeypatch.setattr(predict, "_MOST_PIXELS", 1999)
    with pytest.raises(UserError, match=r"has 50x40 pixels; at most 1,999 are read"):
        predict.read_image(str(path))


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
    paths = predict.find_images(f"{folder}{pattern}")
    assert paths == [f"{folder}/{name}" for name in names]


@pytest.mark.parametrize("pattern", ["/*.gif", "/notes.txt", "/nowhere/x.jpg"])
def test_no_image_is_an_error(folder, pattern):
    with pytest.raises(UserError, match=r"--images=.* matches no JPEG or PNG file"):
        predict.find_images(f"{folder}{pattern}")


def test_two_images_of_one_name_are_an_error(folder):
    (folder / "a.jpg").touch()
    with pytest.raises(
        UserError, match=r"a\.jpg and .*a\.png would be written to the "
    ):
        predict.find_images(str(folder))


@pytest.fixture
def image_list(folder):
    """Writes a list of names and returns its path."""

    def write(content):
        path = folder / "list.txt"
        path.write_bytes(content)
        return str(path)

    return write


def test_only_listed_images_are_taken(folder, image_list):
    # Two of one name are no harm where it is not listed.
    (folder / "b.png").touch()
    listed = image_list(b"\xef\xbb\xbfc[1]\r\na\n")
    paths = predict.find_images(str(folder), listed)
    assert paths == [f"{folder}/a.png", f"{folder}/c[1].jpeg"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a y x", "^y of .*list.txt is not among --images; 2 of its 3 names"),
        (b"\n", "list.txt names no image$"),
        (b"\xff\xfe", "list.txt is no UTF-8 text"),
    ],
)
def test_a_bad_list_is_told(folder, image_list, content, message):
    with pytest.raises(UserError, match=message):
        predict.find_images(str(folder), image_list(content))


def run(*arguments):
    for name in predict.FLAGS:
        predict.FLAGS[name].unparse()
    run_program(predict.main, predict.FLAGS, ["predict.py", *arguments])


@pytest.fixture(scope="module")
def predicted(tiny_model, tiny_export, tmp_path_factory):
    """Pictures made with a SavedModel and with its checkpoint, and the photographs."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "photos").mkdir()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    noise(33, 49).save(folder / "photos/lying.jpg", exif=exif)
    noise(20, 31).save(folder / "photos/plain.png")
    save_tf1_checkpoint(tiny_model, str(folder / "logs/model.ckpt-0"))
    experiment = Experiment(
        model=tiny_model.model_config, info=export_info(tiny_export)
    )
    write_experiment(experiment, str(folder / "logs"))
    for model, out in ((tiny_export, "exported"), (folder / "logs", "checkpoint")):
        run(
            f"--model={model}",
            f"--images={folder}/photos",
            f"--output_dir={folder}/{out}",
        )
    return folder


def test_a_saved_model_and_its_checkpoint_give_the_same_pictures(predicted):
    names = sorted(os.listdir(predicted / "exported"))
    kinds = ("color", "label", "overlay")
    pictures = [f"{stem}_{kind}.png" for stem in ("lying", "plain") for kind in kinds]
    assert names == sorted([*pictures, "overview.png"])
    assert sorted(os.listdir(predicted / "checkpoint")) == names
    for name in names:
        exported = (predicted / "exported" / name).read_bytes()
        assert exported == (predicted / "checkpoint" / name).read_bytes()


def test_the_pictures_show_the_labels(predicted, tiny_model):
    image = predict.read_image(str(predicted / "photos/lying.jpg"))
    assert image.shape == (49, 33, 3)
    labels = predict_labels(tiny_model, image[None])[0]
    with Image.open(predicted / "exported/lying_label.png") as picture:
        assert picture.mode == "L"
        np.testing.assert_array_equal(np.array(picture), labels)
    with Image.open(predicted / "exported/lying_color.png") as picture:
        assert picture.mode == "P"
        np.testing.assert_array_equal(np.array(picture), labels)
        # CamVid's colours, which went along with the model.
        assert picture.getpalette()[:6] == [128, 128, 128, 128, 0, 0]
    with Image.open(predicted / "exported/lying_overlay.png") as picture:
        assert picture.height >= 49 and picture.width > 33


def test_several_views_of_an_image_are_averaged(predicted, tiny_model, tmp_path):
    run(
        *(f"--model={predicted}/logs", f"--images={predicted}/photos/plain.png"),
        *(f"--output_dir={tmp_path}", "--eval_scales=1.25", "--add_flipped_images"),
    )
    image = predict.read_image(str(predicted / "photos/plain.png"))[None]
    with Image.open(tmp_path / "plain_label.png") as picture:
        labels = np.array(picture)
    expected = predict_labels(tiny_model, image, (1.25,), flip=True)[0]
    np.testing.assert_array_equal(labels, expected)
    assert not np.array_equal(labels, predict_labels(tiny_model, image, (1.25,))[0])


def test_a_batch_ends_where_the_size_changes():
    sizes = (4, 4, 4, 5, 4, 4)
    images = [(i, np.zeros((size, 6, 3))) for i, size in enumerate(sizes)]
    batches = [[i for i, _ in batch] for batch in predict._batches(iter(images), 2)]
    assert batches == [[0, 1], [2], [3], [4, 5]]


def test_the_batch_size_changes_no_picture(strided_model, tmp_path):
    export_saved_model(strided_model, f"{tmp_path}/export", info=generic_info(4))
    (tmp_path / "photos").mkdir()
    for i, size in enumerate(((20, 31), (20, 31), (33, 49), (20, 31), (20, 31))):
        photo = Image.fromarray(np.roll(np.array(noise(*size)), i, 0))
        photo.save(tmp_path / f"photos/{i}.png")
    written = []
    for batch_size in (1, 3):
        out = tmp_path / f"out{batch_size}"
        run(
            *(f"--model={tmp_path}/export", f"--images={tmp_path}/photos"),
            *(f"--output_dir={out}", f"--batch_size={batch_size}"),
        )
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert len(written[0]) == 3 * 5 + 1
    assert written[0] == written[1]
    assert len({written[0][f"{i}_label.png"] for i in range(5)}) == 5


def test_mistakes_end_the_program_in_one_line(predicted, tiny_export, tmp_path):
    photos, out = f"--images={predicted}/photos", f"--output_dir={tmp_path}/out"
    for arguments, message in (
        ([f"--model={tmp_path}", photos, out], "no checkpoint in the folder"),
        ([f"--model={tmp_path}/x.ckpt", photos, out], "no checkpoint .*x.ckpt"),
        ([f"--model={tiny_export}", f"--images={tmp_path}", out], "matches no JPEG"),
        ([photos, out], "--model must have a value"),
        (
            [f"--model={tiny_export}", photos, out, "--output_stride=8"],
            "--output_stride has no effect on a SavedModel; leave it out",
        ),
        (
            [f"--model={tiny_export}", photos, out, "--eval_scales=0.5"],
            "--eval_scales has no effect on a SavedModel; leave it out",
        ),
        (
            [f"--model={tiny_export}", photos, out, "--add_flipped_images"],
            "--add_flipped_images has no effect on a SavedModel; leave it out",
        ),
    ):
        with pytest.raises(SystemExit, match=f"^predict.py: .*{message}") as ended:
            run(*arguments)
        assert "\n" not in ended.value.code
        assert os.listdir(tmp_path) == []


def test_a_file_that_is_no_picture_is_found_before_the_first_is_labelled(
    tiny_export, tmp_path
):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 10)).save(photos / "a.jpg")
    (photos / "b.jpg").write_text("not a picture")
    with pytest.raises(SystemExit, match=r"predict.py: .*b.jpg is no picture"):
        run(
            f"--model={tiny_export}", f"--images={photos}", f"--output_dir={tmp_path}/o"
        )
    assert os.listdir(tmp_path) == ["photos"]


def test_an_unwritable_place_is_one_line(tiny_export, predicted, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit, match=r"^predict.py: .*file") as ended:
        run(
            *(f"--model={tiny_export}", f"--images={predicted}/photos"),
            f"--output_dir={tmp_path}/file/out",
        )
    assert "\n" not in ended.value.code
