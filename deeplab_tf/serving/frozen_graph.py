"""Exports a model as a frozen graph of TensorFlow 1, and loads such graphs.

Clients of the official export feed `ImageTensor:0` and fetch `SemanticPredictions:0`
or one of the other outputs of `export_frozen_graph`.
"""

import dataclasses
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from deeplab_tf import strict_json
from deeplab_tf.arguments import check_arguments
from deeplab_tf.checkpoints.exported_graph import MODEL_CONSTANT
from deeplab_tf.config.options import SCALES, SIDE
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, one_line
from deeplab_tf.inference import Predictor
from deeplab_tf.models.checks import BUILT
from deeplab_tf.serving.artefact import read_file
from deeplab_tf.serving.choices import FROZEN
from deeplab_tf.serving.publication import publish_artefact, require_replaceable
from deeplab_tf.serving.saved_model import (
    ExportOptions,
    GraphPredictor,
    make_predictors,
)
from deeplab_tf.serving.signatures import (
    INPUT,
    OUTPUT,
    PROBABILITIES,
    ResizingPredictor,
    image_spec,
    make_official_outputs,
)

# A constant with the class names and colours, which clients ignore.
_INFO = "dataset_info"


@check_arguments(model=BUILT, scales=SCALES, crop_size=SIDE)
def export_frozen_graph(
    model: keras.Model,
    path: str,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop_size: tuple[int, int] | None = None,
    info: DatasetInfo | None = None,
    options: ExportOptions | None = None,
) -> None:
    """Writes a frozen graph that labels batches of images of any size.

    Its input is `ImageTensor:0`, uint8 `[batch, height, width, channels]`. Its outputs
    are those of the official export; a client only pays for what it fetches:

    - `SemanticPredictions:0`, int32 `[batch, height, width]`
    - `SemanticProbabilities:0`, float32 `[batch, height, width, num_classes]`
    - `RawSemanticPredictions:0` and `RawSemanticProbabilities:0`, both float32, with
      the padding and before images are resized to their original size

    Args:
        model: A model of `build_model`.
        path: File to write atomically, ending in `.pb`.
        scales: Scales over which to average probabilities.
        flip: Whether to also average over mirrored images.
        crop_size: Height and width to which images are padded; None is the next
            `k * output_stride + 1`.
        info: Class names and colours to store in the graph.
        options: Additional options; `window`, `upsampled_logits`, `resizing` and
            `fold_batch_norm` apply.

    Raises:
        UserError: if an argument is invalid, or `path` may not be replaced.
    """
    if not path.endswith(FROZEN):
        raise UserError(
            f"the name of a frozen graph must end in {FROZEN}; received {path}"
        )
    require_replaceable(path)
    options = options or ExportOptions()
    *_, predictor = make_predictors(model, scales, flip, crop_size, options)
    graph = _freeze_predictor(predictor)
    config = strict_json.dump(dataclasses.asdict(model.model_config))
    _add_text(graph, MODEL_CONSTANT, config)
    if info is not None:
        _add_text(graph, _INFO, info.to_json())
    with publish_artefact(path) as unfinished, open(unfinished, "wb") as file:
        file.write(graph.SerializeToString())


def _add_text(graph: tf.compat.v1.GraphDef, name: str, text: str) -> None:
    """Adds a string constant to a graph."""
    constant = graph.node.add(op="Const", name=name)
    constant.attr["dtype"].type = tf.string.as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text))


def _freeze_predictor(
    predictor: Predictor | ResizingPredictor,
) -> tf.compat.v1.GraphDef:
    """Returns a graph with the official outputs and constant weights."""
    spec = image_spec(predictor.config.channels)

    def serve(images: tf.Tensor) -> list[tf.Tensor]:
        outputs = make_official_outputs(predictor, images)
        return [tf.identity(x, name) for name, x in outputs.items()]

    concrete = tf.function(serve, autograph=False).get_concrete_function(spec)
    # Clients expect TF1's primitive loops and branches, to which this lowers them.
    return convert_variables_to_constants_v2(concrete).graph.as_graph_def()


class FrozenGraphPredictor(GraphPredictor):
    """A frozen graph, official or ours, loaded for evaluation and prediction.

    Labels come from `SemanticPredictions:0`; probabilities from
    `SemanticProbabilities:0`, if the graph has it. Pixels are rounded if the input
    `ImageTensor:0` is uint8.

    Raises:
        UserError: if the file is damaged, or has other inputs or outputs.
    """

    def __init__(self, path: str):
        content = _read_graph(path)
        graph = _import_graph(content, path)
        names = {operation.name for operation in graph.graph.get_operations()}
        if not {INPUT, OUTPUT} <= names:
            raise UserError(
                f"{path} must have the tensors {INPUT}:0 and {OUTPUT}:0, the input and "
                "the output of an exported frozen graph"
            )
        image = graph.graph.get_tensor_by_name(f"{INPUT}:0")
        score, classes = None, None
        if PROBABILITIES in names:
            score = _make_signature(graph, PROBABILITIES)
            classes = graph.graph.get_tensor_by_name(f"{PROBABILITIES}:0").shape[-1]
        super().__init__(
            path,
            _make_signature(graph, OUTPUT),
            score,
            tf.TensorSpec(image.shape, image.dtype, INPUT),
            "frozen graph",
            _find_info(content, path),
            classes,
        )


def _read_graph(path: str) -> tf.compat.v1.GraphDef:
    graph = tf.compat.v1.GraphDef()
    try:
        graph.ParseFromString(read_file(path))
    except DecodeError as error:
        raise _make_read_error(path, error) from error
    return graph


def _make_read_error(path: str, error: Exception) -> UserError:
    reason = one_line(str(error))
    return UserError(f"{path} cannot be read as a frozen graph: {reason}")


def _import_graph(
    content: tf.compat.v1.GraphDef, path: str
) -> tf.types.experimental.ConcreteFunction:
    def import_graph() -> None:
        tf.graph_util.import_graph_def(content, name="")

    try:
        return tf.compat.v1.wrap_function(import_graph, [])
    except (ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise _make_read_error(path, error) from error


def _make_signature(
    graph: tf.types.experimental.ConcreteFunction, name: str
) -> Callable[..., dict[str, tf.Tensor]]:
    """Returns a function from `ImageTensor` to one named output."""
    function = graph.prune(f"{INPUT}:0", {name: f"{name}:0"})
    return lambda **inputs: function(inputs[INPUT])


def _find_info(content: tf.compat.v1.GraphDef, path: str) -> DatasetInfo | None:
    """Returns the class names and colours stored in a graph, if any."""
    for node in content.node:
        if node.op == "Const" and node.name == _INFO:
            text = tf.make_ndarray(node.attr["value"].tensor).item()
            return DatasetInfo.from_json(text, f"{path}: {_INFO}")
    return None
