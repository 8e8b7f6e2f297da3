"""The interface of exported models, for evaluation and prediction."""

import abc
from collections.abc import Iterable

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError


class Artefact(abc.ABC):
    """An exported model that labels images, whatever its format.

    Several threads may call it at the same time.

    Attributes:
        channels: Number of image channels; None accepts any.
        info: Class names and colours stored in the artefact, if any.
        protocol: Inference settings that affect results, for `metrics.json`.
        gives_probabilities: Whether it returns probabilities in addition to labels.
        num_classes: Number of classes, from the probabilities or the class names; if
            None, the caller may set it.
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
            images: At least one image, RGB 0..255, uint8 or float32, `[batch, height,
                width, channels]`.

        Raises:
            UserError: if the images have an invalid shape, or a label exceeds
                `num_classes`.
        """
        labels = self._labels(self._check_images(images))
        highest = labels.max(initial=0)
        if self.num_classes is not None and highest >= self.num_classes:
            raise UserError(
                f"{self._path} returns the label {highest}, but with "
                f"{self.num_classes} classes the last label is {self.num_classes - 1}"
            )
        return labels

    def probabilities(self, images: ArrayLike) -> np.ndarray:
        """Returns float32 `[batch, height, width, num_classes]`, summing to 1.

        `images` are as in `labels`. Raises UserError if the artefact returns only
        labels, or the images have an invalid shape.
        """
        if not self.gives_probabilities:
            raise UserError(f"{self._path} returns only labels, no probabilities")
        return self._probabilities(self._check_images(images))

    def _check_images(self, images: ArrayLike) -> np.ndarray:
        """Returns images as an array; raises UserError for an invalid shape."""
        images = np.asarray(images)
        channels = images.shape[-1] if self.channels is None else self.channels
        if images.ndim != 4 or images.shape[-1] != channels:
            raise UserError(
                f"{self._path} takes images [batch, height, width, "
                f"{self.channels or 'channels'}]; received {list(images.shape)}"
            )
        if not images.size:
            raise UserError(
                f"{self._path} needs at least one image; received {list(images.shape)}"
            )
        return images

    @abc.abstractmethod
    def _labels(self, images: np.ndarray) -> np.ndarray:
        """Returns the labels of validated images."""

    @abc.abstractmethod
    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """Returns the probabilities of validated images."""


def read_file(path: str) -> bytes:
    """Returns the content of a file; raises UserError if it does not exist."""
    if not tf.io.gfile.exists(path):
        raise UserError(f"there is no file {path}")
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read()


def format_size(sides: Iterable[int | None]) -> str:
    """Returns a shape such as `1x513x?x3`, with `?` for unknown sides."""
    return "x".join("?" if side is None else str(side) for side in sides)


def pad_to_size(
    image: np.ndarray, size: tuple[int, int], mean_pixel: ArrayLike
) -> np.ndarray:
    """Pads or crops an image at the bottom and right; float32 `[1, *size, channels]`.

    The image is `[height, width, channels]`; `mean_pixel` is one number or one per
    channel.
    """
    canvas = np.empty((1, *size, image.shape[-1]), np.float32)
    canvas[:] = mean_pixel
    cropped = image[: size[0], : size[1]]
    canvas[0, : cropped.shape[0], : cropped.shape[1]] = cropped
    return canvas


def round_to_uint8(images: np.ndarray) -> np.ndarray:
    """Rounds and clips images to uint8."""
    return np.clip(np.rint(images), 0, 255).astype(np.uint8)
