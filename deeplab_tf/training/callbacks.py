"""Keras callbacks for `fit`."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from deeplab_tf.arguments import Elements, check_arguments
from deeplab_tf.config.options import COUNT
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.training.summaries import Summaries

_IMAGES = Elements(
    "an array of images or batches of them, such as those of load_dataset", arrays=True
)


class PredictionImages(keras.callbacks.Callback):
    """Writes images, overlaid with predictions, to TensorBoard after each epoch.

    Needs TensorFlow, even with other backends.

    Args:
        log_dir: Folder for the event files, such as the `log_dir` of
            `keras.callbacks.TensorBoard`.
        images: RGB 0..255 `[count, height, width, 3]`, or batches of such images with
            or without labels. The first `max_images` are read once and kept.
        info: Names and colours of the classes; None numbers them.
        max_images: Maximum number of images to write.

    Raises:
        UserError: if an argument has the wrong type, or there are no images.
    """

    @check_arguments(images=_IMAGES, max_images=COUNT)
    def __init__(
        self,
        log_dir: str,
        images: Any,
        info: DatasetInfo | None = None,
        max_images: int = 4,
    ):
        super().__init__()
        batches = [images] if hasattr(images, "shape") else images
        rows = itertools.islice(_iterate_images(batches), max_images)
        self._images = [np.array(image) for image in rows]
        if not self._images:
            raise UserError("images must not be empty; received no images")
        self._log_dir = log_dir
        self._info = info
        self._summaries: Summaries | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Labels the images and writes them, with the epoch as the step."""
        if self._summaries is None:
            self._summaries = Summaries(self._log_dir, self._info)
        labels = map(self._predict, self._images)
        samples = zip(self._images, labels, strict=True)
        self._summaries.write_overlays(epoch, "predictions/image", samples)
        self._summaries.flush()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the event file."""
        if self._summaries is not None:
            self._summaries.close()
            self._summaries = None

    def _predict(self, image: np.ndarray) -> np.ndarray:
        # Not with `predict`, which compiles a function for each image size.
        logits = self.model(image[None].astype(np.float32), training=False)
        return np.array(keras.ops.argmax(logits[0], -1))


def _iterate_images(batches: Iterable) -> Iterator[np.ndarray]:
    for batch in batches:
        yield from batch[0] if isinstance(batch, tuple | list) else batch
