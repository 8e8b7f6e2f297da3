"""What is common to exported models as evaluation and prediction look at them."""

import abc
import importlib
from collections.abc import Iterable
from types import ModuleType

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError


class Artefact(abc.ABC):
    """An exported model, whatever its form, as something that labels images.

    Args:
        path: Where it is.
        channels: Channels of the images; None takes any.
        info: Class names and colours that were sent along, if any were.
        protocol: What decides about results besides weights.
        gives_probabilities: Whether there are probabilities besides labels.
        num_classes: Number of classes, as far as the probabilities tell it.

    Attributes:
        channels: As above, and so are `info`, `protocol` and `gives_probabilities`.
        num_classes: Number of classes, by the probabilities or the class names; to be
            set where it is None.
    """

    def __init__(
        self,
        path: str,
        channels: int | None,
        info: DatasetInfo | None,
        protocol: dict,
        gives_probabilities: bool,
        num_classes: int | None = None,
    ):
        self._path = path
        self.channels = channels
        self.info = info
        self.num_classes = num_classes or (info.num_classes if info else None)
        self.protocol = protocol
        self.gives_probabilities = gives_probabilities

    def labels(self, images: ArrayLike) -> np.ndarray:
        """Returns the most probable classes, int32 `[batch, height, width]`.

        Args:
            images: RGB 0..255, uint8 or float32, `[batch, height, width, channels]`,
                of one at least.

        Raises:
            UserError: for images that it does not take, and for a label beyond
                `num_classes`.
        """
        labels = self._labels(self._checked(images))
        highest = labels.max(initial=0)
        if self.num_classes is not None and highest >= self.num_classes:
            raise UserError(
                f"{self._path} gives the label {highest}, beyond the last of "
                f"{self.num_classes} classes, {self.num_classes - 1}"
            )
        return labels

    def probabilities(self, images: ArrayLike) -> np.ndarray:
        """Returns float32 `[batch, height, width, num_classes]`, summing to 1.

        Args:
            images: As in `labels`.

        Raises:
            UserError: if it gives labels only, and for images that it does not take.
        """
        if not self.gives_probabilities:
            raise UserError(f"{self._path} gives labels only, no probabilities")
        return self._probabilities(self._checked(images))

    def _checked(self, given: ArrayLike) -> np.ndarray:
        images = np.asarray(given)
        channels = images.shape[-1] if self.channels is None else self.channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(
                f"{self._path} takes images [batch, height, width, "
                f"{self.channels or 'channels'}]; received {list(images.shape)}"
            )
        if not images.size:
            raise UserError(
                f"{self._path} needs an image at least; received {list(images.shape)}"
            )
        return images

    @abc.abstractmethod
    def _labels(self, images: np.ndarray) -> np.ndarray:
        """Returns `labels` of images that were checked."""

    @abc.abstractmethod
    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns `probabilities` of images that were checked."""


def read_file(path: str) -> bytes:
    """Returns what a file of an exported model holds.

    Raises:
        UserError: if there is no such file.
    """
    if not tf.io.gfile.exists(path):
        raise UserError(f"there is no file {path}")
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def import_extra(module: str, path: str, kind: str) -> ModuleType:
    """Imports a module that only one kind of file needs.

    Args:
        module: Name of the module.
        path: The file.
        kind: What it is, for the error.

    Raises:
        UserError: if it is not installed; names the extra that has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f'{path}: {kind} files need pip install "deeplab_tf[export]" ({error})'
        ) from error


def size_text(sides: Iterable[int | None]) -> str:
    """Returns sides as people write them: `1x513x513x3`, of which open ones are `?`."""
    return "x".join("?" if side is None else str(side) for side in sides)


def pad_to_size(
    image: np.ndarray, size: tuple[int, int], mean_pixel: ArrayLike
) -> np.ndarray:
    """Pads or crops an image to `[1, *size, channels]`, float32.

    Args:
        image: `[height, width, channels]`, which comes to the top left.
        size: Height and width.
        mean_pixel: Value of the padding, a number or one for each channel.
    """
    canvas = np.empty((1, *size, image.shape[-1]), np.float32)
    canvas[:] = mean_pixel
    seen = image[: size[0], : size[1]]
    canvas[0, : seen.shape[0], : seen.shape[1]] = seen
    return canvas


def pixels(images: np.ndarray) -> np.ndarray:
    """Returns images as uint8, rounded."""
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)
