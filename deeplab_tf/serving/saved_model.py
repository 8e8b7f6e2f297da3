"""A model as a SavedModel: images of any size in, label maps out."""

import dataclasses
import os
import tempfile
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.checkpoints import tf1
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError
from deeplab_tf.inference import Predictor
from deeplab_tf.models.precision import model_precision
from deeplab_tf.serving import warmup
from deeplab_tf.serving.artefact import Artefact, size_text
from deeplab_tf.serving.constant_graph import fast_on_cpu, with_constants
from deeplab_tf.serving.encoded import Bounds
from deeplab_tf.serving.publication import publish_artefact, require_replaceable
from deeplab_tf.serving.signatures import (
    ENCODED_INPUT,
    INPUT,
    OUTPUT,
    PROBABILITIES,
    SERVING,
    ResizedView,
    Resizing,
    Signature,
    features_model,
    signatures,
)

# Files here travel with a SavedModel without being part of its graph.
_EXTRA = "assets.extra"
_MODEL = "model.json"
_CLASS_NAMES = "class_names.txt"
# Side of the images of warm-up requests, where no crop size tells it.
_WARMUP_SIDE = 513


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What an export holds, and how it looks at images, besides the common arguments.

    Attributes:
        window: Height and width of the windows through which larger images are seen,
            as in `Predictor`; None sees every image whole.
        resizing: Size to which images are resized first; None takes them as they are.
        probabilities: Whether `serving_default` gives `SemanticProbabilities` too.
        fold_batch_norm: Whether batch normalisations are folded into convolutions,
            which is faster; models that compute in float16 keep them.
        constant_weights: Whether the weights of a folded model are constants of the
            graph, which is faster, too, but takes more memory while it is loaded.
        max_pixels: Pixels of a picture that `encoded` takes; memory grows with them.
        weights: Whether the weights by their official names go along as a checkpoint,
            for training to go on from the export: folding cannot be undone.
    """

    window: tuple[int, int] | None = None
    resizing: Resizing | None = None
    probabilities: bool = False
    fold_batch_norm: bool = True
    constant_weights: bool = True
    weights: bool = True
    max_pixels: int = Bounds().pixels


def export_saved_model(
    model: keras.Model,
    path: str,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop_size: tuple[int, int] | None = None,
    info: DatasetInfo | None = None,
    options: ExportOptions | None = None,
) -> None:
    """Writes a SavedModel that labels images of any size, any number at once.

    Its signatures, in which padding, scales and windows are part of the graph:

    - `serving_default`: from `ImageTensor`, uint8 `[batch, height, width, channels]`,
      to `SemanticPredictions`, int32 `[batch, height, width]`, the same labels as
      `Predictor` gives.
    - `probabilities`: from `ImageTensor` to `SemanticProbabilities`, float32 `[batch,
      height, width, num_classes]`.
    - `encoded`, of models of RGB in 8 bits: from `image_bytes`, JPEGs or PNGs, strings
      `[batch]`, to `label_map_bytes`, grey PNGs, strings `[batch]`; `error` tells what
      is wrong with an image, the label map of which is empty then.
    - `features`, unless the model has an image pyramid: from `ImageTensor` to
      `high_level` and for each stride that the decoder takes `low_level_<stride>`,
      float32 `[batch, height / stride, width / stride, depth]`, of images as they are.

    Args:
        model: A model of `build_model`, which is left as it is.
        path: Folder to write; an earlier export there is replaced once the new
            one is complete.
        scales: Scales whose probabilities are averaged.
        flip: Whether every scale is also seen mirrored.
        crop_size: Height and width to which images are padded; None is the next
            `k * output_stride + 1`.
        info: Class names and colours to send along.
        options: What else is asked for; None asks for what `ExportOptions` does.

    Raises:
        UserError: if `path` holds something that is not an export.
    """
    options = options or ExportOptions()
    require_replaceable(path)
    # float16 might have no number for a kernel that is scaled.
    folds = options.fold_batch_norm and model_precision(model) != "float16"
    network = fast_on_cpu(model) if folds else model
    predictor = Predictor(network, scales, flip, crop_size, options.window)
    offered = _signatures(network, predictor, folds, info, options)
    logs = _warmup_logs(offered, crop_size or (_WARMUP_SIDE, _WARMUP_SIDE))
    with publish_artefact(path) as unfinished:
        extra = os.path.join(unfinished, _EXTRA)
        tf.io.gfile.makedirs(extra)
        warmup.write_warmup_requests(logs, extra)
        _write_description(model, info, options.weights, extra)
        _write_graphs(unfinished, offered, info)


def _signatures(
    network: keras.Model,
    predictor: Predictor,
    is_folded: bool,
    info: DatasetInfo | None,
    options: ExportOptions,
) -> dict[str, Signature]:
    """Returns the signatures of a predictor of a network, by name."""
    features = features_model(network)
    if is_folded and options.constant_weights:
        features = with_constants(predictor, network)
    resizing = options.resizing
    view = predictor if resizing is None else ResizedView(predictor, resizing)
    # A decoder of 8 bits would make other images of those that have more.
    is_deep = info is not None and info.max_value != 255
    most = None if is_deep else options.max_pixels
    return signatures(features, view, options.probabilities, most)


def _write_graphs(
    path: str, offered: dict[str, Signature], info: DatasetInfo | None
) -> None:
    """Writes the SavedModel itself."""
    graphs = {
        name: tf.function(function, autograph=False).get_concrete_function(spec)
        for name, (function, spec) in offered.items()
    }
    used = {id(v): v for graph in graphs.values() for v in graph.graph.variables}
    # Not keras.export.ExportArchive, which writes every variable twice if it is to
    # track the model, and no assets.
    root = tf.train.Checkpoint(variables=list(used.values()), **graphs)
    with tempfile.TemporaryDirectory() as folder:
        if info is not None:
            names = os.path.join(folder, _CLASS_NAMES)
            with open(names, "w", encoding="utf-8") as file:
                file.write("".join(f"{name}\n" for name in info.class_names))
            root.class_names = tf.saved_model.Asset(names)
        tf.saved_model.save(root, path, signatures=graphs)


def _warmup_logs(offered: dict[str, Signature], size: tuple[int, int]) -> list[bytes]:
    """Returns a request for each signature, with an image of a size."""
    logs = []
    for name, (_, spec) in offered.items():
        if spec.name == ENCODED_INPUT:
            picture = tf.io.encode_jpeg(tf.zeros([*size, 3], tf.uint8)).numpy()
            tensor = tf.make_tensor_proto([picture])
        else:
            # One number that stands for all: a small file.
            shape = [1, *size, spec.shape[-1]]
            tensor = tf.make_tensor_proto(0, spec.dtype, shape)
        logs.append(warmup.prediction_log(name, {spec.name: tensor}))
    return logs


def _write_description(
    model: keras.Model, info: DatasetInfo | None, has_weights: bool, folder: str
) -> None:
    """Writes the config of the model, its classes and its weights."""
    with tf.io.gfile.GFile(os.path.join(folder, _MODEL), "w") as file:
        file.write(strict_json.dump(dataclasses.asdict(model.model_config)))
    if info is not None:
        records.write_info(info, folder)
    if has_weights and model.variables:
        tf1.save_tf1_checkpoint(model, os.path.join(folder, tf1.NAME))


class SavedModelPredictor(Artefact):
    """A SavedModel as evaluation and prediction look at it.

    It is called through the signature `serving_default` from `ImageTensor` to
    `SemanticPredictions`; probabilities are what that signature, or one called
    `probabilities`, gives as `SemanticProbabilities`. Pixels are rounded where it takes
    uint8.

    Args:
        path: Folder of the SavedModel.

    Raises:
        UserError: if the SavedModel is broken, or has other inputs or outputs.
    """

    def __init__(self, path: str):
        # A signature alone does not keep its variables alive.
        self._loaded = _loaded(path)
        self._serve = _labels_signature(self._loaded, path)
        self._score = _probabilities_signature(self._loaded)
        self._input = _inputs(self._serve)[INPUT]
        classes = None
        if self._score:
            classes = self._score.structured_outputs[PROBABILITIES].shape[-1]
        super().__init__(
            path,
            channels=self._input.shape[-1],
            info=export_info(path),
            protocol={"artefact": "SavedModel"},
            gives_probabilities=self._score is not None,
            num_classes=classes,
        )

    def _served(
        self,
        signature: tf.types.experimental.ConcreteFunction,
        output: str,
        images: np.ndarray,
    ) -> np.ndarray:
        """Returns an output of a signature for images."""
        if self._input.dtype.is_integer and images.dtype.kind == "f":
            images = np.rint(images)
        images = tf.saturate_cast(images, self._input.dtype)
        # The official exports take images one by one.
        parts = tf.split(images, len(images)) if self._input.shape[0] == 1 else [images]
        for part in parts:
            if not self._input.shape.is_compatible_with(part.shape):
                raise UserError(
                    f"{self._path} takes images {size_text(self._input.shape)}; "
                    f"received {size_text(images.shape)}"
                )
        served = [signature(**{INPUT: part})[output].numpy() for part in parts]
        return np.concatenate(served)

    def _labels(self, images: np.ndarray) -> np.ndarray:
        return self._served(self._serve, OUTPUT, images).astype(np.int32)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._served(self._score, PROBABILITIES, images)


def _loaded(path: str) -> tf.Module:
    try:
        return tf.saved_model.load(path)
    except (OSError, ValueError, tf.errors.OpError) as error:
        raise UserError(f"{path} cannot be read as a SavedModel: {error}") from error


def _inputs(
    signature: tf.types.experimental.ConcreteFunction,
) -> dict[str, tf.TensorSpec]:
    return signature.structured_input_signature[1]


def _labels_signature(
    loaded: tf.Module, path: str
) -> tf.types.experimental.ConcreteFunction:
    """Returns the signature that labels images."""
    serve = loaded.signatures.get(SERVING)
    inputs = _inputs(serve) if serve else {}
    outputs = serve.structured_outputs if serve else {}
    if set(inputs) != {INPUT} or OUTPUT not in outputs:
        raise UserError(
            f"{path} has no signature {SERVING} from {INPUT} to {OUTPUT}; "
            f"it takes {sorted(inputs)} and gives {sorted(outputs)}"
        )
    return serve


def _probabilities_signature(
    loaded: tf.Module,
) -> tf.types.experimental.ConcreteFunction | None:
    """Returns a signature that gives probabilities, None where there is none."""
    for name in (SERVING, "probabilities"):
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
