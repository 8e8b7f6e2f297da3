"""Event files for TensorBoard: curves, scores and images of a training.

By `tf.summary.write`; `tf.summary.scalar` and `.image` need the package tensorboard.
"""

import contextlib
import time
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from deeplab_tf.data.info import DatasetInfo, generic_info
from deeplab_tf.evaluation.gallery import ScoredImage
from deeplab_tf.visualize import confusion_picture, panel, png_bytes

# The data class of each of TensorBoard's plugins.
_DATA_CLASSES = {"scalars": "DATA_CLASS_SCALAR", "images": "DATA_CLASS_BLOB_SEQUENCE"}
# So that the file is written every two minutes (TensorFlow's default), not whenever
# ten values wait: on gs:// it is written from its beginning every time.
_QUEUE = 10_000


class Summaries:
    """Writes event files.

    Args:
        folder: Where to write; None writes nothing.
        info: Names and colours of the classes; None numbers them.
    """

    def __init__(self, folder: str | None, info: DatasetInfo | None):
        self._info = info
        self._writer = None
        self._stack = contextlib.ExitStack()
        if folder is not None:
            # Of this kind the handle is public.
            self._writer = tf.summary.create_file_writer(
                folder, max_queue=_QUEUE, experimental_trackable=True
            )
            # Entered once, because leaving it flushes.
            self._stack.enter_context(self._writer.as_default())

    def restart(self, step: int) -> None:
        """Marks the start of a training, which replaces values of later steps.

        To be called before anything is written, by a new training too: TensorBoard
        takes the first mark of a folder for its start.

        Args:
            step: Steps that were done before: 0, or those of the checkpoint.
        """
        if self._writer is None:
            return
        session = tf.compat.v1.SessionLog(status=tf.compat.v1.SessionLog.START)
        # `tf.summary` has no marks. TensorBoard drops all from this step on.
        event = tf.compat.v1.Event(
            wall_time=time.time(), step=step + 1, session_log=session
        )
        tf.raw_ops.ImportEvent(
            writer=self._writer.resource_handle, event=event.SerializeToString()
        )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a value to each of some curves.

        Args:
            step: Steps done.
            values: Tag, such as "train/data_loss", to value.
        """
        for tag, value in values.items():
            self._write(step, tag, np.float32(value), "scalars")

    def evaluation(
        self,
        step: int,
        metrics: Mapping,
        examples: Sequence[ScoredImage] = (),
    ) -> None:
        """Adds scores, confusion matrix and examples of an evaluation.

        Args:
            step: Steps done.
            metrics: Those of `Evaluator.evaluate`.
            examples: Images to show.
        """
        if self._writer is None:
            return
        counts = np.array(metrics["confusion_matrix"])
        info = self._info or generic_info(len(counts))
        ious = zip(info.class_names, metrics["iou_per_class"], strict=True)
        scores = {f"eval/{name}": metrics[name] for name in ("miou", "pixel_accuracy")}
        scores |= {f"eval/iou/{name}": iou for name, iou in ious if iou is not None}
        self.scalars(step, scores)
        picture = confusion_picture(counts, info.class_names)
        self._image(step, "eval/confusion_matrix", picture)
        for i, example in enumerate(examples):
            picture = panel(example.image, example.truth, example.prediction, info)
            self._image(step, f"eval/example_{i}", picture)

    def flush(self) -> None:
        """Writes everything that was added."""
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Writes the rest; nothing can be added afterwards."""
        self._stack.close()
        if self._writer is not None:
            self._writer.close()

    def _image(self, step: int, tag: str, picture: np.ndarray) -> None:
        height, width = picture.shape[:2]
        parts = [str(width), str(height), png_bytes(picture)]
        self._write(step, tag, tf.constant(parts, tf.string), "images")

    def _write(self, step: int, tag: str, value, plugin: str) -> None:
        if self._writer is None:
            return
        metadata = tf.compat.v1.SummaryMetadata(
            plugin_data={"plugin_name": plugin}, data_class=_DATA_CLASSES[plugin]
        )
        tf.summary.write(tag, value, step, metadata)
