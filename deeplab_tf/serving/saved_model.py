"""Exports a model as a SavedModel for images of any size, and loads SavedModels."""

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from deeplab_tf import strict_json
from deeplab_tf.arguments import check_arguments
from deeplab_tf.checkpoints import tf1
from deeplab_tf.config.options import SCALES, SIDE
from deeplab_tf.data import records
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, one_line
from deeplab_tf.inference import Predictor
from deeplab_tf.models.checks import BUILT
from deeplab_tf.models.precision import model_precision
from deeplab_tf.serving import warmup
from deeplab_tf.serving.artefact import Artefact, format_size
from deeplab_tf.serving.cpu_optimization import optimize_for_cpu
from deeplab_tf.serving.encoded import Bounds
from deeplab_tf.serving.publication import publish_artefact, require_replaceable
from deeplab_tf.serving.signatures import (
    ENCODED,
    ENCODED_INPUT,
    INPUT,
    OUTPUT,
    PROBABILITIES,
    SERVING,
    Resizing,
    ResizingPredictor,
    Signature,
    make_signatures,
    share_network,
)

# TensorFlow Serving copies this folder along with a SavedModel.
_EXTRA = "assets.extra"
_MODEL = "model.json"
_CLASS_NAMES = "class_names.txt"
# Side of the images in warm-up requests without a crop size.
_WARMUP_SIDE = 513


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Additional options of `export_saved_model`.

    Attributes:
        window: Height and width of the sliding window for larger images, as in
            `Predictor`; None labels every image in one pass.
        upsampled_logits: Whether logits are resized to the image, as in `Predictor`.
        resizing: How images are resized before inference; None does not resize.
        probabilities: Whether `serving_default` also returns `SemanticProbabilities`.
        fold_batch_norm: Whether to fold batch normalisation into convolutions, which is
            faster; float16 models keep it.
        max_pixels: Largest image that `encoded` accepts, which determines its memory.
        weights: Whether to include a checkpoint with official variable names, from
            which training can continue; folded weights cannot be restored.
    """

    window: tuple[int, int] | None = None
    upsampled_logits: bool = True
    resizing: Resizing | None = None
    probabilities: bool = False
    fold_batch_norm: bool = True
    weights: bool = True
    max_pixels: int = Bounds().pixels


def make_predictors(
    model: keras.Model,
    scales: Sequence[float],
    flip: bool,
    crop_size: tuple[int, int] | None,
    options: ExportOptions,
) -> tuple[keras.Model, Predictor, Predictor | ResizingPredictor]:
    """Returns the network to export, its predictor, and one that also resizes images.

    The network is the model, or a copy that is faster on CPUs. The last predictor is
    the first one if images are not resized.
    """
    # Scaled kernels may be out of the range of float16.
    folds = options.fold_batch_norm and model_precision(model) != "float16"
    network = optimize_for_cpu(model) if folds else model
    predictor = Predictor(
        network,
        scales,
        flip,
        crop_size,
        options.window,
        upsampled_logits=options.upsampled_logits,
    )
    if options.resizing is None:
        return network, predictor, predictor
    return network, predictor, ResizingPredictor(predictor, options.resizing)


@check_arguments(model=BUILT, scales=SCALES, crop_size=SIDE)
def export_saved_model(
    model: keras.Model,
    path: str,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop_size: tuple[int, int] | None = None,
    info: DatasetInfo | None = None,
    options: ExportOptions | None = None,
) -> None:
    """Writes a SavedModel that labels batches of images of any size.

    It has these signatures, whose graphs include padding, scales and windows:

    - `serving_default`: from `ImageTensor`, uint8 `[batch, height, width, channels]`,
      to `SemanticPredictions`, int32 `[batch, height, width]`, the labels of
      `Predictor`.
    - `probabilities`: from `ImageTensor` to `SemanticProbabilities`, float32 `[batch,
      height, width, num_classes]`.
    - `raw`: from `ImageTensor` to `RawSemanticPredictions` and
      `RawSemanticProbabilities`, both float32, with the padding and before images are
      resized to their original size, as in the official export.
    - `encoded`, for models of 8-bit RGB: from `image_bytes`, JPEGs or PNGs, strings
      `[batch]`, to `label_map_bytes`, greyscale PNGs, strings `[batch]`, and `error`,
      one message per image. An image with an error has an empty label map.
    - `features`, unless the model has an image pyramid: from `ImageTensor` to
      `high_level` and, for each stride of the decoder, `low_level_<stride>`, float32
      `[batch, height / stride, width / stride, depth]`, without padding or resizing.

    Args:
        model: A model of `build_model`.
        path: Folder to write atomically; it may replace an earlier export.
        scales: Scales over which to average probabilities.
        flip: Whether to also average over mirrored images.
        crop_size: Height and width to which images are padded; None is the next
            `k * output_stride + 1`.
        info: Class names and colours to store in the export.
        options: Additional options.

    Raises:
        UserError: if an argument is invalid, or `path` exists and is not an earlier
            export.
    """
    options = options or ExportOptions()
    require_replaceable(path)
    network, predictor, resized = make_predictors(
        model, scales, flip, crop_size, options
    )
    found = _make_signatures(network, predictor, resized, info, options)
    logs = _make_warmup_requests(found, crop_size or (_WARMUP_SIDE, _WARMUP_SIDE))
    with publish_artefact(path) as unfinished:
        extra = os.path.join(unfinished, _EXTRA)
        tf.io.gfile.makedirs(extra)
        warmup.write_warmup_requests(logs, extra)
        _write_description(model, info, options.weights, extra)
        _write_graphs(unfinished, found, info)


def _make_signatures(
    network: keras.Model,
    predictor: Predictor,
    resized: Predictor | ResizingPredictor,
    info: DatasetInfo | None,
    options: ExportOptions,
) -> dict[str, Signature]:
    """Returns the signatures, which share one copy of the network."""
    features = share_network(predictor, network)
    # `encoded` decodes to 8 bits, which would change deeper images.
    is_deep = info is not None and info.max_value != 255
    max_pixels = None if is_deep else options.max_pixels
    return make_signatures(features, resized, options.probabilities, max_pixels)


def _write_graphs(
    path: str, found: dict[str, Signature], info: DatasetInfo | None
) -> None:
    """Writes the signatures as a SavedModel, and the class names as its asset."""
    graphs = {
        name: tf.function(function, autograph=False).get_concrete_function(spec)
        for name, (function, spec) in found.items()
    }
    used = {id(v): v for graph in graphs.values() for v in graph.graph.variables}
    # Not keras.export.ExportArchive, which writes every variable twice and no assets.
    root = tf.train.Checkpoint(variables=list(used.values()), **graphs)
    with tempfile.TemporaryDirectory() as folder:
        if info is not None:
            names = os.path.join(folder, _CLASS_NAMES)
            with open(names, "w", encoding="utf-8") as file:
                file.write("".join(f"{name}\n" for name in info.class_names))
            root.class_names = tf.saved_model.Asset(names)
        tf.saved_model.save(root, path, signatures=graphs)


def _make_warmup_requests(
    found: dict[str, Signature], size: tuple[int, int]
) -> list[bytes]:
    """Returns a request for each signature, with a black image of the given size."""
    logs = []
    for name, (_, spec) in found.items():
        if spec.name == ENCODED_INPUT:
            image = tf.io.encode_jpeg(tf.zeros([*size, 3], tf.uint8)).numpy()
            tensor = tf.make_tensor_proto([image])
        else:
            # A scalar, which the shape repeats, keeps the file small.
            shape = [1, *size, spec.shape[-1]]
            tensor = tf.make_tensor_proto(0, spec.dtype, shape)
        logs.append(warmup.make_prediction_log(name, {spec.name: tensor}))
    return logs


def _write_description(
    model: keras.Model, info: DatasetInfo | None, has_weights: bool, folder: str
) -> None:
    """Writes the configs of model and dataset and, if wanted, the weights."""
    with tf.io.gfile.GFile(os.path.join(folder, _MODEL), "w") as file:
        file.write(strict_json.dump(dataclasses.asdict(model.model_config)))
    if info is not None:
        records.write_info(info, folder)
    if has_weights and model.variables:
        tf1.save_tf1_checkpoint(model, os.path.join(folder, tf1.NAME))


class GraphPredictor(Artefact):
    """A TensorFlow graph that labels images.

    Args:
        path: The export, for errors.
        serve: Function from `ImageTensor` to `SemanticPredictions`, by name.
        score: Function from `ImageTensor` to `SemanticProbabilities`, if any.
        image: Shape and type of `ImageTensor`. Pixels are rounded if it is uint8.
        kind: Name of the format.
        info: Class names and colours, if any.
        num_classes: Number of probabilities, if any.
    """

    def __init__(
        self,
        path: str,
        serve: Callable,
        score: Callable | None,
        image: tf.TensorSpec,
        kind: str,
        info: DatasetInfo | None,
        num_classes: int | None,
    ):
        self._serve, self._input = serve, image
        self._score: Any = score  # not called if None
        super().__init__(
            path,
            channels=image.shape[-1],
            info=info,
            protocol={"artefact": kind},
            gives_probabilities=score is not None,
            num_classes=num_classes,
        )

    def _run_signature(
        self,
        signature: Callable,
        output: str,
        images: np.ndarray,
    ) -> np.ndarray:
        """Returns an output, image by image if the batch size is fixed to 1."""
        if self._input.dtype.is_integer and images.dtype.kind == "f":
            images = np.rint(images)
        images = tf.saturate_cast(images, self._input.dtype)
        # Official exports take one image at a time.
        parts = tf.split(images, len(images)) if self._input.shape[0] == 1 else [images]
        for part in parts:
            if not self._input.shape.is_compatible_with(part.shape):
                raise UserError(
                    f"{self._path} takes images of shape "
                    f"{format_size(self._input.shape)}; received "
                    f"{format_size(images.shape)}"
                )
        try:
            results = [signature(**{INPUT: part})[output].numpy() for part in parts]
        except tf.errors.InvalidArgumentError as error:
            raise UserError(f"{self._path} cannot be run: {one_line(error)}") from error
        return np.concatenate(results)

    def _labels(self, images: np.ndarray) -> np.ndarray:
        return self._run_signature(self._serve, OUTPUT, images).astype(np.int32)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._run_signature(self._score, PROBABILITIES, images)


class SavedModelPredictor(GraphPredictor):
    """A SavedModel, loaded for evaluation and prediction.

    Labels come from the signature `serving_default`, from `ImageTensor` to
    `SemanticPredictions`; probabilities from the output `SemanticProbabilities` of that
    signature or of one called `probabilities`. Pixels are rounded if the input is
    uint8.

    Attributes:
        encoded: The signature that labels encoded images, or None.

    Raises:
        UserError: if the SavedModel is damaged, or has other inputs or outputs.
    """

    def __init__(self, path: str):
        # Keeps the variables alive, which a signature does not.
        self._loaded = _load_saved_model(path)
        self.encoded = self._loaded.signatures.get(ENCODED)
        serve = _find_labels_signature(self._loaded, path)
        score = _find_probabilities_signature(self._loaded)
        classes = score and score.structured_outputs[PROBABILITIES].shape[-1]
        super().__init__(
            path,
            serve,
            score,
            _input_specs(serve)[INPUT],
            "SavedModel",
            read_export_info(path),
            classes,
        )


def _load_saved_model(path: str) -> tf.Module:
    try:
        return tf.saved_model.load(path)
    except Exception as error:  # damaged graphs raise errors of many classes
        reason = one_line(error)
        raise UserError(f"{path} cannot be read as a SavedModel: {reason}") from error


def _input_specs(
    signature: tf.types.experimental.ConcreteFunction,
) -> dict[str, tf.TensorSpec]:
    return signature.structured_input_signature[1]


def _find_labels_signature(
    loaded: tf.Module, path: str
) -> tf.types.experimental.ConcreteFunction:
    """Returns the signature for labels; raises UserError if there is none."""
    serve = loaded.signatures.get(SERVING)
    inputs = _input_specs(serve) if serve else {}
    outputs = serve.structured_outputs if serve else {}
    if set(inputs) != {INPUT} or OUTPUT not in outputs:
        raise UserError(
            f"{path} has no signature {SERVING} from {INPUT} to {OUTPUT}; "
            f"its inputs are {sorted(inputs)} and its outputs {sorted(outputs)}"
        )
    return serve


def _find_probabilities_signature(
    loaded: tf.Module,
) -> tf.types.experimental.ConcreteFunction | None:
    """Returns a signature with probabilities, or None."""
    for name in (SERVING, "probabilities"):
        signature = loaded.signatures.get(name)
        if (
            signature
            and set(_input_specs(signature)) == {INPUT}
            and PROBABILITIES in signature.structured_outputs
        ):
            return signature
    return None


def read_export_info(path: str) -> DatasetInfo | None:
    """Returns the class names and colours stored in an export, if any."""
    return records.read_info(os.path.join(path, _EXTRA))
