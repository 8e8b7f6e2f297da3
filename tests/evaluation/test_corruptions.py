"""Image corruptions: formulas computed by hand, determinism and validation."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from deeplab_tf.errors import UserError
from deeplab_tf.evaluation import corruptions
from deeplab_tf.evaluation.corruptions import CORRUPTIONS, corrupt, corrupt_dataset
from deeplab_tf.evaluation.evaluator import evaluate

# The remaining ones are independent of the seed.
RANDOM = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur"),
    *("snow", "frost", "fog", "elastic_transform"),
)


@pytest.fixture
def package():
    """The reference implementation."""
    return pytest.importorskip(
        "imagecorruptions", reason="needs imagecorruptions-imaug"
    )


def scene(height, width):
    """Returns waves of colour with a dark disc, uint8 `[height, width, 3]`."""
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / 5 + k) * np.cos(y / 7 - k) for k in range(3)]
    image = np.stack(waves, axis=-1).astype(np.uint8)
    image[(y - height / 2) ** 2 + (x - width / 2) ** 2 < 81] = 20, 40, 30
    return image


IMAGE = scene(37, 45)


def test_corruptions_match_the_paper_in_order(package):
    assert list(CORRUPTIONS) == package.get_corruption_names()
    assert len(CORRUPTIONS) == 15


def test_corruption_names_do_not_need_the_package():
    code = (
        "import sys; from deeplab_tf.evaluation import corruptions; "
        "print(len(corruptions.CORRUPTIONS), 'imagecorruptions' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["15", "False"]


@pytest.mark.parametrize(
    ("severity", "dark", "bright"),
    [
        # The mean is 102.5, both are 51.5 away from it; 0.4 * 51.5 = 20.6. The result
        # is truncated: 81.9 and 123.1.
        (1, 81, 123),
        (3, 92, 112),  # 0.2 * 51.5 = 10.3
        (5, 99, 105),  # 0.05 * 51.5 = 2.575
    ],
)
def test_contrast_pulls_each_channel_to_its_mean(package, severity, dark, bright):
    image = np.full((32, 40, 3), 70, np.uint8)
    image[:, :20, 1], image[:, 20:, 1] = 51, 154
    expected = image.copy()
    expected[:, :20, 1], expected[:, 20:, 1] = dark, bright
    result = corrupt(image, "contrast", severity, 0)
    np.testing.assert_array_equal(result[..., 1], expected[..., 1])
    # 70 / 255 * 255 may round to less than 70, and is then truncated.
    assert set(np.unique(result[..., [0, 2]])) <= {69, 70}


@pytest.mark.parametrize(("severity", "side"), [(2, 2), (5, 4)])
def test_pixelate_averages_squares(package, severity, side):
    # Multiples of 16, so that the means of 2 and of 4 rows and columns are integers.
    image = 16 * np.random.RandomState(0).randint(0, 16, (32, 48, 3)).astype(np.uint8)
    squares = image.reshape(32 // side, side, 48 // side, side, 3).mean((1, 3))
    expected = squares.repeat(side, 0).repeat(side, 1)
    np.testing.assert_array_equal(corrupt(image, "pixelate", severity, 0), expected)


@pytest.mark.parametrize(
    ("severity", "levels"),
    # 0.1 * 255 = 25.5 and 0.5 * 255 = 127.5 are added; then truncated and clipped.
    [(1, [35, 125, 225, 255]), (5, [137, 227, 255, 255])],
)
def test_brightness_is_added_to_grey(package, severity, levels):
    image = np.repeat(np.uint8([10, 100, 200, 240]), 8)
    image = np.broadcast_to(image[:, None, None], (32, 33, 3))
    result = corrupt(image, "brightness", severity, 0)
    expected = np.broadcast_to(np.repeat(levels, 8)[:, None, None], (32, 33, 3))
    np.testing.assert_array_equal(result, expected)


def test_corruptions_change_pixels_but_not_the_size(package):
    before = IMAGE.copy()
    for name in CORRUPTIONS:
        results = [corrupt(IMAGE, name, severity, 3) for severity in range(1, 6)]
        for result in results:
            assert (result.dtype, result.shape) == (np.uint8, IMAGE.shape)
            assert (result != IMAGE).any(), name
            assert result.flags.c_contiguous, name
        for weaker, stronger in itertools.pairwise(results):
            assert (weaker != stronger).any(), name
    np.testing.assert_array_equal(IMAGE, before)


@pytest.mark.parametrize("size", [(32, 32), (33, 500), (500, 33)])
def test_narrow_images_keep_their_size(package, size):
    check_sizes(size, severities=(5,))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "severities"),
    [((375, 500), range(1, 6)), ((1024, 2048), (1, 5)), ((2048, 1024), (5,))],
)
def test_large_images_keep_their_size(package, size, severities):
    check_sizes(size, severities)


def check_sizes(size, severities):
    image = scene(*size)
    for name in CORRUPTIONS:
        for severity in severities:
            result = corrupt(image, name, severity, 1)
            assert (result.dtype, result.shape) == (np.uint8, image.shape), name
            assert (result != image).any(), name


def test_equal_seeds_give_equal_images_in_any_order(package):
    seeds = (0, 5, 2**32 - 1)
    first = {(n, s): corrupt(IMAGE, n, 3, s) for n in CORRUPTIONS for s in seeds}
    np.random.random(7)
    for name, seed in reversed(first):
        again = corrupt(IMAGE, name, 3, seed)
        np.testing.assert_array_equal(again, first[name, seed], name)
    for name in CORRUPTIONS:
        differs = (first[name, 0] != first[name, 5]).any()
        assert differs == (name in RANDOM), name


def test_global_numpy_generator_is_unchanged(package):
    np.random.seed(7)
    expected = np.random.random(3)
    np.random.seed(7)
    for name in CORRUPTIONS:
        corrupt(IMAGE, name, 2, 11)
    np.testing.assert_array_equal(np.random.random(3), expected)


IMAGES = np.stack([np.roll(IMAGE, 3 * i, axis=1) for i in range(3)])
LABELS = np.arange(3 * 37 * 45, dtype=np.int32).reshape(3, 37, 45, 1)


@pytest.mark.parametrize("name", ["gaussian_noise", "impulse_noise", "glass_blur"])
def test_result_is_independent_of_batches_and_order(package, name):
    images = IMAGES.astype(np.float32)
    batched = [(images[:2], LABELS[:2]), (images[2:], LABELS[2:])]
    expected = np.concatenate([x for x, _ in corrupt_dataset(batched, name, 3)])
    assert (expected.dtype, expected.shape) == (np.float32, images.shape)
    single = [(images[i : i + 1], LABELS[i : i + 1]) for i in (2, 0, 1)]
    for i, (image, label) in zip(
        (2, 0, 1), corrupt_dataset(single, name, 3), strict=True
    ):
        np.testing.assert_array_equal(image, expected[i : i + 1])
        np.testing.assert_array_equal(label, LABELS[i : i + 1])


def added_noise(images, severity=3, seed=0):
    """Returns the Gaussian noise added to images, `[batch, h, w, 3]`."""
    [(noisy, _)] = corrupt_dataset([(images, LABELS)], "gaussian_noise", severity, seed)
    return noisy - images


def test_each_image_and_seed_has_its_own_noise(package):
    # Far from black and white, so that nothing is clipped at severity 1.
    images = np.full((3, 37, 45, 3), 127, np.float32)
    images[1, 0, 0] = 128
    noise = added_noise(images, severity=1)
    np.testing.assert_array_equal(noise[0], noise[2])
    for other in (noise[1], added_noise(images, 1, seed=1)[0]):
        assert abs(np.corrcoef(noise[0].ravel(), other.ravel())[0, 1]) < 0.1
    # The noise of severity 2 is not a scaled copy of that of severity 1.
    stronger = added_noise(images, severity=2)[0]
    assert abs(np.corrcoef(noise[0].ravel(), stronger.ravel())[0, 1]) < 0.1


def test_images_of_a_dataset_are_rounded_to_uint8(package):
    images = IMAGES + np.float32(0.4)
    images[:, 0, 0], images[:, 0, 1] = 300, -3
    names = [b"a", b"b", b"c"]
    dataset = tf.data.Dataset.from_tensor_slices((images, LABELS, names)).batch(3)
    [(darker, labels, same_names)] = corrupt_dataset(dataset, "contrast", 4, seed=-1)
    as_bytes = IMAGES.copy()
    as_bytes[:, 0, 0], as_bytes[:, 0, 1] = 255, 0
    expected = [corrupt(image, "contrast", 4, 0) for image in as_bytes]
    np.testing.assert_array_equal(darker, expected)
    np.testing.assert_array_equal(labels, LABELS)
    assert same_names.numpy().tolist() == names


def test_score_drops_with_severity(package, color_model):
    # Dim red, green and blue, whose classes are 0, 1 and 2.
    labels = np.repeat(np.arange(3), 16)[None, :, None, None].repeat(40, 2)
    images = np.float32(60 * np.eye(3)[labels[..., 0]] + 60)
    batches = [(images, labels.astype(np.uint8))]
    assert evaluate(color_model, batches)["miou"] == 1
    slightly = evaluate(color_model, corrupt_dataset(batches, "gaussian_noise", 1))
    strongly = evaluate(color_model, corrupt_dataset(batches, "gaussian_noise", 5))
    assert 1 / 3 < strongly["miou"] < slightly["miou"] < 1


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"name": "gausian_noise"},
            "^there is no corruption 'gausian_noise'; similar: gaussian_noise.*; "
            "it must be one of gaussian_noise, shot_noise, .*, jpeg_compression$",
        ),
        ({"name": "???"}, r"^there is no corruption '\?\?\?'; it must be one of"),
        # In the package, but none of the paper's 15.
        ({"name": "spatter"}, "^there is no corruption 'spatter'; "),
        ({"severity": 0}, "^severity must be an integer in 1..5; received 0$"),
        ({"severity": 6}, "received 6$"),
        ({"severity": 2.5}, "received 2.5$"),
        ({"seed": -1}, r"^seed must be an integer in 0\.\.4294967295; received -1$"),
        ({"seed": 2**32}, "received 4294967296$"),
        (
            {"image": IMAGE[..., 0]},
            r"RGB images \[height, width, 3\]; received \[37, 45\]$",
        ),
        ({"image": IMAGE[..., :1]}, r"received \[37, 45, 1\]$"),
        ({"image": IMAGES}, r"received \[3, 37, 45, 3\]$"),
        ({"image": IMAGE[:31]}, "at least 32x32 pixels; received 45x31$"),
        ({"image": IMAGE[:, :31]}, "received 31x37$"),
        ({"image": IMAGE / 255}, "need uint8 images; received float64$"),
    ],
)
def test_invalid_arguments_give_one_line_errors(changed, message):
    arguments = {"image": IMAGE, "name": "fog", "severity": 1, "seed": 0, **changed}
    with pytest.raises(UserError, match=message) as error:
        corrupt(**arguments)
    assert "\n" not in str(error.value)


def test_invalid_arguments_are_refused_before_reading(package):
    def unread():
        raise AssertionError
        yield

    with pytest.raises(UserError, match="similar: fog"):
        corrupt_dataset(unread(), "fogg", 1)
    with pytest.raises(UserError, match="severity must be"):
        corrupt_dataset(unread(), "fog", 9)
    grey = corrupt_dataset([(np.zeros((1, 40, 40, 1)), LABELS)], "fog", 1)
    with pytest.raises(UserError, match=r"RGB images .*received \[40, 40, 1\]"):
        next(grey)


def assert_install_commands():
    commands = (
        r"need more packages \(.*\); run pip install scikit-image numba, then "
        "pip install --no-deps imagecorruptions-imaug"
    )
    for call in (corrupt, corrupt_dataset):
        with pytest.raises(UserError, match=commands) as error:
            call(IMAGE, "fog", 1, 0)
        assert "\n" not in str(error.value)


def test_missing_package_error_shows_install_commands(monkeypatch):
    # Python's own mark of a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    assert_install_commands()


def test_original_imagecorruptions_package_is_refused(monkeypatch):
    def version(name):
        raise corruptions.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(corruptions.metadata, "version", version)
    assert_install_commands()
