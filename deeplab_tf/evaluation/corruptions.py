"""Image corruptions such as noise, blur, weather and compression.

The 15 common corruptions of Hendrycks and Dietterich (1903.12261) at five severities,
which Kamann and Rother (1908.05005) use to evaluate DeepLab. They are computed by
imagecorruptions-imaug, a maintained fork of the reference code. Labels stay unchanged,
because even `elastic_transform` and `zoom_blur` move pixels only slightly.
"""

import importlib
import zlib
from collections.abc import Iterable, Iterator
from importlib import metadata

import numpy as np

from deeplab_tf.errors import UserError, suggest_similar

CORRUPTIONS = (
    # noise
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    # blur
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    # weather
    "snow",
    "frost",
    "fog",
    "brightness",
    # digital
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
_SEVERITIES = range(1, 6)
_SEEDS = 2**32  # number of valid seeds of NumPy's global generator
_LEAST_SIDE = 32  # pixels; the minimum in the reference code
# These use their own random generators, in scikit-image and in compiled code.
_OWN_GENERATOR = ("impulse_noise", "glass_blur")
_DISTRIBUTION = "imagecorruptions-imaug"


def _import_package():
    """Imports the reference code; raises UserError if it is not installed."""
    try:
        # The original package has the same module name but cannot be seeded.
        metadata.version(_DISTRIBUTION)
        return importlib.import_module("imagecorruptions")
    except ImportError as error:
        # --no-deps, because opencv-python would replace the headless build.
        raise UserError(
            f"corruptions need more packages ({error}); run pip install scikit-image "
            f"numba, then pip install --no-deps {_DISTRIBUTION}"
        ) from error


def _check_kind(name: str, severity: int) -> None:
    """Raises UserError for an unknown corruption or a severity outside 1..5."""
    if name not in CORRUPTIONS:
        hint = suggest_similar(name, CORRUPTIONS)
        raise UserError(
            f"there is no corruption {name!r}; {hint}it must be one of "
            f"{', '.join(CORRUPTIONS)}"
        )
    if severity not in _SEVERITIES:
        raise UserError(f"severity must be an integer in 1..5; received {severity!r}")


def _check_shape(shape: tuple[int, ...]) -> None:
    """Raises UserError unless the shape is `[height, width, 3]` and large enough."""
    if len(shape) != 3 or shape[-1] != 3:
        raise UserError(
            f"corruptions need RGB images [height, width, 3]; received {list(shape)}"
        )
    height, width = shape[:2]
    if min(height, width) < _LEAST_SIDE:
        raise UserError(
            f"corruptions need images of at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels; "
            f"received {width}x{height}"
        )


def corrupt(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """Applies a corruption to an image, uint8 `[height, width, 3]`.

    Deterministic, but not thread-safe: the reference code uses NumPy's global random
    generator, whose state is restored afterwards.

    Args:
        image: uint8 RGB `[height, width, 3]`, both sides at least 32 pixels.
        name: One of `CORRUPTIONS`.
        severity: 1 (weak) to 5.
        seed: Random seed, 0..2^32-1.

    Raises:
        UserError: for an invalid argument, or if the reference code is not installed.
    """
    _check_kind(name, severity)
    image = np.asarray(image)
    _check_shape(image.shape)
    if image.dtype != np.uint8:
        raise UserError(f"corruptions need uint8 images; received {image.dtype}")
    if seed not in range(_SEEDS):
        raise UserError(f"seed must be an integer in 0..{_SEEDS - 1}; received {seed}")
    package = _import_package()
    own_seed = {"seed": seed} if name in _OWN_GENERATOR else {}
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        # Some results are not contiguous in memory.
        return np.ascontiguousarray(package.corrupt(image, severity, name, **own_seed))
    finally:
        np.random.set_state(state)


def corrupt_dataset(
    dataset: Iterable, name: str, severity: int, seed: int = 0
) -> Iterator[tuple]:
    """Applies a corruption to each image of a dataset.

    The result for an image depends only on its pixels and the arguments, not on batch
    or order.

    Args:
        dataset: Batches of images `[batch, height, width, 3]`, RGB 0..255, labels and
            optionally names; arrays or tensors. Images are rounded to uint8.
        name: One of `CORRUPTIONS`.
        severity: 1 (weak) to 5.
        seed: Any integer.

    Returns:
        An iterator over the batches, with corrupted float32 images 0..255.

    Raises:
        UserError: immediately if the name or severity is unknown or the reference code
            is not installed; during iteration if an image is too small or not RGB.
    """
    _check_kind(name, severity)
    _import_package()

    def corrupt_image(image):
        settings = f"{name} {severity} {seed}".encode()
        own_seed = zlib.crc32(image.tobytes(), zlib.crc32(settings))
        return corrupt(image, name, severity, own_seed)

    return (
        (np.float32([corrupt_image(image) for image in _to_uint8(images)]), *rest)
        for images, *rest in dataset
    )


def _to_uint8(images) -> np.ndarray:
    return np.rint(np.clip(np.asarray(images), 0, 255)).astype(np.uint8)
