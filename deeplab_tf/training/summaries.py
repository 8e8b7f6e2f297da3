"""Writes TensorBoard event files: curves, scores and images.

Uses `tf.summary.write`; `tf.summary.scalar` and `.image` need the package tensorboard.
"""

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf.data.info import DatasetInfo, generic_info
from deeplab_tf.evaluation.gallery import ScoredImage
from deeplab_tf.training.trackers import Tracker
from deeplab_tf.visualize import (
    convert_to_rgb,
    draw_panel,
    encode_png,
    overlay,
    plot_confusion,
)

# The data class of each of TensorBoard's plugins.
_DATA_CLASSES = {"scalars": "DATA_CLASS_SCALAR", "images": "DATA_CLASS_BLOB_SEQUENCE"}
# Flush every two minutes (TensorFlow's default) instead of every ten values, because on
# gs://, each flush rewrites the entire file.
_QUEUE = 10_000


class Summaries:
    """Writes event files to a folder, or nothing if it is None.

    Without `info`, classes are numbered. A tracker gets the same scalars.
    """

    def __init__(
        self,
        folder: str | None,
        info: DatasetInfo | None,
        tracker: Tracker | None = None,
    ):
        self._info = info
        self._tracker = tracker
        self._writer = None
        self._stack = contextlib.ExitStack()
        if folder is not None:
            # Only a trackable writer has a public resource handle.
            self._writer = tf.summary.create_file_writer(
                folder, max_queue=_QUEUE, experimental_trackable=True
            )
            # Entered only once: leaving the context flushes.
            self._stack.enter_context(self._writer.as_default())

    def restart(self, step: int) -> None:
        """Marks the start of a run at `step`, so that TensorBoard drops later steps.

        Call this before writing anything, even at step 0, because TensorBoard treats
        the first mark in a folder as its start.
        """
        if self._writer is None:
            return
        session = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        # `tf.summary` cannot write it. TensorBoard drops everything from this step on.
        event = tf.compat.v1.Event(
            wall_time=time.time(), step=step + 1, session_log=session
        )
        tf.raw_ops.ImportEvent(
            writer=self._writer.resource_handle, event=event.SerializeToString()
        )

    def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes a value of each curve, keyed by tag, such as "train/data_loss"."""
        if self._tracker is not None:
            self._tracker.log(step, values)
        for tag, value in values.items():
            self._write(step, tag, np.float32(value), "scalars")

    def write_evaluation(
        self,
        step: int,
        metrics: Mapping,
        examples: Sequence[ScoredImage] = (),
    ) -> None:
        """Writes scores, confusion matrix and examples from `Evaluator.evaluate`."""
        if self._writer is None and self._tracker is None:
            return
        counts = np.array(metrics["confusion_matrix"])
        info = self._info or generic_info(len(counts))
        ious = zip(info.class_names, metrics["iou_per_class"], strict=True)
        scores = {f"eval/{name}": metrics[name] for name in ("miou", "pixel_accuracy")}
        scores |= {f"eval/iou/{name}": iou for name, iou in ious if iou is not None}
        self.write_scalars(step, scores)
        image = plot_confusion(counts, info.class_names)
        self._write_image(step, "eval/confusion_matrix", image)
        for i, example in enumerate(examples):
            image = draw_panel(example.image, example.truth, example.prediction, info)
            self._write_image(step, f"eval/example_{i}", image)

    def write_overlays(
        self, step: int, tag: str, samples: Iterable[tuple[np.ndarray, np.ndarray]]
    ) -> None:
        """Writes images, overlaid with predicted labels.

        Args:
            step: The step or epoch.
            tag: Prefix of the tags, to which the number of the image is appended.
            samples: Pairs of an image 0..255 `[height, width, channels]` and its labels
                `[height, width]`.
        """
        for i, (image, labels) in enumerate(samples):
            info = self._info or generic_info(int(labels.max()) + 1)
            drawn = overlay(convert_to_rgb(image), labels, info)
            self._write_image(step, f"{tag}_{i}", drawn)

    def flush(self) -> None:
        """Writes all pending values."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Writes all pending values and closes the file."""
        self._stack.close()
        if self._writer is not None:
            self._writer.close()

    def _write_image(self, step: int, tag: str, image: np.ndarray) -> None:
        height, width = image.shape[:2]
        parts = [str(width), str(height), encode_png(image)]
        self._write(step, tag, tf.constant(parts, tf.string), "images")

    def _write(self, step: int, tag: str, value, plugin: str) -> None:
        if self._writer is None:
            return
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data={"plugin_name": plugin}, data_class=_DATA_CLASSES[plugin]
        )
        tf.summary.write(tag, value, step, metadata)
