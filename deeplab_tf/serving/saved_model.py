"""A model as a SavedModel: images of any size in, label maps out."""

import os

import keras
import tensorflow as tf

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor

# Names that clients of the official frozen graphs know.
INPUT = "ImageTensor"
OUTPUT = "SemanticPredictions"
# Files here travel with a SavedModel without being part of its graph.
_EXTRA = "assets.extra"


def export_saved_model(
    model: keras.Model,
    path: str,
    scales=(1.0,),
    flip: bool = False,
    crop_size: tuple[int, int] | None = None,
    info: DatasetInfo | None = None,
) -> None:
    """Writes a SavedModel whose `serving_default` labels images.

    `ImageTensor` is uint8 `[batch, height, width, channels]` of any size,
    `SemanticPredictions` int32 `[batch, height, width]`: the same labels as
    `predict_labels` gives, padding and scales being part of the graph.

    Args:
        model: A model of `build_model`.
        path: Folder to write; an earlier export there is replaced once the new
            one is complete.
        scales: Scales whose probabilities are averaged.
        flip: Whether every scale is also seen mirrored.
        crop_size: Height and width to which images are padded; None is the next
            `k * output_stride + 1`.
        info: Class names and colours to send along.

    Raises:
        UserError: if `path` holds something that is not an export.
    """
    path = path.rstrip("/")
    _require_free(path)
    predictor = Predictor(model, scales, flip, crop_size)
    archive = keras.export.ExportArchive()
    archive.track(predictor.network)
    archive.add_endpoint(
        name="serving_default",
        fn=lambda images: {OUTPUT: predictor.labels(images)},
        input_signature=[
            tf.TensorSpec(
                [None, None, None, predictor.config.channels], tf.uint8, name=INPUT
            )
        ],
    )
    unfinished = path + ".unfinished"
    if tf.io.gfile.exists(unfinished):
        tf.io.gfile.rmtree(unfinished)
    archive.write_out(unfinished, verbose=False)
    if info is not None:
        extra = os.path.join(unfinished, _EXTRA)
        tf.io.gfile.makedirs(extra)
        records.write_info(info, extra)
    if tf.io.gfile.exists(path):
        tf.io.gfile.rmtree(path)
    tf.io.gfile.rename(unfinished, path)


def _require_free(path: str) -> None:
    """Refuses to overwrite anything but an export or an empty folder."""
    if not tf.io.gfile.exists(path) or is_saved_model(path):
        return
    if not tf.io.gfile.isdir(path) or tf.io.gfile.listdir(path):
        raise UserError(f"{path} is there and is no SavedModel; give a new folder")


def is_saved_model(path: str) -> bool:
    """Whether a folder holds a SavedModel."""
    return tf.io.gfile.exists(os.path.join(path, "saved_model.pb"))


def load_labeler(path: str):
    """Returns `images -> labels` of an export, uint8 and int32 arrays.

    Raises:
        UserError: if the SavedModel is broken, has other inputs or outputs, or takes
            other images than RGB.
    """
    try:
        loaded = tf.saved_model.load(path)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{path} cannot be read as a SavedModel: {error}") from error
    serve = loaded.signatures.get("serving_default")
    inputs = serve.structured_input_signature[1] if serve else {}
    outputs = serve.structured_outputs if serve else {}
    if set(inputs) != {INPUT} or OUTPUT not in outputs:
        raise UserError(
            f"{path} has no signature serving_default from {INPUT} to {OUTPUT}; "
            f"it takes {sorted(inputs)} and gives {sorted(outputs)}"
        )

    channels = inputs[INPUT].shape[-1]
    if channels != 3:
        raise UserError(f"{path} takes images of {channels} channels, not RGB")

    def labels(images):
        return serve(**{INPUT: tf.constant(images, tf.uint8)})[OUTPUT].numpy()

    labels.model = loaded  # a signature alone does not keep its variables alive
    return labels


def export_info(path: str) -> DatasetInfo | None:
    """Returns the class names and colours sent along with an export."""
    return records.read_info(os.path.join(path, _EXTRA))
