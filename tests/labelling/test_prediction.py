"""`predict_labels` takes arrays, files and PIL images, and refuses anything else."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import deeplab_tf
from deeplab_tf import ModelConfig, UserError, predict_labels
from deeplab_tf.images.inputs import read_image
from deeplab_tf.inference import Predictor
from deeplab_tf.labelling import prediction

ORIENTATION = 0x0112


def make_images(*shape, channels=3):
    random = np.random.RandomState(5)
    return random.randint(0, 256, (*shape, channels)).astype(np.uint8)


def expected_labels(model, image, **protocol):
    """Returns the labels `[height, width]` of an array by `Predictor`."""
    return Predictor(model, **protocol).labels(image[None])[0].numpy()


def to_jax(images):
    return pytest.importorskip("jax").numpy.asarray(images)


@pytest.mark.parametrize(
    "convert",
    [np.asarray, np.float32, np.float64, np.int64, tf.constant, to_jax],
    ids=["uint8", "float32", "float64", "int64", "tensorflow", "jax"],
)
def test_one_image_and_a_batch_keep_their_axes(strided_model, convert):
    images = make_images(2, 12, 15)
    batch = predict_labels(strided_model, convert(images))
    assert isinstance(batch, np.ndarray)
    assert batch.dtype == np.int32 and batch.shape == (2, 12, 15)
    for image, labels in zip(images, batch, strict=True):
        expected = expected_labels(strided_model, image)
        np.testing.assert_array_equal(labels, expected)
        one = predict_labels(strided_model, convert(image))
        assert isinstance(one, np.ndarray)
        np.testing.assert_array_equal(one, expected)


@pytest.mark.parametrize(
    "protocol",
    [
        {"crop_size": (33, 40)},
        {"crop_size": [np.int64(33), 40]},
        {"scales": (0.5, 1.0), "flip": True},
        {"window": (65, 97)},
        {"memory_limit": 3e6},
    ],
)
def test_protocol_matches_predictor(strided_model, protocol):
    image = make_images(150, 170)
    labels = predict_labels(strided_model, image, **protocol)
    expected = expected_labels(strided_model, image, **protocol)
    np.testing.assert_array_equal(labels, expected)
    assert np.any(labels != predict_labels(strided_model, image))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Image files by name: colour, grey, palette, transparent, CMYK and rotated."""
    folder = tmp_path_factory.mktemp("images")
    color = Image.fromarray(make_images(20, 31))
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    images = {
        "color.png": color,
        "grey.png": color.convert("L"),
        "grey_alpha.png": color.convert("LA"),
        "binary.png": color.convert("1"),
        "palette.png": color.quantize(7),
        "alpha.png": Image.fromarray(make_images(20, 31, channels=4)),
        "cmyk.jpg": color.convert("CMYK"),
    }
    paths = {}
    for name, image in images.items():
        paths[name] = folder / name
        image.save(paths[name])
    paths["rotated.png"] = folder / "rotated.png"
    color.save(paths["rotated.png"], exif=exif)
    return paths


def test_files_and_pil_images_are_read_like_in_predict(color_model, files):
    for name, path in files.items():
        image = read_image(str(path))
        expected = np.argmax(image, -1)
        assert expected.shape == ((31, 20) if name == "rotated.png" else (20, 31))
        for given in (str(path), path):
            labels = predict_labels(color_model, given)
            np.testing.assert_array_equal(labels, expected, name)
            assert labels.dtype == np.int32
        with Image.open(path) as opened:
            labels = predict_labels(color_model, opened)
        # Pillow and TensorFlow convert CMYK with other rounding.
        same = np.mean(labels == expected)
        assert labels.shape == expected.shape and same >= (0.9 if "cmyk" in name else 1)


def test_list_gives_labels_in_order_and_shares_batches(color_model, files, monkeypatch):
    batches = []
    labels_of = Predictor.labels

    def spy(self, images):
        batches.append(images.shape.as_list()[:3])
        return labels_of(self, images)

    monkeypatch.setattr(Predictor, "labels", spy)
    arrays = [make_images(*size) for size in [(9, 8), (8, 9), (9, 8), (9, 8)]]
    mixed = [
        *arrays,
        files["rotated.png"],
        Image.fromarray(arrays[1]),
        files["alpha.png"],
    ]
    expected = [*arrays, None, arrays[1], None]
    for kind in (list, tuple):
        batches.clear()
        labels = predict_labels(color_model, kind(mixed))
        assert isinstance(labels, list) and len(labels) == 7
        for found, array in zip(labels, expected, strict=True):
            if array is not None:
                np.testing.assert_array_equal(found, np.argmax(array, -1))
        assert labels[4].shape == (31, 20) and labels[6].shape == (20, 31)
        assert sorted(batches) == [[1, 20, 31], [1, 31, 20], [2, 8, 9], [3, 9, 8]]
    batches.clear()
    predict_labels(color_model, arrays, batch_size=2)
    assert batches == [[1, 8, 9], [2, 9, 8], [1, 9, 8]]
    # Without a batch size, the number of pixels per batch is limited.
    batches.clear()
    monkeypatch.setattr(prediction, "_BATCH_PIXELS", 2 * 9 * 8 + 71)
    together = predict_labels(color_model, np.stack([arrays[0]] * 5))
    assert batches == [[2, 9, 8], [2, 9, 8], [1, 9, 8]]
    np.testing.assert_array_equal(together, 5 * [np.argmax(arrays[0], -1)])


def test_many_images_are_labelled_by_one_compiled_function(tiny_model, monkeypatch):
    images = [make_images(*size) for size in [(33, 49), (20, 31), (33, 49)]]
    images = [images[0], images[1].astype(np.float32), images[2]]
    expected = predict_labels(tiny_model, images)
    traces = []
    labels_of = Predictor.labels
    monkeypatch.setattr(
        Predictor, "labels", lambda *x: traces.append(x) or labels_of(*x)
    )
    monkeypatch.setattr(prediction, "_IMAGES_TO_COMPILE", 3)
    labels = predict_labels(tiny_model, images)
    assert len(traces) == 1
    for found, one in zip(labels, expected, strict=True):
        np.testing.assert_array_equal(found, one)


NORMALIZED = np.linspace(-2.1, 2.6, 4 * 5 * 3).reshape(4, 5, 3).astype(np.float32)
IMAGE = make_images(4, 5)
REFUSED = [
    (None, "must be an array .*; received None; give several images as"),
    (3, "must be an array .*; received 3"),
    ({"a": IMAGE}, "must be an array .*; received {"),
    (iter([IMAGE]), "must be an array .*; received <list_iterator"),
    (b"\x89PNG", "must be an array .*; received b'"),
    ([], "must contain at least one image; received none"),
    (IMAGE[:0], r"must not be empty; .* \[0, 5, 3\]"),
    (IMAGE[None][:0], r"must not be empty; .* \[0, 4, 5, 3\]"),
    (
        IMAGE[..., 0],
        r"must have the shape \[height, width, 3\]; received \[4, 5\]; repeat a grey "
        r"image with np.stack\(\[image\] \* 3, -1\)$",
    ),
    (IMAGE[..., :1], r"must have .* \[4, 5, 1\]; .*np.repeat\(images, 3, -1\)$"),
    (
        make_images(4, 5, channels=4),
        r"must have .*; received \[4, 5, 4\]; drop the alpha channel with images\[\.",
    ),
    (
        np.moveaxis(IMAGE, -1, 0),
        r"must have .*; received \[3, 4, 5\]; move the channels .*np.moveaxis\(",
    ),
    (
        np.moveaxis(IMAGE, -1, 0)[None],
        r"must have the shape \[batch, height, width, 3\]; .* np.moveaxis\(",
    ),
    (IMAGE[None, None], r"must have .* \[1, 1, 4, 5, 3\]$"),
    (np.array([IMAGE, None], object), "must be an array of uint8 .* object; .* a list"),
    (np.array(["a.png"]), "must be an array of uint8 or float32; .*paths as a list$"),
    (IMAGE > 3, "must be an array of uint8 or float32; received bool$"),
    (
        IMAGE / np.float32(256),
        "must be RGB 0..255; .* to 0.99.*; multiply them by 255, or",
    ),
    (NORMALIZED, "must be RGB 0..255; received values from -2.1 to 2.6; do not norm"),
    (256.0 * IMAGE, "must be RGB 0..255; received values from .*; scale or clip them"),
    (IMAGE.astype(np.int16) - 300, "must be RGB 0..255; .* from -.*; scale or clip"),
    (np.where(IMAGE > 9, IMAGE, np.nan), "must be RGB 0..255; .* from nan to nan$"),
    (np.full((4, 5, 3), np.inf), "must be RGB 0..255; .* from inf to inf$"),
    (Image.new("I;16", (5, 4)), "has mode I;16; scale it to 8 bits and convert it"),
    (Image.new("F", (5, 4)), "has mode F; scale it to 8 bits"),
]


@pytest.mark.parametrize(("images", "message"), REFUSED)
def test_invalid_images_are_refused_before_inference(
    color_model, monkeypatch, images, message
):
    monkeypatch.delattr(Predictor, "labels")
    with pytest.raises(UserError, match=f"^images {message}") as error:
        predict_labels(color_model, images)
    assert "\n" not in str(error.value)
    if not isinstance(images, list):
        message = message.replace("[batch, height", "[height")
        with pytest.raises(UserError, match=r"^images\[1\] must|^images\[1\] has"):
            predict_labels(color_model, [IMAGE, images])


@pytest.mark.parametrize("value", [0, 255, 255.4, -0.4])
def test_black_images_and_rounding_are_accepted(color_model, value):
    image = np.full((4, 5, 3), value, np.float32)
    assert predict_labels(color_model, image).shape == (4, 5)
    assert predict_labels(color_model, (IMAGE > 9).astype(np.uint8)).shape == (4, 5)


def test_invalid_paths_are_refused_before_inference(
    color_model, files, tmp_path, monkeypatch
):
    monkeypatch.delattr(Predictor, "labels")
    text = tmp_path / "notes.jpg"
    text.write_text("not an image file")
    for path, message in [
        (
            tmp_path,
            r"^images\[1\] must be an image file; received the folder .*; list its",
        ),
        (tmp_path / "none.jpg", r"none.jpg does not exist"),
        (text, rf"^{text} is broken: its 17 bytes are not an image"),
    ]:
        with pytest.raises(UserError, match=message):
            predict_labels(color_model, [files["color.png"], path])


def test_invalid_arguments_are_refused(strided_model, tmp_path):
    for options, message in [
        ({"crop_size": 513}, r"crop_size must be .*; use crop_size=\(513, 513\)$"),
        ({"scales": "1.0"}, "scales must be finite numbers"),
        ({"window": (9, 9), "memory_limit": 1e9}, "window and memory_limit are mutual"),
        ({"batch_size": 0}, "batch_size must be at least 1; received 0"),
    ]:
        with pytest.raises(UserError, match=f"^{message}"):
            predict_labels(strided_model, IMAGE, **options)


def test_models_with_four_channels_accept_arrays_and_files(files):
    config = ModelConfig(num_classes=2, channels=4, depth_multiplier=0.1)
    model = deeplab_tf.build_model(config)
    assert predict_labels(model, make_images(9, 17, channels=4)).shape == (9, 17)
    for images, message in [
        (IMAGE, r"images must have the shape \[height, width, 4\]; .*\[4, 5, 3\]$"),
        (files["color.png"], r".*color.png has the shape \(20, 31, 3\); .* 4 channels"),
        (Image.fromarray(IMAGE), r"images must be an array .* because .* needs 4 ch"),
    ]:
        with pytest.raises(UserError, match=f"^{message}"):
            predict_labels(model, images)


def test_error_names_the_fixed_size_of_a_model(shallow):
    model = deeplab_tf.build_model(
        ModelConfig(num_classes=3), image_size=(33, 49), batch_size=1
    )
    image = np.zeros((33, 49, 3), np.uint8)
    assert predict_labels(model, image).shape == (33, 49)
    message = "takes images of 33x49 pixels only; .* would get 33x33; build it without"
    with pytest.raises(UserError, match=message):
        predict_labels(model, image[:, :20])
