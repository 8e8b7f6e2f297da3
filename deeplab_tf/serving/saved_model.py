"""A model as a SavedModel: images of any size in, label maps out."""

import os

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor

# Names that clients of the official frozen graphs know.
INPUT = "ImageTensor"
OUTPUT = "SemanticPredictions"
# What a SavedModel may give besides.
PROBABILITIES = "SemanticProbabilities"
_SERVING = "serving_default"
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
        name=_SERVING,
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


class SavedModelPredictor:
    """A SavedModel as evaluation and prediction look at it.

    It is called through the signature `serving_default` from `ImageTensor` to
    `SemanticPredictions`; probabilities are what that signature, or one called
    `probabilities`, gives as `SemanticProbabilities`.

    Args:
        path: Folder of the SavedModel.

    Attributes:
        num_classes: Number of classes, to be set where it is None: the SavedModel gives
            labels alone and had no class names sent along.
        channels: Channels of the images.
        info: Class names and colours that were sent along, if any were.
        protocol: What decides about results besides weights.

    Raises:
        UserError: if the SavedModel is broken, or has other inputs or outputs.
    """

    def __init__(self, path: str):
        self._path = path
        # A signature alone does not keep its variables alive.
        self._loaded = _loaded(path)
        self._labels = _labels_signature(self._loaded, path)
        self._probabilities = _probabilities_signature(self._loaded)
        self._input = _inputs(self._labels)[INPUT]
        self.channels = self._input.shape[-1]
        self.info = export_info(path)
        self.num_classes = self.info and self.info.num_classes
        if self._probabilities:
            shape = self._probabilities.structured_outputs[PROBABILITIES].shape
            self.num_classes = shape[-1] or self.num_classes
        self.protocol = {"artefact": "SavedModel"}

    def _served(self, signature, output: str, images) -> np.ndarray:
        """Returns an output of a signature for images."""
        images = tf.convert_to_tensor(images)
        if self._input.dtype.is_integer and images.dtype.is_floating:
            images = tf.round(images)
        images = tf.saturate_cast(images, self._input.dtype)
        # The official exports take images one by one.
        parts = tf.split(images, len(images)) if self._input.shape[0] == 1 else [images]
        for part in parts:
            if not self._input.shape.is_compatible_with(part.shape):
                raise UserError(
                    f"{self._path} takes images {_text(self._input.shape)}; received "
                    f"{_text(images.shape)}"
                )
        served = [signature(**{INPUT: part})[output].numpy() for part in parts]
        return np.concatenate(served)

    def labels(self, images) -> np.ndarray:
        """Returns the most probable classes, int32 `[batch, height, width]`.

        Args:
            images: RGB 0..255, uint8 or float32, `[batch, height, width, channels]`;
                rounded where the SavedModel takes uint8.

        Raises:
            UserError: for images that it does not take, and for a label beyond
                `num_classes`.
        """
        labels = self._served(self._labels, OUTPUT, images).astype(np.int32)
        require_known_labels(labels, self.num_classes, self._path)
        return labels

    def probabilities(self, images) -> np.ndarray:
        """Returns float32 `[batch, height, width, num_classes]`, summing to 1.

        Args:
            images: As in `labels`.

        Raises:
            UserError: if the SavedModel gives labels only, and for images that it does
                not take.
        """
        if self._probabilities is None:
            raise UserError(f"{self._path} gives labels only, no {PROBABILITIES}")
        return self._served(self._probabilities, PROBABILITIES, images)


def require_known_labels(
    labels: np.ndarray, num_classes: int | None, path: str
) -> None:
    """Refuses labels of classes that there are not.

    Args:
        labels: Class ids of any shape.
        num_classes: Number of classes; None knows all.
        path: Of the model that gave them.

    Raises:
        UserError: naming the highest label and the number of classes.
    """
    highest = labels.max(initial=0)
    if num_classes is not None and highest >= num_classes:
        raise UserError(
            f"{path} gives the label {highest}, beyond the last of {num_classes} "
            f"classes, {num_classes - 1}"
        )


def _text(shape: tf.TensorShape) -> str:
    return "x".join("?" if side is None else str(side) for side in shape)


def _loaded(path: str):
    try:
        return tf.saved_model.load(path)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{path} cannot be read as a SavedModel: {error}") from error


def _inputs(signature) -> dict[str, tf.TensorSpec]:
    return signature.structured_input_signature[1]


def _labels_signature(loaded, path: str):
    """Returns the signature that labels images."""
    serve = loaded.signatures.get(_SERVING)
    inputs = _inputs(serve) if serve else {}
    outputs = serve.structured_outputs if serve else {}
    if set(inputs) != {INPUT} or OUTPUT not in outputs:
        raise UserError(
            f"{path} has no signature {_SERVING} from {INPUT} to {OUTPUT}; "
            f"it takes {sorted(inputs)} and gives {sorted(outputs)}"
        )
    return serve


def _probabilities_signature(loaded):
    """Returns a signature that gives probabilities, None where there is none."""
    for name in (_SERVING, "probabilities"):
        signature = loaded.signatures.get(name)
        if (
            signature
            and set(_inputs(signature)) == {INPUT}
            and PROBABILITIES in signature.structured_outputs
        ):
            return signature
    return None


def export_info(path: str) -> DatasetInfo | None:
    """Returns the class names and colours sent along with an export."""
    return records.read_info(os.path.join(path, _EXTRA))
