"""Exports a model for OpenVINO, for images of any size, and loads such models.

The file `NAME.xml` is the graph; the weights are next to it, in `NAME.bin`.
"""

import contextlib
import io
import os
import threading
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

import keras
import numpy as np

from deeplab_tf.arguments import check_arguments
from deeplab_tf.data.info import DatasetInfo
from deeplab_tf.errors import UserError, import_extra, one_line
from deeplab_tf.models.checks import BUILT
from deeplab_tf.serving import openvino_quantization
from deeplab_tf.serving.artefact import Artefact, read_file, round_to_uint8
from deeplab_tf.serving.calibration import (
    IMAGES,
    check_calibration,
    read_samples,
)
from deeplab_tf.serving.choices import OPENVINO, OPENVINO_PRECISIONS
from deeplab_tf.serving.layer_errors import LayerError
from deeplab_tf.serving.onnx_file import convert_to_onnx
from deeplab_tf.serving.onnx_quantization import find_layers
from deeplab_tf.serving.publication import (
    publish_artefact,
    require_replaceable,
    weights_path,
)
from deeplab_tf.serving.signatures import INPUT, OUTPUT, PROBABILITIES

if TYPE_CHECKING:
    import onnx
    import openvino

# Keys of the graph's metadata.
_INFO, _PRECISION = ["deeplab_tf", "dataset_info"], ["deeplab_tf", "precision"]


@check_arguments(model=BUILT, precision=OPENVINO_PRECISIONS, calibration=IMAGES)
def export_openvino(
    model: keras.Model,
    path: str,
    probabilities: bool = False,
    precision: str = "float32",
    calibration: Iterable | None = None,
    info: DatasetInfo | None = None,
    float_layers: Collection[str] = (),
) -> None:
    """Writes a model for OpenVINO that labels batches of images of any size.

    Inputs and outputs are those of `export_onnx`.

    Args:
        model: A float32 model of `build_model`, or a quantised one of `Trainer`.
        path: File to write, ending in `.xml`; the weights go to the file of the same
            name that ends in `.bin`.
        probabilities: Whether to also output `SemanticProbabilities`, float32 `[batch,
            height, width, num_classes]`.
        precision: "float32"; "float16" stores 16-bit weights; "bfloat16" stores float32
            and computes in bfloat16 where the CPU can; "int8" computes in 8 bits
            (NNCF's post-training quantisation, or the ranges of a quantised model).
        calibration: For int8, unless the model is quantised, images from which to
            measure the range of activations: `[height, width, channels]` or `[batch,
            height, width, channels]`, RGB 0..255, or the batches of `load_dataset(...,
            training=False)`. A hundred are enough.
        info: Class names and colours to store in the file.
        float_layers: For int8, names of layers to leave in float32.

    Raises:
        UserError: if a converter is not installed, an argument is invalid, or `path`
            may not be replaced.
    """
    if not path.endswith(OPENVINO):
        raise UserError(
            f"the name of an OpenVINO file must end in {OPENVINO}; received {path}"
        )
    require_replaceable(path)
    check_calibration(model, precision, calibration)
    needed_by = f"{path}: OpenVINO files need"
    engine = import_extra("openvino", "export", needed_by)
    if calibration is not None:
        import_extra("nncf", "export", f"{path}: int8 needs")
    samples = None if calibration is None else read_samples(calibration)
    converted = convert_to_onnx(model, probabilities, needed_by)
    graph = convert_to_openvino(converted)
    if samples is not None:
        layers = find_layers(converted.graph)
        graph = openvino_quantization.quantize(graph, samples, layers, float_layers)
    with publish_artefact(path) as unfinished:
        graph.set_rt_info(precision, _PRECISION)
        if info is not None:
            graph.set_rt_info(info.to_json(), _INFO)
        engine.save_model(graph, unfinished, compress_to_fp16=precision == "float16")


def convert_to_openvino(converted: "onnx.ModelProto") -> "openvino.Model":
    """Returns the graph of a model of `convert_to_onnx`."""
    import openvino

    # Not read_model, which leaves biases in a form that NNCF does not recognise.
    return openvino.convert_model(io.BytesIO(converted.SerializeToString()))


def measure_layer_errors(
    model: keras.Model, path: str, images: Iterable[np.ndarray]
) -> list[LayerError]:
    """Returns the error of each layer of an int8 file of `export_openvino`.

    `images` are uint8 `[1, height, width, channels]`.
    """
    import openvino

    rounded = _read_graph(openvino.Core(), path)
    converted = convert_to_onnx(model, False, f"{path}: int8 needs")
    layers, exact = find_layers(converted.graph), convert_to_openvino(converted)
    return openvino_quantization.measure_layer_errors(exact, rounded, layers, images)


class OpenVinoPredictor(Artefact):
    """A model of `export_openvino`, loaded for evaluation and prediction.

    It computes in float32 or, if exported so, in bfloat16 or int8.

    Raises:
        UserError: if a file is missing or damaged or has other inputs or outputs,
            OpenVINO is not installed, or another malloc is preloaded.
    """

    def __init__(self, path: str):
        preloaded = os.environ.get("LD_PRELOAD", "")
        if "malloc" in preloaded:
            raise UserError(
                f"{path}: OpenVINO crashes with LD_PRELOAD={preloaded}; unset "
                "LD_PRELOAD"
            )
        engine = import_extra("openvino", "export", f"{path}: OpenVINO files need")
        core = engine.Core()
        graph = _read_graph(core, path)
        inputs, outputs = (
            {name: port for port in ports for name in port.names}
            for ports in (graph.inputs, graph.outputs)
        )
        if set(inputs) != {INPUT} or OUTPUT not in outputs:
            raise UserError(
                f"{path} has the inputs {sorted(inputs)} and outputs "
                f"{sorted(outputs)}; {INPUT} and {OUTPUT} are needed"
            )
        with _translate_errors(path):
            info, precision = (_read_metadata(graph, k) for k in (_INFO, _PRECISION))
            hint = "bf16" if precision == "bfloat16" else "f32"
            self._compiled = core.compile_model(
                graph, "CPU", {"INFERENCE_PRECISION_HINT": hint}
            )
        self._threads = threading.local()
        scores = outputs.get(PROBABILITIES)
        protocol = {"artefact": "OpenVINO"}
        super().__init__(
            path,
            _find_fixed_side(inputs[INPUT], -1),
            DatasetInfo.from_json(info, f"{path}: {_INFO[-1]}") if info else None,
            protocol | ({"precision": precision} if precision else {}),
            scores is not None,
            scores and _find_fixed_side(scores, -1),
        )

    def _run(self, output: str, images: np.ndarray) -> np.ndarray:
        """Returns one of the outputs for uint8 images or images to be rounded."""
        with _translate_errors(self._path):
            # A request is busy while a thread runs it.
            if not hasattr(self._threads, "request"):
                self._threads.request = self._compiled.create_infer_request()
            results = self._threads.request.infer({INPUT: round_to_uint8(images)})
        # A copy, because OpenVINO reuses the memory of its outputs.
        return np.array(results[output])

    def _labels(self, images: np.ndarray) -> np.ndarray:
        return self._run(OUTPUT, images)

    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        return self._run(PROBABILITIES, images)


@contextlib.contextmanager
def _translate_errors(path: str) -> Iterator[None]:
    """Converts OpenVINO's errors to UserError."""
    try:
        yield
    except (RuntimeError, UnicodeDecodeError) as error:
        reason = one_line(str(error).strip().splitlines()[-1])
        raise UserError(
            f"{path} cannot be read as an OpenVINO file: {reason}"
        ) from error


def _read_graph(core: "openvino.Core", path: str) -> "openvino.Model":
    content, weights = read_file(path), read_file(weights_path(path))
    with _translate_errors(path):
        return core.read_model(content, weights)


def _read_metadata(graph: "openvino.Model", key: list[str]) -> str | None:
    return str(graph.get_rt_info(key).value) if graph.has_rt_info(key) else None


def _find_fixed_side(port: "openvino.Output", axis: int) -> int | None:
    """Returns the length of an axis, or None if it can vary."""
    side = port.partial_shape[axis]
    return side.get_length() if side.is_static else None
