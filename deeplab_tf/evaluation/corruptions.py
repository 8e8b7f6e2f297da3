"""Images as bad weather, bad optics and bad links make them.

The 15 common corruptions of Hendrycks and Dietterich (arXiv:1903.12261), each at five
severities; Kamann and Rother (arXiv:1908.05005) measure DeepLab with them. They are
computed by a kept fork of the reference code, imagecorruptions-imaug. Labels stay as
they are: what moves pixels (`elastic_transform`, `zoom_blur`) moves them by little.
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
_SEEDS = 2**32  # as many as NumPy's global generator takes
_LEAST_SIDE = 32  # pixels; the reference code takes no smaller images
# These draw from generators of their own: one of scikit-image, one of compiled code.
_OWN_GENERATOR = ("impulse_noise", "glass_blur")
_DISTRIBUTION = "imagecorruptions-imaug"


def _package():
    """Returns the module of the reference code."""
    try:
        # What it was forked from has the same module name but cannot be seeded.
        metadata.version(_DISTRIBUTION)
        return importlib.import_module("imagecorruptions")
    except ImportError as error:
        # Without its dependencies: opencv-python would replace the build without a
        # window system that this package uses.
        raise UserError(
            "corruptions need pip install scikit-image numba and pip install --no-deps "
            f"{_DISTRIBUTION} ({error})"
        ) from error


def _check_kind(name: str, severity: int) -> None:
    if name not in CORRUPTIONS:
        hint = suggest_similar(name, CORRUPTIONS)
        raise UserError(
            f"there is no corruption {name!r}; {hint}all are {', '.join(CORRUPTIONS)}"
        )
    if severity not in _SEVERITIES:
        raise UserError(f"severity must be an integer in 1..5; received {severity!r}")


def _check_shape(shape: tuple[int, ...]) -> None:
    """Refuses what is no RGB image `[height, width, 3]` or too small."""
    if len(shape) != 3 or shape[-1] != 3:
        raise UserError(
            f"corruptions are of RGB images [height, width, 3]; received {list(shape)}"
        )
    height, width = shape[:2]
    if min(height, width) < _LEAST_SIDE:
        raise UserError(
            f"corruptions need images of at least {_LEAST_SIDE}x{_LEAST_SIDE} pixels; "
            f"received {width}x{height}"
        )


def corrupt(image: np.ndarray, name: str, severity: int, seed: int) -> np.ndarray:
    """Returns an image with one corruption, uint8 `[height, width, 3]`.

    The same arguments give the same bytes, whatever was drawn before. The reference
    code draws from NumPy's global generator, whose state is left as it was; so not two
    threads at once.

    Args:
        image: uint8 RGB `[height, width, 3]`, both sides at least 32 pixels.
        name: One of `CORRUPTIONS`.
        severity: 1 (weak) to 5.
        seed: What the random ones draw from, 0..2^32-1.

    Raises:
        UserError: if an argument is not as above or the reference code is not
            installed.
    """
    _check_kind(name, severity)
    image = np.asarray(image)
    _check_shape(image.shape)
    if image.dtype != np.uint8:
        raise UserError(f"corruptions are of uint8 images; received {image.dtype}")
    if seed not in range(_SEEDS):
        raise UserError(f"seed must be an integer in 0..{_SEEDS - 1}; received {seed}")
    package = _package()
    own_seed = {"seed": seed} if name in _OWN_GENERATOR else {}
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        # Some come back transposed in memory.
        return np.ascontiguousarray(package.corrupt(image, severity, name, **own_seed))
    finally:
        np.random.set_state(state)


def corrupted(
    dataset: Iterable, name: str, severity: int, seed: int = 0
) -> Iterator[tuple]:
    """Returns the batches of a dataset with every image corrupted.

    What an image becomes depends on its own pixels and the arguments, neither on the
    batch nor on the order.

    Args:
        dataset: Batches of images `[batch, height, width, 3]`, RGB 0..255, and labels,
            behind which names may come; arrays or tensors. Images are rounded to the 8
            bits of a file.
        name: One of `CORRUPTIONS`.
        severity: 1 (weak) to 5.
        seed: Any integer; another one draws other noise.

    Returns:
        An iterator over batches: float32 images, 0..255, of the same shape, and the
        labels and names as they came.

    Raises:
        UserError: at once if the name or the severity is unknown or the reference code
            is not installed; from the iterator if images are no RGB or too small.
    """
    _check_kind(name, severity)
    _package()

    def corrupt_alone(image):
        settings = f"{name} {severity} {seed}".encode()
        own_seed = zlib.crc32(image.tobytes(), zlib.crc32(settings))
        return corrupt(image, name, severity, own_seed)

    return (
        (np.float32([corrupt_alone(image) for image in _as_bytes(images)]), *rest)
        for images, *rest in dataset
    )


def _as_bytes(images) -> np.ndarray:
    """Returns images 0..255 as uint8, rounded."""
    return np.rint(np.clip(np.asarray(images), 0, 255)).astype(np.uint8)
