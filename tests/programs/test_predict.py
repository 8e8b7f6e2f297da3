"""predict.py on image files."""

import dataclasses
import functools
import os
import shutil
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from html_pages import Page
from listing import list_outputs
from PIL import Image
from program_runs import assert_refused, run

from deeplab_tf.checkpoints.tf1 import save_tf1_checkpoint
from deeplab_tf.config import DecoderConfig, Experiment, ModelConfig
from deeplab_tf.data.info import generic_info
from deeplab_tf.images import decoding, strips
from deeplab_tf.images.inputs import read_image
from deeplab_tf.inference import Predictor
from deeplab_tf.labelling import large
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.programs import prediction
from deeplab_tf.serving.saved_model import export_saved_model, read_export_info
from deeplab_tf.training.resume import read_experiment, write_experiment

PREDICT = "deeplab_tf.programs.predict"
ORIENTATION = 0x0112

# Fixtures of the module compile; its tests run eagerly.
pytestmark = pytest.mark.usefixtures("shallow", "eager_execution")


def make_noise(height, width):
    random = np.random.RandomState(8)
    return Image.fromarray(random.randint(0, 256, (height, width, 3)).astype(np.uint8))


@pytest.fixture(scope="module")
def predictions(tiny_model, tiny_export, tmp_path_factory):
    """A folder with images and the outputs of a SavedModel and of its checkpoint."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "photos").mkdir()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    make_noise(33, 49).save(folder / "photos/rotated.jpg", exif=exif)
    make_noise(20, 31).save(folder / "photos/plain.png")
    save_tf1_checkpoint(tiny_model, str(folder / "logs/model.ckpt-0"))
    experiment = Experiment(
        model=tiny_model.model_config, info=read_export_info(tiny_export)
    )
    write_experiment(experiment, str(folder / "logs"))
    for model, out in ((tiny_export, "exported"), (folder / "logs", "checkpoint")):
        images = f"--images={folder}/photos"
        run(PREDICT, f"--model={model}", images, f"--output_dir={folder}/{out}")
    return folder


def test_saved_model_and_checkpoint_write_the_same_files(predictions):
    names = list_outputs(predictions / "exported")
    kinds = ("color", "label", "overlay")
    images = [f"{stem}_{kind}.png" for stem in ("rotated", "plain") for kind in kinds]
    assert names == sorted([*images, "overview.png"])
    assert list_outputs(predictions / "checkpoint") == names
    for name in names:
        expected = (predictions / "exported" / name).read_bytes()
        assert expected == (predictions / "checkpoint" / name).read_bytes()


def test_output_images_show_the_labels(predictions, tiny_model):
    labels = predict_labels(tiny_model, predictions / "photos/rotated.jpg")
    assert labels.shape == (49, 33)
    with Image.open(predictions / "exported/rotated_label.png") as output:
        assert output.mode == "L"
        np.testing.assert_array_equal(np.array(output), labels)
    with Image.open(predictions / "exported/rotated_color.png") as output:
        assert output.mode == "P"
        np.testing.assert_array_equal(np.array(output), labels)
        # CamVid's colours, which are stored in the model.
        assert output.getpalette()[:6] == [128, 128, 128, 128, 0, 0]
    with Image.open(predictions / "exported/rotated_overlay.png") as output:
        assert output.height >= 49 and output.width > 33


def read_labels(folder, name):
    with Image.open(folder / f"{name}_label.png") as image:
        return np.array(image)


def test_flags_of_the_protocol_are_applied(predictions, tiny_model, tmp_path):
    run(
        *(PREDICT, f"--model={predictions}/logs"),
        f"--images={predictions}/photos/rotated.jpg",
        *(f"--output_dir={tmp_path}", "--eval_crop_size=41,41", "--window_size=33,33"),
        *("--eval_scales=1.25", "--add_flipped_images"),
    )
    labels = read_labels(tmp_path, "rotated")
    image = read_image(str(predictions / "photos/rotated.jpg"))[None]
    options = {"crop_size": (41, 41), "window": (33, 33), "scales": (1.25,)}
    options["flip"] = True
    expected = Predictor(tiny_model, **options).labels(image)[0]
    np.testing.assert_array_equal(labels, expected)
    for name in ("crop_size", "window", "flip"):
        fewer = {key: value for key, value in options.items() if key != name}
        other = Predictor(tiny_model, **fewer).labels(image)[0]
        assert (labels != other).numpy().any(), name


def test_memory_limit_is_applied_or_refused(predictions, tmp_path):
    shutil.copy(predictions / "photos/plain.png", tmp_path)
    Image.new("RGB", (30000, 70)).save(tmp_path / "wide.png")
    for flag, message in (
        (
            "--memory_limit_mb=64",
            "memory limit is too small for images of 30000x70 pix",
        ),
        ("--memory_limit_mb=1", "memory limit of 1 MiB is too small: this model needs"),
        ("--memory_limit_mb=64 --window_size=9,9", "window_size and memory_limit_mb"),
    ):
        assert_refused(
            f"^predict.py: .*{message}",
            *(PREDICT, f"--model={predictions}/logs", f"--images={tmp_path}/*.png"),
            *(f"--output_dir={tmp_path}/out", *flag.split()),
        )
    expected = read_labels(predictions / "exported", "plain")
    np.testing.assert_array_equal(read_labels(tmp_path / "out", "plain"), expected)


def test_16_bit_images_are_scaled_as_in_training(predictions, tmp_path):
    shutil.copytree(predictions / "logs", tmp_path / "logs")
    experiment = read_experiment(str(tmp_path / "logs"))
    info = dataclasses.replace(experiment.info, max_value=65535)
    described = dataclasses.replace(experiment, info=info).to_json()
    (tmp_path / "logs/experiment.json").write_text(described)
    pixels = np.array(make_noise(20, 31))
    np.save(tmp_path / "a.npy", pixels.astype(np.uint16) * 257)
    arguments = (PREDICT, f"--model={tmp_path}/logs", f"--output_dir={tmp_path}/out")
    run(*arguments, f"--images={tmp_path}/a.npy")
    expected = read_labels(predictions / "checkpoint", "plain")
    np.testing.assert_array_equal(read_labels(tmp_path / "out", "a"), expected)
    found = Image.open(tmp_path / "out/a_overlay.png")
    expected = Image.open(predictions / "checkpoint/plain_overlay.png")
    np.testing.assert_array_equal(
        np.array(found)[:20, :31], np.array(expected)[:20, :31]
    )
    photos = f"--images={predictions}/photos"
    assert_refused(
        "png has 8 bits per channel, but max_value=65535 needs 16", *arguments, photos
    )


@pytest.fixture(scope="module")
def five_channel_model():
    image = keras.Input((None, None, 5), name="image")
    layer = keras.layers.Dense(3, name="logits")
    model = keras.Model(image, layer(image))
    layer.set_weights([np.random.RandomState(2).standard_normal((5, 3)), np.zeros(3)])
    model.model_config = ModelConfig(
        **{"num_classes": 3, "channels": 5, "output_stride": 8},
        decoder=DecoderConfig(output_strides=()),
    )
    return model


def test_images_with_many_channels_are_labelled(five_channel_model, tmp_path):
    export_saved_model(five_channel_model, f"{tmp_path}/export", info=generic_info(3))
    pixels = np.random.RandomState(8).randint(0, 256, (9, 11, 5)).astype(np.uint8)
    (tmp_path / "images/deep").mkdir(parents=True)
    np.save(tmp_path / "images/deep/a.npy", pixels)
    arguments = (PREDICT, f"--model={tmp_path}/export", f"--output_dir={tmp_path}/out")
    run(*arguments, f"--images={tmp_path}/images")
    expected = predict_labels(five_channel_model, pixels)
    assert len(np.unique(expected)) > 1
    labels = read_labels(tmp_path / "out/deep", "a")
    np.testing.assert_array_equal(labels, expected)
    path = tmp_path / "images/deep/a.npy"
    np.testing.assert_array_equal(predict_labels(five_channel_model, path), expected)
    make_noise(9, 11).save(tmp_path / "images/b.png")
    message = r"b.png has the shape \(9, 11, 3\); images must be .* 5 channels"
    assert_refused(message, *arguments, f"--images={tmp_path}/images")


def test_subfolders_and_formats_are_kept_in_the_output(tiny_export, tmp_path):
    photos = tmp_path / "photos"
    (photos / "x").mkdir(parents=True)
    make_noise(20, 31).save(photos / "a.png")
    make_noise(20, 31).save(photos / "x/a.webp", lossless=True)
    arguments = (PREDICT, f"--model={tiny_export}", f"--output_dir={photos}/out")
    arguments += ("--html",)
    printed = [run(*arguments, f"--images={photos}") for _ in range(2)]
    assert all("2 images labelled" in text for text in printed)
    assert list_outputs(photos / "out/x") == [
        f"a_{kind}.png" for kind in ("color", "label", "overlay")
    ]
    page = Page((photos / "out/predictions.html").read_text())
    shown = [
        attributes["data-viewer"]
        for _, attributes in page.tags
        if "data-viewer" in attributes
    ]
    assert shown == ["a", "x/a"]
    labels = [read_labels(photos / folder, "a") for folder in ("out", "out/x")]
    np.testing.assert_array_equal(*labels)
    (photos / "out/x/a_label.png").write_text("mine")
    message = "x/a_label.png exists but was not written by deeplab_tf"
    assert_refused(message, *arguments, f"--images={photos}")


def test_broken_images_are_skipped_and_listed(tiny_export, tmp_path, capfd):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in "abc":
        make_noise(20, 31).save(photos / f"{name}.jpg")
    (photos / "a.jpg").write_bytes((photos / "a.jpg").read_bytes()[:-200])
    (photos / "c.jpg").write_text("text")
    arguments = (PREDICT, f"--model={tiny_export}", f"--output_dir={tmp_path}/out")
    arguments = (*arguments, f"--images={photos}", "--skip_broken")
    assert "1 image labelled" in run(*arguments)
    assert f"skipped 2 broken images, see {tmp_path}/out/skip" in capfd.readouterr().err
    lines = (tmp_path / "out/skipped.txt").read_text().splitlines()
    assert [line.partition(" is broken")[0] for line in lines] == [
        f"{photos}/{name}.jpg" for name in "ca"
    ]
    for name in "ab":
        (photos / f"{name}.jpg").write_text("text")
    assert_refused("all images are broken; first error: .*a.jpg is b", *arguments)


def test_preset_and_deviations_are_printed(predictions, tmp_path):
    printed = run(
        PREDICT,
        *(f"--model={predictions}/logs", f"--images={predictions}/photos/plain.png"),
        *(f"--output_dir={tmp_path}", "--preset=mobilenetv2_coco_voc_trainaug"),
        *("--depth_multiplier=0.1", "--atrous_rates=1,2", "--aspp_convs_filters=16"),
        *("--decoder_output_stride=4", "--decoder_filters=16"),
        *("--add_image_level_feature", "--eval_crop_size=33,33"),
    )
    assert "mobilenetv2_coco_voc_trainaug (" in printed
    assert "num_classes: 21 -> 5" in printed
    assert "eval_crop_size: (513, 513) -> (33, 33)" in printed


def write_tflite(path, function):
    """Writes a TFLite file that takes images of 33x49 pixels."""
    module = tf.Module()
    spec = tf.TensorSpec([1, 33, 49, 3], tf.float32, "ImageTensor")
    module.function = tf.function(function, [spec], autograph=False)
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [module.function.get_concrete_function()], module
    )
    path.write_bytes(converter.convert())
    return path


@pytest.mark.parametrize("kind", ["labels", "scores"])
def test_tflite_model_labels_images(predictions, tmp_path, kind):
    pytest.importorskip("ai_edge_litert.interpreter")
    functions = {"labels": lambda x: tf.argmax(x, -1), "scores": lambda x: x / 9}
    model = write_tflite(tmp_path / "m.tflite", functions[kind])
    command = (
        *(PREDICT, f"--model={model}", f"--images={predictions}/photos/plain.png"),
        *(f"--output_dir={tmp_path}/out", "--dataset=camvid"),
    )
    if kind == "scores":
        assert_refused(r"camvid has 11 classes, .* model has 3$", *command)
        command = command[:-1]
    run(*command)
    image = read_image(str(predictions / "photos/plain.png"))
    labels = read_labels(tmp_path / "out", "plain")
    np.testing.assert_array_equal(labels, image.argmax(-1))
    with Image.open(tmp_path / "out/plain_color.png") as output:
        first = {"labels": [128, 128, 128], "scores": [0, 0, 0]}[kind]
        assert output.getpalette()[:3] == first


def test_output_does_not_depend_on_batch_size(strided_model, tmp_path):
    export_saved_model(strided_model, f"{tmp_path}/export", info=generic_info(4))
    (tmp_path / "photos").mkdir()
    for i, size in enumerate(((20, 31), (20, 31), (33, 49), (20, 31), (20, 31))):
        photo = Image.fromarray(np.roll(np.array(make_noise(*size)), i, 0))
        photo.save(tmp_path / f"photos/{i}.png")
    written = []
    for batch_size in (1, 3):
        out = tmp_path / f"out{batch_size}"
        run(
            *(PREDICT, f"--model={tmp_path}/export", f"--images={tmp_path}/photos"),
            *(f"--output_dir={out}", f"--batch_size={batch_size}"),
        )
        written.append({path.name: path.read_bytes() for path in out.glob("*.png")})
    assert len(written[0]) == 3 * 5 + 1
    assert written[0] == written[1]
    assert len({written[0][f"{i}_label.png"] for i in range(5)}) == 5


def test_invalid_flags_are_refused_before_writing(predictions, tiny_export, tmp_path):
    photos, out = f"--images={predictions}/photos", f"--output_dir={tmp_path}/out"
    for arguments, message in (
        ([f"--model={tmp_path}", photos, out], "no checkpoint in the folder"),
        ([f"--model={tmp_path}/x.ckpt", photos, out], "no checkpoint .*x.ckpt"),
        ([f"--model={tiny_export}", f"--images={tmp_path}", out], "matches no images"),
        ([photos, out], "--model is required: "),
        (
            [f"--model={tiny_export}", "--video=0", out, "--html"],
            "--html has no effect without --images",
        ),
        (
            [f"--model={tiny_export}", photos, out, "--output_stride=8"],
            "--output_stride has no effect on .*, an exported model",
        ),
        *(
            (
                [f"--model={tiny_export}", photos, out, f"--{flag}"],
                f"--{flag.partition('=')[0]} has no effect on .*, an exported model",
            )
            for flag in (
                *("eval_scales=0.5", "add_flipped_images", "eval_crop_size=9,9"),
                *("window_size=9,9", "memory_limit_mb=9", "precision=bfloat16"),
            )
        ),
    ):
        assert_refused(f"^predict.py: .*{message}", PREDICT, *arguments)
        assert os.listdir(tmp_path) == []


def test_broken_image_is_found_before_labelling(tiny_export, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 10)).save(photos / "a.jpg")
    (photos / "b.jpg").write_text("not an image.")
    assert_refused(
        r"predict.py: .*b.jpg is broken: its 13 by",
        *(PREDICT, f"--model={tiny_export}", f"--images={photos}"),
        f"--output_dir={tmp_path}/o",
    )
    assert os.listdir(tmp_path) == ["photos"]


def test_unwritable_output_dir_is_refused(tiny_export, predictions, tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert_refused(
        r"^predict.py: .*file",
        *(PREDICT, f"--model={tiny_export}", f"--images={predictions}/photos"),
        f"--output_dir={tmp_path}/file/out",
    )


@pytest.mark.parametrize("suffix", ["png", "tif", "npy"])
def test_large_images_are_labelled_in_tiles(
    strided_model, tmp_path, monkeypatch, suffix
):
    if suffix == "tif":
        pytest.importorskip("tifffile", reason="needs the extra tiff")
    export_saved_model(strided_model, f"{tmp_path}/export", info=generic_info(4))
    pixels = np.array(make_noise(300, 420))
    path = tmp_path / f"a.{suffix}"
    np.save(path, pixels) if suffix == "npy" else Image.fromarray(pixels).save(path)
    arguments = (PREDICT, f"--model={tmp_path}/export", f"--images={path}")
    run(*arguments, f"--output_dir={tmp_path}/at_once")
    monkeypatch.setattr(decoding, "MAX_PIXELS", 300 * 420 - 1)
    monkeypatch.setattr(strips, "_STRIP_PIXELS", 420 * 50)
    in_tiles = functools.partial(large.label_in_tiles, tile=192, overlap=64)
    monkeypatch.setattr(prediction, "label_in_tiles", in_tiles)
    printed = run(*arguments, f"--output_dir={tmp_path}/in_tiles")
    assert "a." + suffix + " is labelled in tiles" in printed
    assert "1 image labelled" in printed
    expected = read_labels(tmp_path / "at_once", "a")
    found = read_labels(tmp_path / "in_tiles", "a")
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(found, expected)
    for name in ("a_overlay.png", "a_color.png"):
        assert (tmp_path / "in_tiles" / name).exists()


def test_labels_of_geotiffs_keep_their_georeference(
    tiny_export, tmp_path, monkeypatch, capfd
):
    rasterio = pytest.importorskip("rasterio", reason="needs the extra geo")
    pixels = np.moveaxis(np.array(make_noise(20, 31)), -1, 0)
    transform = rasterio.transform.from_origin(440720, 3751320, 0.5, 0.5)
    profile = {"driver": "GTiff", "height": 20, "width": 31, "count": 3}
    profile |= {"dtype": "uint8", "crs": "EPSG:32611", "transform": transform}
    (tmp_path / "photos/x").mkdir(parents=True)
    path = tmp_path / "photos/x/a.tif"
    with rasterio.open(path, "w", photometric="rgb", **profile) as file:
        file.write(pixels)
    make_noise(20, 31).save(tmp_path / "photos/plain.tif")
    arguments = (PREDICT, f"--model={tiny_export}", f"--images={tmp_path}/photos")
    run(*arguments, f"--output_dir={tmp_path}/out")
    labels = read_labels(tmp_path / "out/x", "a")
    with rasterio.open(tmp_path / "out/x/a_label.tif") as file:
        np.testing.assert_array_equal(file.read(1), labels)
        assert (file.crs, file.transform) == (profile["crs"], transform)
    assert not (tmp_path / "out/plain_label.tif").exists()
    monkeypatch.setitem(sys.modules, "rasterio", None)
    run(*arguments, f"--output_dir={tmp_path}/out2")
    assert "1 GeoTIFF loses the georeference; to keep it" in capfd.readouterr().err
    assert not (tmp_path / "out2/x/a_label.tif").exists()
