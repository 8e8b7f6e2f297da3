"""Inference: padding, scales, mirrored images and sliding windows."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from reference_heads import fill_variables

from deeplab_tf.config import ModelConfig
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.labelling.prediction import predict_labels
from deeplab_tf.models.deeplab import build_model
from deeplab_tf.windows import translate_limit_errors

pytestmark = pytest.mark.usefixtures("shallow")


def make_images(*shape):
    return np.random.RandomState(5).randint(0, 256, (*shape, 3)).astype(np.float32)


def softmax(x):
    exponential = np.exp(x - x.max(-1, keepdims=True))
    return exponential / exponential.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def compiled_labels(tiny_model):
    """A compiled function from uint8 images of any size to labels."""
    return compile_labels(tiny_model)


def compile_labels(model, **options):
    images = tf.TensorSpec([None, None, None, 3], tf.uint8)
    return tf.function(Predictor(model, **options).labels, input_signature=[images])


@pytest.mark.parametrize(
    ("size", "crop_size", "padded"),
    [
        # To the next 8 k + 1.
        ((1, 1), None, (1, 1)),
        ((2, 8), None, (9, 9)),
        ((9, 10), None, (9, 17)),
        ((16, 17), None, (17, 17)),
        ((25, 31), None, (25, 33)),
        # To the crop size; larger sides stay.
        ((16, 17), (33, 40), (33, 40)),
        ((41, 17), (33, 40), (41, 40)),
    ],
)
def test_images_are_padded_with_the_mean_pixel(strided_model, size, crop_size, padded):
    predictor = Predictor(strided_model, crop_size=crop_size)
    network, inputs = predictor.network, []

    def spy(images, training):
        assert training is False
        inputs.append(np.array(images))
        return network(images, training=training)

    predictor.networks = dict.fromkeys(predictor.scales, spy)
    images = make_images(2, *size)
    assert predictor.labels(images).shape == (2, *size)
    expected = np.full((2, *padded, 3), 127.5, np.float32)
    expected[:, : size[0], : size[1]] = images
    (inputs,) = inputs
    np.testing.assert_array_equal(inputs, expected)


@pytest.mark.parametrize("size", [(17, 17), (33, 49), (65, 33)])
def test_labels_of_aligned_sizes_equal_model_argmax(tiny_model, compiled_labels, size):
    images = make_images(2, *size)
    expected = np.argmax(tiny_model(images, training=False), -1)
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(predict_labels(tiny_model, images), expected)
    np.testing.assert_array_equal(compiled_labels(images.astype(np.uint8)), expected)


@pytest.mark.parametrize("size", [(40, 50), (70, 50)])
def test_crop_size_matches_manual_padding(tiny_model, size):
    images = make_images(1, *size)
    canvas = np.full((1, max(65, size[0]), 81, 3), 127.5, np.float32)
    canvas[:, : size[0], : size[1]] = images
    logits = np.array(tiny_model(canvas, training=False))[:, : size[0], : size[1]]
    probabilities = Predictor(tiny_model, crop_size=(65, 81)).probabilities(images)
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-5)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5)])
def test_mirrored_image_gives_mirrored_probabilities(strided_model, scales):
    images = make_images(1, 33, 49)
    predictor = Predictor(strided_model, scales, flip=True)
    probabilities = predictor.probabilities(images)
    mirrored = predictor.probabilities(images[:, :, ::-1])
    np.testing.assert_allclose(mirrored[:, :, ::-1], probabilities, atol=1e-5)
    one_way = Predictor(strided_model, scales).probabilities(images)
    assert np.abs(one_way - probabilities).max() > 0.01


@pytest.mark.parametrize("scales", [(1.0,), (0.75,), (0.5, 1.25)])
@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_sum_to_1_and_match_the_labels(strided_model, scales, flip):
    images = make_images(2, 20, 31)
    predictor = Predictor(strided_model, scales, flip)
    probabilities = np.array(predictor.probabilities(images))
    assert probabilities.shape == (2, 20, 31, 4) and probabilities.min() >= 0
    np.testing.assert_allclose(probabilities.sum(-1), 1, atol=1e-5)
    labels = predict_labels(strided_model, images, scales, flip)
    np.testing.assert_array_equal(labels, probabilities.argmax(-1))


def test_single_scale_equals_softmax_of_logits(strided_model):
    images = make_images(1, 33, 49)
    logits = np.array(strided_model(images))
    probabilities = Predictor(strided_model).probabilities(images)
    np.testing.assert_allclose(probabilities, softmax(logits), atol=1e-5)


def resize_bilinear(x, size):
    """Returns `[h, w, c]` resized bilinearly, corners on corners (reference 0.2)."""
    for axis, target in enumerate(size):
        place = np.linspace(0, x.shape[axis] - 1, target)
        low = np.floor(place).astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (place - low).reshape([-1 if a == axis else 1 for a in range(3)])
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def compute_mean_probabilities(model, image, stride, scales, flip):
    """Returns probabilities of the official multi-scale protocol (reference 6)."""
    network = keras.Model(model.input, model.get_layer("logits").output)
    size = image.shape[:2]
    total = []
    for scale in scales:
        scaled = resize_bilinear(image, [int((side - 1) * scale + 1) for side in size])
        for step in (1, -1) if flip else (1,):
            logits = np.array(network(scaled[None, :, ::step]))[0, :, ::step]
            if scale < 1:
                logits = resize_bilinear(
                    logits, [(side - 1) // stride + 1 for side in size]
                )
            total.append(softmax(resize_bilinear(logits, size)))
    return np.mean(total, 0)


@pytest.mark.parametrize("flip", [False, True])
def test_probabilities_are_averaged_over_scales(tiny_model, strided_model, flip):
    image, scales = make_images(33, 49), (0.5, 0.75, 1.0, 1.75)
    for model, stride in ((tiny_model, 4), (strided_model, 8)):
        expected = compute_mean_probabilities(model, image, stride, scales, flip)
        probabilities = Predictor(model, scales, flip).probabilities(image[None])
        np.testing.assert_allclose(probabilities[0], expected, atol=1e-4)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_logits_need_not_be_upsampled(tiny_model, scales):
    # The official rule: argmax and softmax at stride 4, 9x13; then nearest neighbour,
    # round-half-up(i * 8 / 32), and bilinear. With several scales, no effect.
    images = make_images(2, 33, 49)
    predictor = Predictor(tiny_model, scales, upsampled_logits=False)
    labels, probabilities = predictor.labels_and_probabilities(images)
    upsampled = Predictor(tiny_model, scales).labels(images)
    if scales != (1.0,):
        np.testing.assert_array_equal(labels, upsampled)
        return
    network = keras.Model(tiny_model.input, tiny_model.get_layer("logits").output)
    logits = np.array(network(images))
    rows, columns = (np.floor(np.arange(n) / 4 + 0.5).astype(int) for n in (33, 49))
    nearest = logits.argmax(-1)[:, rows][:, :, columns]
    np.testing.assert_array_equal(labels, nearest)
    np.testing.assert_array_equal(predictor.labels(images), nearest)
    assert (nearest != np.array(upsampled)).any()
    small = softmax(logits)
    expected = [resize_bilinear(x, (33, 49)) for x in small]
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


def build_filled(**flags):
    """Builds a model with golden weights."""
    given = {"num_classes": 4, "output_stride": 8, "atrous_rates": [2]}
    return fill_variables(build_model(ModelConfig.from_official_flags(given | flags)))[
        0
    ]


@pytest.mark.parametrize("window", [{}, {"image_pooling_crop_size": "33,49"}])
@pytest.mark.parametrize("pyramid", ["0.5,1", "0.5,2"])
def test_several_scales_replace_the_image_pyramid(pyramid, window):
    # As in the official code, which gives each scale of the evaluation to the network
    # as a pyramid of its own.
    images = make_images(1, 33, 49)
    with_pyramid, plain = (
        build_filled(image_pyramid=pyramid, **window),
        build_filled(**window),
    )
    scales = (0.5, 1.0)
    expected = Predictor(plain, scales).probabilities(images)
    found = Predictor(with_pyramid, scales).probabilities(images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    # At scale 1.0 alone, the pyramid applies.
    one = Predictor(with_pyramid).probabilities(images)
    np.testing.assert_allclose(one, softmax(np.array(with_pyramid(images))), atol=1e-5)
    assert np.abs(one - Predictor(plain).probabilities(images)).max() > 0.01


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (33, 41)),
        ({"crop_size": (49, 33)}, (49, 37)),
        ({"crop_size": (49, 33), "window": (33, 33)}, (49, 37)),
        ({"window": (25, 25)}, (30, 37)),
    ],
)
def test_raw_results_include_the_padding(strided_model, options, size):
    images = make_images(2, 30, 37)
    predictor = Predictor(strided_model, **options)
    raw = predictor.raw_labels_and_probabilities(images)
    assert [x.shape[1:3] for x in raw] == 2 * [size]
    np.testing.assert_array_equal(raw[0], np.argmax(raw[1], -1))
    both = predictor.labels_and_probabilities(images)
    for found, expected in zip(raw, both, strict=True):
        np.testing.assert_allclose(predictor.crop(found, images), expected, atol=1e-6)


def test_labels_are_int32_for_any_image_dtype(strided_model):
    images = make_images(2, 12, 15)
    labels = predict_labels(strided_model, images)
    assert isinstance(labels, np.ndarray)
    assert labels.dtype == np.int32 and labels.shape == (2, 12, 15)
    from_uint8 = predict_labels(strided_model, images.astype(np.uint8))
    np.testing.assert_array_equal(from_uint8, labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales must have at least one scale"),
        ({"scales": (1.0, 0.0)}, r"scales must be .* at least 0.01 .*\(1.0, 0.0\)$"),
        ({"scales": (-0.5,)}, r"scales must be .* at least 0.01 .*\(-0.5,\)$"),
        ({"scales": 1}, r"scales must be .*; use scales=\(1.0,\)$"),
        ({"flip": 1}, "flip must be True or False; received 1"),
        ({"crop_size": 513}, r"crop_size must be two .*; use crop_size=\(513, 513\)$"),
        ({"crop_size": (513, 513, 3)}, r"crop_size must be two .*\(513, 513, 3\)$"),
        (
            {"window": (0, 9)},
            r"window must be .* each at least 1 .*\(0, 9\)$",
        ),
        ({"memory_limit": 0}, "memory_limit must be above 0; received 0"),
        (
            {"window": (9, 9), "upsampled_logits": False},
            "windows need upsampled_logits=True; received False$",
        ),
        (
            {"window": (9, 9), "memory_limit": 1 << 30},
            "window and .* are mutually",
        ),
    ],
)
def test_invalid_protocols_are_refused(strided_model, options, message):
    with pytest.raises(UserError, match=f"^{message}"):
        Predictor(strided_model, **options)


def image_sizes():
    """Returns sizes from 1x1 to 700x500: extremes, random ones, and 16 k + 0, 1, 2."""
    random = np.random.RandomState(7)
    drawn = [(random.randint(1, 701), random.randint(1, 501)) for _ in range(8)]
    drawn += [(height, 71 - height) for height in range(1, 71)]
    aligned = [16 * k + 1 + near for k in range(0, 44, 3) for near in (-1, 0, 1)]
    tall = [(h, random.randint(1, 60)) for h in aligned if 1 <= h <= 700]
    wide = [(random.randint(1, 60), w) for w in aligned if 1 <= w <= 500]
    return [(1, 1), (1, 500), (700, 1), (700, 500), *drawn, *tall, *wide]


@pytest.mark.parametrize(("step", "window"), [(1, None), (6, (97, 130))])
def test_labels_have_the_image_size(tiny_model, compiled_labels, step, window):
    label = compile_labels(tiny_model, window=window) if window else compiled_labels
    for size in image_sizes()[::step]:
        labels = label(make_images(1, *size).astype(np.uint8))
        assert labels.dtype == tf.int32 and labels.shape == (1, *size)
        assert 0 <= labels.numpy().min() <= labels.numpy().max() < 5


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
@pytest.mark.parametrize(
    "options", [{"window": (50, 70)}, {"window": (99, 99)}, {"memory_limit": 1 << 30}]
)
def test_image_that_fits_needs_no_windows(strided_model, scales, options):
    images = make_images(2, 50, 70)
    full = Predictor(strided_model, scales)
    windowed = Predictor(strided_model, scales, **options)
    # With a limit images run one by one, which may round differently.
    groups = tf.split(images, 2) if "memory_limit" in options else [images]
    for function in ("labels", "probabilities"):
        expected = tf.concat([getattr(full, function)(x) for x in groups], 0)
        np.testing.assert_array_equal(getattr(windowed, function)(images), expected)


@pytest.mark.parametrize("window", [(20, 31), (13, 5), (64, 9), (50, 40)])
def test_windows_do_not_affect_a_pixelwise_model(color_model, window):
    images = make_images(2, 50, 41) / 255
    expected = Predictor(color_model).probabilities(images)
    predictor = Predictor(color_model, window=window)
    np.testing.assert_allclose(predictor.probabilities(images), expected, atol=1e-6)
    labels = predictor.labels(images)
    np.testing.assert_array_equal(labels, np.argmax(images, -1))


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.5)])
def test_overlaps_are_weighted_by_distance_to_the_edge(strided_model, scales):
    images, (rows, columns) = make_images(2, 60, 45), (25, 33)
    full = Predictor(strided_model, scales)
    total, weight = np.zeros((2, 60, 45, 4)), np.zeros((60, 45, 1))
    near = [np.minimum(np.arange(n) + 1, n - np.arange(n)) for n in (rows, columns)]
    for top in (0, 11, 23, 35):
        for left in (0, 12):
            part = np.s_[:, top : top + rows, left : left + columns]
            values = np.array(full.probabilities(images[part]))
            # A single pass is blended before the softmax.
            scores = np.log(values) if scales == (1.0,) else values
            share = np.outer(*near)[..., None]
            total[part] += share * scores
            weight[part[1:]] += share
    blended = total / weight
    expected = softmax(blended) if scales == (1.0,) else blended
    predictor = Predictor(strided_model, scales, window=(rows, columns))
    np.testing.assert_allclose(predictor.probabilities(images), expected, atol=1e-5)
    np.testing.assert_array_equal(predictor.labels(images), expected.argmax(-1))


def test_compiled_windows_equal_eager_windows(tiny_model):
    predictor = Predictor(tiny_model, window=(33, 49))
    images = tf.TensorSpec([None, None, None, 3], tf.uint8)
    compiled_labels = tf.function(predictor.labels, input_signature=[images])
    for size in ((60, 45), (20, 90), (33, 49)):
        image = make_images(1, *size).astype(np.uint8)
        np.testing.assert_array_equal(compiled_labels(image), predictor.labels(image))


def test_memory_limit_below_the_smallest_window_is_refused(tiny_model):
    with pytest.raises(UserError, match=r"limit of 0 MiB is too small: .* 65x65"):
        Predictor(tiny_model, memory_limit=1 << 16)


def test_image_too_wide_for_the_memory_limit_is_refused(strided_model):
    predictor = Predictor(strided_model, memory_limit=3_000_000)
    assert predictor.labels(make_images(1, 70, 70)).shape == (1, 70, 70)
    # Fits without windows.
    assert predictor.labels(make_images(1, 1, 6000)).shape == (1, 1, 6000)
    labels = predictor.labels
    for label, width in ((labels, 6000), (tf.function(labels), 60000)):
        with (
            pytest.raises(UserError, match=rf"images of {width}x66 pixels;"),
            translate_limit_errors(),
        ):
            label(make_images(1, 66, width))


@pytest.mark.parametrize("options", [{"window": (33, 65)}, {"memory_limit": 3_000_000}])
def test_windows_are_cut_from_the_padded_image(strided_model, options):
    # 81x95 pixels on a canvas of 129x97: its windows are those of the canvas.
    images = make_images(1, 81, 95)
    canvas = np.full((1, 129, 97, 3), 127.5, np.float32)
    canvas[:, :81, :95] = images
    expected = Predictor(strided_model, **options).probabilities(canvas)
    predictor = Predictor(strided_model, crop_size=(129, 97), **options)
    np.testing.assert_allclose(
        predictor.probabilities(images), expected[:, :81, :95], atol=1e-6
    )


def test_memory_limited_windows_do_not_depend_on_the_batch(strided_model):
    images = make_images(3, 150, 170)
    predictor = Predictor(strided_model, memory_limit=3_000_000)
    together = predictor.probabilities(images)
    alone = [predictor.probabilities(image[None])[0] for image in images]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    full = Predictor(strided_model).probabilities(images)
    assert np.abs(full - together).max() > 1e-3


def test_confidences_are_the_probabilities_of_the_labels(strided_model):
    images = make_images(2, 40, 50)
    for options in ({}, {"window": (25, 25)}, {"scales": (0.5, 1.0), "flip": True}):
        predictor = Predictor(strided_model, **options)
        labels, confidences = predictor.labels_and_confidences(images)
        np.testing.assert_array_equal(labels, predictor.labels(images))
        probabilities = np.array(predictor.probabilities(images))
        np.testing.assert_allclose(confidences, probabilities.max(-1), atol=1e-6)


MEMORY_PROGRAM = """
import sys
import quiet_tensorflow  # noqa: F401
import numpy as np
import tensorflow as tf
from deeplab_tf.config import ModelConfig
from deeplab_tf.inference import Predictor
from deeplab_tf.models.deeplab import build_model

backbone, limit, passes = sys.argv[1:]
scales = (0.5, 1.0, 1.25) if passes == "several" else (1.0,)
limit = int(limit) << 20 if int(limit) else None
model = build_model(ModelConfig(backbone, 19))
predictor = Predictor(model, scales, passes == "several", memory_limit=limit)
images = tf.TensorSpec([None, None, None, 3], tf.uint8)
label = tf.function(predictor.labels, input_signature=[images])
label(np.zeros((1, 65, 65, 3), np.uint8))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # resets the peak


def read_kibibytes(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name))


before = read_kibibytes("VmRSS")
label(np.random.default_rng(0).integers(0, 256, (1, 1024, 2048, 3), np.uint8))
print((read_kibibytes("VmHWM") - before) // 1024)
"""


def measure_peak_mebibytes(*arguments):
    command = [sys.executable, "-c", MEMORY_PROGRAM, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux")
@pytest.mark.parametrize(
    ("backbone", "passes", "limit"),
    [
        ("mobilenet_v2", "one", 200),
        ("mobilenet_v2", "one", 450),
        ("mobilenet_v2", "several", 600),
        ("xception_65", "one", 400),
        ("resnet_v1_50_beta", "one", 400),
        ("mobilenet_v3_large_seg", "one", 300),
    ],
)
def test_large_image_stays_below_the_memory_limit(backbone, passes, limit):
    assert measure_peak_mebibytes(backbone, limit, passes) < limit
    assert measure_peak_mebibytes(backbone, 0, passes) > limit
